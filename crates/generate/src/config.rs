//! Settings of a generation.

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
        /// Sequences kept at each step: 2 or more.
        num_beams: usize,
        /// Scores are divided by the sequence's length to this power.
        length_penalty: f64,
        /// When the search ends.
        early_stopping: EarlyStopping,
    },
    /// A random token.
    Sample {
        /// Logits are divided by this.
        temperature: f32,
        /// Only so many likeliest tokens are possible.
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

/// Settings that make no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

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
    /// One sentence on the first that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let wrong = |what: String| Err(ConfigError(what));
        let n = self.num_return_sequences;
        if self.max_new_tokens == 0 {
            return wrong("max_new_tokens is 0: there is nothing to generate".into());
        }
        if self.min_new_tokens > self.max_new_tokens {
            let (min, max) = (self.min_new_tokens, self.max_new_tokens);
            return wrong(format!("min_new_tokens {min} is more than max_new_tokens {max}"));
        }
        if n == 0 {
            return wrong("num_return_sequences is 0".into());
        }
        match self.strategy {
            Strategy::Greedy if n > 1 => {
                wrong(format!("greedy search has one result: num_return_sequences {n} needs beams or sampling"))
            }
            Strategy::Beam { num_beams, .. } if num_beams < 2 => {
                wrong(format!("{num_beams} beam(s) are no beam search: use greedy search"))
            }
            Strategy::Beam { num_beams, .. } if n > num_beams => {
                wrong(format!("num_return_sequences {n} is more than num_beams {num_beams}"))
            }
            Strategy::Beam { length_penalty, .. } if !length_penalty.is_finite() => {
                wrong(format!("length_penalty {length_penalty} is no number"))
            }
            Strategy::Sample { temperature, .. } if !(temperature > 0.0 && temperature.is_finite()) => {
                wrong(format!("temperature {temperature} is not above 0"))
            }
            Strategy::Sample { top_k: Some(0), .. } => wrong("top_k 0 leaves no token".into()),
            Strategy::Sample { top_p: Some(p), .. } if !(p > 0.0 && p <= 1.0) => {
                wrong(format!("top_p {p} is not in (0, 1]"))
            }
            _ => Ok(()),
        }
    }
}
