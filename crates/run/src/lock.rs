//! One run at a time in a folder.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::RunError;

/// Keeps other runs out of a folder until it is dropped, or its process ends in any way.
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Of a folder that is there. Where the file system knows no locks, nobody is kept out.
    ///
    /// # Errors
    /// [`RunError::Busy`] if another run has it, [`RunError::Io`] if the folder cannot be written.
    pub(crate) fn of(folder: &Path) -> Result<Self, RunError> {
        let path = folder.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(RunError::io("write", &path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RunError::Busy(folder.to_path_buf())),
            Err(TryLockError::Error(error)) => tracing::warn!(%error, "this folder cannot be locked"),
        }
        Ok(Self { _file: file })
    }
}
