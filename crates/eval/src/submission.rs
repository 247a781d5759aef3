//! Answers to tests whose references are not published, in the form that their servers take
//! (`open_flamingo/scripts/fill_vqa_testdev_results.py`).

use std::collections::HashMap;

use flamingo_metrics::vqa::normalise::{normalise, one_line};
use serde_json::{Map, Value, json};

use crate::EvalError;
use crate::task::{Submission, SubmissionForm};
use crate::trial::Prediction;

/// The file for the server: an answer to every question of the whole test, empty where none was asked.
///
/// # Errors
/// [`EvalError`] for a question without its fields.
pub(crate) fn submission(
    wanted: &Submission,
    questions: &[Map<String, Value>],
    predictions: &[Prediction],
) -> Result<Value, EvalError> {
    let mut answers: HashMap<String, String> = HashMap::new();
    let mut lines = Vec::new();
    for prediction in predictions {
        let answer = normalise(&one_line(&prediction.answer));
        lines.push(json!({"answer": answer, "question_id": prediction.id}));
        answers.insert(prediction.id.to_string(), answer);
    }
    let mut all = Vec::with_capacity(questions.len());
    for (i, question) in questions.iter().enumerate() {
        let field = |key: &str| {
            question
                .get(key)
                .ok_or_else(|| EvalError::content(&wanted.questions, format!("question {i} has no `{key}`")))
        };
        let id = field("question_id")?;
        match wanted.form {
            SubmissionForm::Vizwiz => {
                let answer = answers.get(&id.to_string()).cloned().unwrap_or_default();
                all.push(json!({"image": field("image_id")?, "answer": answer}));
            }
            SubmissionForm::Vqa if answers.contains_key(&id.to_string()) => {}
            SubmissionForm::Vqa => lines.push(json!({"question_id": id, "answer": ""})),
        }
    }
    Ok(match wanted.form {
        SubmissionForm::Vizwiz => all.into(),
        SubmissionForm::Vqa => lines.into(),
    })
}
