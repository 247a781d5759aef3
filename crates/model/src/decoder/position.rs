//! Where tokens stand and whom they see: causal masks, ALiBi, rotary embedding.
//!
//! Everything here depends only on lengths and padding, so it is made once a forward pass and shared by
//! all blocks.

use std::collections::BTreeMap;

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};
use flamingo_config::{Alibi, Architecture, Blind, Pairing, Position};
use flamingo_kernels::{Kernels, product};

/// What the blocks of one forward pass share.
pub(crate) struct Context<B: Backend> {
    /// Mask of each window in use, `[rows, 1, queries, keys]`, true = not seen; absent where all is seen.
    hidden: BTreeMap<Option<usize>, Tensor<B, 4, Bool>>,
    /// ALiBi, `[1, heads, 1 or queries, keys]`.
    pub(crate) bias: Option<Tensor<B, 4>>,
    /// For each window in use, what padding that sees no text attends to; absent where nobody asks.
    blind: BTreeMap<Option<usize>, BlindRows<B>>,
    /// Where the tokens stand.
    pub(crate) rotary: Option<Rotary<B>>,
}

/// Cosines and sines of the rotary angles of some tokens, `[1, 1, tokens, dims]` each, laid out for the pairing.
pub(crate) struct Rotary<B: Backend> {
    pub(crate) cos: Tensor<B, 4>,
    pub(crate) sin: Tensor<B, 4>,
}

impl<B: Backend> Rotary<B> {
    /// Of tokens at some places; nothing where places are told otherwise. `like` gives device and dtype.
    pub(crate) fn new(
        a: &Architecture,
        places: impl ExactSizeIterator<Item = usize>,
        like: &Tensor<B, 3>,
    ) -> Option<Self> {
        let Position::Rotary { dims, base, pairing } = a.position else { return None };
        let tokens = places.len();
        let frequency = |i: usize| {
            let pair = match pairing {
                Pairing::Halves => i % (dims / 2),
                Pairing::Neighbours => i / 2,
            };
            // Rounded where upstream rounds: far positions turn by thousands of radians.
            base.powf(-2.0 * pair as f64 / dims as f64) as f32
        };
        let frequencies: Vec<f32> = (0..dims).map(frequency).collect();
        let (mut cos, mut sin) = (Vec::with_capacity(tokens * dims), Vec::with_capacity(tokens * dims));
        for place in places {
            for frequency in &frequencies {
                let angle = f64::from(place as f32 * frequency);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        let options = (&like.device(), like.dtype());
        let [cos, sin] = [cos, sin].map(|x| Tensor::from_data(TensorData::new(x, [1, 1, tokens, dims]), options));
        Some(Self { cos, sin })
    }
}

/// Fixed attention weights of the queries that see no text.
struct BlindRows<B: Backend> {
    /// `[rows, 1, queries, keys]`: their weights; 0 for all other queries.
    weights: Tensor<B, 4>,
    /// `[rows, 1, queries, 1]`: 1 for all other queries, 0 for these.
    others: Tensor<B, 4>,
}

impl<B: Kernels> Context<B> {
    /// For `width` new tokens after `start` cached ones; `keep[row]` covers all of them. `like` gives device
    /// and dtype.
    pub(crate) fn new(
        a: &Architecture,
        keep: &[Vec<bool>],
        start: usize,
        width: usize,
        upstream_padding: bool,
        like: &Tensor<B, 3>,
    ) -> Self {
        let rotary = Rotary::new(a, start..start + width, like);
        Self { rotary, ..Self::masks(a, keep, start, width, upstream_padding, like) }
    }

    /// The same without [`Context::rotary`].
    pub(crate) fn masks(
        a: &Architecture,
        keep: &[Vec<bool>],
        start: usize,
        width: usize,
        upstream_padding: bool,
        like: &Tensor<B, 3>,
    ) -> Self {
        let device = like.device();
        let options = (&device, like.dtype());
        let (rows, keys) = (keep.len(), start + width);

        let mut hidden = BTreeMap::new();
        for &window in &a.windows {
            hidden.entry(window).or_insert_with(|| {
                let mut mask = Vec::with_capacity(rows * width * keys);
                for row in keep {
                    for query in start..keys {
                        for (key, &kept) in row.iter().enumerate() {
                            let near = window.is_none_or(|window| query < key + window);
                            // A token always sees itself, padding too: no row is ever empty.
                            mask.push(!(key == query || (kept && key < query && near)));
                        }
                    }
                }
                mask
            });
        }
        let hidden = hidden
            .into_iter()
            .filter(|(_, mask)| mask.contains(&true))
            .map(|(window, mask)| {
                let data = TensorData::new(mask, [rows, 1, width, keys]);
                (window, Tensor::<B, 4, Bool>::from_bool(data, &device))
            })
            .collect();

        let bias = match a.position {
            Position::Alibi { bias_max, slopes } => {
                let slopes = alibi_slopes(a.n_heads, bias_max, slopes);
                let values: Vec<f32> = slopes
                    .iter()
                    .flat_map(|slope| (0..keys).map(move |key| (slope * (key as f64 + 1.0 - keys as f64)) as f32))
                    .collect();
                let bias = Tensor::<B, 4>::from_data(TensorData::new(values, [1, a.n_heads, 1, keys]), options);
                Some(bias.repeat_dim(2, width))
            }
            _ => None,
        };

        let mut blind = BTreeMap::new();
        if upstream_padding {
            for &window in &a.windows {
                blind.entry(window).or_insert_with(|| blind_rows(a.blind, window, keep, start, width, like));
            }
        }
        let blind = blind.into_iter().filter_map(|(window, rows)| Some((window, rows?))).collect();
        Self { hidden, bias, blind, rotary: None }
    }

    /// Replaces what queries that see no text got by what upstream gives them. `out` and `v` are
    /// `[rows, heads, queries or keys, dim]`.
    pub(crate) fn blind(&self, window: Option<usize>, out: Tensor<B, 4>, v: Tensor<B, 4>) -> Tensor<B, 4> {
        match self.blind.get(&window) {
            None => out,
            Some(rows) => {
                let [batch, heads, keys, _] = v.dims();
                let queries = out.dims()[2];
                let weights = rows.weights.clone().expand([batch, heads, queries, keys]);
                out * rows.others.clone() + product(weights, v)
            }
        }
    }

    /// The mask of blocks with this window.
    pub(crate) fn hidden(&self, window: Option<usize>) -> Option<Tensor<B, 4, Bool>> {
        self.hidden.get(&window).cloned()
    }
}

/// Weights of the queries that see no text, or `None` if there are none.
fn blind_rows<B: Backend>(
    rule: Blind,
    window: Option<usize>,
    keep: &[Vec<bool>],
    start: usize,
    width: usize,
    like: &Tensor<B, 3>,
) -> Option<BlindRows<B>> {
    let (rows, keys) = (keep.len(), start + width);
    let (mut weights, mut others) = (Vec::with_capacity(rows * width * keys), Vec::with_capacity(rows * width));
    for row in keep {
        for query in start..keys {
            let shown = |key: usize| key <= query && window.is_none_or(|window| query < key + window);
            let sees_text = (0..keys).any(|key| row[key] && shown(key));
            others.push(if sees_text { 1f32 } else { 0.0 });
            let attended = |key: usize| {
                !sees_text
                    && match rule {
                        Blind::All => true,
                        Blind::SeenAndText => row[key] || shown(key),
                        Blind::Text => row[key],
                    }
            };
            let count = (0..keys).filter(|&key| attended(key)).count();
            weights.extend((0..keys).map(|key| if attended(key) { 1.0 / count as f32 } else { 0.0 }));
        }
    }
    let options = (&like.device(), like.dtype());
    others.contains(&0.0).then(|| BlindRows {
        weights: Tensor::from_data(TensorData::new(weights, [rows, 1, width, keys]), options),
        others: Tensor::from_data(TensorData::new(others, [rows, 1, width, 1]), options),
    })
}

/// ALiBi's slope of each head: `2^(-max k / n)` for `k = 1..=n`. Where `n` is no power of two, llm-foundry
/// takes the slopes of the next power of two, first every second one from the second, then the others.
fn alibi_slopes(heads: usize, bias_max: f64, rule: Alibi) -> Vec<f64> {
    let slopes = |n: usize| (1..=n).map(|k| 2f64.powf(-bias_max * k as f64 / n as f64)).collect::<Vec<_>>();
    match rule {
        Alibi::Interleaved if !heads.is_power_of_two() => {
            let all = slopes(heads.next_power_of_two());
            let mut picked: Vec<f64> = all.iter().skip(1).step_by(2).chain(all.iter().step_by(2)).copied().collect();
            picked.truncate(heads);
            picked
        }
        _ => slopes(heads),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alibi_slopes_follow_their_rules() {
        assert_eq!(alibi_slopes(4, 8.0, Alibi::Plain), [0.25, 0.0625, 0.015625, 0.00390625]);
        assert_eq!(alibi_slopes(4, 8.0, Alibi::Interleaved), alibi_slopes(4, 8.0, Alibi::Plain));
        // llm-foundry's gen_slopes(3): of 2^-2, 2^-4, 2^-6, 2^-8 the second and fourth, then the first.
        assert_eq!(alibi_slopes(3, 8.0, Alibi::Interleaved), [0.0625, 0.00390625, 0.25]);
        assert_eq!(alibi_slopes(3, 9.0, Alibi::Plain), [0.125, 0.015625, 0.001953125]);
    }
}
