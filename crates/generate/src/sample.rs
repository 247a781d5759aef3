//! Drawing one token of a row of logits: temperature, then `top_k`, then `top_p`, as transformers orders them.

use std::convert::Infallible;

use rand_chacha::rand_core::RngCore;

use crate::config::validate_sampling;
use crate::select::{argmax, descending, top};
use crate::{GenerateError, InputError};

/// Which tokens may be drawn, and how unequal their chances are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Filter {
    pub(crate) temperature: f32,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f32>,
}

/// Weights of the tokens that may be drawn; they do not sum to 1.
enum Weights<'a> {
    /// Every token, by id.
    All(&'a [f32]),
    /// Some tokens, in no particular order.
    Some(Vec<(u32, f32)>),
}

impl Weights<'_> {
    /// The token at `uniform` (in [0, 1)) of the way through the weights; `None` if none weighs anything.
    fn draw(&self, uniform: f64) -> Option<u32> {
        match self {
            Self::All(weights) => draw((0..).zip(weights.iter().copied()), uniform),
            Self::Some(pairs) => draw(pairs.iter().copied(), uniform),
        }
    }

    /// Tokens of some weight, by id, and their shares of the whole.
    fn shares(self) -> Vec<(u32, f64)> {
        let mut pairs: Vec<(u32, f32)> = match self {
            Self::All(weights) => (0..).zip(weights.iter().copied()).collect(),
            Self::Some(pairs) => pairs,
        };
        pairs.retain(|&(_, weight)| weight > 0.0);
        pairs.sort_unstable_by_key(|&(token, _)| token);
        let total: f64 = pairs.iter().map(|&(_, weight)| f64::from(weight)).sum();
        pairs.into_iter().map(|(token, weight)| (token, f64::from(weight) / total)).collect()
    }
}

fn draw(weights: impl Iterator<Item = (u32, f32)> + Clone, uniform: f64) -> Option<u32> {
    let weights = weights.map(|(token, weight)| (token, f64::from(weight))).filter(|&(_, weight)| weight > 0.0);
    let mut left = uniform * weights.clone().map(|(_, weight)| weight).sum::<f64>();
    let mut last = None;
    for (token, weight) in weights {
        // Rounding may leave a little at the end: the last token takes it.
        last = Some(token);
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

/// Draws a token. `logits` are overwritten.
pub(crate) fn sample(logits: &mut [f32], filter: Filter, rng: &mut dyn RngCore) -> Result<u32, InputError> {
    // 53 random bits: uniform in [0, 1).
    let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    weigh(logits, filter)?.draw(uniform).ok_or(InputError::NoToken)
}

/// Tokens that sampling may draw, by id, with their probabilities.
///
/// `top_k` keeps the `k` likeliest tokens and those that equal the last of them. Of what is left, `top_p` keeps
/// the likeliest until their probabilities sum to `top_p`, the lower id first among equals.
///
/// # Errors
/// [`GenerateError::Config`] for settings that [`crate::GenerationConfig::validate`] refuses,
/// [`GenerateError::Input`] if a logit is NaN or +inf, or all are -inf.
pub fn sampling_distribution(
    logits: &[f32],
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
) -> Result<Vec<(u32, f64)>, GenerateError<Infallible>> {
    validate_sampling(temperature, top_k, top_p)?;
    let mut logits = logits.to_vec();
    Ok(weigh(&mut logits, Filter { temperature, top_k, top_p })?.shares())
}

fn weigh(logits: &mut [f32], filter: Filter) -> Result<Weights<'_>, InputError> {
    let max = scale(logits, filter.temperature)?;
    let weight = |x: f32| (x - max).exp();
    // A filter that removes nothing is none.
    let top_k = filter.top_k.filter(|&k| k < logits.len());
    let top_p = filter.top_p.filter(|&p| p < 1.0);
    let kept = match (top_k, top_p) {
        (None, None) => {
            logits.iter_mut().for_each(|x| *x = weight(*x));
            return Ok(Weights::All(logits));
        }
        (Some(k), None) => likeliest(logits, k),
        (Some(k), Some(p)) => {
            let mut kept = likeliest(logits, k);
            kept.sort_unstable_by(descending(logits));
            let weights = || kept.iter().map(|&i| f64::from(weight(logits[i as usize])));
            if let Some(count) = nucleus(weights(), weights().sum(), p) {
                kept.truncate(count);
            }
            kept
        }
        (None, Some(p)) => {
            let total = logits.iter().map(|&x| f64::from(weight(x))).sum();
            // A few tokens usually suffice; look at more only when they do not.
            let mut k = 64;
            loop {
                let mut kept = top(logits, k);
                let count = nucleus(kept.iter().map(|&i| f64::from(weight(logits[i as usize]))), total, p);
                if count.is_none() && kept.len() < logits.len() {
                    k *= 8;
                    continue;
                }
                kept.truncate(count.unwrap_or(kept.len()));
                break kept;
            }
        }
    };
    Ok(Weights::Some(kept.into_iter().map(|i| (i, weight(logits[i as usize]))).collect()))
}

/// Divides logits by the temperature; returns the largest result.
fn scale(logits: &mut [f32], temperature: f32) -> Result<f32, InputError> {
    let max = argmax(logits).map(|i| logits[i]).ok_or(InputError::NotANumber)?;
    if max == f32::INFINITY {
        return Err(InputError::NotANumber);
    }
    if max == f32::NEG_INFINITY {
        return Err(InputError::NoToken);
    }
    let scaled = max / temperature;
    if scaled.is_finite() {
        logits.iter_mut().for_each(|x| *x /= temperature);
        return Ok(scaled);
    }
    // A temperature so small that quotients overflow: only differences to the largest matter.
    logits.iter_mut().for_each(|x| *x = (*x - max) / temperature);
    Ok(0.0)
}

/// The `k` largest and all that equal the last of them.
fn likeliest(logits: &[f32], k: usize) -> Vec<u32> {
    let kept = top(logits, k);
    let Some(&last) = kept.last() else { return kept };
    let least = logits[last as usize];
    (0..).zip(logits).filter(|&(_, &x)| x >= least).map(|(i, _)| i).collect()
}

/// How many of the weights, largest first, make up the share `p` of `total`; `None` if all of them do not.
///
/// Shares are compared in f32, the precision of `p`: 9 of 10 equal tokens are then the 0.9 that was asked for.
fn nucleus(weights: impl Iterator<Item = f64>, total: f64, p: f32) -> Option<usize> {
    let mut sum = 0.0;
    for (i, weight) in weights.enumerate() {
        sum += weight;
        if (sum / total) as f32 >= p {
            return Some(i + 1);
        }
    }
    None
}
