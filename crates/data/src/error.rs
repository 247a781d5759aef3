//! What can be wrong with pictures and text.

use std::path::PathBuf;

/// Why a picture or a tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Not a picture, or a damaged one.
    #[error("not a usable picture: {0}")]
    Image(String),
    /// More pixels than any model's input needs.
    #[error("the picture has {pixels} pixels, more than the limit of {limit}: make it smaller first")]
    TooLarge {
        /// Its size.
        pixels: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// Marks and pictures do not fit together.
    #[error("the text has {marks} <image> mark(s) and there are {pictures} picture(s): each picture needs its mark")]
    Marks {
        /// `<image>` marks in the text.
        marks: usize,
        /// Pictures given with it.
        pictures: usize,
    },
    /// A pattern that names no shards.
    #[error("{0}")]
    Shards(String),
    /// No tokenizer, or an unusable one.
    #[error("{0}")]
    Tokenizer(String),
}
