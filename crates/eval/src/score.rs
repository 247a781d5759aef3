//! Scores of answers.

use std::collections::BTreeMap;

use flamingo_metrics::auc::{probability_of_second, roc_auc};
use flamingo_metrics::caption::cider;
use flamingo_metrics::interval::{bootstrap, interval_of_mean};
use flamingo_metrics::vqa::accuracy::{self, accuracy};
use serde_json::Value;

use crate::task::{Answer, Metric, Task};
use crate::trial::Prediction;

/// The score of a trial.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// The metric over all answers.
    pub value: f64,
    /// Where it lies with 95 % confidence, by the bootstrap over samples: other samples might have been asked about.
    pub interval: Option<[f64; 2]>,
    /// The score of each answer, where the metric is made of such.
    pub each: Option<Vec<f64>>,
    /// The metric by kind of question, where the annotations tell it.
    pub by_question_type: BTreeMap<String, f64>,
    /// The metric by kind of answer, where the annotations tell it.
    pub by_answer_type: BTreeMap<String, f64>,
}

/// Scores answers. `None` where the references are not published, or the metric has no value (an area under the curve
/// of one class).
pub fn score(task: &Task, predictions: &[Prediction]) -> Option<Score> {
    if predictions.is_empty() || predictions.iter().any(|prediction| prediction.references.is_empty()) {
        return None;
    }
    let mean_of = |each: Vec<f64>| {
        let value = each.iter().sum::<f64>() / each.len() as f64;
        let interval = interval_of_mean(&each);
        Score { value, interval, each: Some(each), by_question_type: BTreeMap::new(), by_answer_type: BTreeMap::new() }
    };
    match task.metric {
        Metric::Accuracy => {
            let right = |prediction: &Prediction| {
                let is = |reference: &Value| text_of(reference).trim() == prediction.answer.trim();
                f64::from(u8::from(prediction.references.iter().any(is)))
            };
            Some(mean_of(predictions.iter().map(right).collect()))
        }
        Metric::Cider => {
            // In the order of the file: what stands at the end of a caption is read with the next.
            let mut order: Vec<usize> = (0..predictions.len()).collect();
            order.sort_by_key(|&i| predictions[i].place);
            let images: Vec<(&str, Vec<&str>)> = order
                .iter()
                .map(|&i| (predictions[i].answer.as_str(), predictions[i].references.iter().map(text_of).collect()))
                .collect();
            let scored = cider(&images);
            let mut each = vec![0.0; predictions.len()];
            for (&i, score) in order.iter().zip(scored.per_image) {
                each[i] = 100.0 * score;
            }
            Some(Score { value: 100.0 * scored.mean, ..mean_of(each) })
        }
        Metric::VqaAccuracy => {
            let scored = vqa(predictions)?;
            // Where the annotations tell no kind there is nothing to list.
            let told = |tells: &dyn Fn(&Prediction) -> bool, kinds| {
                if predictions.iter().any(tells) { kinds } else { BTreeMap::new() }
            };
            Some(Score {
                value: scored.overall,
                by_question_type: told(&|prediction| prediction.question_type.is_some(), scored.per_question_type),
                by_answer_type: told(&|prediction| prediction.answer_type.is_some(), scored.per_answer_type),
                ..mean_of(scored.per_question.into_values().collect())
            })
        }
        Metric::RocAuc => {
            let Answer::Classify(classify) = &task.answer else { return None };
            let names = classify.classes.names();
            // The positive class is the one that comes later in the alphabet: "yes".
            let positive = names.iter().max()?;
            let [first, second] = &names[..] else { return None };
            let mut scores = Vec::with_capacity(predictions.len());
            for Prediction { classes, .. } in predictions {
                let of = |name: &String| classes.iter().find(|(class, _)| class == name).map(|(_, log_prob)| *log_prob);
                let probability = probability_of_second([of(first)?, of(second)?]);
                scores.push(if positive == first { 1.0 - probability } else { probability });
            }
            let truth: Vec<bool> =
                predictions.iter().map(|prediction| text_of(&prediction.references[0]) == positive).collect();
            let value = roc_auc(&truth, &scores)?;
            let interval = bootstrap(scores.len(), 1000, 0.95, |drawn| {
                let truth: Vec<bool> = drawn.iter().map(|&i| truth[i]).collect();
                roc_auc(&truth, &drawn.iter().map(|&i| scores[i]).collect::<Vec<_>>())
            });
            Some(Score {
                value,
                interval,
                each: None,
                by_question_type: BTreeMap::new(),
                by_answer_type: BTreeMap::new(),
            })
        }
    }
}

/// A reference's text: itself, or its `answer`.
fn text_of(reference: &Value) -> &str {
    reference.as_str().or_else(|| reference.get("answer")?.as_str()).unwrap_or_default()
}

/// What tells answers of one text apart: the other fields of their records. Plain texts are one person's each.
fn details_of(reference: &Value, number: usize) -> Value {
    match reference {
        Value::Object(fields) => {
            let mut fields = fields.clone();
            fields.remove("answer");
            fields.into()
        }
        _ => number.into(),
    }
}

fn vqa(predictions: &[Prediction]) -> Option<accuracy::Accuracy> {
    let questions: Vec<accuracy::Question<Value>> = predictions
        .iter()
        .enumerate()
        .map(|(i, prediction)| accuracy::Question {
            id: i as u64,
            question_type: prediction.question_type.clone().unwrap_or_default(),
            answer_type: prediction.answer_type.clone(),
            answers: prediction
                .references
                .iter()
                .enumerate()
                .map(|(number, reference)| accuracy::Answer {
                    text: text_of(reference).to_string(),
                    details: details_of(reference, number),
                })
                .collect(),
        })
        .collect();
    let answers: Vec<accuracy::Prediction> = predictions
        .iter()
        .enumerate()
        .map(|(i, prediction)| accuracy::Prediction { question_id: i as u64, answer: prediction.answer.clone() })
        .collect();
    accuracy(&questions, &answers).ok()
}
