//! Where recordings are that the repository does not carry. A module of tests of several packages.

use std::io::Write;
use std::path::{Path, PathBuf};

/// A part of the full set of recordings, by its path from there; `None`, said on stderr, where it is not at hand.
/// `FLAMINGO_REQUIRE=recordings` makes that a failure.
pub fn recorded(part: &str) -> Option<PathBuf> {
    let mut above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let repository = above.find(|folder| folder.join("tests/fixtures/golden").is_dir()).expect("the repository");
    let all = std::env::var_os("FLAMINGO_GOLDEN").map_or_else(|| repository.join("../shared/golden"), PathBuf::from);
    let path = all.join(part);
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var("FLAMINGO_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|required| required == "recordings"), "there is no {}", path.display());
    // Not by `eprintln`, which a test that passes does not show.
    let test = std::thread::current().name().unwrap_or_default().to_string();
    writeln!(std::io::stderr(), "{test}: what needs {} is skipped, it is not there", path.display()).expect("stderr");
    None
}
