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
    /// Shards that are not there, or that the options do not fit.
    #[error("{0}")]
    Shards(String),
    /// Nothing usable comes any more.
    #[error("{count} samples in a row are unusable, the last because: {last}")]
    TooManyFailures {
        /// Samples without a usable one among them.
        count: usize,
        /// What is wrong with the last.
        last: String,
    },
    /// Decoding panicked, which is a mistake of the program.
    #[error("decoding the sample `{sample}` failed: {reason}")]
    Panicked {
        /// The sample's key.
        sample: String,
        /// What the panic said.
        reason: String,
    },
    /// No tokenizer, or an unusable one.
    #[error("{0}")]
    Tokenizer(String),
}
