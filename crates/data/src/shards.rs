//! WebDataset shards: tar files whose members belong together by name, `0001.jpg` and `0001.txt`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::Read;
use std::ops::ControlFlow::{self, Continue};

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
    /// Members without an extension, or that are no files, or too large, or WebDataset's own.
    pub members: usize,
    /// Members of a sample that has their extension already.
    pub duplicates: usize,
    /// Places where a header is damaged, or an end comes too early; reading goes on at the next sound header.
    pub damaged: usize,
    /// Shards that end in the middle, or of which nothing sound follows the damage.
    pub cut: usize,
}

impl Skipped {
    /// How many of each kind, by its name, and what it is.
    pub(crate) fn kinds(self) -> [(&'static str, usize, &'static str); 4] {
        [
            ("member", self.members, "no file with a name and an extension, WebDataset's own, or too large"),
            ("duplicate member", self.duplicates, "the sample has such a part already"),
            (
                "damaged member",
                self.damaged,
                "its header is damaged, or the shard ends before it; reading goes on at the next sound one",
            ),
            ("cut shard", self.cut, "it ends in the middle, or nothing sound follows the damage"),
        ]
    }
}

/// Hands over the samples of a shard as they come, until told to stop. Damage is counted, never an error.
pub fn read_samples(shard: impl Read, on_sample: &mut dyn FnMut(Sample) -> ControlFlow<()>) -> Skipped {
    let mut skipped = Skipped::default();
    let mut blocks = Blocks { shard, header: None, over: false };
    let mut sample = Sample::default();
    loop {
        let Continue(sound) = read_members(&mut blocks, &mut sample, &mut skipped, on_sample) else { return skipped };
        match (blocks.find_header(), sound) {
            (Next::Header, _) => skipped.damaged += 1,
            (_, true) => break,
            (Next::End, false) => {
                skipped.damaged += 1;
                break;
            }
            (Next::Nothing, false) => {
                skipped.cut += 1;
                break;
            }
        }
    }
    if !sample.parts.is_empty() {
        // Nothing comes after it, whether or not more is wanted.
        let _ = on_sample(sample);
    }
    skipped
}

/// Reads members up to the end (`true`) or to damage; breaks off when no more is wanted.
fn read_members(
    blocks: &mut Blocks<impl Read>,
    sample: &mut Sample,
    skipped: &mut Skipped,
    on_sample: &mut dyn FnMut(Sample) -> ControlFlow<()>,
) -> ControlFlow<(), bool> {
    let mut archive = tar::Archive::new(blocks);
    let Ok(entries) = archive.entries() else { return Continue(false) };
    for entry in entries {
        let Ok(mut entry) = entry else { return Continue(false) };
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
            return Continue(false);
        }
        if key != sample.key {
            let done = std::mem::replace(sample, Sample { key: key.to_string(), ..Sample::default() });
            if !done.parts.is_empty() {
                on_sample(done)?;
            }
        }
        match sample.parts.entry(extension) {
            Entry::Vacant(place) => {
                place.insert(content);
            }
            Entry::Occupied(_) => skipped.duplicates += 1,
        }
    }
    Continue(true)
}

/// A block of a tar file; headers take one, contents begin at one.
type Block = [u8; 512];

/// A shard whose next header can be looked for.
struct Blocks<R> {
    shard: R,
    /// A header that was found, with the bytes of it that were read since.
    header: Option<(Block, usize)>,
    /// Whether the shard has ended, or cannot be read further.
    over: bool,
}

/// What follows damage.
enum Next {
    Header,
    /// Zeros up to the end.
    End,
    Nothing,
}

impl<R: Read> Blocks<R> {
    /// Looks for the next header, block by block, from where a header was expected: no length can be trusted to lead over
    /// what is damaged. Within a content only a tar file has what looks like a header: its members are then read as if
    /// they were the shard's, and behind them the shard's own. So zeros alone are no end, either.
    fn find_header(&mut self) -> Next {
        let mut last = Next::Nothing;
        let mut block = [0; size_of::<Block>()];
        // Errors are remembered.
        while self.read_exact(&mut block).is_ok() {
            if is_header(&block) {
                self.header = Some((block, 0));
                return Next::Header;
            }
            last = if block.iter().all(|&byte| byte == 0) { Next::End } else { Next::Nothing };
        }
        last
    }
}

impl<R: Read> Read for Blocks<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if let Some((header, from)) = &mut self.header {
            let read = (&header[*from..]).read(out)?;
            *from += read;
            if *from == header.len() {
                self.header = None;
            }
            return Ok(read);
        }
        if self.over {
            return Ok(0);
        }
        let read = self.shard.read(out);
        self.over = match &read {
            Ok(read) => *read == 0 && !out.is_empty(),
            Err(error) => error.kind() != std::io::ErrorKind::Interrupted,
        };
        read
    }
}

/// Whether a block can be nothing but the header of a member: a name of the format, and the sum of all bytes in which
/// those of the sum count as spaces.
fn is_header(block: &Block) -> bool {
    let header = tar::Header::from_byte_slice(block);
    let bytes = block.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    let sum: u32 = bytes.map(u32::from).sum();
    &block[257..262] == b"ustar" && header.cksum().is_ok_and(|told| told == sum)
}

/// A member's key and extension; `None` for names without either, and for what lies in a folder `__…__`, which is
/// WebDataset's own (`tar_file_iterator`).
fn split(path: &str) -> Option<(&str, String)> {
    let own = |folder: &str| folder.len() >= 4 && folder.starts_with("__") && folder.ends_with("__");
    let name = path.rfind('/').map_or(0, |slash| slash + 1);
    let dot = name + path[name..].find('.')?;
    let known = dot > name && dot + 1 < path.len() && !path.split('/').next().is_some_and(own);
    known.then(|| (&path[..dot], path[dot + 1..].to_lowercase()))
}
