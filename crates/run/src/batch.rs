//! Examples put together.

use flamingo_data::{Example, PaddingSide, SpecialTokens, Stream, pad_batch};
use flamingo_engine::{Pixels, Text};

/// What a training step takes.
pub(crate) struct TrainingBatch {
    pub(crate) text: Text,
    pub(crate) pixels: Option<Pixels>,
    pub(crate) labels: Vec<i64>,
    /// Pictures, blank ones left out.
    pub(crate) pictures: usize,
}

/// Rows padded on the right; those with fewer pictures than others are filled with blank ones, which no text looks at.
pub(crate) fn collate(examples: &[Example], stream: Stream, tokens: &SpecialTokens, side: usize) -> TrainingBatch {
    let ids: Vec<Vec<u32>> = examples.iter().map(|example| example.ids.clone()).collect();
    let batch = pad_batch(&ids, tokens.pad, PaddingSide::Right);
    let labels = batch.ids.chunks(batch.width.max(1)).flat_map(|row| stream.labels(row, tokens)).collect();
    let images = examples.iter().map(|example| example.pictures.len()).max().unwrap_or(0);
    let mut data = Vec::with_capacity(examples.len() * images * 3 * side * side);
    for example in examples {
        example.pictures.iter().for_each(|picture| data.extend_from_slice(picture));
        data.resize(data.len() + (images - example.pictures.len()) * 3 * side * side, 0.0);
    }
    TrainingBatch {
        pixels: (images > 0).then_some(Pixels { rows: examples.len(), images, frames: 1, side, data }),
        text: Text::new(examples.len(), batch.ids, batch.mask),
        labels,
        pictures: examples.iter().map(|example| example.pictures.len()).sum(),
    }
}
