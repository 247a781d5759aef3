//! Beam search as transformers 4.33 does it (`generation/beam_search.py`, `BeamSearchScorer`).

use crate::greedy::not_a_number;
use crate::logits::{forbid, log_softmax, top};
use crate::{Decoder, EarlyStopping, GenerateError, Generated, GenerationConfig, OnToken};

/// What is searched for.
#[derive(Clone, Copy)]
pub(crate) struct Search {
    pub(crate) num_beams: usize,
    pub(crate) length_penalty: f64,
    pub(crate) early_stopping: EarlyStopping,
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

/// A score divided by the length of the whole sequence, prompt and padding included.
fn normalised(sum: f32, length: usize, penalty: f64) -> f64 {
    f64::from(sum) / (length as f64).powf(penalty)
}

impl Best {
    fn add(&mut self, row: &[u32], sum: f32, finished: bool, search: Search) {
        let score = normalised(sum, row.len(), search.length_penalty);
        if self.hypotheses.len() >= search.num_beams && score <= self.worst {
            return;
        }
        self.hypotheses.push(Hypothesis { row: row.to_vec(), score, finished });
        let by_score = |a: &(usize, f64), b: &(usize, f64)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0));
        if self.hypotheses.len() > search.num_beams {
            let mut order: Vec<(usize, f64)> = self.hypotheses.iter().map(|h| h.score).enumerate().collect();
            order.sort_by(by_score);
            self.hypotheses.remove(order[0].0);
            self.worst = order[1].1;
        } else {
            self.worst = self.worst.min(score);
        }
    }

    /// Whether nothing that is still open can enter. `best` is the highest open sum, at `length` tokens.
    fn is_done(&self, best: f32, length: usize, max_length: usize, search: Search) -> bool {
        if self.hypotheses.len() < search.num_beams {
            return false;
        }
        let length = match search.early_stopping {
            EarlyStopping::True => return true,
            EarlyStopping::False => length,
            // A positive penalty favours the longest.
            EarlyStopping::Never if search.length_penalty > 0.0 => max_length,
            EarlyStopping::Never => length,
        };
        self.worst >= normalised(best, length, search.length_penalty)
    }
}

pub(crate) fn run<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Vec<u32>],
    first_logits: Vec<f32>,
    config: &GenerationConfig,
    search: Search,
    on_token: OnToken,
) -> Result<Vec<Generated>, GenerateError<D::Error>> {
    let beams = search.num_beams;
    let vocab = first_logits.len() / prompts.len();
    let width = prompts[0].len();
    let max_length = width.saturating_add(config.max_new_tokens);
    if vocab < 2 {
        return Err(GenerateError::Input("a beam search needs a vocabulary of two tokens at least".into()));
    }
    let origin: Vec<usize> = (0..prompts.len() * beams).map(|row| row / beams).collect();
    decoder.reorder(&origin).map_err(GenerateError::Decoder)?;
    let mut logits: Vec<f32> =
        origin.iter().flat_map(|&row| first_logits[row * vocab..(row + 1) * vocab].to_vec()).collect();
    drop(first_logits);

    let mut rows: Vec<Vec<u32>> = origin.iter().map(|&prompt| prompts[prompt].clone()).collect();
    // All beams of a prompt start equal: only the first may be extended at first.
    let mut sums: Vec<f32> = (0..rows.len()).map(|row| if row % beams == 0 { 0.0 } else { -1e9 }).collect();
    let mut best: Vec<Best> =
        prompts.iter().map(|_| Best { hypotheses: Vec::new(), worst: 1e9, done: false }).collect();

    for new_tokens in 0..config.max_new_tokens {
        if logits.len() != rows.len() * vocab {
            let (found, expected) = (logits.len(), rows.len() * vocab);
            return Err(GenerateError::Input(format!("the model gave {found} logits instead of {expected}")));
        }
        let mut next = vec![config.pad; rows.len()];
        let mut from: Vec<usize> = (0..rows.len()).collect();
        let mut next_sums = vec![0.0; rows.len()];
        for (prompt, best) in best.iter_mut().enumerate() {
            if best.done {
                continue;
            }
            let first = prompt * beams;
            let scores = &mut logits[first * vocab..(first + beams) * vocab];
            for (beam, scores) in scores.chunks_exact_mut(vocab).enumerate() {
                log_softmax(scores);
                forbid(scores, &rows[first + beam], new_tokens, config);
                for score in scores.iter_mut() {
                    *score += sums[first + beam];
                }
            }
            if scores.iter().any(|x| x.is_nan()) {
                return Err(not_a_number());
            }
            let candidates = top(scores, 2 * beams);
            let mut filled = 0;
            for (rank, &candidate) in candidates.iter().enumerate() {
                let (row, token, score) = (first + candidate / vocab, (candidate % vocab) as u32, scores[candidate]);
                if token == config.stop {
                    // An end counts only among the best candidates, as many as beams.
                    if rank < beams {
                        best.add(&rows[row], score, true, search);
                    }
                    continue;
                }
                (from[first + filled], next[first + filled], next_sums[first + filled]) = (row, token, score);
                filled += 1;
                if filled == beams {
                    break;
                }
            }
            if filled < beams {
                return Err(GenerateError::Input(format!("{beams} beams are too many for {vocab} tokens")));
            }
            best.done = best.is_done(scores[candidates[0]], width + new_tokens + 1, max_length, search);
        }
        rows = from.iter().map(|&row| rows[row].clone()).collect();
        for (row, &token) in rows.iter_mut().zip(&next) {
            row.push(token);
        }
        sums = next_sums;
        if new_tokens + 1 == config.max_new_tokens || best.iter().all(|b| b.done) {
            break;
        }
        decoder.reorder(&from).map_err(GenerateError::Decoder)?;
        logits = decoder.step(&next).map_err(GenerateError::Decoder)?;
    }

    let mut out = Vec::with_capacity(prompts.len() * config.num_return_sequences);
    for (prompt, mut best) in best.into_iter().enumerate() {
        if !best.done {
            for row in prompt * beams..(prompt + 1) * beams {
                best.add(&rows[row], sums[row], false, search);
            }
        }
        // Of equal scores the one found last comes first.
        best.hypotheses.sort_by(|a, b| a.score.total_cmp(&b.score));
        for hypothesis in best.hypotheses.into_iter().rev().take(config.num_return_sequences) {
            let mut ids = hypothesis.row[width..].to_vec();
            if hypothesis.finished {
                ids.push(config.stop);
            }
            out.push(Generated { ids, score: Some(hypothesis.score), finished: hypothesis.finished });
        }
    }
    'all: for (row, generated) in out.iter().enumerate() {
        for &token in &generated.ids {
            if on_token(row, token).is_break() {
                break 'all;
            }
        }
    }
    Ok(out)
}
