//! One block of the decoder: self-attention and a feed-forward network.

use burn::module::Module;
use burn::tensor::{Tensor, backend::Backend};
use flamingo_config::{Activation, Architecture, Norm as NormKind, NormPlacement, Position, Residual};
use flamingo_kernels::{Kernels, attend, attend_each, first, rotate};

use super::position::{Context, Rotary};
use crate::attention::{merge_heads, split_heads, split_last};
use crate::cache::Cache;
use crate::linear::Linear;
use crate::norm::Norm;
use crate::weight::Init;

/// A decoder block.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// Norm of the attention.
    pub norm_1: Norm<B>,
    /// Causal self-attention.
    pub attention: SelfAttention<B>,
    /// Norm of the feed-forward network; absent where both share the first.
    pub norm_2: Option<Norm<B>>,
    /// Feed-forward network.
    pub mlp: Mlp<B>,
    #[module(skip)]
    residual: Residual,
    #[module(skip)]
    norm_placement: NormPlacement,
}

/// What the rows of a batch go on from.
pub(crate) enum Past<'a, B: Backend> {
    /// All stand at one place of their texts.
    Alike {
        context: &'a Context<B>,
        /// What they continue, if anything.
        cache: Option<&'a mut Cache<B>>,
    },
    /// One row of several texts, one after the other, each at its own place.
    Each {
        /// Where all tokens stand.
        rotary: Option<&'a Rotary<B>>,
        /// For each text, how many tokens it has in the row, who sees what, and what it continues.
        texts: Vec<(usize, &'a Context<B>, &'a mut Cache<B>)>,
    },
}

/// Causal self-attention.
#[derive(Module, Debug)]
pub struct SelfAttention<B: Backend> {
    /// `[3 * d_model, d_model]`: queries, keys, values, each head after head.
    pub qkv: Linear<B>,
    /// Norm of the queries over the whole width (MPT-1B).
    pub q_norm: Option<Norm<B>>,
    /// Norm of the keys over the whole width (MPT-1B).
    pub k_norm: Option<Norm<B>>,
    /// `[d_model, d_model]`.
    pub out: Linear<B>,
    heads: usize,
    scale: f64,
    #[module(skip)]
    clip_qkv: Option<f64>,
    #[module(skip)]
    position: Position,
    #[module(skip)]
    window: Option<usize>,
    layer: usize,
}

/// `down(act(up x))`, or `down(act(gate x) * up x)`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// `[d_ff, d_model]`.
    pub up: Linear<B>,
    /// `[d_ff, d_model]` (LLaMA).
    pub gate: Option<Linear<B>>,
    /// `[d_model, d_ff]`.
    pub down: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Kernels> Block<B> {
    /// Block number `layer` with random weights.
    pub fn new(a: &Architecture, layer: usize, init: &Init<B>) -> Self {
        let d = a.d_model;
        let norm = || Norm::new(a.norm, d, a.norm_eps, &init.device);
        let qk_norm = || a.qk_norm.then(|| Norm::new(NormKind::Layer { bias: false }, d, a.norm_eps, &init.device));
        Self {
            norm_1: norm(),
            attention: SelfAttention {
                qkv: Linear::new(d, 3 * d, a.biases.qkv, init),
                q_norm: qk_norm(),
                k_norm: qk_norm(),
                out: Linear::new(d, d, a.biases.out, init),
                heads: a.n_heads,
                scale: a.attention_scale,
                clip_qkv: a.clip_qkv,
                position: a.position,
                window: a.windows[layer],
                layer,
            },
            norm_2: (a.residual != Residual::ParallelSharedNorm).then(norm),
            mlp: Mlp {
                up: Linear::new(d, a.d_ff, a.biases.mlp, init),
                gate: a.gated_mlp.then(|| Linear::new(d, a.d_ff, a.biases.mlp, init)),
                down: Linear::new(a.d_ff, d, a.biases.mlp, init),
                activation: a.activation,
            },
            residual: a.residual,
            norm_placement: a.norm_placement,
        }
    }

    /// `[rows, tokens, d_model]` to the same shape.
    pub(crate) fn forward(&self, x: Tensor<B, 3>, past: &mut Past<B>) -> Tensor<B, 3> {
        let norm_2 = |x: Tensor<B, 3>| match &self.norm_2 {
            Some(norm) => norm.forward(x),
            None => x,
        };
        match (self.norm_placement, self.residual) {
            (NormPlacement::Pre, Residual::Sequential) => {
                let x = self.attention.added(self.norm_1.forward(x.clone()), x, past);
                self.mlp.added(norm_2(x.clone()), x)
            }
            (NormPlacement::Pre, Residual::Parallel) => {
                let sum = self.attention.added(self.norm_1.forward(x.clone()), x.clone(), past);
                self.mlp.added(norm_2(x), sum)
            }
            (NormPlacement::Pre, Residual::ParallelSharedNorm) => {
                let normed = self.norm_1.forward(x.clone());
                let sum = self.attention.added(normed.clone(), x, past);
                self.mlp.added(normed, sum)
            }
            // Only OPT-350M is post-norm, and it is sequential.
            (NormPlacement::Post, _) => {
                let x = self.norm_1.forward(self.attention.added(x.clone(), x, past));
                norm_2(self.mlp.added(x.clone(), x))
            }
        }
    }
}

impl<B: Kernels> SelfAttention<B> {
    /// Attention within `x`, added to `to`.
    fn added(&self, x: Tensor<B, 3>, to: Tensor<B, 3>, past: &mut Past<B>) -> Tensor<B, 3> {
        let mut qkv = self.qkv.forward(x);
        if let Some(clip) = self.clip_qkv {
            qkv = qkv.clamp(-clip, clip);
        }
        let [q, k, v] = split_last(qkv);
        let normed = |norm: &Option<Norm<B>>, x| match norm {
            Some(norm) => norm.forward(x),
            None => x,
        };
        let (q, k) = (normed(&self.q_norm, q), normed(&self.k_norm, k));
        let seen = match past {
            Past::Alike { context, cache } => self.seen([q, k, v], context, cache.as_deref_mut()),
            Past::Each { rotary, texts } => self.each_seen([q, k, v], *rotary, texts),
        };
        self.out.added(seen, to)
    }

    /// What the rows of a batch see, `[rows, tokens, d_model]`.
    fn seen(&self, qkv: [Tensor<B, 3>; 3], context: &Context<B>, cache: Option<&mut Cache<B>>) -> Tensor<B, 3> {
        let [q, k, v] = qkv.map(|x| split_heads(x, self.heads));
        let [q, k] = [q, k].map(|x| self.turned(x, context.rotary.as_ref()));
        let [k, v] = match cache {
            Some(cache) => {
                let width = k.dims()[2];
                cache.append(self.layer, &[k, v], 0..width).map(|x| first(x, 2, cache.len()))
            }
            None => [k, v],
        };
        let out = attend(q, k, v.clone(), self.scale, context.hidden(self.window), context.bias.clone());
        merge_heads(context.blind(self.window, out, v))
    }

    /// What tokens of several texts see, `[1, tokens, d_model]`.
    fn each_seen(
        &self,
        qkv: [Tensor<B, 3>; 3],
        rotary: Option<&Rotary<B>>,
        texts: &mut [(usize, &Context<B>, &mut Cache<B>)],
    ) -> Tensor<B, 3> {
        let [q, k, v] = qkv.map(|x| split_heads(x, self.heads));
        let [q, k] = [q, k].map(|x| self.turned(x, rotary));
        let more = [k, v];
        let mut start = 0;
        let pasts = texts.iter_mut().map(|(queries, context, cache)| {
            let [k, v] = cache.append(self.layer, &more, start..start + *queries);
            start += *queries;
            let (hidden, bias) = (context.hidden(self.window), context.bias.clone());
            flamingo_kernels::Past { queries: *queries, k, v, keys: cache.len(), hidden, bias }
        });
        let pasts = pasts.collect();
        merge_heads(attend_each(q, pasts, self.scale))
    }

    /// Queries or keys, `[rows, heads, tokens, head_dim]`, turned to where their tokens stand.
    fn turned(&self, x: Tensor<B, 4>, rotary: Option<&Rotary<B>>) -> Tensor<B, 4> {
        match (self.position, rotary) {
            (Position::Rotary { pairing, .. }, Some(Rotary { cos, sin })) => {
                rotate(x, cos.clone(), sin.clone(), pairing)
            }
            _ => x,
        }
    }
}

impl<B: Kernels> Mlp<B> {
    /// What the network makes of `x`, added to `to`.
    fn added(&self, x: Tensor<B, 3>, to: Tensor<B, 3>) -> Tensor<B, 3> {
        let hidden = match &self.gate {
            Some(gate) => gate.activated(x.clone(), self.activation) * self.up.forward(x),
            None => self.up.activated(x, self.activation),
        };
        self.down.added(hidden, to)
    }
}
