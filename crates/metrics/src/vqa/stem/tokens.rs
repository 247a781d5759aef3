//! Words of a text as NLTK's `word_tokenize(preserve_line=True)` splits them, by the conventions of the Penn Treebank.
//!
//! Each rule sets spaces around something that is a token of its own; in the end the text is split at white space.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use crate::vqa::python;

type Rule = (&'static str, &'static str);

const OPENING_QUOTES: &[Rule] =
    &[("[«“‘„]|`+", " ${0} "), ("^\"", "``"), ("``", " ${0} "), (r#"([ (\[{<])(?:"|'{2})"#, "$1 `` ")];

const MARKS: &[Rule] = &[
    // A full stop at the end, before what may close the text.
    (r#"([^.])(\.)([\])}>"'»”’ ]*)\s*$"#, "$1 $2 $3 "),
    (r"([:,])([^\d])", " $1 $2"),
    // At the end, or before a line break there.
    ("([:,])(\n?)$", " $1 $2"),
    (r"\.{2,}", " ${0} "),
    ("[;@#$%&]", " ${0} "),
    // Dashes that are wider than a hyphen.
    (r"[\u{2012}-\u{2015}]", " ${0} "),
    (r#"([^.])(\.)([\])}>"']*)\s*$"#, "$1 $2$3 "),
    ("[?!]", " ${0} "),
    ("([^'])' ", "$1 ' "),
    (r"\*", " ${0} "),
    (r"[\]\[(){}<>]", " ${0} "),
    ("--", " ${0} "),
];

/// Clitics at the ends of words, too. These see the text with a space at either end.
const CLOSING_QUOTES: &[Rule] = &[
    ("[»”’]", " ${0} "),
    ("''", " ${0} "),
    ("\"", " '' "),
    (r"\s+", " "),
    ("([^' ])('[sS]|'[mM]|'[dD]|') ", "$1 $2 "),
    ("([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "$1 $2 "),
];

/// The tokens of a text.
pub fn tokenise(text: &str) -> Vec<String> {
    static RULES: LazyLock<[Vec<(Regex, &str)>; 3]> =
        LazyLock::new(|| [OPENING_QUOTES, MARKS, CLOSING_QUOTES].map(compile));
    let [opening_quotes, marks, closing_quotes] = &*RULES;
    let text = apply(opening_quotes, text.to_owned());
    let text = apply(marks, part_opening_apostrophes(&text));
    let text = apply(closing_quotes, format!(" {text} "));
    let text = part_contractions(&text);
    python::words(&text).map(str::to_owned).collect()
}

fn compile(rules: &[Rule]) -> Vec<(Regex, &'static str)> {
    rules.iter().map(|&(pattern, spaced)| (Regex::new(pattern).expect("a valid pattern"), spaced)).collect()
}

fn apply(rules: &[(Regex, &str)], text: String) -> String {
    rules.iter().fold(text, |text, (pattern, spaced)| pattern.replace_all(&text, *spaced).into_owned())
}

/// Sets a space between an apostrophe that opens a word and the word, unless the two are a clitic such as "'ll".
fn part_opening_apostrophes(text: &str) -> String {
    static OPENING: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(^|\W)'(\w)").expect("a valid pattern"));
    static CLITIC: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^(?i:re|ve|ll|m|t|s|d|n)\b").expect("a valid pattern"));
    let parted = OPENING.replace_all(text, |found: &Captures| {
        let word = found.get(2).map_or(text.len(), |first| first.start());
        if CLITIC.is_match(&text[word..]) { found[0].to_owned() } else { format!("{}' {}", &found[1], &found[2]) }
    });
    parted.into_owned()
}

/// Sets spaces around the halves of words such as "cannot" and "'tis".
fn part_contractions(text: &str) -> String {
    const HALVES: &str =
        "(?i)(can)(not)|(d)('ye)|(gim)(me)|(gon)(na)|(got)(ta)|(lem)(me)|(more)('n)|(wan)(na)|('t)(is|was)";
    static CONTRACTION: LazyLock<Regex> = LazyLock::new(|| Regex::new(HALVES).expect("a valid pattern"));
    let parted = CONTRACTION.replace_all(text, |found: &Captures| {
        let halves: Vec<_> = found.iter().flatten().collect();
        let [whole, first, second] = halves[..] else { return found[0].to_owned() };
        let before = text[..whole.start()].chars().next_back();
        let after = text[whole.end()..].chars().next();
        let begins = match first.as_str() {
            "'t" | "'T" => before == Some(' '),
            _ => !before.is_some_and(python::is_word),
        };
        let ends = match first.as_str().to_lowercase().as_str() {
            "wan" => after.is_some_and(python::is_space),
            _ => !after.is_some_and(python::is_word),
        };
        if begins && ends { format!(" {} {} ", first.as_str(), second.as_str()) } else { found[0].to_owned() }
    });
    parted.into_owned()
}
