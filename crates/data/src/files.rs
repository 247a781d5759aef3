//! Files that are there whole or not at all.

use std::io::Write;
use std::path::Path;

use atomic_write_file::AtomicWriteFile;

/// Writes a file under another name, and gives it its own once it is on the disk.
///
/// # Errors
/// What the file system says; the file is then as it was.
pub fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    // What is refused only when the file gets its name would leave the other one behind.
    if path.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    let mut file = AtomicWriteFile::open(path)?;
    file.write_all(content)?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::write_whole;

    #[test]
    fn a_file_is_replaced_and_nothing_else_appears() {
        let work = tempfile::tempdir().expect("a temporary folder");
        let names = || -> Vec<_> {
            let entries = std::fs::read_dir(work.path()).expect("a folder");
            entries.map(|entry| entry.expect("an entry").file_name()).collect()
        };
        let file = work.path().join("file");
        for content in ["one", "another"] {
            write_whole(&file, content.as_bytes()).expect("a file");
            assert_eq!(std::fs::read_to_string(&file).expect("a file"), content);
        }
        assert_eq!(names(), ["file"]);
        std::fs::remove_file(&file).expect("a file");
        std::fs::create_dir(&file).expect("a folder");
        let error = write_whole(&file, b"one").expect_err("a folder stands there");
        assert_eq!(error.kind(), std::io::ErrorKind::IsADirectory);
        assert_eq!(names(), ["file"]);
    }
}
