//! Area under the ROC curve of a binary classification.

/// Probability of each class from log-likelihoods of both, in the f32 steps of upstream's `torch.exp(best -
/// torch.logsumexp(..))`: where two samples are nearly alike, rounding decides which of them ranks higher, and the
/// area with it.
///
/// The first class wins a tie, as in `torch.topk`. Returns the probability of the second class.
pub fn probability_of_second(log_probs: [f64; 2]) -> f64 {
    let [a, b] = log_probs.map(|x| x as f32);
    let exp = |x: f32| f64::from(x).exp() as f32;
    let max = a.max(b);
    let log_sum = max + f64::from(exp(a - max) + exp(b - max)).ln() as f32;
    let best = f64::from(exp(max - log_sum));
    if b > a { best } else { 1.0 - best }
}

/// Area under the ROC curve: how often a positive sample has a higher score than a negative one, ties counting half
/// (scikit-learn's `roc_auc_score`). `None` without samples of both kinds, or if a score is NaN.
pub fn roc_auc(positive: &[bool], scores: &[f64]) -> Option<f64> {
    let mut order: Vec<(f64, bool)> = scores.iter().copied().zip(positive.iter().copied()).collect();
    if order.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positives = order.iter().filter(|(_, positive)| *positive).count();
    let negatives = order.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let mut below = 0usize;
    let mut twice = 0usize;
    // -0 equals 0, which total_cmp alone does not say.
    for tied in order.chunk_by(|a, b| a.0 == b.0) {
        let up = tied.iter().filter(|(_, positive)| *positive).count();
        let down = tied.len() - up;
        twice += up * (2 * below + down);
        below += down;
    }
    Some(twice as f64 / (2.0 * positives as f64 * negatives as f64))
}
