//! What shards hold, in numbers: kinds of samples, sizes of pictures, lengths of texts, and what thresholds of
//! similarity would keep.

mod collect;
mod distribution;
mod sample;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde::Serialize;

pub use distribution::{Distribution, Histogram};

use crate::loader::{open, shown};
use crate::prepare::{BATCH, BATCH_BYTES, read_lines};
use crate::{DataError, DocumentRules, PrepareError, Sample, Tokenizer, read_samples};
use collect::Collector;
use sample::{Facts, facts, facts_of_line};

/// How shards are looked at.
#[derive(Clone, Default)]
pub struct InspectOptions {
    /// What a document must be to be learnt from; thresholds are those that are compared.
    pub rules: DocumentRules,
    /// Counts the tokens of texts.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

/// What shards hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Files that were read.
    pub shards: u64,
    /// Samples by kind.
    pub samples: Samples,
    /// Members by extension; lines of a file of documents count as `json`.
    pub members: BTreeMap<String, Members>,
    /// What was left out of shards, by kind.
    pub damage: BTreeMap<String, u64>,
    /// Pictures by format.
    pub formats: BTreeMap<String, u64>,
    /// Pictures and texts that cannot be used, by kind.
    pub unusable: BTreeMap<String, u64>,
    /// Widths of pictures, in pixels.
    pub width: Option<Distribution>,
    /// Heights of pictures, in pixels.
    pub height: Option<Distribution>,
    /// Sizes of picture files, in bytes.
    pub picture_bytes: Option<Distribution>,
    /// Captions of pairs.
    pub captions: Texts,
    /// Texts of documents, generated ones included.
    pub texts: Texts,
    /// Pictures in each document.
    pub pictures_per_document: Option<Distribution>,
    /// Similarity of each picture to the sentence that it goes to.
    pub similarity: Histogram,
    /// What thresholds keep: of the documents, and of the pictures in `similarity`.
    pub thresholds: Vec<Kept>,
}

/// Samples by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Samples {
    /// A picture and its caption.
    pub pairs: u64,
    /// Web pages with pictures.
    pub documents: u64,
    /// Sequences that a language model wrote.
    pub generated: u64,
    /// Anything else.
    pub unknown: u64,
}

/// Members of one extension.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Members {
    /// How many.
    pub count: u64,
    /// Bytes of all.
    pub bytes: u64,
}

/// Lengths of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Texts {
    /// In characters.
    pub characters: Option<Distribution>,
    /// In tokens, where there is a tokenizer, without marks.
    pub tokens: Option<Distribution>,
}

/// What a threshold of similarity keeps. What training decides by chance or by tokens is left aside: it drops every
/// second document of one picture, and cuts long ones off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Kept {
    /// The least similarity.
    pub threshold: f64,
    /// Documents with enough pictures.
    pub documents: u64,
    /// Pictures in them, no more of each than the rules allow.
    pub pictures: u64,
}

/// Looks at shards, and at MMC4's files as they are published (`.jsonl`, `.zip`), whose pictures are elsewhere and
/// count as if they were there. Tar files may lie on other machines, as in training. Memory does not grow with them: of
/// more than 65,536 numbers, quantiles are those of a sample, the same each time. `on_progress` gets the bytes that were
/// read since the last time.
///
/// # Errors
/// [`PrepareError`] if a file cannot be opened, or no file holds a sample.
pub fn inspect(
    shards: &[String],
    options: &InspectOptions,
    on_progress: &mut dyn FnMut(u64),
) -> Result<Summary, PrepareError> {
    let mut collector = Collector::new(options);
    let mut empty = Vec::new();
    for shard in shards {
        let path = Path::new(shard);
        collector.shards += 1;
        let before = collector.seen();
        if path.extension().is_some_and(|extension| ["jsonl", "json", "zip"].iter().any(|known| extension == *known)) {
            if shard.contains("://") {
                let why = format!(
                    "{} is not here: only tar files are read from other machines, fetch it first",
                    shown(shard)
                );
                return Err(DataError::Shards(why).into());
            }
            documents(path, &mut collector, on_progress)?;
        } else {
            samples(shard, &mut collector, on_progress)?;
        }
        if collector.seen() == before {
            empty.push(shard);
        }
    }
    if collector.seen() == 0 {
        let which = if let [shard] = shards { shown(shard) } else { "none of the files".into() };
        let holds = if shards.len() == 1 { "holds no" } else { "holds a" };
        return Err(PrepareError::Nothing(format!(
            "{which} {holds} sample: give tar files with members such as 1.jpg and 1.txt or 1.json, or a .jsonl of documents"
        )));
    }
    empty.into_iter().for_each(|shard| tracing::warn!(shard = shown(shard), "holds no samples"));
    Ok(collector.finish())
}

/// Samples of a tar file. They are looked at side by side and counted in their order, so that numbers are the same
/// each time.
fn samples(shard: &str, collector: &mut Collector<'_>, on_progress: &mut dyn FnMut(u64)) -> Result<(), DataError> {
    let file = open(shard, &Arc::default())?;
    let options = collector.options;
    let mut look = |batch: &mut Vec<Sample>| {
        let found: Vec<Facts> = batch.par_iter().map(|sample| facts(sample, options)).collect();
        batch.clear();
        on_progress(found.iter().map(Facts::bytes).sum());
        found.into_iter().for_each(|facts| collector.add(facts));
    };
    let mut batch = Vec::new();
    let skipped = read_samples(file, &mut |sample| {
        batch.push(sample);
        if batch.len() == BATCH {
            look(&mut batch);
        }
        ControlFlow::Continue(())
    });
    look(&mut batch);
    collector.damaged(skipped);
    Ok(())
}

/// Documents of a file with one a line.
fn documents(path: &Path, collector: &mut Collector<'_>, on_progress: &mut dyn FnMut(u64)) -> Result<(), PrepareError> {
    let options = collector.options;
    let mut look = |batch: &mut Vec<Vec<u8>>| {
        let found: Vec<Facts> = batch.par_iter().map(|line| facts_of_line(line, options)).collect();
        batch.clear();
        on_progress(found.iter().map(Facts::bytes).sum());
        found.into_iter().for_each(|facts| collector.add(facts));
    };
    let (mut batch, mut held) = (Vec::new(), 0);
    read_lines(path, &mut |line| {
        held += line.len();
        batch.push(line.to_vec());
        if batch.len() == BATCH || held > BATCH_BYTES {
            held = 0;
            look(&mut batch);
        }
        Ok(())
    })?;
    look(&mut batch);
    Ok(())
}
