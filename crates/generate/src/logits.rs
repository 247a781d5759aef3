//! Operations on one row of logits.

use std::cmp::Ordering;

use crate::GenerationConfig;

/// Makes what the settings forbid impossible: the stop token too early, n-grams that appeared before. `row` is
/// the whole sequence, prompt included.
pub(crate) fn forbid(logits: &mut [f32], row: &[u32], new_tokens: usize, config: &GenerationConfig) {
    if new_tokens < config.min_new_tokens
        && let Some(stop) = logits.get_mut(config.stop as usize)
    {
        *stop = f32::NEG_INFINITY;
    }
    let n = config.no_repeat_ngram_size;
    if n > 0 && row.len() + 1 >= n {
        let open = &row[row.len() + 1 - n..];
        for seen in row.windows(n) {
            if seen[..n - 1] == *open
                && let Some(next) = logits.get_mut(seen[n - 1] as usize)
            {
                *next = f32::NEG_INFINITY;
            }
        }
    }
}

/// The largest value's index, the first of equals; `None` if one is NaN.
pub(crate) fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best = 0;
    for (i, &x) in logits.iter().enumerate() {
        if x.is_nan() {
            return None;
        }
        if x > logits[best] {
            best = i;
        }
    }
    Some(best)
}

/// `log softmax`, in place. The sum is exact enough in f64 that the result is as good as f32 can say.
pub(crate) fn log_softmax(logits: &mut [f32]) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let log_sum = sum.ln() as f32;
    for x in logits {
        *x = (*x - max) - log_sum;
    }
}

/// Larger first, the lower index first among equals.
pub(crate) fn descending(values: &[f32]) -> impl Fn(&usize, &usize) -> Ordering + '_ {
    |&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b))
}

/// Indices of the `k` largest values, largest first.
pub(crate) fn top(values: &[f32], k: usize) -> Vec<usize> {
    let mut index: Vec<usize> = (0..values.len()).collect();
    let k = k.min(index.len());
    if k == 0 {
        return Vec::new();
    }
    if k < index.len() {
        index.select_nth_unstable_by(k - 1, descending(values));
        index.truncate(k);
    }
    index.sort_unstable_by(descending(values));
    index
}
