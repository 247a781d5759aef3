//! How far a score could be off because other samples might have been drawn.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// An interval that a score lies in with the given confidence, by the percentile bootstrap: the statistic of many
/// samples drawn with replacement from the one at hand.
///
/// `statistic` gets indices of samples and may have no value for some draws (an area under a curve without positives),
/// which are left out. `None` without samples or without a draw that has a value. Equal input gives equal intervals.
pub fn bootstrap(
    samples: usize,
    draws: usize,
    confidence: f64,
    mut statistic: impl FnMut(&[usize]) -> Option<f64>,
) -> Option<[f64; 2]> {
    if samples == 0 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let mut drawn = vec![0; samples];
    let mut values: Vec<f64> = (0..draws)
        .filter_map(|_| {
            for index in &mut drawn {
                // The bias of a remainder is below samples / 2^64.
                *index = (random.next_u64() % samples as u64) as usize;
            }
            statistic(&drawn)
        })
        .collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let at = |share: f64| values[(share * last as f64).round() as usize];
    let tail = (1.0 - confidence.clamp(0.0, 1.0)) / 2.0;
    Some([at(tail), at(1.0 - tail)])
}

/// [`bootstrap`] of a mean: 1,000 draws, 95 % confidence.
pub fn interval_of_mean(scores: &[f64]) -> Option<[f64; 2]> {
    bootstrap(scores.len(), 1000, 0.95, |drawn| {
        Some(drawn.iter().map(|&i| scores[i]).sum::<f64>() / drawn.len() as f64)
    })
}
