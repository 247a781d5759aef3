//! The VQA challenge's treatment of answers before they are compared.
//!
//! Its oddities decide whether two answers match, so they are kept:
//!
//! - Whether a mark becomes a space or nothing is decided by the whole text: by a space beside the mark anywhere in it,
//!   or by digits around a comma anywhere in it ("1,000 red-hot" loses its hyphen because of the number).
//! - Of the full stops without a digit behind them only 32 go: the original hands a flag of regular expressions, whose
//!   value is 32, where the number of replacements is expected.
//! - A full stop *after* a digit goes too, if none follows it: the original's look-behind is misspelt and never matches.
//! - Words are looked up in lower case, so that entries of the original's table of contractions with capitals ("Im",
//!   "Ive") are never found, and articles go before contractions are looked up.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::python;

/// An answer as it is compared: [`one_line`], [`strip_punctuation`], [`map_words`].
pub fn normalise(answer: &str) -> String {
    map_words(&strip_punctuation(&one_line(answer)))
}

/// Line breaks and tabs as spaces, none at the ends.
pub fn one_line(answer: &str) -> String {
    answer.replace(['\n', '\t'], " ").trim_matches(python::is_space).to_owned()
}

/// Punctuation removed or replaced by spaces; apostrophes, colons and full stops before digits stay.
pub fn strip_punctuation(answer: &str) -> String {
    static COMMA_IN_NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d,\d").expect("a valid pattern"));
    // A digit behind a full stop is matched along, as a sign that the full stop stays.
    static FULL_STOP: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\.\d?").expect("a valid pattern"));
    const MARKS: &str = r#";/[]"{}()=+\_-><@`,?!"#;
    const FULL_STOPS: usize = 32;

    // All decisions look at the answer as it came, not at what earlier marks left of it.
    let number = COMMA_IN_NUMBER.is_match(answer);
    let beside_space = |mark: char| answer.contains(&format!("{mark} ")) || answer.contains(&format!(" {mark}"));
    let removed: String = MARKS.chars().filter(|&mark| number || beside_space(mark)).collect();
    let spaced: String =
        answer.chars().filter(|&c| !removed.contains(c)).map(|c| if MARKS.contains(c) { ' ' } else { c }).collect();

    let mut left = FULL_STOPS;
    let without = FULL_STOP.replace_all(&spaced, |found: &Captures| {
        if found[0].len() > 1 || left == 0 {
            return found[0].to_owned();
        }
        left -= 1;
        String::new()
    });
    without.into_owned()
}

/// Words in lower case, small numbers as digits, without articles, with the apostrophes of contractions.
pub fn map_words(answer: &str) -> String {
    static APOSTROPHES: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| CONTRACTIONS.into_iter().collect());

    let lower = answer.to_lowercase();
    let words: Vec<&str> = python::words(&lower)
        .map(number_word)
        .filter(|word| !["a", "an", "the"].contains(word))
        .map(|word| APOSTROPHES.get(word).copied().unwrap_or(word))
        .collect();
    words.join(" ")
}

fn number_word(word: &str) -> &str {
    match word {
        "none" | "zero" => "0",
        "one" => "1",
        "two" => "2",
        "three" => "3",
        "four" => "4",
        "five" => "5",
        "six" => "6",
        "seven" => "7",
        "eight" => "8",
        "nine" => "9",
        "ten" => "10",
        other => other,
    }
}

/// Contractions as they are written without some apostrophe, and in full; the original's slip ("somebody'd") included, its
/// entries with capitals left out.
const CONTRACTIONS: [(&str, &str); 114] = [
    ("'ow'sat", "'ow's'at"),
    ("'ows'at", "'ow's'at"),
    ("aint", "ain't"),
    ("arent", "aren't"),
    ("cant", "can't"),
    ("couldn'tve", "couldn't've"),
    ("couldnt", "couldn't"),
    ("couldnt've", "couldn't've"),
    ("couldve", "could've"),
    ("didnt", "didn't"),
    ("doesnt", "doesn't"),
    ("dont", "don't"),
    ("hadn'tve", "hadn't've"),
    ("hadnt", "hadn't"),
    ("hadnt've", "hadn't've"),
    ("hasnt", "hasn't"),
    ("havent", "haven't"),
    ("he'dve", "he'd've"),
    ("hed", "he'd"),
    ("hed've", "he'd've"),
    ("hes", "he's"),
    ("howd", "how'd"),
    ("howll", "how'll"),
    ("hows", "how's"),
    ("isnt", "isn't"),
    ("it'dve", "it'd've"),
    ("itd", "it'd"),
    ("itd've", "it'd've"),
    ("itll", "it'll"),
    ("maam", "ma'am"),
    ("mightn'tve", "mightn't've"),
    ("mightnt", "mightn't"),
    ("mightnt've", "mightn't've"),
    ("mightve", "might've"),
    ("mustnt", "mustn't"),
    ("mustve", "must've"),
    ("neednt", "needn't"),
    ("notve", "not've"),
    ("oclock", "o'clock"),
    ("oughtnt", "oughtn't"),
    ("ow's'at", "'ow's'at"),
    ("shant", "shan't"),
    ("she'dve", "she'd've"),
    ("shed've", "she'd've"),
    ("shouldn'tve", "shouldn't've"),
    ("shouldnt", "shouldn't"),
    ("shouldnt've", "shouldn't've"),
    ("shouldve", "should've"),
    ("somebody'd", "somebodyd"),
    ("somebody'dve", "somebody'd've"),
    ("somebodyd've", "somebody'd've"),
    ("somebodyll", "somebody'll"),
    ("somebodys", "somebody's"),
    ("someone'dve", "someone'd've"),
    ("someoned", "someone'd"),
    ("someoned've", "someone'd've"),
    ("someonell", "someone'll"),
    ("someones", "someone's"),
    ("something'dve", "something'd've"),
    ("somethingd", "something'd"),
    ("somethingd've", "something'd've"),
    ("somethingll", "something'll"),
    ("thats", "that's"),
    ("there'dve", "there'd've"),
    ("thered", "there'd"),
    ("thered've", "there'd've"),
    ("therere", "there're"),
    ("theres", "there's"),
    ("they'dve", "they'd've"),
    ("theyd", "they'd"),
    ("theyd've", "they'd've"),
    ("theyll", "they'll"),
    ("theyre", "they're"),
    ("theyve", "they've"),
    ("twas", "'twas"),
    ("wasnt", "wasn't"),
    ("we'dve", "we'd've"),
    ("wed've", "we'd've"),
    ("werent", "weren't"),
    ("weve", "we've"),
    ("whatll", "what'll"),
    ("whatre", "what're"),
    ("whats", "what's"),
    ("whatve", "what've"),
    ("whens", "when's"),
    ("whered", "where'd"),
    ("wheres", "where's"),
    ("whereve", "where've"),
    ("who'dve", "who'd've"),
    ("whod", "who'd"),
    ("whod've", "who'd've"),
    ("wholl", "who'll"),
    ("whos", "who's"),
    ("whove", "who've"),
    ("whyll", "why'll"),
    ("whyre", "why're"),
    ("whys", "why's"),
    ("wont", "won't"),
    ("wouldn'tve", "wouldn't've"),
    ("wouldnt", "wouldn't"),
    ("wouldnt've", "wouldn't've"),
    ("wouldve", "would've"),
    ("y'all'dve", "y'all'd've"),
    ("y'alld've", "y'all'd've"),
    ("y'allll", "y'all'll"),
    ("yall", "y'all"),
    ("yall'd've", "y'all'd've"),
    ("yall'll", "y'all'll"),
    ("you'dve", "you'd've"),
    ("youd", "you'd"),
    ("youd've", "you'd've"),
    ("youll", "you'll"),
    ("youre", "you're"),
    ("youve", "you've"),
];
