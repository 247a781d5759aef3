//! One token after the other: the likeliest, or one drawn at random.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::processors::forbid;
use crate::sample::{Filter, sample};
use crate::select::argmax;
use crate::{Decoder, GenerateError, Generated, GenerationConfig, InputError, OnToken, Strategy, check_logits};

pub(crate) fn run<D: Decoder + ?Sized>(
    decoder: &mut D,
    prompts: &[Vec<u32>],
    mut logits: Vec<f32>,
    vocab: usize,
    config: &GenerationConfig,
    on_token: OnToken,
) -> Result<Vec<Generated>, GenerateError<D::Error>> {
    let each = config.num_return_sequences;
    let mut rows: Vec<Vec<u32>> = prompts.iter().flat_map(|p| std::iter::repeat_n(p.clone(), each)).collect();
    if each > 1 {
        let origin: Vec<usize> = (0..rows.len()).map(|row| row / each).collect();
        decoder.reorder(&origin).map_err(GenerateError::Decoder)?;
        logits = logits.chunks_exact(vocab).flat_map(|row| row.repeat(each)).collect();
    }
    let mut choosers: Vec<Chooser> = (0..rows.len()).map(|row| Chooser::new(config.strategy, row)).collect();
    let mut out = vec![Generated { ids: Vec::new(), score: None, finished: false }; rows.len()];

    for new_tokens in 0..config.max_new_tokens {
        check_logits(&logits, rows.len(), vocab)?;
        let mut next = vec![config.pad; rows.len()];
        for (row, logits) in logits.chunks_exact_mut(vocab).enumerate() {
            if out[row].finished {
                continue;
            }
            forbid(logits, &rows[row], new_tokens, config);
            let token = choosers[row].choose(logits)?;
            next[row] = token;
            rows[row].push(token);
            out[row].ids.push(token);
            out[row].finished = token == config.stop;
            if on_token(row, token).is_break() {
                return Ok(out);
            }
        }
        if new_tokens + 1 == config.max_new_tokens || out.iter().all(|g| g.finished) {
            break;
        }
        logits = decoder.step(&next).map_err(GenerateError::Decoder)?;
    }
    Ok(out)
}

/// How one row chooses its tokens.
enum Chooser {
    Greedy,
    Sample { filter: Filter, rng: Box<ChaCha8Rng> },
}

impl Chooser {
    /// Each row has its own stream: what it draws does not depend on the rows beside it.
    fn new(strategy: Strategy, row: usize) -> Self {
        match strategy {
            Strategy::Sample { temperature, top_k, top_p, seed } => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(row as u64);
                Self::Sample { filter: Filter { temperature, top_k, top_p }, rng: Box::new(rng) }
            }
            Strategy::Greedy | Strategy::Beam { .. } => Self::Greedy,
        }
    }

    fn choose(&mut self, logits: &mut [f32]) -> Result<u32, InputError> {
        match self {
            // As in torch, the first token where all are impossible.
            Self::Greedy => argmax(logits).map(|token| token as u32).ok_or(InputError::NotANumber),
            Self::Sample { filter, rng } => sample(logits, *filter, rng.as_mut()),
        }
    }
}
