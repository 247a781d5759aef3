//! Shards for tests.

use std::path::Path;

/// Writes a shard of `(name, content)` members.
pub fn shard(path: &Path, members: &[(String, Vec<u8>)]) {
    let mut tar = tar::Builder::new(std::fs::File::create(path).expect("a file"));
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_slice()).expect("a member");
    }
    tar.finish().expect("a shard");
}

/// `count` shards of `samples` samples, numbered throughout, each with its number as text.
#[allow(dead_code, reason = "not all tests need it")]
pub fn numbered(folder: &Path, count: usize, samples: usize) -> Vec<String> {
    let one = |number: usize| {
        let path = folder.join(format!("{number:03}.tar"));
        let member = |i| (format!("{:06}.txt", number * samples + i), format!("{}", number * samples + i).into_bytes());
        shard(&path, &(0..samples).map(member).collect::<Vec<_>>());
        path.display().to_string()
    };
    (0..count).map(one).collect()
}
