//! Where shards lie.

use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[cfg(feature = "remote")]
use super::remote;
use crate::patterns::parts;
use crate::{DataError, expand};

/// The shards that patterns stand for: `{000..999}` and `{a,b}` are written out ([`expand`]), `*` and `?` are looked up among
/// local files and the objects of an `s3://` bucket, `@FILE` is a list with a pattern a line, `::` joins.
///
/// Shards are local paths, `http://`, `https://` or `s3://`. Buckets are reached as the variables say that Amazon's own
/// tools read, `AWS_ACCESS_KEY_ID`, `AWS_REGION`, `AWS_ENDPOINT` and so on; public ones need `AWS_SKIP_SIGNATURE=true`.
///
/// # Errors
/// [`DataError::Shards`] for a pattern that is wrong or finds nothing, [`DataError::Io`] for an unreadable list.
pub fn find_shards(patterns: &str) -> Result<Vec<String>, DataError> {
    let mut found = Vec::new();
    for pattern in parts(patterns) {
        if let Some(list) = pattern.strip_prefix('@') {
            let io = |source| DataError::Io { path: list.into(), source };
            let text = std::fs::read_to_string(list).map_err(io)?;
            for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '@'])) {
                found.extend(find_shards(line)?);
            }
            continue;
        }
        for name in expand(pattern)? {
            found.extend(looked_up(name)?);
        }
    }
    if found.is_empty() { Err(DataError::Shards(format!("`{patterns}` names no shards"))) } else { Ok(found) }
}

/// The shards that match a name with `*` or `?`, sorted; any other name is itself.
fn looked_up(name: String) -> Result<Vec<String>, DataError> {
    let wrong = |why: &dyn std::fmt::Display| DataError::Shards(format!("the shard pattern `{name}` {why}"));
    let scheme = name.split_once("://").map(|(scheme, _)| scheme);
    let wild = match scheme {
        None | Some("s3") => name.contains(['*', '?']),
        // Here `?` begins the query.
        Some("http" | "https") => name.split('?').next().is_some_and(|path| path.contains('*')),
        Some(_) => return Err(wrong(&"is no local path, and neither http://, https:// nor s3://")),
    };
    if !wild {
        return Ok(vec![name]);
    }
    let mut found = match scheme {
        Some(_) => remote::list(&name)?,
        None => {
            let paths = glob::glob(&name).map_err(|e| wrong(&e))?;
            paths.flatten().map(|path| path.to_string_lossy().into_owned()).collect()
        }
    };
    if found.is_empty() {
        return Err(wrong(&"finds nothing"));
    }
    found.sort();
    Ok(found)
}

/// A shard's bytes, as they come; where they come slowly, only until told to stop.
pub(crate) fn open(shard: &str, stop: &Arc<AtomicBool>) -> Result<Box<dyn Read>, DataError> {
    if shard.contains("://") {
        return remote::open(shard, stop.clone());
    }
    // A pipe would have to be waited for, and has no second epoch.
    let file = crate::prepare::open(Path::new(shard))?;
    Ok(Box::new(BufReader::with_capacity(1 << 20, file)))
}

/// A URL fit to be shown: what could be a password is left out.
pub(crate) fn shown(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let rest = rest.split('?').next().unwrap_or_default();
            let host = rest.find('/').unwrap_or(rest.len());
            let name = rest[..host].rfind('@').map_or(0, |at| at + 1);
            format!("{scheme}://{}", &rest[name..])
        }
        None => url.to_string(),
    }
}

/// In a build that reaches no other machine.
#[cfg(not(feature = "remote"))]
mod remote {
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use crate::DataError;

    fn absent(url: &str) -> DataError {
        let url = super::shown(url);
        DataError::Shards(format!(
            "{url} is on another machine, which this build does not reach: rebuild with `--features remote`"
        ))
    }

    pub(super) fn open(url: &str, _: Arc<AtomicBool>) -> Result<Box<dyn Read>, DataError> {
        Err(absent(url))
    }

    pub(super) fn list(pattern: &str) -> Result<Vec<String>, DataError> {
        Err(absent(pattern))
    }
}
