//! Candidates that are being scored after prompts that were read, some at a time.

use flamingo_data::{PaddingSide, pad_batch};
use flamingo_engine::Session;
use flamingo_generate::{SequenceScore, log_softmax, sequence_log_prob};

use crate::{Model, ZooError};

/// Candidates that are scored together, as far as memory allows: each holds a copy of its prompt's keys and values.
const ROWS_AT_ONCE: usize = 64;

/// Memory for those copies and what follows their tokens.
const MEMORY: usize = 1 << 30;

/// Candidates and their scores. Who holds it may do something else between one part and the next.
pub struct Scoring<'a> {
    model: &'a Model,
    candidates: &'a [Vec<u32>],
    /// Log-probabilities of every first token after each prompt.
    first: Vec<f32>,
    /// Candidates whose further tokens are to be read, shortest first.
    left: Vec<usize>,
    at_once: usize,
    scores: Vec<Vec<SequenceScore>>,
}

impl<'a> Scoring<'a> {
    /// Candidates to be scored after each of `prompts` prompts of `tokens` tokens, which `first`, their logits, follow.
    ///
    /// # Errors
    /// [`ZooError::Prompt`] for a candidate without a token, or with one that the model lacks.
    pub fn new(
        model: &'a Model,
        mut first: Vec<f32>,
        prompts: usize,
        tokens: usize,
        candidates: &'a [Vec<u32>],
    ) -> Result<Self, ZooError> {
        model.check_candidates(candidates)?;
        let vocab = model.config().tokens.vocab_size;
        first.chunks_mut(vocab).for_each(log_softmax);
        let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
        let row = model.bytes_a_row(tokens + longest) + longest * vocab * size_of::<f32>();
        let at_once = (MEMORY / (row * prompts).max(1)).clamp(1, ROWS_AT_ONCE);
        // The prompt's last logits say all about a candidate of one token; of a longer one all but its last is read.
        let (mut left, short): (Vec<usize>, Vec<usize>) = (0..candidates.len()).partition(|&i| candidates[i].len() > 1);
        left.sort_by_key(|&i| candidates[i].len());
        let scores = vec![vec![SequenceScore::new(&[]); candidates.len()]; prompts];
        let mut scoring = Self { model, candidates, first, left, at_once, scores };
        for i in short {
            for row in 0..prompts {
                scoring.scores[row][i] = SequenceScore::new(&[scoring.begins(row, i)]);
            }
        }
        Ok(scoring)
    }

    /// Log-probability of a candidate's first token.
    fn begins(&self, row: usize, candidate: usize) -> f32 {
        let vocab = self.model.config().tokens.vocab_size;
        self.first[row * vocab + self.candidates[candidate][0] as usize]
    }

    /// Scores some more candidates by the session that has read the prompts; whether any are left.
    ///
    /// # Errors
    /// [`ZooError::Engine`] if the device fails.
    pub fn go_on(&mut self, session: &dyn Session) -> Result<bool, ZooError> {
        let together: Vec<usize> = self.left.drain(..self.at_once.min(self.left.len())).collect();
        if together.is_empty() {
            return Ok(false);
        }
        let (prompts, tokens) = (self.scores.len(), &self.model.config().tokens);
        let unread = |i: usize| self.candidates[i][..self.candidates[i].len() - 1].to_vec();
        let read: Vec<Vec<u32>> = together.iter().map(|&i| unread(i)).collect();
        let batch = pad_batch(&read, tokens.pad, PaddingSide::Right);
        let rows: Vec<usize> = (0..prompts).flat_map(|row| vec![row; together.len()]).collect();
        let mut fork = session.fork();
        fork.reorder(&rows)?;
        let logits = fork.feed(batch.ids.repeat(prompts), batch.mask.repeat(prompts))?;
        for (place, after) in logits.data.chunks(batch.width * tokens.vocab_size).enumerate() {
            let (row, i) = (place / together.len(), together[place % together.len()]);
            let mut log_probs = vec![self.begins(row, i)];
            log_probs.extend(sequence_log_prob(after, tokens.vocab_size, &self.candidates[i][1..]));
            self.scores[row][i] = SequenceScore::new(&log_probs);
        }
        Ok(!self.left.is_empty())
    }

    /// Each prompt's scores, of each candidate in order, once none is left.
    pub fn scores(self) -> Vec<Vec<SequenceScore>> {
        debug_assert!(self.left.is_empty(), "candidates are left");
        self.scores
    }
}
