//! Classes of characters as Python draws them, a little differently from Rust.

use std::sync::LazyLock;

use regex::Regex;

/// Whether `\w` of Python's `re` matches it: letters, numbers of any kind and "_", but no combining marks.
pub fn is_word(c: char) -> bool {
    static PATTERN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[\p{L}\p{N}_]").expect("a valid pattern"));
    PATTERN.is_match(c.encode_utf8(&mut [0; 4]))
}

/// Whether `str.split` and `str.strip` take it for white space: Unicode's, and the four separators of ASCII.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The words of `str.split()`.
pub fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}
