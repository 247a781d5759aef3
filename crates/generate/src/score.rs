//! How likely given tokens are.

use crate::logits::log_softmax;

/// Log-probability of each target token. `logits` is `[targets, vocab]`: row `i` predicts target `i`.
///
/// # Panics
/// If there is not one row of `vocab` logits a target, or a target is outside the vocabulary.
pub fn sequence_log_prob(logits: &[f32], vocab: usize, targets: &[u32]) -> Vec<f32> {
    assert_eq!(logits.len(), vocab * targets.len(), "one row of logits a target");
    let rows = logits.chunks_exact(vocab).zip(targets);
    rows.map(|(row, &target)| {
        let mut row = row.to_vec();
        log_softmax(&mut row);
        row[target as usize]
    })
    .collect()
}
