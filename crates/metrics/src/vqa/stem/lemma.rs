//! Verbs of words in "ing", by the verbs of WordNet 3.0.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

static VERBS: LazyLock<HashSet<&str>> = LazyLock::new(|| include_str!("../../../data/verbs.txt").lines().collect());
static EXCEPTIONS: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    include_str!("../../../data/verb_exceptions.txt").lines().filter_map(|line| line.split_once(' ')).collect()
});

/// The shortest verb that a word in "ing" is a form of; the word itself, where there is none.
///
/// Of equally short verbs it is the first: the word, then WordNet's exceptions or, where it has none, the word with "e"
/// for "ing" and the word without "ing".
pub fn verb_lemma(word: &str) -> String {
    let Some(root) = word.strip_suffix("ing") else { return word.to_owned() };
    let mut forms = vec![word.to_owned()];
    match EXCEPTIONS.get(word) {
        Some(verbs) => forms.extend(verbs.split(' ').map(str::to_owned)),
        None => forms.extend([format!("{root}e"), root.to_owned()]),
    }
    let verbs = forms.into_iter().filter(|form| VERBS.contains(form.as_str()));
    verbs.min_by_key(|verb| verb.chars().count()).unwrap_or_else(|| word.to_owned())
}
