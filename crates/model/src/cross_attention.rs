//! Gated cross-attention from text to images.
//!
//! Source: upstream `src/helpers.py`, `MaskedCrossAttention` and `GatedCrossAttentionBlock`.

use std::ops::Range;

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use flamingo_config::CrossAttentionConfig;
use flamingo_kernels::{Kernels, Past, attend, attend_each, gated_sum};

use crate::attention::{attention_weights, merge_heads, split_heads, split_last};
use crate::linear::{FeedForward, Linear};
use crate::media::{KeysValues, Sight};
use crate::norm::Norm;
use crate::weight::Init;

/// What some rows look at, as [`GatedCrossAttention::keys_values`] gives it, and who sees which part; `None` where there is
/// no image.
pub type Look<'a, B> = Option<(&'a KeysValues<B>, &'a Sight<B>)>;

/// Tokens of a row, all of one text and each with a picture in sight; what they look at, and who sees which part.
pub(crate) type Looks<'a, B> = (Range<usize>, &'a KeysValues<B>, &'a Sight<B>);

/// Attention of text tokens to image latents.
#[derive(Module, Debug)]
pub struct MaskedCrossAttention<B: Backend> {
    /// Norm of the text.
    pub norm: Norm<B>,
    /// `[heads * dim_head, d_model]`.
    pub to_q: Linear<B>,
    /// `[2 * heads * dim_head, vision_width]`: keys, values.
    pub to_kv: Linear<B>,
    /// `[d_model, heads * dim_head]`.
    pub to_out: Linear<B>,
    heads: usize,
    dim_head: usize,
}

/// A cross-attention block: `x += tanh(gate) attention(x, media)`, `x += tanh(gate) feed_forward(x)`.
///
/// Both gates start at 0, so an untrained block leaves the language model as it is.
#[derive(Module, Debug)]
pub struct GatedCrossAttention<B: Backend> {
    /// The attention.
    pub attention: MaskedCrossAttention<B>,
    /// `[1]`.
    pub attention_gate: Param<Tensor<B, 1>>,
    /// The feed-forward network.
    pub feed_forward: FeedForward<B>,
    /// `[1]`.
    pub feed_forward_gate: Param<Tensor<B, 1>>,
}

impl<B: Kernels> GatedCrossAttention<B> {
    /// A block between a decoder of width `d_model` and images of width `vision_width`.
    pub fn new(config: &CrossAttentionConfig, d_model: usize, vision_width: usize, init: &Init<B>) -> Self {
        let inner = config.heads * config.dim_head;
        Self {
            attention: MaskedCrossAttention {
                norm: Norm::layer(d_model, true, 1e-5, &init.device),
                to_q: Linear::new(d_model, inner, false, init),
                to_kv: Linear::new(vision_width, 2 * inner, false, init),
                to_out: Linear::new(inner, d_model, false, init),
                heads: config.heads,
                dim_head: config.dim_head,
            },
            attention_gate: Initializer::Zeros.init([1], &init.device),
            feed_forward: FeedForward::new(d_model, config.ff_mult, init),
            feed_forward_gate: Initializer::Zeros.init([1], &init.device),
        }
    }

    /// Keys and values of the images: `[rows, images * num_latents, vision_width]` to twice
    /// `[rows, heads, images * num_latents, dim_head]`.
    pub fn keys_values(&self, latents: Tensor<B, 3>) -> [Tensor<B, 4>; 2] {
        split_last(self.attention.to_kv.forward(latents)).map(|part| split_heads(part, self.attention.heads))
    }

    /// `x` is `[rows, tokens, d_model]`. Text without any image skips the attention and keeps the feed-forward network.
    pub fn forward(&self, x: Tensor<B, 3>, look: Look<B>) -> Tensor<B, 3> {
        let x = match look {
            Some((keys_values, sight)) => self.attention.gated(x, keys_values, sight, self.attention_gate.val()),
            None => x,
        };
        self.feed_forward.gated(x, self.feed_forward_gate.val())
    }

    /// The same for tokens of several texts in a row, `[1, tokens, d_model]`: those in `looking`, which follow each other, look
    /// at pictures of their own, the others at none.
    pub(crate) fn forward_each(&self, x: Tensor<B, 3>, looking: &[Looks<B>]) -> Tensor<B, 3> {
        let x = self.attention.gated_each(x, looking, self.attention_gate.val());
        self.feed_forward.gated(x, self.feed_forward_gate.val())
    }
}

impl<B: Kernels> MaskedCrossAttention<B> {
    /// `x + tanh(gate) attention(x)`.
    fn gated(&self, x: Tensor<B, 3>, media: &KeysValues<B>, sight: &Sight<B>, gate: Tensor<B, 1>) -> Tensor<B, 3> {
        let seen = self.seen(self.queries(x.clone()), media, sight);
        match &sight.sees {
            Some(sees) => gated_sum(x, self.to_out.forward(seen) * sees.clone(), gate),
            None => self.to_out.gated(seen, x, gate),
        }
    }

    /// The same for tokens of several texts in a row. Those that see no picture stay as they are.
    fn gated_each(&self, x: Tensor<B, 3>, looking: &[Looks<B>], gate: Tensor<B, 1>) -> Tensor<B, 3> {
        let part = |x: &Tensor<B, 3>, tokens: Range<usize>| x.clone().narrow(1, tokens.start, tokens.len());
        let (tokens, count) = (x.dims()[1], looking.iter().map(|(own, ..)| own.len()).sum::<usize>());
        if count == 0 {
            return x;
        }
        let own = match count == tokens {
            true => x.clone(),
            false => Tensor::cat(looking.iter().map(|(own, ..)| part(&x, own.clone())).collect(), 1),
        };
        let seen = self.each_seen(self.queries(own.clone()), looking);
        let own = self.to_out.gated(seen, own, gate);
        if count == tokens {
            return own;
        }
        // Back among the others.
        let (mut parts, mut at, mut looked) = (Vec::new(), 0, 0);
        for (range, ..) in looking {
            if at < range.start {
                parts.push(part(&x, at..range.start));
            }
            parts.push(part(&own, looked..looked + range.len()));
            (at, looked) = (range.end, looked + range.len());
        }
        if at < tokens {
            parts.push(part(&x, at..tokens));
        }
        Tensor::cat(parts, 1)
    }

    /// What queries of several texts see, `[1, queries, heads * dim_head]`.
    fn each_seen(&self, queries: Tensor<B, 3>, looking: &[Looks<B>]) -> Tensor<B, 3> {
        let mut q = split_heads(queries, self.heads);
        if looking.iter().any(|(.., sight)| sight.sharp.is_some()) {
            let mut first = 0;
            let own = looking.iter().map(|(tokens, _, sight)| {
                let own = q.clone().narrow(2, first, tokens.len());
                first += tokens.len();
                sharpened(own, sight)
            });
            q = Tensor::cat(own.collect(), 2);
        }
        let past = |(tokens, [k, v], sight): &Looks<B>| Past {
            queries: tokens.len(),
            k: k.clone(),
            v: v.clone(),
            keys: k.dims()[2],
            hidden: sight.hidden.clone(),
            bias: None,
        };
        merge_heads(attend_each(q, looking.iter().map(past).collect(), self.scale()))
    }

    /// `[rows, tokens, heads * dim_head]`.
    fn queries(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        self.to_q.forward(self.norm.forward(x))
    }

    /// What queries see, `[rows, tokens, heads * dim_head]`.
    fn seen(&self, queries: Tensor<B, 3>, [k, v]: &KeysValues<B>, sight: &Sight<B>) -> Tensor<B, 3> {
        let q = self.heads_of(queries, sight);
        merge_heads(attend(q, k.clone(), v.clone(), self.scale(), sight.hidden.clone(), None))
    }

    /// Where the text looks, the mean of all heads: `[rows, tokens, images * num_latents]`. Text that sees no image looks
    /// nowhere.
    pub(crate) fn weights(&self, x: Tensor<B, 3>, [k, _]: &KeysValues<B>, sight: &Sight<B>) -> Tensor<B, 3> {
        let q = self.heads_of(self.queries(x), sight);
        let weights = attention_weights(q, k.clone(), self.scale(), sight.hidden.clone());
        match &sight.sees {
            Some(sees) => weights * sees.clone().cast(DType::F32),
            None => weights,
        }
    }

    fn heads_of(&self, queries: Tensor<B, 3>, sight: &Sight<B>) -> Tensor<B, 4> {
        sharpened(split_heads(queries, self.heads), sight)
    }

    fn scale(&self) -> f64 {
        1.0 / (self.dim_head as f64).sqrt()
    }
}

/// Queries, with those as zeros that look at everything alike.
fn sharpened<B: Backend>(q: Tensor<B, 4>, sight: &Sight<B>) -> Tensor<B, 4> {
    match &sight.sharp {
        Some(sharp) => q * sharp.clone(),
        None => q,
    }
}
