//! The token embedding: frozen base rows and the few rows that upstream adds and trains.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};
use flamingo_config::TokenConfig;
use flamingo_kernels::{Finish, Kernels, cast, linear};

use crate::weight::{Init, Weight};

/// An embedding table in two parts.
///
/// Upstream keeps one table and zeroes the gradient of all rows but two. Here what is frozen is a
/// parameter of its own, so that no gradient, no optimizer state and no checkpoint ever covers it.
#[derive(Module, Debug)]
pub struct TokenEmbedding<B: Backend> {
    /// `[base_rows, embed_dim]`: the language model's own tokens.
    pub base: Weight<B>,
    /// `[added_rows, embed_dim]`: `<|endofchunk|>`, `<image>` and, where the tokenizer had no padding
    /// token, `<PAD>`.
    pub added: Param<Tensor<B, 2>>,
}

impl<B: Kernels> TokenEmbedding<B> {
    /// A table initialised as transformers initialises one: normal with deviation 0.02.
    pub fn new(tokens: &TokenConfig, dim: usize, init: &Init<B>) -> Self {
        let normal = Initializer::Normal { mean: 0.0, std: 0.02 };
        Self {
            base: Weight::new([tokens.base_rows(), dim], init, |size, device| normal.init(size, device)),
            added: normal.init([tokens.added_rows(), dim], &init.device),
        }
    }

    /// Rows of `ids` (row-major, `rows` rows): `[rows, width, embed_dim]`.
    ///
    /// # Panics
    /// If an id is outside the table.
    pub fn forward(&self, rows: usize, ids: &[u32]) -> Tensor<B, 3> {
        let added = self.added.val();
        let ([base_rows, dim], [added_rows, _]) = (self.base.dims(), added.dims());
        let device = added.device();
        let index = |ids: Vec<i32>| Tensor::<B, 1, Int>::from_ints(ids.as_slice(), &device);
        assert!(ids.iter().all(|&id| (id as usize) < base_rows + added_rows), "token id outside the vocabulary");

        // Ids of the other part read row 0 here and are replaced below.
        let is_added = |id: u32| id as usize >= base_rows;
        let in_base: Vec<i32> = ids.iter().map(|&id| if is_added(id) { 0 } else { id as i32 }).collect();
        let x = self.base.rows(&in_base);
        let places: Vec<i32> = (0..ids.len()).filter(|&i| is_added(ids[i])).map(|i| i as i32).collect();
        let x = if places.is_empty() {
            x
        } else {
            let rows = added.select(
                0,
                index(ids.iter().map(|&id| if is_added(id) { id as i32 - base_rows as i32 } else { 0 }).collect()),
            );
            let mask: Vec<bool> = ids.iter().map(|&id| is_added(id)).collect();
            let mask = Tensor::<B, 1, burn::tensor::Bool>::from_bool(mask.as_slice().into(), &device);
            let rows = cast(rows, x.dtype());
            x.mask_where(mask.unsqueeze_dim::<2>(1).expand([ids.len(), dim]), rows)
        };
        x.reshape([rows, ids.len() / rows, dim])
    }

    /// `x · tableᵀ`: the head of a model whose head is its embedding table. `[batch, tokens, embed_dim]` to
    /// `[batch, tokens, vocab_size]`.
    pub fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, tokens, dim] = x.dims();
        let x = x.reshape([batch * tokens, dim]);
        let base = self.base.linear(x.clone(), None, Finish::Plain);
        let added = linear(x, self.added.val(), None);
        let logits = Tensor::cat(vec![base, added], 1);
        let vocab = logits.dims()[1];
        logits.reshape([batch, tokens, vocab])
    }
}
