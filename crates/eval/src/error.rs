//! What can go wrong.

use std::path::PathBuf;

/// Why a model cannot be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A file cannot be read or written.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why. No `source`: the message says it, and who prints the chain would say it twice.
        why: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
    },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Settings(String),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] flamingo_zoo::ZooError),
}

impl EvalError {
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |why| Self::File { path, why }
    }

    pub(crate) fn content(path: impl Into<PathBuf>, what: impl std::fmt::Display) -> Self {
        Self::Content { path: path.into(), what: what.to_string() }
    }
}
