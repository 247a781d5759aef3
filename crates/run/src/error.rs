//! What can go wrong in a run.

use std::path::{Path, PathBuf};

use flamingo_data::DataError;
use flamingo_distributed::GroupError;
use flamingo_engine::EngineError;
use flamingo_weights::WeightsError;

/// Why a run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting is wrong.
    #[error("{0}")]
    Recipe(String),
    /// The model folder is unusable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device or the model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The data is unusable.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Another worker is lost.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Another run is in the folder.
    #[error("another training runs in {}: wait for its end, or give another run_name", .0.display())]
    Busy(PathBuf),
    /// The system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(String),
    /// The file system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A checkpoint is damaged or of another run.
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Too many steps in a row without a usable loss.
    #[error("the loss was no number {0} steps in a row: lower learning_rate, or look at the data")]
    NotANumber(usize),
}

impl RunError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { what, path, source }
    }

    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> Self {
        Self::Checkpoint { path: path.to_path_buf(), reason: reason.into() }
    }
}
