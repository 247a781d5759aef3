//! Shards as they are written: whole or not at all.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::PrepareError;

/// Writes samples to the shards of a folder. Until all of them are there, none has its name; if that does not come to
/// pass, nothing stays behind.
pub(super) struct ShardWriter {
    folder: PathBuf,
    /// Digits of a shard's name.
    digits: usize,
    samples_per_shard: usize,
    samples: usize,
    open: Option<tar::Builder<BufWriter<File>>>,
    /// What each shard is called, now and when it is done.
    shards: Vec<(PathBuf, PathBuf)>,
    made_folder: bool,
}

impl ShardWriter {
    /// Prepares to write to a folder, which is made with the first sample if it is not there.
    pub(super) fn new(folder: &Path, digits: usize, samples_per_shard: usize) -> Result<Self, PrepareError> {
        let is_shard = |entry: std::fs::DirEntry| entry.path().extension().is_some_and(|extension| extension == "tar");
        match std::fs::read_dir(folder) {
            Ok(entries) => {
                if entries.flatten().any(is_shard) {
                    return Err(PrepareError::Occupied(folder.into()));
                }
            }
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(write(folder)(source)),
        }
        if samples_per_shard == 0 {
            return Err(PrepareError::Nothing("shards of no samples: give --samples-per-shard 1 or more".into()));
        }
        let (folder, shards) = (folder.to_path_buf(), Vec::new());
        Ok(Self { folder, digits, samples_per_shard, samples: 0, open: None, shards, made_folder: false })
    }

    /// Adds a sample: its parts by extension.
    pub(super) fn add(&mut self, parts: &[(&str, &[u8])]) -> Result<(), PrepareError> {
        if self.samples.is_multiple_of(self.samples_per_shard) {
            self.close()?;
            self.begin()?;
        }
        let Some(((partial, _), tar)) = self.shards.last().zip(self.open.as_mut()) else { return Ok(()) };
        for (extension, content) in parts {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            let name = format!("{:09}.{extension}", self.samples);
            tar.append_data(&mut header, name, *content).map_err(write(partial))?;
        }
        self.samples += 1;
        Ok(())
    }

    /// Gives all shards their names: how many there are, and their bytes.
    pub(super) fn finish(mut self) -> Result<(usize, u64), PrepareError> {
        self.close()?;
        let mut bytes = 0;
        for (partial, shard) in &self.shards {
            bytes += std::fs::metadata(partial).map_err(write(partial))?.len();
            std::fs::rename(partial, shard).map_err(write(shard))?;
        }
        self.made_folder = false;
        Ok((std::mem::take(&mut self.shards).len(), bytes))
    }

    fn begin(&mut self) -> Result<(), PrepareError> {
        if !self.folder.is_dir() {
            std::fs::create_dir_all(&self.folder).map_err(write(&self.folder))?;
            self.made_folder = true;
        }
        let shard = self.folder.join(format!("{:0digits$}.tar", self.shards.len(), digits = self.digits));
        let partial = shard.with_extension("tar.partial");
        let file = File::create(&partial).map_err(write(&partial))?;
        self.shards.push((partial, shard));
        self.open = Some(tar::Builder::new(BufWriter::with_capacity(1 << 20, file)));
        Ok(())
    }

    fn close(&mut self) -> Result<(), PrepareError> {
        let Some(((partial, _), tar)) = self.shards.last().zip(self.open.take()) else { return Ok(()) };
        tar.into_inner().and_then(|mut file| file.flush()).map_err(write(partial))
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        // What finished is no longer listed. Of the rest nothing can be said that the error did not say.
        self.open = None;
        for (partial, shard) in &self.shards {
            std::fs::remove_file(partial).or_else(|_| std::fs::remove_file(shard)).ok();
        }
        if self.made_folder {
            std::fs::remove_dir(&self.folder).ok();
        }
    }
}

fn write(path: &Path) -> impl Fn(std::io::Error) -> PrepareError {
    move |source| PrepareError::Write { path: path.into(), source }
}
