//! How likely given tokens are.

use crate::select::log_sum_exp;

/// How likely a sequence is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceScore {
    /// Log-probability of the whole sequence.
    pub total: f64,
    /// Log-probability a token, comparable between sequences of different lengths: what upstream's evaluation
    /// compares. 0 without tokens.
    pub mean: f64,
    /// Tokens in the sequence.
    pub tokens: usize,
}

impl SequenceScore {
    /// Sums the log-probabilities of a sequence's tokens, as [`sequence_log_prob`] gives them.
    pub fn new(log_probs: &[f32]) -> Self {
        let total: f64 = log_probs.iter().map(|&x| f64::from(x)).sum();
        Self { total, mean: total / log_probs.len().max(1) as f64, tokens: log_probs.len() }
    }
}

/// Log-probability of each target token. `logits` is `[targets, vocab]`: row `i` predicts target `i`.
///
/// Rows beyond the targets are not looked at. A target outside the vocabulary, or without a row, has no
/// probability: its place is NaN, which sums keep.
pub fn sequence_log_prob(logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<f32> {
    let log_prob = |(i, &target): (usize, &u32)| {
        let row = logits.get(i.checked_mul(vocab)?..)?.get(..vocab)?;
        let &logit = row.get(target as usize)?;
        let (max, log_sum) = log_sum_exp(row);
        Some((logit - max) - log_sum)
    };
    targets.iter().enumerate().map(|target| log_prob(target).unwrap_or(f32::NAN)).collect()
}
