//! What the tiny models can do, on pictures that they have not seen.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use flamingo_data::{Interleaved, Picture};
use flamingo_engine::{Device, Precision};
use flamingo_zoo::Model;
use serde::{Deserialize, Serialize};

/// Prompts that are read together.
const BATCH: usize = 32;

/// Tokens that an answer may have.
const ANSWER: usize = 12;

/// A question of `data/eval`.
#[derive(Clone, Debug, Deserialize)]
struct Question {
    task: String,
    form: String,
    shots: usize,
    images: Vec<String>,
    prompt: String,
    answer: String,
    heldout: bool,
}

/// The result of one task in one form with one number of demonstrations.
#[derive(Clone, Debug, Serialize)]
pub struct Score {
    /// What was asked for.
    pub task: String,
    /// How: `question`, `shown` (by the demonstrations alone) or `name` (a prompt of its own).
    pub form: String,
    /// Demonstrations.
    pub shots: usize,
    /// Whether the concepts were kept out of training in all styles, not only this one.
    pub held_out_concepts: bool,
    /// Questions.
    pub questions: usize,
    /// Share of answers that were right, letter by letter.
    pub accuracy: f64,
}

/// What the model said to one question.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    task: String,
    form: String,
    shots: usize,
    /// The pictures of the prompt, the one asked about last.
    images: Vec<String>,
    prompt: String,
    expected: String,
    said: String,
}

/// Answers the questions of a folder that `fetch-data` made, at most `limit` of each kind: scores, and every answer.
///
/// # Errors
/// If model or questions cannot be read, or the device fails.
pub fn score(
    model: &Path,
    data: &Path,
    device: Device,
    limit: usize,
    on_progress: &mut dyn FnMut(usize, usize),
) -> anyhow::Result<(Vec<Score>, Vec<Answer>)> {
    let model = Model::open(model, device, Precision::F32)?;
    let mut kinds: BTreeMap<(String, String, usize, bool), Vec<Question>> = BTreeMap::new();
    for file in ["questions.jsonl", "easy_vqa.jsonl"] {
        let path = data.join(file);
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for line in text.lines() {
            let question: Question = serde_json::from_str(line).with_context(|| path.display().to_string())?;
            let kind = (question.task.clone(), question.form.clone(), question.shots, question.heldout);
            let questions = kinds.entry(kind).or_default();
            if questions.len() < limit {
                questions.push(question);
            }
        }
    }
    let total = kinds.values().map(Vec::len).sum();
    let mut done = 0;
    let mut pictures: BTreeMap<String, Arc<Picture>> = BTreeMap::new();
    let mut scores = Vec::new();
    let mut all = Vec::new();
    for ((task, form, shots, held_out_concepts), questions) in kinds {
        let mut right = 0;
        for batch in questions.chunks(BATCH) {
            let mut prompts = Vec::new();
            for question in batch {
                let mut images = Vec::new();
                for name in &question.images {
                    if !pictures.contains_key(name) {
                        pictures.insert(name.clone(), Arc::new(Picture::open(&data.join(name))?));
                    }
                    images.push(pictures[name].clone());
                }
                prompts.push(Interleaved { text: question.prompt.clone(), images });
            }
            let settings = model.settings(ANSWER);
            let answers = model.generate(&prompts, &settings, false, &mut |_, _| ControlFlow::Continue(()))?;
            for (question, answers) in batch.iter().zip(answers) {
                let said = answers.first().map_or("", |answer| answer.text.trim());
                right += usize::from(said == question.answer);
                all.push(Answer {
                    task: question.task.clone(),
                    form: question.form.clone(),
                    shots: question.shots,
                    images: question.images.clone(),
                    prompt: question.prompt.clone(),
                    expected: question.answer.clone(),
                    said: said.into(),
                });
            }
            done += batch.len();
            on_progress(done, total);
        }
        let accuracy = right as f64 / questions.len() as f64;
        scores.push(Score { task, form, shots, held_out_concepts, questions: questions.len(), accuracy });
    }
    Ok((scores, all))
}
