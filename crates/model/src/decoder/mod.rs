//! The language model: one decoder-only transformer for all families.
//!
//! What differs between MPT, GPT-NeoX, OPT, LLaMA, GPT-J and GPT-Neo is named in
//! [`flamingo_config::Architecture`]; this module reads only that. `block.rs` is the block, `position.rs`
//! how tokens know where they stand.

mod block;
mod position;

pub use block::Block;
pub(crate) use block::Past;
pub(crate) use position::{Context, Rotary};

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Int, Tensor, backend::Backend};
use flamingo_config::{Architecture, Position, TokenConfig};
use flamingo_kernels::{Kernels, cast};

use crate::embedding::TokenEmbedding;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::text::Text;
use crate::weight::Init;

/// A decoder-only language model.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// Token embeddings, `[vocab_size, embed_dim]` in two parts.
    pub embedding: TokenEmbedding<B>,
    /// `[rows, d_model]`, for learned positions.
    pub position_embedding: Option<Param<Tensor<B, 2>>>,
    /// `[d_model, embed_dim]`, where the two differ.
    pub project_in: Option<Linear<B>>,
    /// The blocks.
    pub blocks: Vec<Block<B>>,
    /// Norm before the head.
    pub norm: Option<Norm<B>>,
    /// `[embed_dim, d_model]`, where the two differ.
    pub project_out: Option<Linear<B>>,
    /// `[vocab_size, embed_dim]`, where the head is not the embedding table.
    pub head: Option<Linear<B>>,
    #[module(skip)]
    architecture: Architecture,
}

impl<B: Kernels> Decoder<B> {
    /// A decoder with random weights.
    pub fn new(architecture: &Architecture, tokens: &TokenConfig, init: &Init<B>) -> Self {
        let a = architecture;
        let (device, of_blocks) = (&init.device, init.of("decoder.blocks"));
        let bridged = a.embed_dim != a.d_model;
        let positions = match a.position {
            Position::Learned { rows, .. } => {
                Some(Initializer::Normal { mean: 0.0, std: 0.02 }.init([rows, a.d_model], device))
            }
            _ => None,
        };
        Self {
            embedding: TokenEmbedding::new(tokens, a.embed_dim, &init.of("decoder.embedding")),
            position_embedding: positions,
            project_in: bridged.then(|| Linear::new(a.embed_dim, a.d_model, false, &init.of("decoder.project_in"))),
            blocks: (0..a.n_layers).map(|layer| Block::new(a, layer, &of_blocks)).collect(),
            norm: a.final_norm.then(|| Norm::new(a.norm, a.d_model, a.norm_eps, device)),
            project_out: bridged.then(|| Linear::new(a.d_model, a.embed_dim, false, &init.of("decoder.project_out"))),
            head: (!a.tied_head)
                .then(|| Linear::new(a.embed_dim, tokens.vocab_size, a.biases.head, &init.of("decoder.head"))),
            architecture: a.clone(),
        }
    }

    /// What this decoder is.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Embeddings of a batch, positions added: `[rows, width, d_model]`, computed in `compute`, or else in the table's format.
    ///
    /// # Panics
    /// If a learned position is outside its table.
    pub fn embed(&self, text: &Text, compute: Option<DType>) -> Tensor<B, 3> {
        let mut x = self.embedding.forward(text.rows, &text.ids);
        if let Some(dtype) = compute {
            x = cast(x, dtype);
        }
        if let Some(project) = &self.project_in {
            x = project.forward(x);
        }
        if let (Some(table), Position::Learned { offset, .. }) = (&self.position_embedding, self.architecture.position)
        {
            // OPT gives padding the row before the first position (offset 2: row 1). What stands at a padded
            // place is never read, so any row would do.
            let index = text.positions.iter().zip(&text.keep).map(|(&position, &keep)| {
                let row = position as usize + offset;
                (if keep { row } else { row.saturating_sub(usize::from(offset > 0)) }) as i32
            });
            let index: Vec<i32> = index.collect();
            let table = table.val();
            let [rows, d_model] = table.dims();
            assert!(index.iter().all(|&i| (i as usize) < rows), "text longer than the position table");
            let index = Tensor::<B, 1, Int>::from_ints(index.as_slice(), &table.device());
            let positions = table.select(0, index).cast(x.dtype());
            x = x + positions.reshape([text.rows, text.width, d_model]);
        }
        x
    }

    /// What the head reads: the last norm, and the projection to `embed_dim` where there is one.
    pub(crate) fn finish(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = match &self.norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        match &self.project_out {
            Some(project) => project.forward(x),
            None => x,
        }
    }

    /// Logits of the next token: `[rows, tokens, d_model]` to `[rows, tokens, vocab_size]`.
    pub fn logits(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = self.finish(x);
        match &self.head {
            Some(head) => head.forward(x),
            None => self.embedding.logits(x),
        }
    }
}
