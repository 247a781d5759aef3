//! Shards made of what lies on disk: MMC4's documents and their pictures, folders and lists of pairs.

mod convert;
mod error;
mod lines;
mod pack;
mod picture;
mod writer;

use std::collections::BTreeMap;

pub use convert::{ConvertOptions, ConvertReport, convert_mmc4};
pub use error::PrepareError;
pub(crate) use error::{Unusable, extension};
pub(crate) use lines::{open, read_lines, size};
pub use pack::{PackOptions, PackReport, pack};
pub(crate) use picture::{decode, jpeg};

/// Samples that are worked on at the same time, and so are in memory.
pub(crate) const BATCH: usize = 32;

/// Bytes of lines after which a batch is full whatever it holds.
pub(crate) const BATCH_BYTES: usize = 1 << 28;

/// How many of each kind.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Counts one more of a kind.
pub(crate) fn count(counts: &mut Counts, kind: impl ToString) {
    *counts.entry(kind.to_string()).or_default() += 1;
}

/// Counts as a sentence has them: `2 not found, 1 damaged jpg`.
fn listed(counts: &Counts) -> String {
    counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ")
}
