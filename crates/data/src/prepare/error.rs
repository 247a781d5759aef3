//! Why shards cannot be made, and why a picture or a text is left out of them.

use std::path::PathBuf;

use image::ImageFormat;

use crate::DataError;

/// Why shards cannot be made or looked at.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// Something cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Something cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Shards would be mixed with others, or written where others are being written.
    #[error("{} is there already: choose another folder, or remove it first", .0.display())]
    Occupied(PathBuf),
    /// An archive that is none, or without the file that it should hold.
    #[error("{} is no zip archive of documents: {reason}", path.display())]
    Zip {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nothing would be written or shown.
    #[error("{0}")]
    Nothing(String),
}

/// Why a sample, or a picture of it, is left out. What it prints is the kind that it is counted under.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unusable {
    #[error("not found")]
    Missing,
    #[error("not readable")]
    Unreadable,
    #[error("too large")]
    TooLarge,
    #[error("not a picture")]
    NoPicture,
    #[error("damaged {}", extension(*.0))]
    Damaged(ImageFormat),
    #[error("unsupported format {}", extension(*.0))]
    Format(ImageFormat),
    #[error("no base64")]
    Base64,
    #[error("name that leads out of the folder")]
    Name,
    #[error("without a text")]
    NoText,
    #[error("text that is empty")]
    EmptyText,
    #[error("text that is no UTF-8")]
    Text,
    #[error("unreadable line")]
    Line,
    #[error("unreadable document")]
    Document,
    #[error("similarity_matrix that does not fit")]
    Similarities,
    #[error("tokenizer failure")]
    Tokenizer,
}

/// The usual extension of a format.
pub(crate) fn extension(format: ImageFormat) -> &'static str {
    format.extensions_str().first().copied().unwrap_or("picture")
}
