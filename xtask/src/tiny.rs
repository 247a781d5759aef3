//! What the tiny models can do, on pictures that they have not seen.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flamingo_data::Interleaved;
use flamingo_engine::{Device, Precision};
use flamingo_eval::{Gallery, Shown};
use flamingo_zoo::{Latents, Model};
use serde::{Deserialize, Serialize};

/// Prompts that are read together.
pub(crate) const BATCH: usize = 32;

/// Tokens that an answer may have.
const ANSWER: usize = 12;

/// Memory for pictures that were looked at: all of `data/eval` at 16 KiB each, several times over.
const PICTURES: usize = 256 << 20;

/// A question of `data/eval`.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Question {
    pub(crate) task: String,
    pub(crate) form: String,
    pub(crate) shots: usize,
    pub(crate) images: Vec<String>,
    pub(crate) prompt: String,
    pub(crate) answer: String,
    pub(crate) heldout: bool,
}

/// All questions of a folder that `fetch-data` made.
pub(crate) fn questions(data: &Path) -> anyhow::Result<Vec<Question>> {
    let mut questions = Vec::new();
    for file in ["questions.jsonl", "easy_vqa.jsonl"] {
        let path = data.join(file);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("there is no {}: make it with `cargo xtask fetch-data`", path.display())
            }
            read => read.with_context(|| format!("cannot read {}", path.display()))?,
        };
        for line in text.lines() {
            questions.push(serde_json::from_str(line).with_context(|| path.display().to_string())?);
        }
    }
    Ok(questions)
}

/// A model that is asked, and what it keeps of the pictures of a folder: many questions share them.
pub(crate) struct Asked<'a> {
    pub(crate) model: &'a Model,
    data: &'a Path,
    gallery: Gallery,
}

impl<'a> Asked<'a> {
    pub(crate) fn new(model: &'a Model, data: &'a Path) -> Self {
        Self { model, data, gallery: Gallery::new(PICTURES) }
    }

    /// Questions with their pictures, ready to be answered.
    pub(crate) fn prompts(&mut self, questions: &[Question]) -> anyhow::Result<Vec<Interleaved<Latents>>> {
        let placed = |q: &Question| q.images.iter().map(|name| self.data.join(name)).zip(0..).collect();
        let all: Vec<Vec<(PathBuf, usize)>> = questions.iter().map(placed).collect();
        let wanted: Vec<Shown> = all.iter().flatten().map(|(path, place)| (path.as_path(), *place)).collect();
        let seen = self.gallery.look(self.model, &wanted, std::iter::empty())?;
        let prompt = |(question, shown): (&Question, &Vec<(PathBuf, usize)>)| Interleaved {
            text: question.prompt.clone(),
            images: shown.iter().map(|(path, place)| seen.of((path, *place))).collect(),
        };
        Ok(questions.iter().zip(&all).map(prompt).collect())
    }

    /// What the model says, greedily.
    pub(crate) fn answers(&self, prompts: &[Interleaved<Latents>]) -> anyhow::Result<Vec<String>> {
        let go_on = &mut |_, _: &str| ControlFlow::Continue(());
        let answers = self.model.generate_seen(prompts, &self.model.settings(ANSWER), false, go_on)?;
        Ok(answers.iter().map(|best| best.first().map_or("", |answer| answer.text.trim()).into()).collect())
    }
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
    let mut kinds: BTreeMap<(String, String, usize, bool), Vec<Question>> = BTreeMap::new();
    for question in questions(data)? {
        let kind = (question.task.clone(), question.form.clone(), question.shots, question.heldout);
        let questions = kinds.entry(kind).or_default();
        if questions.len() < limit {
            questions.push(question);
        }
    }
    let model = Model::open(model, device, Precision::F32)?;
    let total = kinds.values().map(Vec::len).sum();
    let mut done = 0;
    let mut asked = Asked::new(&model, data);
    let mut scores = Vec::new();
    let mut all = Vec::new();
    for ((task, form, shots, held_out_concepts), questions) in kinds {
        let mut right = 0;
        for batch in questions.chunks(BATCH) {
            let prompts = asked.prompts(batch)?;
            for (question, said) in batch.iter().zip(asked.answers(&prompts)?) {
                right += usize::from(said == question.answer);
                all.push(Answer {
                    task: question.task.clone(),
                    form: question.form.clone(),
                    shots: question.shots,
                    images: question.images.clone(),
                    prompt: question.prompt.clone(),
                    expected: question.answer.clone(),
                    said,
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
