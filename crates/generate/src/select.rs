//! Finding the largest of many without sorting them all, and normalising logits.

use std::cmp::Ordering;

/// The largest value's index, the first of equals; `None` if one is NaN or there is none.
pub(crate) fn argmax(values: &[f32]) -> Option<usize> {
    let mut best = 0;
    let mut largest = *values.first()?;
    for (i, &x) in values.iter().enumerate() {
        if x.is_nan() {
            return None;
        }
        if x > largest {
            (best, largest) = (i, x);
        }
    }
    Some(best)
}

/// The largest logit and the logarithm of the sum of all, each less the largest. A log-probability is
/// `(x - largest) - log_sum`, in this order: adding the two first would lose digits of large logits.
///
/// The sum is taken in f64, so that the result is as good as f32 can say. NaN and +inf come out as NaN.
pub(crate) fn log_sum_exp(logits: &[f32]) -> (f32, f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    (max, sum.ln() as f32)
}

/// `log softmax` of one row of logits, in place.
pub fn log_softmax(logits: &mut [f32]) {
    let (max, log_sum) = log_sum_exp(logits);
    for x in logits {
        *x = (*x - max) - log_sum;
    }
}

/// Larger values first, of equals the lower index. A total order even among NaN, which sorting must not meet with
/// a panic.
pub(crate) fn descending(values: &[f32]) -> impl Fn(&u32, &u32) -> Ordering + '_ {
    // Adding 0 makes -0 the 0 that it equals.
    let value = |i: u32| values[i as usize] + 0.0;
    move |&a, &b| value(b).total_cmp(&value(a)).then(a.cmp(&b))
}

/// Indices of the `k` largest values, largest first.
///
/// One pass with a buffer of `2 k`: when it is full its better half stays, and what does not exceed the worst of
/// that half (an equal has a higher index) is passed over from then on.
pub(crate) fn top(values: &[f32], k: usize) -> Vec<u32> {
    let k = k.min(values.len());
    if k == 0 {
        return Vec::new();
    }
    let order = descending(values);
    let room = k.saturating_mul(2).min(values.len());
    let mut best: Vec<u32> = Vec::with_capacity(room);
    let mut least = None;
    for (i, &x) in values.iter().enumerate() {
        if best.len() == room {
            best.select_nth_unstable_by(k - 1, &order);
            best.truncate(k);
            least = Some(values[best[k - 1] as usize]);
        }
        if least.is_none_or(|least| x > least) {
            best.push(i as u32);
        }
    }
    best.sort_unstable_by(order);
    best.truncate(k);
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_the_largest() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, 2.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), Some(0));
        assert_eq!(argmax(&[1.0, f32::NAN]), None);
        assert_eq!(argmax(&[f32::NAN, 1.0]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn the_top_is_what_a_full_sort_puts_first() {
        // Few distinct values, so that ties are everywhere; some are zeros of either sign.
        let mut state = 1u32;
        for n in [1, 2, 7, 64, 500] {
            let values: Vec<f32> = (0..n)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let value = (state >> 24) as f32 % 9.0 - 4.0;
                    if value == 0.0 && state & 1 == 1 { -0.0 } else { value }
                })
                .collect();
            let mut sorted: Vec<u32> = (0..n as u32).collect();
            sorted.sort_by(|&a, &b| values[b as usize].partial_cmp(&values[a as usize]).unwrap_or(Ordering::Equal));
            for k in [0, 1, 2, 3, 10, 63, 64, 249, 250, 251, 500, usize::MAX] {
                assert_eq!(top(&values, k), sorted[..k.min(n)], "{k} of {n}");
            }
        }
    }

    #[test]
    fn the_top_of_nans_is_no_panic() {
        let values: Vec<f32> = (0..100).map(|i| if i % 3 == 0 { f32::NAN } else { i as f32 }).collect();
        assert_eq!(top(&values, 5).len(), 5);
    }

    #[test]
    fn log_softmax_is_exact_for_large_logits() {
        let mut logits = [30_000.0, 30_000.0, 29_990.0, f32::NEG_INFINITY];
        log_softmax(&mut logits);
        let log_sum = (2.0 + (-10f64).exp()).ln();
        for (x, expected) in logits.iter().zip([-log_sum, -log_sum, -10.0 - log_sum]) {
            assert!((f64::from(*x) - expected).abs() < 1e-6);
        }
        assert_eq!(logits[3], f32::NEG_INFINITY);
    }
}
