//! Beam search as transformers 4.33 does it (`generation/beam_search.py`, `BeamSearchScorer`).

use crate::processors::forbid;
use crate::select::{log_softmax, top};
use crate::{
    ConfigError, Decoder, EarlyStopping, GenerateError, Generated, GenerationConfig, InputError, OnToken, check_logits,
};

/// What is searched for.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    /// Two or more.
    pub(crate) num_beams: usize,
    pub(crate) length_penalty: f64,
    pub(crate) early_stopping: EarlyStopping,
}

impl Search {
    /// A score divided by a power of the length of the whole sequence, prompt and padding included.
    fn normalised(&self, sum: f32, length: usize) -> f64 {
        f64::from(sum) / (length as f64).powf(self.length_penalty)
    }
}

/// A sequence that is no longer extended, without its stop token.
struct Hypothesis {
    row: Vec<u32>,
    score: f64,
    finished: bool,
}

/// The best hypotheses of one prompt, as many as beams, in the order in which they were found.
struct Best {
    hypotheses: Vec<Hypothesis>,
    worst: f64,
    done: bool,
}

impl Best {
    fn add(&mut self, row: &[u32], sum: f32, finished: bool, search: Search) {
        let score = search.normalised(sum, row.len());
        if self.hypotheses.len() >= search.num_beams && score <= self.worst {
            return;
        }
        self.hypotheses.push(Hypothesis { row: row.to_vec(), score, finished });
        if self.hypotheses.len() <= search.num_beams {
            self.worst = self.worst.min(score);
            return;
        }
        // The worst goes, of equals the one found first.
        let mut order: Vec<(usize, f64)> = self.hypotheses.iter().map(|h| h.score).enumerate().collect();
        order.sort_by(|a, b| a.1.total_cmp(&b.1));
        self.hypotheses.remove(order[0].0);
        self.worst = order[1].1;
    }

    /// Whether nothing that is still open can enter. `best` is the highest open sum, at `length` tokens.
    fn is_done(&self, best: f32, length: usize, max_length: usize, search: Search) -> bool {
        if self.hypotheses.len() < search.num_beams {
            return false;
        }
        let length = match search.early_stopping {
            EarlyStopping::True => return true,
            // A positive penalty favours the longest.
            EarlyStopping::Never if search.length_penalty > 0.0 => max_length,
            EarlyStopping::False | EarlyStopping::Never => length,
        };
        self.worst >= search.normalised(best, length)
    }
}

/// The beams of all prompts: what they are, what they sum to, and how they come out of those before.
struct Beams {
    rows: Vec<Vec<u32>>,
    sums: Vec<f32>,
    from: Vec<usize>,
    next: Vec<u32>,
}

pub(crate) fn run<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Vec<u32>],
    first_logits: Vec<f32>,
    vocab: usize,
    config: &GenerationConfig,
    search: Search,
    on_token: OnToken,
) -> Result<Vec<Generated>, GenerateError<D::Error>> {
    let width = prompts[0].len();
    let max_length = width.saturating_add(config.max_new_tokens);
    if vocab < 2 {
        return Err(InputError::Vocabulary.into());
    }
    if !(max_length as f64).powf(search.length_penalty).is_normal() {
        return Err(ConfigError::LengthPenalty(search.length_penalty).into());
    }

    let origin: Vec<usize> = (0..prompts.len() * search.num_beams).map(|row| row / search.num_beams).collect();
    decoder.reorder(&origin).map_err(GenerateError::Decoder)?;
    let mut logits: Vec<f32> = first_logits.chunks_exact(vocab).flat_map(|row| row.repeat(search.num_beams)).collect();
    drop(first_logits);
    let mut beams = Beams {
        rows: origin.iter().map(|&prompt| prompts[prompt].clone()).collect(),
        // All beams of a prompt start equal: only the first may be extended at first.
        sums: (0..origin.len()).map(|row| if row % search.num_beams == 0 { 0.0 } else { -1e9 }).collect(),
        from: (0..origin.len()).collect(),
        next: vec![config.pad; origin.len()],
    };
    let mut best: Vec<Best> =
        prompts.iter().map(|_| Best { hypotheses: Vec::new(), worst: 1e9, done: false }).collect();

    for new_tokens in 0..config.max_new_tokens {
        check_logits(&logits, beams.rows.len(), vocab)?;
        let per_prompt = logits.chunks_exact_mut(search.num_beams * vocab);
        for (prompt, (scores, best)) in per_prompt.zip(&mut best).enumerate() {
            let first = prompt * search.num_beams;
            if best.done {
                // Its beams go nowhere while other prompts' go on.
                for row in first..first + search.num_beams {
                    (beams.from[row], beams.next[row]) = (row, config.pad);
                }
                continue;
            }
            let highest = beams.extend(first, scores, new_tokens, best, config, search)?;
            best.done = best.is_done(highest, width + new_tokens + 1, max_length, search);
        }
        beams.advance();
        if new_tokens + 1 == config.max_new_tokens || best.iter().all(|b| b.done) {
            break;
        }
        // Caches are large: beams that stay where they are need no move.
        if beams.from.iter().enumerate().any(|(row, &from)| row != from) {
            decoder.reorder(&beams.from).map_err(GenerateError::Decoder)?;
        }
        logits = decoder.step(&beams.next).map_err(GenerateError::Decoder)?;
    }

    let mut out = Vec::with_capacity(prompts.len() * config.num_return_sequences);
    for (best, first) in best.into_iter().zip((0..).step_by(search.num_beams)) {
        out.extend(beams.finish(first, best, width, config, search));
    }
    report(&out, on_token);
    Ok(out)
}

impl Beams {
    /// Chooses what the beams of one prompt, from `first` on, become; returns the best candidate's sum. `scores`
    /// are the logits of its beams and are overwritten.
    fn extend(
        &mut self,
        first: usize,
        scores: &mut [f32],
        new_tokens: usize,
        best: &mut Best,
        config: &GenerationConfig,
        search: Search,
    ) -> Result<f32, InputError> {
        let num_beams = search.num_beams;
        let vocab = scores.len() / num_beams;
        for (row, scores) in (first..).zip(scores.chunks_exact_mut(vocab)) {
            log_softmax(scores);
            forbid(scores, &self.rows[row], new_tokens, config);
            for score in scores.iter_mut() {
                *score += self.sums[row];
            }
            if scores.iter().any(|x| x.is_nan()) {
                return Err(InputError::NotANumber);
            }
        }
        // Each beam can end in one way only: twice as many candidates hold enough that go on.
        let candidates = top(scores, 2 * num_beams);
        let mut sums = vec![0.0; num_beams];
        let mut filled = 0;
        for (rank, &candidate) in candidates.iter().enumerate() {
            let score = scores[candidate as usize];
            let (row, token) = (first + candidate as usize / vocab, (candidate as usize % vocab) as u32);
            if token == config.stop {
                // An end counts only among the best candidates, as many as beams.
                if rank < num_beams {
                    best.add(&self.rows[row], score, true, search);
                }
                continue;
            }
            (self.from[first + filled], self.next[first + filled], sums[filled]) = (row, token, score);
            filled += 1;
            if filled == num_beams {
                break;
            }
        }
        self.sums[first..first + num_beams].copy_from_slice(&sums);
        candidates.first().map(|&candidate| scores[candidate as usize]).ok_or(InputError::Vocabulary)
    }

    /// Makes the rows what was chosen for them.
    fn advance(&mut self) {
        let extended = self.from.iter().zip(&self.next).map(|(&from, &token)| {
            let mut row = Vec::with_capacity(self.rows[from].len() + 1);
            row.extend_from_slice(&self.rows[from]);
            row.push(token);
            row
        });
        self.rows = extended.collect();
    }

    /// The best sequences of one prompt, those still open included unless the search was over.
    fn finish(
        &self,
        first: usize,
        mut best: Best,
        width: usize,
        config: &GenerationConfig,
        search: Search,
    ) -> impl Iterator<Item = Generated> {
        if !best.done {
            for row in first..first + search.num_beams {
                best.add(&self.rows[row], self.sums[row], false, search);
            }
        }
        // Of equal scores the one found last comes first.
        best.hypotheses.sort_by(|a, b| a.score.total_cmp(&b.score));
        let stop = config.stop;
        best.hypotheses.into_iter().rev().take(config.num_return_sequences).map(move |hypothesis| {
            let mut ids = hypothesis.row[width..].to_vec();
            if hypothesis.finished {
                ids.push(stop);
            }
            Generated { ids, score: Some(hypothesis.score), finished: hypothesis.finished }
        })
    }
}

/// Hands over what was found, until told to stop.
fn report(out: &[Generated], on_token: OnToken) {
    for (row, generated) in out.iter().enumerate() {
        for &token in &generated.ids {
            if on_token(row, token).is_break() {
                return;
            }
        }
    }
}
