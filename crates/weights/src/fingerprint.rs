//! What tells one model folder from another.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use sha2::{Digest, Sha256};

use crate::WeightsError;

/// Larger files are read in parts: all of them would take longer than many an evaluation.
const WHOLE: u64 = 1 << 30;

/// Bytes of a part.
const PART: u64 = 1 << 16;

/// A hash of what a folder's `model.toml`, `tokenizer.json` and weights hold: of files beyond a gigabyte of their size and
/// about a thousand parts, and with `times` of when they were changed, which a copy of the folder may not share.
///
/// # Errors
/// [`WeightsError::Io`] if a file cannot be read.
pub fn fingerprint(folder: &Path, times: bool) -> Result<String, WeightsError> {
    let entries = fs::read_dir(folder).map_err(WeightsError::io("read", folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let read = |name: &str| name == "model.toml" || name == "tokenizer.json" || name.ends_with(".safetensors");
    files.retain(|path| path.file_name().is_some_and(|name| read(&name.to_string_lossy())));
    files.sort();
    let mut hash = Sha256::new();
    for path in files {
        let error = || WeightsError::io("read", &path);
        let mut file = File::open(&path).map_err(error())?;
        let data = file.metadata().map_err(error())?;
        hash.update(format!("{} {}\n", path.file_name().unwrap_or_default().to_string_lossy(), data.len()));
        let step = if data.len() <= WHOLE { PART } else { (data.len() / 1024).max(PART) };
        if step > PART && times {
            let time = data.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
            hash.update(format!("{}\n", time.map_or(0, |time| time.as_nanos())));
        }
        let mut part = Vec::with_capacity(PART as usize);
        let mut at = 0;
        while at < data.len() {
            file.seek(SeekFrom::Start(at)).map_err(error())?;
            part.clear();
            file.by_ref().take(PART).read_to_end(&mut part).map_err(error())?;
            hash.update(&part);
            at += step;
        }
    }
    Ok(format!("{:x}", hash.finalize()))
}
