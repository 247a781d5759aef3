//! Pictures and their captions as shards.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use image::ImageFormat;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::error::extension;
use super::picture::{HIGH_QUALITY, as_jpeg, decode, read, shrunk};
use super::writer::ShardWriter;
use super::{BATCH, Counts, Unusable, count, listed, read_lines, size};
use crate::{DataError, PrepareError};

/// Extensions of pictures in a folder.
const PICTURES: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// What is made of pictures and captions.
#[derive(Clone, Debug)]
pub struct PackOptions {
    /// Folder of the shards, which must not be there, or empty.
    pub output: PathBuf,
    /// Pairs in each shard.
    pub samples_per_shard: usize,
    /// Pictures whose shorter side is longer are made smaller, as JPEG; files stay as they are without it.
    pub resize: Option<u32>,
}

/// What became of pictures and captions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// Pairs that were written.
    pub pairs: u64,
    /// Shards that hold them.
    pub shards: usize,
    /// Bytes of the shards.
    pub bytes: u64,
    /// Pairs that were not written, by reason.
    pub left_out: BTreeMap<String, u64>,
}

/// A pair as it is found.
struct Source {
    image: PathBuf,
    text: Text,
}

enum Text {
    File(PathBuf),
    Here(String),
}

/// A pair to be written: extension, picture, caption.
type Pair = Result<(&'static str, Vec<u8>, Vec<u8>), Unusable>;

/// Makes shards of a folder, in which each picture has a `.txt` of its name beside it, or of lines
/// `{"image": "path", "text": "…"}`, whose paths begin at the file's folder. What cannot be used is counted.
/// `on_progress` gets how much of the input was read, and of how much.
///
/// # Errors
/// [`PrepareError`] if the input cannot be read, a shard cannot be written, or no pair is usable.
pub fn pack(
    input: &Path,
    options: &PackOptions,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<PackReport, PrepareError> {
    let mut writer = ShardWriter::new(&options.output, 4, options.samples_per_shard)?;
    let mut report = PackReport::default();
    let mut write = |sources: &mut Vec<Result<Source, Unusable>>| -> Result<(), PrepareError> {
        let pair = |source: &Result<Source, Unusable>| pair(source.as_ref().map_err(Unusable::clone)?, options.resize);
        let pairs: Vec<Pair> = sources.par_iter().map(pair).collect();
        sources.clear();
        for pair in pairs {
            match pair {
                Ok((extension, picture, text)) => {
                    writer.add(&[(extension, &picture), ("txt", &text)])?;
                    report.pairs += 1;
                }
                Err(reason) => count(&mut report.left_out, reason),
            }
        }
        Ok(())
    };
    let mut batch = Vec::new();
    if input.is_dir() {
        let mut files = Vec::new();
        list(input, &mut files)?;
        let total = files.len() as u64;
        for (done, image) in files.into_iter().enumerate() {
            batch.push(Ok(Source { text: Text::File(image.with_extension("txt")), image }));
            if batch.len() == BATCH {
                write(&mut batch)?;
                on_progress(done as u64, total);
            }
        }
    } else {
        let folder = input.parent().unwrap_or(Path::new(""));
        let (mut done, total) = (0, size(input)?);
        read_lines(input, &mut |line| {
            done += line.len() as u64 + 1;
            batch.push(source(line, folder));
            if batch.len() == BATCH {
                write(&mut batch)?;
                on_progress(done, total);
            }
            Ok(())
        })?;
    }
    write(&mut batch)?;
    if report.pairs == 0 {
        return Err(PrepareError::Nothing(nothing(input, &report.left_out)));
    }
    (report.shards, report.bytes) = writer.finish()?;
    Ok(report)
}

/// Why there is nothing to write, and what would be.
fn nothing(input: &Path, left_out: &Counts) -> String {
    let wanted = match input.is_dir() {
        true => "put a .txt of the same name beside each picture",
        false => "each line must be {\"image\": \"path\", \"text\": \"…\"}, with paths from the file's folder",
    };
    let found = if left_out.is_empty() { "no pictures".to_string() } else { listed(left_out) };
    format!("{} holds no usable pair ({found}): {wanted}", input.display())
}

/// All pictures of a folder and of those in it, in the order of their names.
fn list(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), PrepareError> {
    let io = |source| DataError::Io { path: folder.into(), source };
    let mut entries = std::fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(io)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let lower = path.extension().unwrap_or_default().to_ascii_lowercase();
        // Links to folders are not followed: they may lead in circles.
        if entry.file_type().map_err(io)?.is_dir() {
            list(&path, files)?;
        } else if PICTURES.iter().any(|known| lower == *known) {
            files.push(path);
        }
    }
    Ok(())
}

#[derive(Deserialize)]
struct Line {
    image: PathBuf,
    #[serde(alias = "caption")]
    text: String,
}

fn source(line: &[u8], folder: &Path) -> Result<Source, Unusable> {
    let line: Line = serde_json::from_slice(line).map_err(|_| Unusable::Line)?;
    Ok(Source { image: folder.join(line.image), text: Text::Here(line.text) })
}

fn pair(source: &Source, resize: Option<u32>) -> Pair {
    let text = match &source.text {
        Text::Here(text) => text.clone().into_bytes(),
        Text::File(path) => read(path).map_err(|reason| match reason {
            Unusable::Missing => Unusable::NoText,
            other => other,
        })?,
    };
    if std::str::from_utf8(&text).map_err(|_| Unusable::Text)?.trim().is_empty() {
        return Err(Unusable::EmptyText);
    }
    let bytes = read(&source.image)?;
    let (format, picture) = decode(&bytes)?;
    let stays = matches!(format, ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::WebP);
    let smaller = resize.map(|side| shrunk(&picture, side)).transpose()?.flatten();
    match smaller {
        Some(smaller) => Ok(("jpg", smaller, text)),
        None if stays => Ok((extension(format), bytes, text)),
        // Shards have no member for other formats.
        None if resize.is_some() => Ok(("jpg", as_jpeg(&picture, HIGH_QUALITY)?, text)),
        None => Err(Unusable::Format(format)),
    }
}
