//! One sequence that grows token by token: greedy search and sampling, step by step.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::processors::forbid;
use crate::sample::{Filter, sample};
use crate::select::argmax;
use crate::{ConfigError, Generated, GenerationConfig, InputError, Strategy};

/// A prompt's continuation, chosen token by token. Who holds it feeds the model; several may share a batch.
#[derive(Clone, Debug)]
pub struct Continuation {
    config: GenerationConfig,
    /// The whole sequence, prompt included.
    row: Vec<u32>,
    prompt: usize,
    finished: bool,
    chooser: Chooser,
}

impl Continuation {
    /// A continuation of `prompt`, number `index` of those with the same settings: each samples a stream of its own, and
    /// what it draws does not depend on the others.
    ///
    /// # Errors
    /// As [`GenerationConfig::validate`]; [`ConfigError::Beams`] for a search with beams, which is not one sequence.
    pub fn new(prompt: Vec<u32>, config: &GenerationConfig, index: usize) -> Result<Self, ConfigError> {
        config.validate()?;
        match config.strategy {
            Strategy::Beam { num_beams, .. } if num_beams > 1 => Err(ConfigError::Beams(num_beams)),
            _ => Ok(Self::of_valid(prompt, config, index)),
        }
    }

    /// [`Continuation::new`] with settings that were checked; beams are not looked at.
    pub(crate) fn of_valid(prompt: Vec<u32>, config: &GenerationConfig, index: usize) -> Self {
        let length = prompt.len();
        let chooser = Chooser::new(config.strategy, index);
        Self { config: config.clone(), row: prompt, prompt: length, finished: false, chooser }
    }

    /// Chooses the next token by the logits that follow the last; they are overwritten.
    ///
    /// # Errors
    /// [`InputError::NotANumber`] and [`InputError::NoToken`] where none can be chosen.
    pub fn choose(&mut self, logits: &mut [f32]) -> Result<u32, InputError> {
        forbid(logits, &self.row, self.ids().len(), &self.config);
        let token = self.chooser.choose(logits)?;
        self.row.push(token);
        self.finished = token == self.config.stop;
        Ok(token)
    }

    /// The new tokens.
    pub fn ids(&self) -> &[u32] {
        &self.row[self.prompt..]
    }

    /// Whether the stop token was chosen.
    pub fn finished(&self) -> bool {
        self.finished
    }

    /// Whether no token may follow: the stop token was chosen, or as many as are allowed.
    pub fn ended(&self) -> bool {
        self.finished || self.ids().len() >= self.config.max_new_tokens
    }

    pub(crate) fn into_generated(self) -> Generated {
        Generated { ids: self.ids().to_vec(), score: None, finished: self.finished }
    }
}

/// How a sequence chooses its tokens.
#[derive(Clone, Debug)]
enum Chooser {
    Greedy,
    Sample { filter: Filter, rng: Box<ChaCha8Rng> },
}

impl Chooser {
    fn new(strategy: Strategy, index: usize) -> Self {
        match strategy {
            Strategy::Sample { temperature, top_k, top_p, seed } => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(index as u64);
                Self::Sample { filter: Filter { temperature, top_k, top_p }, rng: Box::new(rng) }
            }
            Strategy::Greedy | Strategy::Beam { .. } => Self::Greedy,
        }
    }

    fn choose(&mut self, logits: &mut [f32]) -> Result<u32, InputError> {
        match self {
            // As in torch, the first token where all are impossible.
            Self::Greedy => argmax(logits).map(|token| token as u32).ok_or(InputError::NotANumber),
            Self::Sample { filter, rng } => sample(logits, *filter, rng.as_mut()),
        }
    }
}
