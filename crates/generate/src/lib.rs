//! From logits to token ids: greedy search, beam search, sampling. Knows ids, not strings, and no tensor
//! library.
//!
//! Results are those of `generate` in transformers 4.33, whose oddities are part of the numbers: beam scores
//! are divided by the length of the whole sequence, prompt and left padding included, and n-gram blocking sees
//! the prompt. Where torch leaves the order of equal values open, the lower token (of the lower beam) is first.

mod beam;
mod config;
mod continuation;
mod error;
mod greedy;
mod processors;
mod sample;
mod score;
mod select;

use std::ops::ControlFlow;

pub use config::{EarlyStopping, GenerationConfig, Strategy};
pub use continuation::Continuation;
pub use error::{ConfigError, GenerateError, InputError};
pub use sample::sampling_distribution;
pub use score::{SequenceScore, sequence_log_prob};
pub use select::log_softmax;

/// A batch of sequences that a model is continuing. Its caches live behind it.
pub trait Decoder {
    /// What can go wrong in the model.
    type Error;

    /// Feeds one token a row and returns the logits that follow, `rows * vocab`, row-major.
    ///
    /// # Errors
    /// Whatever the model fails with.
    fn step(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Self::Error>;

    /// Row `i` continues from what was row `rows[i]`; the number of rows may change.
    ///
    /// # Errors
    /// Whatever the model fails with.
    fn reorder(&mut self, rows: &[usize]) -> Result<(), Self::Error>;
}

/// One continuation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// New tokens, the stop token included where it was produced.
    pub ids: Vec<u32>,
    /// The sequence's score, where beams were searched.
    pub score: Option<f64>,
    /// Whether the stop token was produced.
    pub finished: bool,
}

/// Sees each token as it is chosen, with the row of its continuation; may break off.
pub type OnToken<'a> = &'a mut dyn FnMut(usize, u32) -> ControlFlow<()>;

/// Rows decoded at once, prompts times beams or samples: far beyond any model's memory, and small enough that
/// no size computed from it overflows.
const MAX_ROWS: usize = 1 << 16;

/// Continues prompts.
///
/// `prompts` are left-padded to one width; `decoder` has read them, and `first_logits` (`rows * vocab`) follow
/// their last tokens. Returns `num_return_sequences` continuations a prompt, grouped by prompt, best first.
/// `on_token` gets the row of each continuation and its tokens: at once in greedy search and sampling, when the
/// search has ended for beams. Breaking off returns what there is.
///
/// # Errors
/// [`GenerateError::Config`] for unusable settings, [`GenerateError::Input`] for prompts or logits that do not
/// fit together or logits that are NaN, [`GenerateError::Decoder`] if the model fails.
pub fn generate<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Vec<u32>],
    first_logits: Vec<f32>,
    config: &GenerationConfig,
    on_token: OnToken,
) -> Result<Vec<Generated>, GenerateError<D::Error>> {
    config.validate()?;
    let beams = match config.strategy {
        Strategy::Beam { num_beams, .. } => num_beams,
        _ => config.num_return_sequences,
    };
    let vocab = check(prompts, &first_logits, beams)?;
    match config.strategy {
        Strategy::Beam { num_beams, length_penalty, early_stopping } if num_beams > 1 => {
            let search = beam::Search { num_beams, length_penalty, early_stopping };
            beam::run(decoder, prompts, first_logits, vocab, config, search, on_token)
        }
        // One beam is greedy search.
        _ => greedy::run(decoder, prompts, first_logits, vocab, config, on_token),
    }
}

/// Whether prompts and logits fit together; returns the size of the vocabulary.
fn check(prompts: &[Vec<u32>], logits: &[f32], rows_per_prompt: usize) -> Result<usize, InputError> {
    let width = prompts.first().ok_or(InputError::NoPrompt)?.len();
    if let Some(row) = prompts.iter().position(Vec::is_empty) {
        return Err(InputError::EmptyPrompt { row });
    }
    if let Some((row, prompt)) = prompts.iter().enumerate().find(|(_, p)| p.len() != width) {
        return Err(InputError::PromptWidth { row, found: prompt.len(), expected: width });
    }
    if prompts.len().saturating_mul(rows_per_prompt) > MAX_ROWS {
        return Err(InputError::TooManyRows { prompts: prompts.len(), each: rows_per_prompt, most: MAX_ROWS });
    }
    let vocab = logits.len() / prompts.len();
    if vocab == 0 || vocab > u32::MAX as usize || !logits.len().is_multiple_of(prompts.len()) {
        return Err(InputError::FirstLogits { found: logits.len(), prompts: prompts.len() });
    }
    Ok(vocab)
}

/// Whether the model returned a row of logits for each row.
fn check_logits(logits: &[f32], rows: usize, vocab: usize) -> Result<(), InputError> {
    let expected = rows * vocab;
    if logits.len() == expected { Ok(()) } else { Err(InputError::Logits { found: logits.len(), expected }) }
}

/// Prompts and continuations as `generate` of transformers returns them: each prompt (repeated for several
/// continuations) with its new tokens, filled with `pad` to the longest.
///
/// `out` is what [`generate`] returned for `prompts`; continuations beyond the last prompt get none.
pub fn padded(prompts: &[Vec<u32>], out: &[Generated], pad: u32) -> Vec<Vec<u32>> {
    let each = (out.len() / prompts.len().max(1)).max(1);
    let longest = out.iter().map(|g| g.ids.len()).max().unwrap_or(0);
    out.iter()
        .enumerate()
        .map(|(i, generated)| {
            let mut row = prompts.get(i / each).cloned().unwrap_or_default();
            row.extend_from_slice(&generated.ids);
            row.resize(row.len() + longest - generated.ids.len(), pad);
            row
        })
        .collect()
}
