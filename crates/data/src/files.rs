//! Files that are there whole or not at all.

use std::io::Write;
use std::path::Path;

use atomic_write_file::AtomicWriteFile;

/// Writes a file under another name, and gives it its own once it is on the disk.
///
/// # Errors
/// What the file system says; the file is then as it was.
pub fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut file = AtomicWriteFile::open(path)?;
    file.write_all(content)?;
    file.commit()
}
