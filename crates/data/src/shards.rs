//! WebDataset shards: tar files whose members belong together by name, `0001.jpg` and `0001.txt`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::ops::ControlFlow;

/// Largest member that is read, in bytes.
pub(crate) const MAX_MEMBER: u64 = 1 << 28;

/// Members of a shard that share a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// The name, up to the first dot of its last component.
    pub key: String,
    /// Contents by extension: what follows that dot, in lower case.
    pub parts: BTreeMap<String, Vec<u8>>,
}

/// What was left out of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Members without an extension, or that are no files, or too large.
    pub members: usize,
    /// Members of a sample that has their extension already.
    pub duplicates: usize,
    /// Shards that end in the middle or are damaged; what follows the damage is lost.
    pub cut: usize,
}

/// Hands over the samples of a shard as they come, until told to stop. Damage is counted, never an error.
pub fn read_samples(shard: impl Read, on_sample: &mut dyn FnMut(Sample) -> ControlFlow<()>) -> Skipped {
    let mut skipped = Skipped::default();
    let mut archive = tar::Archive::new(shard);
    let mut sample = Sample::default();
    let Ok(entries) = archive.entries() else { return Skipped { cut: 1, ..skipped } };
    for entry in entries {
        let Ok(mut entry) = entry else {
            skipped.cut += 1;
            break;
        };
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let (Some((key, extension)), true) = (split(&path), entry.header().entry_type().is_file()) else {
            skipped.members += usize::from(!entry.header().entry_type().is_dir());
            continue;
        };
        if entry.size() > MAX_MEMBER {
            skipped.members += 1;
            continue;
        }
        let mut content = Vec::new();
        let whole = entry.read_to_end(&mut content).is_ok_and(|read| read as u64 == entry.size());
        if !whole {
            skipped.cut += 1;
            break;
        }
        if key != sample.key {
            let done = std::mem::replace(&mut sample, Sample { key: key.to_string(), ..Sample::default() });
            if !done.parts.is_empty() && on_sample(done).is_break() {
                return skipped;
            }
        }
        match sample.parts.entry(extension) {
            Entry::Vacant(place) => {
                place.insert(content);
            }
            Entry::Occupied(_) => skipped.duplicates += 1,
        }
    }
    if !sample.parts.is_empty() {
        // Nothing comes after it, whether or not more is wanted.
        let _ = on_sample(sample);
    }
    skipped
}

/// A member's key and extension; `None` for names without either and for WebDataset's own `__meta__`.
fn split(path: &str) -> Option<(&str, String)> {
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + path[name..].find('.')?;
    let known = dot > name && dot + 1 < path.len() && !path[name..].starts_with("__");
    known.then(|| (&path[..dot], path[dot + 1..].to_lowercase()))
}
