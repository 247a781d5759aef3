//! The VQA challenge's accuracy.
//!
//! A prediction is held against the answers of all annotators but one, for each of them: three matches make it right,
//! fewer count by thirds, and the mean over the annotators is the question's accuracy. "All but one" are the answers that
//! differ from the one left out, as whole records: where they carry no number of their own, all equal answers are left
//! out together.

use std::collections::{BTreeMap, HashMap};

use thiserror::Error;

use super::normalise;

/// One annotator's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<D> {
    /// What was answered.
    pub text: String,
    /// Everything else that the record says, such as the annotator's number: it makes equal texts different answers.
    pub details: D,
}

/// A question with its annotators' answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Question<D> {
    /// What predictions name it by.
    pub id: u64,
    /// How the question begins.
    pub question_type: String,
    /// The kind of its answers, "other" where there is none.
    pub answer_type: Option<String>,
    /// In the annotators' order.
    pub answers: Vec<Answer<D>>,
}

/// A model's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// The question's id.
    pub question_id: u64,
    /// What the model answered.
    pub answer: String,
}

/// Accuracies in percent, rounded to two places.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Of all predictions.
    pub overall: f64,
    /// By the question's id.
    pub per_question: BTreeMap<u64, f64>,
    /// By the question's type.
    pub per_question_type: BTreeMap<String, f64>,
    /// By the type of its answers.
    pub per_answer_type: BTreeMap<String, f64>,
}

/// Why there is no accuracy.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AccuracyError {
    /// The mean of nothing.
    #[error("no predictions")]
    NoPredictions,
    /// The prediction's question is not there.
    #[error("a prediction for question {0}, which is not among the questions")]
    UnknownQuestion(u64),
    /// Nothing to hold a prediction against.
    #[error("question {0} has no answers")]
    NoAnswers(u64),
}

/// The accuracy of `predictions`; questions without a prediction do not count.
///
/// Of questions with the same id the last one counts. A question that is predicted twice counts twice, both times with
/// the last prediction.
pub fn accuracy<D: PartialEq>(
    questions: &[Question<D>],
    predictions: &[Prediction],
) -> Result<Accuracy, AccuracyError> {
    let by_id: HashMap<u64, &Question<D>> = questions.iter().map(|question| (question.id, question)).collect();
    let predicted: HashMap<u64, &str> =
        predictions.iter().map(|prediction| (prediction.question_id, prediction.answer.as_str())).collect();

    let mut all = Mean::default();
    let mut per_question = BTreeMap::new();
    let mut by_question_type: BTreeMap<&str, Mean> = BTreeMap::new();
    let mut by_answer_type: BTreeMap<&str, Mean> = BTreeMap::new();
    for &Prediction { question_id, .. } in predictions {
        let question = by_id.get(&question_id).ok_or(AccuracyError::UnknownQuestion(question_id))?;
        if question.answers.is_empty() {
            return Err(AccuracyError::NoAnswers(question_id));
        }
        let accuracy = question_accuracy(&question.answers, predicted[&question_id]);
        all.add(accuracy);
        per_question.insert(question_id, round(100.0 * accuracy));
        by_question_type.entry(&question.question_type).or_default().add(accuracy);
        by_answer_type.entry(question.answer_type.as_deref().unwrap_or("other")).or_default().add(accuracy);
    }
    if predictions.is_empty() {
        return Err(AccuracyError::NoPredictions);
    }
    let percentages = |means: BTreeMap<&str, Mean>| {
        means.into_iter().map(|(name, mean)| (name.to_owned(), mean.percentage())).collect()
    };
    Ok(Accuracy {
        overall: all.percentage(),
        per_question,
        per_question_type: percentages(by_question_type),
        per_answer_type: percentages(by_answer_type),
    })
}

/// Between 0 and 1, of at least one answer.
fn question_accuracy<D: PartialEq>(answers: &[Answer<D>], prediction: &str) -> f64 {
    let prediction = normalise(prediction);
    let texts: Vec<String> = answers.iter().map(|answer| normalise(&answer.text)).collect();
    let matching: Vec<usize> = (0..texts.len()).filter(|&i| texts[i] == prediction).collect();
    let same = |i: usize, j: usize| texts[i] == texts[j] && answers[i].details == answers[j].details;
    let mut mean = Mean::default();
    for left_out in 0..answers.len() {
        let matches = matching.iter().filter(|&&other| !same(other, left_out)).count();
        mean.add((matches as f64 / 3.0).min(1.0));
    }
    mean.sum / mean.count as f64
}

/// Sums in the order of the questions, which decides about the last bit.
#[derive(Default)]
struct Mean {
    sum: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn percentage(&self) -> f64 {
        round(100.0 * self.sum / self.count as f64)
    }
}

/// To two places, as Python rounds: by the exact decimal value, halves to even.
fn round(value: f64) -> f64 {
    format!("{value:.2}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::round;

    #[test]
    fn halves_go_to_even() {
        assert_eq!([0.125, 0.375, 2.675, 53.333333333333336].map(round), [0.12, 0.38, 2.67, 53.33]);
    }
}
