//! One token after the other: the likeliest, or one drawn at random.

use crate::{Continuation, Decoder, GenerateError, Generated, GenerationConfig, OnToken, check_logits};

pub(crate) fn run<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Vec<u32>],
    mut logits: Vec<f32>,
    vocab: usize,
    config: &GenerationConfig,
    on_token: OnToken,
) -> Result<Vec<Generated>, GenerateError<D::Error>> {
    let each = config.num_return_sequences;
    let rows = prompts.iter().flat_map(|prompt| std::iter::repeat_n(prompt, each)).enumerate();
    let mut rows: Vec<Continuation> =
        rows.map(|(row, prompt)| Continuation::of_valid(prompt.clone(), config, row)).collect();
    if each > 1 {
        let origin: Vec<usize> = (0..rows.len()).map(|row| row / each).collect();
        decoder.reorder(&origin).map_err(GenerateError::Decoder)?;
        logits = logits.chunks_exact(vocab).flat_map(|row| row.repeat(each)).collect();
    }
    loop {
        check_logits(&logits, rows.len(), vocab)?;
        let mut next = vec![config.pad; rows.len()];
        let mut broken_off = false;
        for (row, (continuation, logits)) in rows.iter_mut().zip(logits.chunks_exact_mut(vocab)).enumerate() {
            if continuation.ended() {
                continue;
            }
            next[row] = continuation.choose(logits)?;
            if on_token(row, next[row]).is_break() {
                broken_off = true;
                break;
            }
        }
        if broken_off || rows.iter().all(Continuation::ended) {
            return Ok(rows.into_iter().map(Continuation::into_generated).collect());
        }
        logits = decoder.step(&next).map_err(GenerateError::Decoder)?;
    }
}
