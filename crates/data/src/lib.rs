//! Pictures and text as upstream reads them: decoding, resizing, normalisation, tokenisation. Knows no tensor
//! library.

mod error;
mod image;
mod text;

pub use error::DataError;
pub use image::{ConvertOrder, ImageTransform, MAX_PIXELS, Picture};
pub use text::{Batch, ENDOFCHUNK, IMAGE, PAD, PaddingSide, SpecialTokens, TextStream, Tokenizer, pad_batch};
