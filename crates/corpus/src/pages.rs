//! Documents with pictures: pages of scikit-learn's documentation, in MMC4's form.

use std::collections::BTreeMap;
use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::imageops;
use rayon::prelude::*;
use serde_json::{Value, json};

use crate::CorpusError;
use crate::html::{Piece, pieces};
use crate::packages::Packages;

const FILE: &str = "python-sklearn-doc_1.2.1+dfsg-1_all.deb";

/// Where the pages are, in the package.
const ROOT: &str = "/share/doc/python-sklearn-doc/html/";

/// Pages about something; others hold logos.
const FOLDERS: [&str; 3] = ["auto_examples/", "modules/", "tutorial/"];

/// Longer side of a figure.
const FIGURE: u32 = 128;

/// Sentences kept before a picture and after it.
const AROUND: usize = 3;

/// Most pictures of a document; longer pages become several.
const MAX_PICTURES: usize = 4;

/// A document.
pub(crate) struct Page {
    pub(crate) sentences: Vec<String>,
    /// PNG files, each with the sentence that it belongs to.
    pub(crate) pictures: Vec<(Vec<u8>, usize)>,
}

/// The documents of the package; `None` where there is no Debian to get it from.
pub(crate) fn open(packages: &Packages) -> Result<Option<Vec<Page>>, CorpusError> {
    let wanted = |path: &str| {
        path.split_once(ROOT).is_some_and(|(_, path)| {
            path.starts_with("_images/") && path.ends_with(".png")
                || path.ends_with(".html") && FOLDERS.iter().any(|start| path.starts_with(start))
        })
    };
    let Some(files) = packages.debian(FILE, &wanted)? else { return Ok(None) };
    let files: BTreeMap<&str, &[u8]> =
        files.iter().filter_map(|(path, bytes)| Some((path.split_once(ROOT)?.1, bytes.as_slice()))).collect();
    let pages: Vec<&[u8]> = files.iter().filter(|(path, _)| path.ends_with(".html")).map(|(_, page)| *page).collect();
    let documents = pages.par_iter().map(|page| documents(&String::from_utf8_lossy(page), &files));
    Ok(Some(documents.flatten_iter().collect()))
}

/// Cuts a page into documents: the text around some pictures that follow each other.
fn documents(page: &str, files: &BTreeMap<&str, &[u8]>) -> Vec<Page> {
    let mut sentences: Vec<String> = Vec::new();
    let mut figures: Vec<(Vec<u8>, usize)> = Vec::new();
    for piece in pieces(page) {
        match piece {
            // Thumbnails have their title written under them again.
            Piece::Sentence(sentence) if sentences.last() == Some(&sentence) => {}
            Piece::Sentence(sentence) => sentences.push(sentence),
            Piece::Picture { file, title } => {
                let bytes = files.get(format!("_images/{file}").as_str());
                let Some(figure) = bytes.and_then(|bytes| figure(bytes)) else { continue };
                // What is written under a picture says what it shows; else, what stands before it.
                sentences.extend(title);
                figures.extend(sentences.len().checked_sub(1).map(|at| (figure, at)));
            }
        }
    }
    figures.chunks(MAX_PICTURES).map(|group| around(&sentences, group)).collect()
}

/// The document of some pictures: only sentences near to one of them.
fn around(sentences: &[String], figures: &[(Vec<u8>, usize)]) -> Page {
    let near = |at: usize| figures.iter().any(|(_, place)| at + AROUND >= *place && at < *place + AROUND);
    let kept: Vec<usize> = (0..sentences.len()).filter(|&at| near(at)).collect();
    let place = |at: usize| kept.partition_point(|&kept| kept < at);
    Page {
        sentences: kept.iter().map(|&at| sentences[at].clone()).collect(),
        pictures: figures.iter().map(|(figure, at)| (figure.clone(), place(*at))).collect(),
    }
}

/// A figure made small, as PNG; `None` for a damaged one.
fn figure(bytes: &[u8]) -> Option<Vec<u8>> {
    let pixels = image::load_from_memory(bytes).ok()?;
    // Figures are drawn for white paper.
    let mut paper = image::RgbaImage::from_pixel(pixels.width(), pixels.height(), image::Rgba([255; 4]));
    imageops::overlay(&mut paper, &pixels, 0, 0);
    let small = image::DynamicImage::ImageRgba8(paper).resize(FIGURE, FIGURE, imageops::FilterType::Triangle);
    let mut png = Cursor::new(Vec::new());
    small.into_rgb8().write_to(&mut png, image::ImageFormat::Png).ok()?;
    Some(png.into_inner())
}

impl Page {
    /// MMC4's form: similarity falls with the distance between picture and sentence.
    pub(crate) fn json(&self) -> Vec<u8> {
        let similarity = |place: usize| -> Vec<Value> {
            (0..self.sentences.len()).map(|at| json!(1.0 / (1 + at.abs_diff(place)) as f64)).collect()
        };
        let infos: Vec<Value> = self
            .pictures
            .iter()
            .enumerate()
            .map(|(number, (picture, place))| {
                json!({
                    "image_name": format!("{number}.png"),
                    "matched_text_index": place,
                    "matched_sim": 1.0,
                    "image_base64": STANDARD.encode(picture),
                })
            })
            .collect();
        let rows: Vec<Vec<Value>> = self.pictures.iter().map(|(_, place)| similarity(*place)).collect();
        json!({ "text_list": self.sentences, "image_info": infos, "similarity_matrix": rows }).to_string().into_bytes()
    }
}
