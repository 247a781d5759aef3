//! Where shards lie.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::{DataError, expand};

/// The shards that patterns stand for: `{000..999}` and `{a,b}` are written out, `*` and `?` are looked up among
/// local files, `@FILE` is a list with a pattern a line, `::` joins.
///
/// # Errors
/// [`DataError::Shards`] for a pattern that is wrong or finds nothing, [`DataError::Io`] for an unreadable list.
pub fn find_shards(patterns: &str) -> Result<Vec<String>, DataError> {
    let mut found = Vec::new();
    for pattern in patterns.split("::").filter(|pattern| !pattern.is_empty()) {
        if let Some(list) = pattern.strip_prefix('@') {
            let io = |source| DataError::Io { path: list.into(), source };
            let text = std::fs::read_to_string(list).map_err(io)?;
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '@'])) {
                found.extend(find_shards(line)?);
            }
        } else if pattern.contains(['*', '?']) && !is_remote(pattern) {
            let wrong = |e: &dyn std::fmt::Display| DataError::Shards(format!("the shard pattern `{pattern}` {e}"));
            let paths = glob::glob(pattern).map_err(|e| wrong(&e))?;
            let mut paths: Vec<String> = paths.flatten().map(|path| path.to_string_lossy().into_owned()).collect();
            if paths.is_empty() {
                return Err(wrong(&"finds no file"));
            }
            paths.sort();
            found.extend(paths);
        } else {
            found.extend(expand(pattern)?);
        }
    }
    if found.is_empty() { Err(DataError::Shards(format!("`{patterns}` names no shards"))) } else { Ok(found) }
}

fn is_remote(shard: &str) -> bool {
    shard.contains("://")
}

/// A shard's bytes, as they come.
pub(super) fn open(shard: &str) -> Result<Box<dyn Read>, DataError> {
    if is_remote(shard) {
        return Err(DataError::Shards(format!("{shard} is not a local file")));
    }
    let path = Path::new(shard);
    let file = File::open(path).map_err(|source| DataError::Io { path: path.into(), source })?;
    Ok(Box::new(BufReader::with_capacity(1 << 20, file)))
}
