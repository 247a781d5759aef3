//! The two training streams, pairs of a picture and its caption and interleaved documents: their text, and which of
//! their tokens are predicted (`open_flamingo/train/train_utils.py`).

use crate::{DataError, ENDOFCHUNK, IMAGE, SpecialTokens, Tokenizer};

/// Label of a token that is not predicted.
pub const IGNORE: i64 = -100;

/// Where a batch comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// A picture and its caption (LAION).
    Pairs,
    /// Text with pictures in between (MMC4).
    Documents,
}

impl Stream {
    /// The label of each token: itself where it is predicted, [`IGNORE`] elsewhere.
    ///
    /// Padding and `<image>` are never predicted. In documents only what belongs to a picture is: from after its mark
    /// to its `<|endofchunk|>`. In pairs everything is, what follows `<|endofchunk|>` included.
    ///
    /// ```text
    /// ids        A <image> cat <eoc> then <image> dog <eoc> <eos> <PAD>
    /// pairs      A    -    cat <eoc> then    -    dog <eoc> <eos>   -
    /// documents  -    -    cat <eoc>   -     -    dog <eoc>   -     -
    /// ```
    pub fn labels(self, ids: &[u32], tokens: &SpecialTokens) -> Vec<i64> {
        let mut open = self == Self::Pairs;
        let label = |&id: &u32| {
            if id == tokens.image {
                open = true;
                return IGNORE;
            }
            let label = if open && id != tokens.pad { i64::from(id) } else { IGNORE };
            open &= self == Self::Pairs || id != tokens.endofchunk;
            label
        };
        ids.iter().map(label).collect()
    }
}

/// Token ids of a captioned picture, cut off at `max_tokens`: `<image>caption<|endofchunk|>` and the language model's
/// own end of text (`train/data.py`, `preprocess_laion_text`).
///
/// # Errors
/// [`DataError::Tokenizer`] if the tokenizer fails.
pub fn pair_ids(tokenizer: &Tokenizer, caption: &str, max_tokens: usize) -> Result<Vec<u32>, DataError> {
    let eos = tokenizer.eos_token().unwrap_or_default();
    let mut ids = tokenizer.encode(&format!("{IMAGE}{}{ENDOFCHUNK}{eos}", caption.trim()))?;
    ids.truncate(max_tokens);
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_those_of_the_drawing() {
        let tokens = SpecialTokens { endofchunk: 90, image: 91, pad: 92, bos: None, eos: Some(0) };
        let ids = [1, 91, 2, 90, 3, 91, 4, 90, 0, 92];
        let drawn = |kept: [bool; 10]| -> Vec<i64> {
            ids.iter().zip(kept).map(|(&id, kept)| if kept { i64::from(id) } else { IGNORE }).collect()
        };
        let (y, n) = (true, false);
        assert_eq!(Stream::Pairs.labels(&ids, &tokens), drawn([y, n, y, y, y, n, y, y, y, n]));
        assert_eq!(Stream::Documents.labels(&ids, &tokens), drawn([n, n, y, y, n, n, y, y, n, n]));
        // Without a picture a document teaches nothing.
        assert!(Stream::Documents.labels(&[1, 2, 90, 0], &tokens).iter().all(|&label| label == IGNORE));
    }
}
