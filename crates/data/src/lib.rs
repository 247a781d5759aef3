//! Pictures and text as upstream reads them: decoding, resizing, normalisation, tokenisation. Knows no tensor
//! library.

mod assignment;
mod documents;
mod error;
mod examples;
mod image;
mod loader;
mod prompt;
mod shards;
mod streams;
mod text;

pub use documents::{Document, DocumentRules, Rejected};
pub use error::DataError;
pub use examples::{Documents, Example, Pairs};
pub use image::{ConvertOrder, ImageTransform, MAX_PIXELS, Picture};
pub use loader::{Decode, Loader, LoaderOptions, Position, WorkerPosition, find_shards};
pub use prompt::{Interleaved, Part, assemble, check_marks, few_shot};
pub use shards::{Sample, Skipped, expand, read_samples};
pub use streams::{IGNORE, Stream, pair_ids};
pub use text::{
    Batch, ENDOFCHUNK, IMAGE, PAD, PaddingSide, SpecialTokens, TextStream, Tokenizer, pad_batch, printable,
};
