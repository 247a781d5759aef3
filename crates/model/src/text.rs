//! A batch of token ids with what is known about each: padding, position.

/// Token ids of a batch, row-major, all rows of one width.
///
/// ```text
/// ids        <PAD> <PAD> <image> A cat
/// keep         0     0      1    1  1
/// positions    0     0      0    1  2
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// Number of rows.
    pub rows: usize,
    /// Tokens in each row.
    pub width: usize,
    /// `rows * width` token ids.
    pub ids: Vec<u32>,
    /// Which of them are text rather than padding.
    pub keep: Vec<bool>,
    /// Position of each for a learned position table (ALiBi and rotary embeddings need distances only).
    pub positions: Vec<u32>,
    /// Whether padding that sees no text is computed as upstream's attention happens to compute it. Nothing
    /// but a loss over left-padded text depends on it.
    pub upstream_padding: bool,
}

impl Text {
    /// A batch whose positions count the kept tokens, as OPT's forward and every `generate` of
    /// transformers count them. Padding stands at position 0.
    ///
    /// # Panics
    /// If `keep` is not as long as `ids`, or `ids` not a multiple of `rows`.
    pub fn new(rows: usize, ids: Vec<u32>, keep: Vec<bool>) -> Self {
        Self::after(&vec![0; rows], ids, keep)
    }

    /// A batch that continues rows with `seen[row]` kept tokens.
    ///
    /// # Panics
    /// As [`Text::new`].
    pub fn after(seen: &[usize], ids: Vec<u32>, keep: Vec<bool>) -> Self {
        let rows = seen.len();
        assert_eq!(ids.len(), keep.len(), "one keep flag a token");
        assert!(rows > 0 && ids.len().is_multiple_of(rows), "rows of one width");
        let width = ids.len() / rows;
        let mut positions = Vec::with_capacity(ids.len());
        for (row, kept) in keep.chunks(width.max(1)).enumerate() {
            let mut next = seen[row] as u32;
            for &k in kept {
                positions.push(if k { next } else { 0 });
                next += u32::from(k);
            }
        }
        Self { rows, width, ids, keep, positions, upstream_padding: false }
    }

    /// The same batch with positions that count padding too: what transformers' plain forward of GPT-Neo
    /// uses where no `position_ids` are passed. Differs from [`Text::new`] only under left padding.
    pub fn with_padded_positions(mut self) -> Self {
        self.positions = (0..self.ids.len()).map(|i| (i % self.width) as u32).collect();
        self
    }

    /// The same batch, padding computed as upstream computes it.
    pub fn with_upstream_padding(mut self) -> Self {
        self.upstream_padding = true;
        self
    }
}
