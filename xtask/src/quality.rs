//! What fewer bits cost: the tiny models' answers in each precision beside those in f32.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use flamingo_config::ModelConfig;
use flamingo_engine::{Device, Precision};
use flamingo_metrics::interval::{bootstrap, interval_of_mean};
use flamingo_weights::{Format, layout};
use flamingo_zoo::Model;

use crate::tiny::{Asked, BATCH, Question, questions};

/// The scores of the table: heading, and task, form and demonstrations of its questions.
const SCORES: [(&str, &str, &str, usize); 8] = [
    ("colour", "colour", "question", 0),
    ("category", "category", "question", 0),
    ("kind", "kind", "question", 0),
    ("name", "name", "name", 0),
    ("easy-VQA", "easy_vqa", "question", 0),
    ("name, 4 shots", "name", "name", 4),
    ("colour, shown, 4 shots", "colour", "shown", 4),
    ("category, shown, 4 shots", "category", "shown", 4),
];

/// What is measured.
pub struct Quality {
    /// The questions, as `fetch-data` writes them.
    pub data: PathBuf,
    /// On what.
    pub device: Device,
    /// Precisions that are compared with f32.
    pub precisions: Vec<Precision>,
    /// Most questions of a score.
    pub questions: usize,
}

/// What became of a question.
#[derive(Clone, Debug)]
struct Outcome {
    /// The answer by greedy generation.
    said: String,
    /// Whether that was right, letter by letter.
    right: bool,
    /// The negative log-likelihood of the right answer and of its end, after picture and prompt.
    surprise: f64,
    /// Tokens of the right answer and its end.
    tokens: usize,
}

/// The outcomes of one precision, for each score.
type Outcomes = Vec<Vec<Outcome>>;

impl Quality {
    /// Asks a model in each precision: a table in Markdown.
    ///
    /// # Errors
    /// If model or questions cannot be read, or the device fails.
    pub fn table(&self, model: &Path, on_progress: &mut dyn FnMut(usize, usize)) -> anyhow::Result<String> {
        let asked = chosen(&questions(&self.data)?, self.questions);
        for ((heading, ..), questions) in SCORES.iter().zip(&asked) {
            let data = self.data.display();
            ensure!(
                !questions.is_empty(),
                "{data} has no questions for {heading}: make it with `cargo xtask fetch-data`"
            );
        }
        // Everything is compared with f32, so that comes first, asked for or not.
        let others = self.precisions.iter().copied().filter(|&precision| precision != Precision::F32);
        let precisions: Vec<Precision> = std::iter::once(Precision::F32).chain(others).collect();
        let each: usize = asked.iter().map(Vec::len).sum();
        let mut table = header(&asked);
        let mut reference = None;
        for (i, &precision) in precisions.iter().enumerate() {
            let model = Model::open(model, self.device, precision)?;
            let outcomes =
                self.ask(&model, &asked, &mut |done| on_progress(i * each + done, precisions.len() * each))?;
            table += &row(precision, megabytes(model.config(), precision), &outcomes, reference.as_ref());
            reference.get_or_insert(outcomes);
        }
        Ok(table)
    }

    /// The outcomes of all questions.
    fn ask(
        &self,
        model: &Model,
        scores: &[Vec<Question>],
        on_progress: &mut dyn FnMut(usize),
    ) -> anyhow::Result<Outcomes> {
        let mut asked = Asked::new(model, &self.data);
        let mut done = 0;
        let mut outcomes = Vec::new();
        for questions in scores {
            let mut these = Vec::new();
            for batch in questions.chunks(BATCH) {
                let prompts = asked.prompts(batch)?;
                let answers = asked.answers(&prompts)?;
                for ((question, prompt), said) in batch.iter().zip(prompts).zip(answers) {
                    let expected = model.tokenizer().encode_plain(&continuation(question))?;
                    let score = model.score_seen(&[prompt], &[expected])?[0][0];
                    let right = said == question.answer;
                    these.push(Outcome { said, right, surprise: -score.total, tokens: score.tokens });
                }
                done += batch.len();
                on_progress(done);
            }
            outcomes.push(these);
        }
        Ok(outcomes)
    }
}

/// The questions of each score, at most `limit` of them. They are sorted by what they show, so that the first ones would
/// be much alike: these are spread over all.
fn chosen(all: &[Question], limit: usize) -> Vec<Vec<Question>> {
    let of_score = |&(_, task, form, shots): &(&str, &str, &str, usize)| {
        let all: Vec<&Question> = all.iter().filter(|q| q.task == task && q.form == form && q.shots == shots).collect();
        let count = all.len().min(limit);
        (0..count).map(|i| all[i * all.len() / count].clone()).collect()
    };
    SCORES.iter().map(of_score).collect()
}

/// What a perfect model would say, in the form in which demonstrations say it: a name is a word of its own, other answers
/// follow a colon.
fn continuation(question: &Question) -> String {
    let space = if question.prompt.ends_with(':') { "" } else { " " };
    format!("{space}{}<|endofchunk|>", question.answer)
}

/// Size of a model folder's weights. Beside quantised matrices numbers are f16.
fn megabytes(config: &ModelConfig, precision: Precision) -> f64 {
    let format = Format::from(precision);
    layout(config).iter().map(|tensor| tensor.bytes(format)).sum::<u64>() as f64 / 1e6
}

fn header(asked: &[Vec<Question>]) -> String {
    let mut cells = ["", "MB", "perplexity", "as f32"].map(String::from).to_vec();
    cells.extend(SCORES.iter().zip(asked).map(|((heading, ..), questions)| format!("{heading} ({})", questions.len())));
    line(&cells) + &line(&vec!["---".into(); cells.len()])
}

/// A row of the table. f32, which has no reference, gets 95 % intervals. In other rows a number is bold if it differs from
/// f32's by the answers to the same questions with 95 % confidence: pairs tell smaller differences than intervals do.
fn row(precision: Precision, megabytes: f64, outcomes: &Outcomes, reference: Option<&Outcomes>) -> String {
    let all: Vec<&Outcome> = outcomes.iter().flatten().collect();
    let mut cells = vec![precision.to_string(), format!("{megabytes:.1}")];
    if let Some(reference) = reference {
        let before: Vec<&Outcome> = reference.iter().flatten().collect();
        let pairs = || all.iter().zip(&before);
        let surprise: Vec<f64> = pairs().map(|(now, then)| now.surprise - then.surprise).collect();
        let agree: Vec<f64> = pairs().map(|(now, then)| f64::from(now.said == then.said)).collect();
        cells.push(compared(format!("{:.4}", perplexity(&all)), &surprise));
        cells.push(format!("{:.3}", mean(&agree)));
        cells.extend(outcomes.iter().zip(reference).map(|(these, before)| {
            let (now, then) = (right(these), right(before));
            let more: Vec<f64> = now.iter().zip(then).map(|(now, then)| now - then).collect();
            compared(format!("{:.3}", mean(&now)), &more)
        }));
    } else {
        let interval = bootstrap(all.len(), 1000, 0.95, |drawn| {
            Some(perplexity(&drawn.iter().map(|&i| all[i]).collect::<Vec<_>>()))
        });
        cells.push(with_interval(format!("{:.4}", perplexity(&all)), interval));
        cells.push("–".into());
        cells.extend(outcomes.iter().map(|these| {
            let right = right(these);
            with_interval(format!("{:.3}", mean(&right)), interval_of_mean(&right))
        }));
    }
    line(&cells)
}

fn line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// How many tokens the model hesitates between, in the mean: 1 if it is sure of all that is right.
fn perplexity(outcomes: &[&Outcome]) -> f64 {
    let surprise: f64 = outcomes.iter().map(|outcome| outcome.surprise).sum();
    let tokens: usize = outcomes.iter().map(|outcome| outcome.tokens).sum();
    (surprise / tokens as f64).exp()
}

fn right(outcomes: &[Outcome]) -> Vec<f64> {
    outcomes.iter().map(|outcome| f64::from(outcome.right)).collect()
}

fn with_interval(value: String, interval: Option<[f64; 2]>) -> String {
    match interval {
        Some([low, high]) => format!("{value} ± {:.3}", (high - low) / 2.0),
        None => value,
    }
}

/// A number, bold if `more` than the reference has, question by question, is not 0 in the mean.
fn compared(value: String, more: &[f64]) -> String {
    match interval_of_mean(more) {
        Some([low, high]) if low > 0.0 || high < 0.0 => format!("**{value}**"),
        _ => value,
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcomes(rights: &[bool], surprise: f64) -> Outcomes {
        let outcome = |&right: &bool| Outcome { said: right.to_string(), right, surprise, tokens: 2 };
        vec![rights.iter().map(outcome).collect()]
    }

    #[test]
    fn only_what_differs_from_f32_is_bold() {
        let f32 = outcomes(&[true, true, true, false], 2.0 * 4f64.ln());
        assert_eq!(row(Precision::F32, 8.0, &f32, None), "| f32 | 8.0 | 4.0000 ± 0.000 | – | 0.750 ± 0.375 |\n");
        assert_eq!(row(Precision::F16, 4.0, &f32, Some(&f32)), "| f16 | 4.0 | 4.0000 | 1.000 | 0.750 |\n");
        let worse = outcomes(&[false; 4], 2.0 * 5f64.ln());
        assert_eq!(row(Precision::F16, 4.0, &worse, Some(&f32)), "| f16 | 4.0 | **5.0000** | 0.250 | **0.000** |\n");
    }

    #[test]
    fn chosen_questions_are_spread() {
        let question = |i: usize| Question {
            task: "colour".into(),
            form: "question".into(),
            shots: 0,
            images: Vec::new(),
            prompt: format!("{i}:"),
            answer: "red".into(),
            heldout: false,
        };
        let all: Vec<Question> = (0..10).map(question).collect();
        let prompts = |limit| chosen(&all, limit)[0].iter().map(|q| q.prompt.clone()).collect::<Vec<_>>();
        assert_eq!(prompts(3), ["0:", "3:", "6:"]);
        assert_eq!(prompts(usize::MAX).len(), 10);
        assert_eq!(continuation(&all[0]), "red<|endofchunk|>");
    }
}
