//! Shards as they are written: whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind};
use std::path::{Path, PathBuf};

use crate::PrepareError;

/// Writes samples to the shards of a folder beside its place, which gets its name when all of them are on the disk. If
/// that does not come to pass, nothing stays behind; of a run that is killed, the folder `….partial` does.
pub(super) struct ShardWriter {
    folder: PathBuf,
    partial: PathBuf,
    /// Digits of a shard's name.
    digits: usize,
    samples_per_shard: usize,
    samples: usize,
    shards: usize,
    bytes: u64,
    open: Option<tar::Builder<BufWriter<File>>>,
}

impl ShardWriter {
    /// Prepares to write to a folder that is not there, or empty.
    pub(super) fn new(folder: &Path, digits: usize, samples_per_shard: usize) -> Result<Self, PrepareError> {
        if samples_per_shard == 0 {
            return Err(PrepareError::Nothing("shards of no samples: give --samples-per-shard 1 or more".into()));
        }
        // A place that cannot be taken is better known now than after hours.
        if remove_empty(folder)? {
            fs::create_dir(folder).map_err(write(folder))?;
        }
        let mut name = folder.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = folder.with_file_name(name);
        if let Some(parent) = partial.parent() {
            fs::create_dir_all(parent).map_err(write(parent))?;
        }
        match fs::create_dir(&partial) {
            // Somebody may be writing there.
            Err(source) if source.kind() == ErrorKind::AlreadyExists => return Err(PrepareError::Occupied(partial)),
            made => made.map_err(write(&partial))?,
        }
        let folder = folder.to_path_buf();
        Ok(Self { folder, partial, digits, samples_per_shard, samples: 0, shards: 0, bytes: 0, open: None })
    }

    /// Adds a sample: its parts by extension.
    pub(super) fn add(&mut self, parts: &[(&str, &[u8])]) -> Result<(), PrepareError> {
        if self.samples.is_multiple_of(self.samples_per_shard) {
            self.close()?;
            let shard = self.partial.join(format!("{:0digits$}.tar", self.shards, digits = self.digits));
            let file = File::create(&shard).map_err(write(&shard))?;
            self.open = Some(tar::Builder::new(BufWriter::with_capacity(1 << 20, file)));
            self.shards += 1;
        }
        let Some(tar) = &mut self.open else { return Ok(()) };
        for (extension, content) in parts {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            let name = format!("{:09}.{extension}", self.samples);
            tar.append_data(&mut header, name, *content).map_err(write(&self.partial))?;
        }
        self.samples += 1;
        Ok(())
    }

    /// Gives the folder its name: how many shards there are, and their bytes.
    pub(super) fn finish(mut self) -> Result<(usize, u64), PrepareError> {
        self.close()?;
        // The names of the shards, too; where a folder cannot be opened, nothing more can be done.
        File::open(&self.partial).and_then(|folder| folder.sync_all()).ok();
        remove_empty(&self.folder)?;
        fs::rename(&self.partial, &self.folder).map_err(write(&self.folder))?;
        Ok((self.shards, self.bytes))
    }

    fn close(&mut self) -> Result<(), PrepareError> {
        let Some(tar) = self.open.take() else { return Ok(()) };
        let written = || {
            let file = tar.into_inner()?.into_inner()?;
            file.sync_all()?;
            Ok(file.metadata()?.len())
        };
        self.bytes += written().map_err(write(&self.partial))?;
        Ok(())
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.open = None;
        // What finished is elsewhere. Of the rest nothing can be said that the error did not say.
        fs::remove_dir_all(&self.partial).ok();
    }
}

/// Removes an empty folder; says whether one was there.
fn remove_empty(folder: &Path) -> Result<bool, PrepareError> {
    match fs::remove_dir(folder) {
        Ok(()) => Ok(true),
        Err(source) => match source.kind() {
            ErrorKind::NotFound => Ok(false),
            ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => Err(PrepareError::Occupied(folder.into())),
            // Others write or mount there, or nobody may.
            _ => Err(write(folder)(source)),
        },
    }
}

fn write(path: &Path) -> impl Fn(std::io::Error) -> PrepareError {
    move |source| PrepareError::Write { path: path.into(), source }
}
