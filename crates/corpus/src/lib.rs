//! The pictures and texts that the tiny models are trained and judged on, made from published packages.
//!
//! Emoji in six drawing styles with Unicode's names, groups and sub-groups; a seventh style, and 150 concepts of all
//! styles, are kept out of training to judge by. Geometric shapes with questions (easy-VQA). Scenes of several emoji,
//! whose truth is known because they are composed here. From these: captioned pictures, and sequences in which a few
//! examples define a task. And pages of scikit-learn's documentation as interleaved documents; from the sequences,
//! [`Albums`]: documents with pictures that do not belong.
//!
#![doc = include_str!("licences.md")]

mod albums;
mod colour;
mod concepts;
mod drawing;
mod easy_vqa;
mod evaluation;
mod html;
mod looks;
mod packages;
mod pages;
mod random;
mod scenes;
mod sequences;
mod shards;
mod words;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use rayon::prelude::*;

pub use albums::{Albums, Placed};
use concepts::Concept;
use drawing::Drawing;
use random::Random;
use shards::{Member, Shards};

/// The licences of what the corpus is made of, which go where it goes.
const LICENCES: &str = include_str!("licences.md");

/// Why the corpus cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// A package cannot be had, or is not what it was.
    #[error("{0}")]
    Package(String),
    /// Something in a package is not as expected.
    #[error("{package}: {reason}")]
    Content {
        /// The package.
        package: String,
        /// What is wrong.
        reason: String,
    },
    /// The file system refused.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl CorpusError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn content(package: &str, reason: impl std::fmt::Display) -> Self {
        Self::Content { package: package.into(), reason: reason.to_string() }
    }
}

/// How much is made.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Few-shot sequences.
    pub sequences: usize,
    /// Variants of a picture among the captioned ones, on average.
    pub variants: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { sequences: 60_000, variants: 56 }
    }
}

/// What is learnt from, and what is judged by.
pub(crate) struct Split {
    /// Drawings of all styles but one, and of all concepts but those that are held out.
    pub(crate) train: Vec<Drawing>,
    /// The drawings of that style.
    pub(crate) test: Vec<Drawing>,
    /// Concepts that are to be named, in order.
    pub(crate) named: Vec<usize>,
}

impl Split {
    pub(crate) fn new(drawings: Vec<Drawing>, concepts: &[Concept]) -> Self {
        let (test, train): (Vec<_>, Vec<_>) = drawings.into_iter().partition(|d| d.style == concepts::TEST_STYLE);
        let named = concepts::named(concepts, &train, &test);
        let train = train.into_iter().filter(|d| !concepts[d.concept].held_out).collect();
        Self { train, test, named }
    }
}

/// Fetches the packages into `out/packages` and makes everything else from them, equal for equal seeds. Returns counts
/// for people to read.
///
/// # Errors
/// [`CorpusError`] if a package cannot be had or the disk is full.
pub fn make(
    out: &Path,
    seed: u64,
    sizes: Sizes,
    on_progress: &(dyn Fn(&str) + Sync),
) -> Result<serde_json::Value, CorpusError> {
    // What it says is no longer so once shards are made anew.
    let summary_file = out.join("summary.json");
    match std::fs::remove_file(&summary_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(CorpusError::io(&summary_file)(error));
        }
        _ => {}
    }
    on_progress("packages");
    let packages = packages::fetch(&out.join("packages"))?;
    let concepts = concepts::read(&packages)?;
    on_progress("drawings");
    let drawings = drawing::read(&packages, &concepts)?;
    let Split { train, test, named } = Split::new(drawings, &concepts);
    let shapes = easy_vqa::read(&packages)?;

    on_progress("variants");
    let variants: Vec<Vec<Vec<u8>>> = train
        .par_iter()
        .enumerate()
        .map(|(i, d)| {
            // What is to be named is seen more often than flags, clocks and people of all professions.
            let named = named.binary_search(&d.concept).is_ok();
            let count = if named { sizes.variants * 2 } else { sizes.variants * 3 / 4 };
            d.variants(seed, i, count.max(drawing::OWN_COLOURS), &concepts)
        })
        .collect();

    on_progress("captioned pictures");
    let mut random = Random::new(seed, "pairs");
    let mut texts: Vec<String> = Vec::new();
    let mut pairs: Vec<(Vec<u8>, String)> = Vec::new();
    for (drawing, variants) in train.iter().zip(&variants) {
        for (variant, png) in variants.iter().enumerate() {
            let colour = if drawing.is_recoloured(variant, &concepts) { None } else { drawing.colour };
            pairs.push((png.clone(), words::caption(&concepts[drawing.concept], colour, &mut random)));
        }
    }
    let emoji = pairs.len();
    for (png, caption) in easy_vqa::captions(&shapes.train, emoji / 10, &mut random) {
        pairs.push((png, caption));
    }
    let scenes = scenes::many(&train, &concepts, &named, emoji / 7, seed, "scenes of pairs");
    pairs.extend(scenes.iter().map(|scene| (scene.png.clone(), scene.caption.clone())));
    random.shuffle(&mut pairs);
    let folder = out.join("shards");
    let mut shards = Shards::new(&folder, "pairs", 2000)?;
    for (png, caption) in &pairs {
        shards.add(&[
            Member { extension: "png", content: png },
            Member { extension: "txt", content: caption.as_bytes() },
        ])?;
        texts.push(caption.clone());
    }
    shards.finish()?;

    on_progress("few-shot sequences");
    let scenes = scenes::many(&train, &concepts, &named, 12_000, seed, "scenes of sequences");
    let pool = sequences::Pool::new(&train, &concepts, &named, &variants, &shapes.train, &scenes);
    let mut shards = Shards::new(&folder, "tasks", 1000)?;
    let mut random = Random::new(seed, "sequences");
    let mut by_task = std::collections::BTreeMap::<&str, usize>::new();
    let mut small = Vec::new();
    for i in 0..sizes.sequences {
        let sequence = pool.sequence(&mut random);
        *by_task.entry(sequence.task).or_default() += 1;
        let json = sequence.json();
        shards.add(&[Member { extension: "json", content: json.as_bytes() }])?;
        if i < 120 && sequence.pictures.len() < 6 {
            small.push(json);
        }
        if i < 20_000 {
            texts.push(sequence.text());
        }
    }
    shards.finish()?;

    on_progress("documents");
    let mut documents = 0;
    if let Some(pages) = pages::open(&packages)? {
        let mut shards = Shards::new(&out.join("shards"), "docs", 300)?;
        for page in &pages {
            shards.add(&[Member { extension: "json", content: &page.json() }])?;
        }
        shards.finish()?;
        documents = pages.len();
    }

    on_progress("small shards");
    let folder = out.join("small");
    let mut shards = Shards::new(&folder, "pairs", 60)?;
    for (png, caption) in pairs.iter().take(120) {
        shards.add(&[
            Member { extension: "png", content: png },
            Member { extension: "txt", content: caption.as_bytes() },
        ])?;
    }
    shards.finish()?;
    let mut shards = Shards::new(&folder, "tasks", 25)?;
    for json in small.iter().take(50) {
        shards.add(&[Member { extension: "json", content: json.as_bytes() }])?;
    }
    shards.finish()?;

    on_progress("tokenizer");
    words::tokenizer(&texts, &out.join("tokenizer"))?;
    on_progress("evaluation");
    let items = evaluation::write(&out.join("eval"), &test, &concepts, &named, &shapes, seed)?;

    let styles = |all: &[Drawing]| {
        let mut counts = std::collections::BTreeMap::<&str, usize>::new();
        all.iter().for_each(|d| *counts.entry(d.style).or_default() += 1);
        counts
    };
    let names: Vec<&str> = named.iter().map(|&concept| concepts[concept].name.as_str()).collect();
    let summary = serde_json::json!({
        "seed": seed,
        "concepts": concepts.len(),
        "held_out": concepts.iter().filter(|c| c.held_out).count(),
        "training_drawings": styles(&train),
        "test_drawings": styles(&test),
        "pairs": pairs.len(),
        "sequences": by_task,
        "documents": documents,
        "evaluation": items,
        "left_out": packages.left_out,
        "named": names,
    });
    shards::write(&out.join("LICENCES.md"), LICENCES.as_bytes())?;
    shards::write(&summary_file, format!("{summary:#}\n").as_bytes())?;
    Ok(summary)
}
