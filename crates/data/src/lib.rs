//! Pictures and text as upstream reads them: decoding, resizing, normalisation, tokenisation. Knows no tensor
//! library.

mod assignment;
mod documents;
mod error;
mod examples;
mod files;
mod image;
mod inspect;
mod loader;
mod prepare;
mod prompt;
mod shards;
mod streams;
mod text;

pub use documents::{Document, DocumentRules, Rejected};
pub use error::DataError;
pub use examples::{Documents, Example, Pairs};
pub use files::write_whole;
pub use image::{ConvertOrder, ImageTransform, MAX_PIXELS, Picture};
pub use inspect::{Distribution, Histogram, InspectOptions, Kept, Members, Samples, Summary, Texts, inspect};
pub use loader::{Decode, Loader, LoaderOptions, Position, WorkerPosition, find_shards};
pub use prepare::{ConvertOptions, ConvertReport, PackOptions, PackReport, PrepareError, convert_mmc4, pack};
pub use prompt::{Interleaved, Part, assemble, check_marks, few_shot};
pub use shards::{Sample, Skipped, expand, read_samples};
pub use streams::{IGNORE, Stream, pair_ids};
pub use text::{
    Batch, ENDOFCHUNK, IMAGE, PAD, PaddingSide, SpecialTokens, TextStream, Tokenizer, pad_batch, printable,
};
