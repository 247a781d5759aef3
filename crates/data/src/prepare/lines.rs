//! Lines of text files, and of text files in zip archives, one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

use zip::ZipArchive;

use crate::{DataError, PrepareError};

/// Longest line that is read, in bytes: a document with its pictures.
const MAX_LINE: u64 = 1 << 28;

/// What is done with a line.
pub(crate) type OnLine<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), PrepareError>;

/// Hands over the lines of a file that are not empty; of a zip archive those of all its files. A line that is too long
/// comes cut off after [`MAX_LINE`] bytes.
pub(crate) fn read_lines(path: &Path, on_line: OnLine<'_>) -> Result<(), PrepareError> {
    let io = |source| DataError::Io { path: path.into(), source };
    let file = open(path)?;
    if !is_zip(&file).map_err(io)? {
        return lines(BufReader::with_capacity(1 << 20, file), path, on_line);
    }
    let mut archive = archive(path, file)?;
    for i in 0..archive.len() {
        let member = archive.by_index(i).map_err(|e| zip(path, e))?;
        if member.is_file() {
            lines(BufReader::with_capacity(1 << 20, member), path, on_line)?;
        }
    }
    Ok(())
}

/// Bytes of all lines of a file.
pub(crate) fn size(path: &Path) -> Result<u64, PrepareError> {
    let io = |source| DataError::Io { path: path.into(), source };
    let file = open(path)?;
    if !is_zip(&file).map_err(io)? {
        return Ok(file.metadata().map_err(io)?.len());
    }
    let mut archive = archive(path, file)?;
    (0..archive.len()).map(|i| Ok(archive.by_index(i).map_err(|e| zip(path, e))?.size())).sum()
}

fn lines(mut from: impl BufRead, path: &Path, on_line: OnLine<'_>) -> Result<(), PrepareError> {
    let io = |source| DataError::Io { path: path.into(), source };
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(io)? == 0 {
            return Ok(());
        }
        if line.len() as u64 == MAX_LINE && !line.ends_with(b"\n") {
            from.skip_until(b'\n').map_err(io)?;
        }
        let text = line.trim_ascii();
        if !text.is_empty() {
            on_line(text)?;
        }
    }
}

/// Opens a file; devices and pipes have no end, or none that comes.
pub(crate) fn open(path: &Path) -> Result<File, DataError> {
    let io = |source| DataError::Io { path: path.into(), source };
    match std::fs::metadata(path).map_err(io)?.is_file() {
        true => File::open(path).map_err(io),
        false => Err(io(std::io::Error::other("it is not a regular file"))),
    }
}

fn is_zip(mut file: &File) -> std::io::Result<bool> {
    let mut begin = Vec::new();
    file.take(4).read_to_end(&mut begin)?;
    file.rewind()?;
    Ok(begin == b"PK\x03\x04" || begin == b"PK\x05\x06")
}

fn archive(path: &Path, file: File) -> Result<ZipArchive<File>, PrepareError> {
    ZipArchive::new(file).map_err(|e| zip(path, e))
}

fn zip(path: &Path, reason: impl std::fmt::Display) -> PrepareError {
    PrepareError::Zip { path: path.into(), reason: reason.to_string() }
}
