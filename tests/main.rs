//! Integration tests: one binary, so that the model is linked once.

mod arrows;
mod cli;
mod golden;
mod hub;
mod layout;

use std::path::{Path, PathBuf};

/// The recordings, or `None` (said on stderr) where they are not at hand.
fn recordings() -> Option<PathBuf> {
    let folder = std::env::var_os("FLAMINGO_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/golden"), PathBuf::from);
    if !folder.is_dir() {
        eprintln!("skipped: no golden recordings");
        return None;
    }
    Some(folder)
}
