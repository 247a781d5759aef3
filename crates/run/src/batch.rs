//! Examples put together.

use flamingo_data::{Example, IGNORE, PaddingSide, SpecialTokens, Stream, pad_batch};
use flamingo_engine::{Pixels, Text};

/// What a training step takes.
pub(crate) struct TrainingBatch {
    pub(crate) text: Text,
    pub(crate) pixels: Option<Pixels>,
    pub(crate) labels: Vec<i64>,
    /// Pictures, blank ones left out.
    pub(crate) pictures: usize,
}

/// Parts of a batch, and the weights of their mean losses.
pub(crate) type Parts = Vec<(TrainingBatch, f64)>;

/// A batch in parts of at most `rows` rows of like length; the weights of their mean losses, whose sum is 1; and how many
/// tokens it predicts.
pub(crate) fn parts(
    mut examples: Vec<Example>,
    rows: usize,
    stream: Stream,
    tokens: &SpecialTokens,
    side: usize,
) -> (Parts, usize) {
    // The first token of a row is predicted by nothing.
    let predicted = |batch: &TrainingBatch| {
        let rows = batch.labels.chunks(batch.text.width.max(1));
        rows.flat_map(|row| &row[1..]).filter(|&&label| label != IGNORE).count()
    };
    if rows == 0 || rows >= examples.len() {
        let whole = collate(&examples, stream, tokens, side);
        let count = predicted(&whole);
        return (vec![(whole, 1.0)], count);
    }
    examples.sort_by_key(|example| example.ids.len());
    let parts: Vec<TrainingBatch> = examples.chunks(rows).map(|part| collate(part, stream, tokens, side)).collect();
    let total: usize = parts.iter().map(predicted).sum();
    // A part that predicts nothing has no loss, and no share in that of the others.
    let weighed = parts.into_iter().map(|part| (predicted(&part) as f64 / total as f64, part));
    (weighed.filter(|(share, _)| *share != 0.0).map(|(share, part)| (part, share)).collect(), total)
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
