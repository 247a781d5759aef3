//! Shards as the Python package webdataset writes them.

use std::path::{Path, PathBuf};

use crate::CorpusError;

/// One file of a sample.
pub(crate) struct Member<'a> {
    pub(crate) extension: &'a str,
    pub(crate) content: &'a [u8],
}

/// Shards in the making: `NAME-0000.tar` and so on.
pub(crate) struct Shards {
    folder: PathBuf,
    name: String,
    samples_per_shard: usize,
    samples: usize,
    tar: tar::Builder<Vec<u8>>,
}

impl Shards {
    /// Shards of a folder, without those of that name that an earlier run left: a recipe would take them too.
    pub(crate) fn new(folder: &Path, name: &str, samples_per_shard: usize) -> Result<Self, CorpusError> {
        let is_old = |file: &std::ffi::OsStr| {
            let number =
                file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('-')?.strip_suffix(".tar"));
            number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        };
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if is_old(&entry.file_name()) {
                std::fs::remove_file(entry.path()).map_err(CorpusError::io(&entry.path()))?;
            }
        }
        let tar = tar::Builder::new(Vec::new());
        Ok(Self { folder: folder.into(), name: name.into(), samples_per_shard, samples: 0, tar })
    }

    pub(crate) fn add(&mut self, members: &[Member]) -> Result<(), CorpusError> {
        for member in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(member.content.len() as u64);
            header.set_mode(0o644);
            let name = format!("{:09}.{}", self.samples, member.extension);
            let written = self.tar.append_data(&mut header, name, member.content);
            written.map_err(CorpusError::io(&self.folder))?;
        }
        self.samples += 1;
        if self.samples.is_multiple_of(self.samples_per_shard) { self.close() } else { Ok(()) }
    }

    fn close(&mut self) -> Result<(), CorpusError> {
        let number = (self.samples - 1) / self.samples_per_shard;
        let tar = std::mem::replace(&mut self.tar, tar::Builder::new(Vec::new()));
        let bytes = tar.into_inner().map_err(CorpusError::io(&self.folder))?;
        write(&self.folder.join(format!("{}-{number:04}.tar", self.name)), &bytes)
    }

    pub(crate) fn finish(mut self) -> Result<(), CorpusError> {
        if self.samples.is_multiple_of(self.samples_per_shard) { Ok(()) } else { self.close() }
    }
}

/// Writes a file that is there whole or not at all, and its folder.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), CorpusError> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(CorpusError::io(folder))?;
    flamingo_data::write_whole(path, content).map_err(CorpusError::io(path))
}
