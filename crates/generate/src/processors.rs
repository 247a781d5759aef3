//! What the settings forbid, before a token is chosen.

use crate::GenerationConfig;

/// Makes what the settings forbid impossible: the stop token too early, n-grams that appeared before. `row` is
/// the whole sequence, prompt and its padding included; `new_tokens` of it are not the prompt's.
///
/// Greedy search and sampling apply it to logits, beam search to log-probabilities, which are not normalised
/// again. Tokens outside the vocabulary (a pad beyond the model's rows, for instance) have nothing to forbid.
pub(crate) fn forbid(scores: &mut [f32], row: &[u32], new_tokens: usize, config: &GenerationConfig) {
    if new_tokens < config.min_new_tokens {
        make_impossible(scores, config.stop);
    }
    let n = config.no_repeat_ngram_size;
    if n == 0 || n > row.len() {
        return;
    }
    let (open_from, last) = (row.len() + 1 - n, n - 1);
    for seen in row.windows(n) {
        if seen[..last] == row[open_from..] {
            make_impossible(scores, seen[last]);
        }
    }
}

fn make_impossible(scores: &mut [f32], token: u32) {
    if let Some(score) = scores.get_mut(token as usize) {
        *score = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(row: &[u32], n: usize) -> Vec<usize> {
        let config = GenerationConfig { no_repeat_ngram_size: n, ..GenerationConfig::greedy(1, 0, 0) };
        let mut scores = [0.0; 5];
        forbid(&mut scores, row, 0, &config);
        (0..5).filter(|&i| scores[i] == f32::NEG_INFINITY).collect()
    }

    #[test]
    fn ngrams_do_not_come_twice() {
        assert_eq!(forbidden(&[1, 2, 1], 0), []);
        assert_eq!(forbidden(&[1, 2, 1], 1), [1, 2]);
        assert_eq!(forbidden(&[1, 2, 1], 2), [2]);
        assert_eq!(forbidden(&[1, 2, 1, 3, 1], 2), [2, 3]);
        assert_eq!(forbidden(&[1, 2, 3, 1, 2], 3), [3]);
        assert_eq!(forbidden(&[1, 1], 2), [1]);
        assert_eq!(forbidden(&[1, 1], 3), []);
        assert_eq!(forbidden(&[1], usize::MAX), []);
        // A token that the vocabulary lacks.
        assert_eq!(forbidden(&[9, 1, 9], 1), [1]);
    }

    #[test]
    fn the_stop_token_waits() {
        let config = GenerationConfig { min_new_tokens: 2, ..GenerationConfig::greedy(4, 3, 0) };
        for new_tokens in 0..4 {
            let mut scores = [0.0; 5];
            forbid(&mut scores, &[1, 2], new_tokens, &config);
            assert_eq!(scores[3] == f32::NEG_INFINITY, new_tokens < 2);
        }
    }
}
