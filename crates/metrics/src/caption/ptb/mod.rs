//! The tokenisation that pycocoevalcap applies to captions before every metric: that of the Penn Treebank, as Stanford
//! CoreNLP 3.4.1 implements it, in lower case and without punctuation.
//!
//! One difference is known: whether the last sigma of a Greek word ends it is decided by other rules before digits.

mod chars;
mod lexer;

use super::cider::is_python_space;
use lexer::Lexer;

/// What pycocoevalcap leaves out. Brackets are on its list in capitals only, and therefore stay, as `-lrb-`, in
/// captions in lower case; so do runs such as `?!`.
const PUNCTUATION: [&str; 17] =
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"];

/// The tokens of each caption, joined by spaces.
///
/// The captions are read as the lines of one file, and some rules look at what follows a token, beyond the end of its
/// line: `vitamin C.` keeps its full stop unless the next caption begins with `The` or the like, and a smiley that ends
/// the last caption is none. Line breaks within a caption count as spaces.
pub fn tokenize<S: AsRef<str>>(captions: &[S]) -> Vec<String> {
    let mut text = Vec::new();
    for (number, caption) in captions.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        text.extend(caption.as_ref().chars().map(|c| if lexer::is_line_break(c) { ' ' } else { c }));
    }
    let mut lines = vec![String::new(); captions.len()];
    let mut lexer = Lexer::new(&text);
    for line in &mut lines {
        while let Some(token) = lexer.next_in_line() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&token.to_lowercase());
        }
    }
    lines.iter().map(|line| without_punctuation(line)).collect()
}

/// The tokens of one caption, joined by spaces, as they are where other captions follow it.
pub fn tokenize_one(caption: &str) -> String {
    tokenize(&[caption, ""]).swap_remove(0)
}

fn without_punctuation(line: &str) -> String {
    let tokens = line.trim_end_matches(is_python_space).split(' ');
    tokens.filter(|token| !PUNCTUATION.contains(token)).collect::<Vec<_>>().join(" ")
}
