//! One token after the other: the likeliest, or one drawn at random.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::logits::{argmax, forbid, top};
use crate::{Decoder, GenerateError, Generated, GenerationConfig, OnToken, Strategy};

pub(crate) fn run<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Vec<u32>],
    mut logits: Vec<f32>,
    config: &GenerationConfig,
    on_token: OnToken,
) -> Result<Vec<Generated>, GenerateError<D::Error>> {
    let vocab = logits.len() / prompts.len();
    let each = config.num_return_sequences;
    let mut rows: Vec<Vec<u32>> = prompts.iter().flat_map(|p| std::iter::repeat_n(p.clone(), each)).collect();
    if each > 1 {
        let origin: Vec<usize> = (0..rows.len()).map(|row| row / each).collect();
        decoder.reorder(&origin).map_err(GenerateError::Decoder)?;
        logits = origin.iter().flat_map(|&row| logits[row * vocab..(row + 1) * vocab].to_vec()).collect();
    }
    let mut choosers: Vec<Chooser> = (0..rows.len()).map(|row| Chooser::new(config.strategy, row)).collect();
    let mut out: Vec<Generated> =
        rows.iter().map(|_| Generated { ids: Vec::new(), score: None, finished: false }).collect();

    for new_tokens in 0..config.max_new_tokens {
        if logits.len() != rows.len() * vocab {
            let (found, expected) = (logits.len(), rows.len() * vocab);
            return Err(GenerateError::Input(format!("the model gave {found} logits instead of {expected}")));
        }
        let mut next = vec![config.pad; rows.len()];
        for (row, logits) in logits.chunks_exact_mut(vocab).enumerate() {
            if out[row].finished {
                continue;
            }
            forbid(logits, &rows[row], new_tokens, config);
            let token = choosers[row].choose(logits).ok_or_else(not_a_number)? as u32;
            next[row] = token;
            out[row].ids.push(token);
            out[row].finished = token == config.stop;
            if on_token(row, token).is_break() {
                return Ok(out);
            }
        }
        for (row, &token) in rows.iter_mut().zip(&next) {
            row.push(token);
        }
        if new_tokens + 1 == config.max_new_tokens || out.iter().all(|g| g.finished) {
            break;
        }
        logits = decoder.step(&next).map_err(GenerateError::Decoder)?;
    }
    Ok(out)
}

pub(crate) fn not_a_number<E>() -> GenerateError<E> {
    GenerateError::Input(
        "the model gave logits that are no numbers (NaN): its weights or the precision are at fault".into(),
    )
}

/// How one row chooses its tokens.
enum Chooser {
    Greedy,
    Sample(Box<Sampler>),
}

/// What a row draws with.
struct Sampler {
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
    rng: ChaCha8Rng,
}

impl Chooser {
    /// Each row has its own stream: what it draws does not depend on the rows beside it.
    fn new(strategy: Strategy, row: usize) -> Self {
        match strategy {
            Strategy::Sample { temperature, top_k, top_p, seed } => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(row as u64);
                Self::Sample(Box::new(Sampler { temperature, top_k, top_p, rng }))
            }
            _ => Self::Greedy,
        }
    }

    /// A token, or `None` if a logit is NaN.
    fn choose(&mut self, logits: &mut [f32]) -> Option<usize> {
        match self {
            Self::Greedy => argmax(logits),
            Self::Sample(sampler) => sampler.choose(logits),
        }
    }
}

impl Sampler {
    fn choose(&mut self, logits: &mut [f32]) -> Option<usize> {
        let max = logits[argmax(logits)?];
        if max == f32::NEG_INFINITY {
            return Some(0);
        }
        // 53 random bits: uniform in [0, 1).
        let random = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        // Weights relative to the likeliest token's.
        for x in logits.iter_mut() {
            *x = ((*x - max) / self.temperature).exp();
        }
        Some(draw(logits, self.top_k, self.top_p, random))
    }
}

/// Draws an index by weight, among the `top_k` largest and then the largest that make up `top_p` of the rest.
fn draw(weights: &[f32], top_k: Option<usize>, top_p: Option<f32>, random: f64) -> usize {
    let sum = |index: &[usize]| index.iter().map(|&i| f64::from(weights[i])).sum::<f64>();
    let pick = |index: &mut dyn Iterator<Item = usize>, total: f64| {
        let mut left = random * total;
        let mut last = 0;
        for i in index.filter(|&i| weights[i] > 0.0) {
            last = i;
            left -= f64::from(weights[i]);
            if left < 0.0 {
                break;
            }
        }
        last
    };
    let top_p = top_p.filter(|&p| p < 1.0);
    let total = || weights.iter().map(|&w| f64::from(w)).sum::<f64>();
    let kept = match (top_k, top_p) {
        (None, None) => return pick(&mut (0..weights.len()), total()),
        (Some(k), None) => top(weights, k),
        (Some(k), Some(p)) => {
            let kept = top(weights, k);
            let total = sum(&kept);
            nucleus(weights, kept, f64::from(p) * total).unwrap_or_default()
        }
        (None, Some(p)) => {
            // A few tokens usually suffice; look at more only when they do not.
            let target = f64::from(p) * total();
            let mut k = 64;
            loop {
                let all = k >= weights.len();
                match nucleus(weights, top(weights, k), target) {
                    Some(kept) => break kept,
                    None if all => break top(weights, weights.len()),
                    None => k *= 8,
                }
            }
        }
    };
    let total = sum(&kept);
    pick(&mut kept.into_iter(), total)
}

/// The shortest beginning of `sorted` whose weights sum to `target`, or `None` if all do not.
fn nucleus(weights: &[f32], mut sorted: Vec<usize>, target: f64) -> Option<Vec<usize>> {
    let mut sum = 0.0;
    for n in 0..sorted.len() {
        sum += f64::from(weights[sorted[n]]);
        if sum >= target * (1.0 - 1e-9) {
            sorted.truncate(n + 1);
            return Some(sorted);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reachable(weights: &[f32], top_k: Option<usize>, top_p: Option<f32>) -> Vec<usize> {
        let mut seen: Vec<usize> = (0..2000).map(|i| draw(weights, top_k, top_p, i as f64 / 2000.0)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn filters_keep_exactly_the_right_tokens() {
        let weights = [0.125, 0.5, 0.0, 0.25, 0.125];
        assert_eq!(reachable(&weights, None, None), [0, 1, 3, 4]);
        assert_eq!(reachable(&weights, Some(2), None), [1, 3]);
        assert_eq!(reachable(&weights, None, Some(0.5)), [1]);
        assert_eq!(reachable(&weights, None, Some(0.51)), [1, 3]);
        assert_eq!(reachable(&weights, None, Some(0.95)), [0, 1, 3, 4]);
        // Of the two kept by top_k the first has 2/3 of the weight.
        assert_eq!(reachable(&weights, Some(2), Some(0.66)), [1]);
        assert_eq!(reachable(&weights, Some(2), Some(0.67)), [1, 3]);
    }

    #[test]
    fn draws_follow_the_weights() {
        let weights = [1.0, 3.0, 0.0, 4.0];
        let mut counts = [0; 4];
        for i in 0..8000 {
            counts[draw(&weights, None, None, i as f64 / 8000.0)] += 1;
        }
        assert_eq!(counts, [1000, 3000, 0, 4000]);
    }

    #[test]
    fn a_wide_nucleus_is_found() {
        // 1000 equal tokens: 90 % of them are 900.
        assert_eq!(reachable(&[1.0; 1000], None, Some(0.9)).len(), 900);
    }
}
