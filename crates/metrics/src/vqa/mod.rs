//! Accuracy on VQA and OK-VQA, and what is done to a model's words before they are compared.
//!
//! [`accuracy()`] is the VQA challenge's measure as OpenFlamingo runs it, with the treatment of prediction and answers that
//! [`mod@normalise`] describes. For OK-VQA the prediction is also stemmed ([`stem`]), because the data set's answers were.

pub mod accuracy;
pub mod normalise;
mod python;
pub mod stem;

use std::sync::LazyLock;

use regex::Regex;

pub use accuracy::{Accuracy, AccuracyError, Answer, Prediction, Question, accuracy};
pub use normalise::normalise;

/// What a model answered: everything before it goes on with the prompt's pattern, and of that the part before ", ".
pub fn short_answer(generated: &str) -> &str {
    static NEXT_SHOT: LazyLock<Regex> = LazyLock::new(|| Regex::new("Question|Answer|Short").expect("a valid pattern"));
    let answer = NEXT_SHOT.find(generated).map_or(generated, |next| &generated[..next.start()]);
    answer.split_once(", ").map_or(answer, |(first, _)| first)
}

/// [`short_answer`] in the stemmed form of OK-VQA's answers.
pub fn short_answer_stemmed(generated: &str) -> String {
    stem::stem(short_answer(generated))
}
