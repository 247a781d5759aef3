//! Pictures and text as upstream reads them: decoding, resizing, normalisation, tokenisation. Knows no tensor
//! library.

mod error;
mod image;
mod prompt;
mod text;

// A browser has no files, so nothing to train on.
#[cfg(not(target_arch = "wasm32"))]
mod assignment;
#[cfg(not(target_arch = "wasm32"))]
mod documents;
#[cfg(not(target_arch = "wasm32"))]
mod examples;
#[cfg(not(target_arch = "wasm32"))]
mod files;
#[cfg(not(target_arch = "wasm32"))]
mod inspect;
#[cfg(not(target_arch = "wasm32"))]
mod loader;
#[cfg(not(target_arch = "wasm32"))]
mod patterns;
#[cfg(not(target_arch = "wasm32"))]
mod prepare;
#[cfg(not(target_arch = "wasm32"))]
mod shards;
#[cfg(not(target_arch = "wasm32"))]
mod streams;

pub use error::DataError;
pub use image::{ConvertOrder, ImageTransform, MAX_PIXELS, Picture};
pub use prompt::{Interleaved, Part, assemble, check_marks, few_shot};
pub use text::{
    Batch, ENDOFCHUNK, IMAGE, PAD, PaddingSide, SpecialTokens, TextStream, Tokenizer, pad_batch, printable,
};
#[cfg(not(target_arch = "wasm32"))]
pub use {
    documents::{Document, DocumentRules, Rejected},
    examples::{Documents, Example, Pairs},
    files::write_whole,
    inspect::{Distribution, Histogram, InspectOptions, Kept, Members, Samples, Summary, Texts, inspect},
    loader::{Decode, Loader, LoaderOptions, Position, WorkerPosition, find_shards},
    patterns::expand,
    prepare::{ConvertOptions, ConvertReport, PackOptions, PackReport, PrepareError, convert_mmc4, pack},
    shards::{Sample, Skipped, read_samples},
    streams::{IGNORE, Stream, pair_ids},
};
