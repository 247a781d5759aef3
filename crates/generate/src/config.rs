//! Settings of a generation.

use crate::ConfigError;

/// How to continue prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationConfig {
    /// Most new tokens.
    pub max_new_tokens: usize,
    /// The stop token is impossible before this many new tokens.
    pub min_new_tokens: usize,
    /// No run of this many tokens appears twice, prompt included; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// Continuations of each prompt.
    pub num_return_sequences: usize,
    /// The token that ends a continuation: `<|endofchunk|>`.
    pub stop: u32,
    /// The token that is fed for rows that have ended while others go on.
    pub pad: u32,
    /// How tokens are chosen.
    pub strategy: Strategy,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strategy {
    /// The likeliest token.
    Greedy,
    /// The likeliest sequence, as far as a beam sees.
    Beam {
        /// Sequences kept at each step. One is greedy search, which gives no scores.
        num_beams: usize,
        /// Scores are divided by the sequence's length to this power: as they are negative, more than 0 favours
        /// long sequences, less than 0 short ones.
        length_penalty: f64,
        /// When the search ends.
        early_stopping: EarlyStopping,
    },
    /// A random token.
    Sample {
        /// Logits are divided by this.
        temperature: f32,
        /// Only so many likeliest tokens are possible, and those that equal the last of them.
        top_k: Option<usize>,
        /// Only the likeliest tokens that together have this probability are possible.
        top_p: Option<f32>,
        /// Equal seeds give equal draws, row by row.
        seed: u64,
    },
}

/// When a beam search ends, once it has as many finished sequences as beams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EarlyStopping {
    /// When the best unfinished one cannot win at its present length.
    #[default]
    False,
    /// At once.
    True,
    /// When no unfinished one can win at any length.
    Never,
}

impl GenerationConfig {
    /// Greedy search for at most `max_new_tokens`.
    pub fn greedy(max_new_tokens: usize, stop: u32, pad: u32) -> Self {
        Self {
            max_new_tokens,
            min_new_tokens: 0,
            no_repeat_ngram_size: 0,
            num_return_sequences: 1,
            stop,
            pad,
            strategy: Strategy::Greedy,
        }
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (min, max, sequences) = (self.min_new_tokens, self.max_new_tokens, self.num_return_sequences);
        if max == 0 {
            return Err(ConfigError::NoNewTokens);
        }
        if min > max {
            return Err(ConfigError::MinAboveMax { min, max });
        }
        if sequences == 0 {
            return Err(ConfigError::NoSequences);
        }
        match self.strategy {
            Strategy::Greedy if sequences > 1 => Err(ConfigError::GreedySequences(sequences)),
            Strategy::Greedy => Ok(()),
            Strategy::Beam { num_beams: 0, .. } => Err(ConfigError::NoBeams),
            Strategy::Beam { num_beams: beams, .. } if sequences > beams => {
                Err(ConfigError::SequencesAboveBeams { sequences, beams })
            }
            Strategy::Beam { length_penalty, .. } if !length_penalty.is_finite() => {
                Err(ConfigError::LengthPenalty(length_penalty))
            }
            Strategy::Beam { .. } => Ok(()),
            Strategy::Sample { temperature, top_k, top_p, .. } => validate_sampling(temperature, top_k, top_p),
        }
    }
}

pub(crate) fn validate_sampling(temperature: f32, top_k: Option<usize>, top_p: Option<f32>) -> Result<(), ConfigError> {
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(ConfigError::Temperature(temperature));
    }
    if top_k == Some(0) {
        return Err(ConfigError::TopK);
    }
    match top_p {
        Some(p) if !(p > 0.0 && p <= 1.0) => Err(ConfigError::TopP(p)),
        _ => Ok(()),
    }
}
