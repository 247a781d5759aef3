//! From logits to token ids: greedy search, beam search, sampling. Knows ids, not strings, and no tensor
//! library.
//!
//! Results are those of `generate` in transformers 4.33, whose oddities are part of the numbers: beam scores
//! are divided by the length of the whole sequence, prompt and left padding included, and n-gram blocking sees
//! the prompt.

mod beam;
mod config;
mod greedy;
mod logits;
mod score;

use std::ops::ControlFlow;

pub use config::{ConfigError, EarlyStopping, GenerationConfig, Strategy};
pub use score::sequence_log_prob;

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

/// Why nothing was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError<E> {
    /// The settings are unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Prompts or logits are unusable.
    #[error("{0}")]
    Input(String),
    /// The model failed.
    #[error("{0}")]
    Decoder(E),
}

/// Sees each token as it is chosen; may break off.
pub type OnToken<'a> = &'a mut dyn FnMut(usize, u32) -> ControlFlow<()>;

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
    let wrong = |what: String| Err(GenerateError::Input(what));
    let Some(first) = prompts.first() else { return wrong("there is no prompt".into()) };
    if first.is_empty() || prompts.iter().any(|p| p.len() != first.len()) {
        return wrong("prompts must have one width, of one token at least".into());
    }
    if first_logits.is_empty() || !first_logits.len().is_multiple_of(prompts.len()) {
        return wrong(format!("{} logits for {} prompts", first_logits.len(), prompts.len()));
    }
    match config.strategy {
        Strategy::Greedy | Strategy::Sample { .. } => greedy::run(decoder, prompts, first_logits, config, on_token),
        Strategy::Beam { num_beams, length_penalty, early_stopping } => {
            let search = beam::Search { num_beams, length_penalty, early_stopping };
            beam::run(decoder, prompts, first_logits, config, search, on_token)
        }
    }
}

/// Prompts and continuations as `generate` of transformers returns them: each prompt (repeated for several
/// continuations) with its new tokens, filled with `pad` to the longest.
pub fn padded(prompts: &[Vec<u32>], out: &[Generated], pad: u32) -> Vec<Vec<u32>> {
    let each = (out.len() / prompts.len().max(1)).max(1);
    let longest = out.iter().map(|g| g.ids.len()).max().unwrap_or(0);
    out.iter()
        .enumerate()
        .map(|(i, generated)| {
            let mut row = prompts[i / each].clone();
            row.extend_from_slice(&generated.ids);
            row.resize(row.len() + longest - generated.ids.len(), pad);
            row
        })
        .collect()
}
