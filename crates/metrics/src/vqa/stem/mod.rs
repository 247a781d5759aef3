//! Stems as the answers of OK-VQA v1.1 have them.
//!
//! A word is looked up in a table of exceptions; else, if it ends in "ing", it becomes the verb that WordNet
//! makes of it; else, if the tagger takes it for a plural, its singular. Tokens, tags, verbs and singulars are those of
//! NLTK 3.10 and `inflection` 0.5, word for word, since the data set's stems were made with them.

mod lemma;
mod manual;
mod singular;
mod tagger;
mod tokens;

pub use lemma::verb_lemma;
pub use singular::singularise;
pub use tagger::tags;
pub use tokens::tokenise;

/// The stems of `text`'s words, joined by spaces.
pub fn stem(text: &str) -> String {
    let words = tokenise(text);
    let stems: Vec<String> = words.iter().zip(tags(&words)).map(|(word, tag)| stem_word(word, tag)).collect();
    stems.join(" ")
}

fn stem_word(word: &str, tag: &str) -> String {
    if let Some(stem) = manual::stem(word) {
        stem.to_owned()
    } else if word.ends_with("ing") {
        verb_lemma(word)
    } else if matches!(tag, "NNS" | "NNPS") {
        singularise(word)
    } else {
        word.to_owned()
    }
}
