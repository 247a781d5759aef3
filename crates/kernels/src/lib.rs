//! Operations that a backend may compute better than Burn composes them, with hand-written gradients.
//!
//! [`Kernels`] has a default for every operation, in Burn's own, which ndarray uses. On the CPU through
//! burn-flex, GELU, softmax and everything around them are vectorised loops ([`flex`]); on GPUs, through CUDA and wgpu, they are
//! kernels in CubeCL. Under `Autodiff` each is one
//! node with the gradient written here, which also puts right Burn's gradient of the exact GELU (that of its tanh
//! approximation) and keeps attention scores out of memory between forward and backward pass.

#[cfg(feature = "flex")]
pub mod flex;

mod autodiff;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
#[cfg(feature = "cuda")]
pub use cube::keep_compiled;
mod generic;

use std::ops::Range;

use burn::tensor::backend::{AutodiffBackend, Backend, BackendTypes};
use burn::tensor::ops::{BoolTensor, FloatTensor, IntTensor};
use burn::tensor::{Bool, DType, Int, Tensor, TensorPrimitive};
use flamingo_config::{Activation, Pairing, Scheme};

/// Queries, keys and values of an attention and what hides some from others.
#[derive(Clone, Debug)]
pub struct Attention<B: BackendTypes> {
    /// `[batch, heads, queries, dim]`.
    pub q: FloatTensor<B>,
    /// `[batch, heads, keys, dim]`.
    pub k: FloatTensor<B>,
    /// `[batch, heads, keys, dim]`.
    pub v: FloatTensor<B>,
    /// Factor of the scores.
    pub scale: f64,
    /// True = not seen; broadcasts to `[batch, heads, queries, keys]`.
    pub hidden: Option<BoolTensor<B>>,
    /// Added to the scores; broadcasts like `hidden`. Has no gradient.
    pub bias: Option<FloatTensor<B>>,
}

/// What some tokens of one text look at: keys and values of its own, and what hides some.
#[derive(Clone, Debug)]
pub struct Past<B: Backend> {
    /// How many tokens look: one query each.
    pub queries: usize,
    /// Keys, `[1, heads, capacity, dim]`.
    pub k: Tensor<B, 4>,
    /// Values, of the same shape.
    pub v: Tensor<B, 4>,
    /// How many of them there are: the first.
    pub keys: usize,
    /// True = not seen; broadcasts to `[1, heads, queries, keys]`.
    pub hidden: Option<Tensor<B, 4, Bool>>,
    /// Added to the scores; broadcasts like `hidden`.
    pub bias: Option<Tensor<B, 4>>,
}

/// A matrix `[rows, columns]` in few bits, laid out as its scheme says.
#[derive(Clone, Debug)]
pub struct Quantised<B: BackendTypes> {
    /// How.
    pub scheme: Scheme,
    /// `[rows, columns / BLOCK · words]`, 32 bits each.
    pub codes: IntTensor<B>,
    /// `[rows, columns / BLOCK]`.
    pub scales: FloatTensor<B>,
}

/// The weight of a linear layer, `[d_out, d_in]`.
#[derive(Clone, Debug)]
pub enum Matrix<B: BackendTypes> {
    /// Numbers, in any format.
    Plain(FloatTensor<B>),
    /// Codes and scales.
    Quantised(Quantised<B>),
}

/// What becomes of the outputs `y` of a linear layer, `[rows, d_out]`.
#[derive(Clone, Debug)]
pub enum Finish<B: BackendTypes> {
    /// They stay as they are.
    Plain,
    /// An activation of them.
    Activated(Activation),
    /// `x + y`.
    Added(FloatTensor<B>),
    /// `x + tanh(gate) y`; the gate is `[1]`.
    Gated {
        /// `[rows, d_out]`.
        x: FloatTensor<B>,
        /// `[1]`, in any format.
        gate: FloatTensor<B>,
    },
}

/// One AdamW update (arXiv 1711.05101), its factors worked out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Decay of the mean gradient.
    pub beta_1: f64,
    /// Decay of the mean squared gradient.
    pub beta_2: f64,
    /// Added to the root of the mean squared gradient.
    pub eps: f64,
    /// Factor of the weight: 1 less learning rate times weight decay.
    pub keep: f64,
    /// The learning rate over the first mean's bias.
    pub rate: f64,
    /// The root of the second mean's bias.
    pub root_bias_2: f64,
}

/// A backend with these operations. All tensors of one call have one dtype, but for what says otherwise.
pub trait Kernels: Backend {
    /// Rows of a linear layer's inputs up to which the outputs of a row are the same numbers whatever rows are beside it.
    const ROWS_ALIKE: usize = 1;

    /// Matrix products, `[..., m, k]` by `[..., k, n]` with the same leading dimensions. Factors keep their precision: f32 is
    /// multiplied as f32.
    fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_matmul(lhs, rhs)
    }

    /// The nearest numbers in another format.
    fn cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        generic::cast::<Self>(x, dtype)
    }

    /// An activation, element by element.
    fn activate(kind: Activation, x: FloatTensor<Self>) -> FloatTensor<Self> {
        generic::activate::<Self>(kind, x)
    }

    /// Layer norm over the last dimension, computed in f32 at least, in the format of `x`; weight and bias may have others.
    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        eps: f64,
    ) -> FloatTensor<Self> {
        generic::norm::<Self>(x, weight, bias, eps)
    }

    /// `softmax(scale q kᵀ + bias, hidden = -inf) v`, `[batch, heads, queries, dim]`. Every query must see a key: a
    /// row without one is zero on some backends and NaN on others.
    fn attend(attention: Attention<Self>) -> FloatTensor<Self> {
        generic::attend::<Self>(attention)
    }

    /// [`Kernels::attend`] for a few queries of each of several texts, one text after the other, `[1, heads, queries, dim]`, with
    /// keys and values of its own: each text gets the numbers that it gets without the others.
    fn attend_each(q: FloatTensor<Self>, pasts: Vec<Past<Self>>, scale: f64) -> FloatTensor<Self> {
        generic::attend_each::<Self>(q, pasts, scale)
    }

    /// `count` columns of the last dimension, from `first` on.
    fn columns(x: FloatTensor<Self>, first: usize, count: usize) -> FloatTensor<Self> {
        generic::columns::<Self>(x, first, count)
    }

    /// The first `count` of a dimension: of keys in a buffer that holds more, say.
    fn first(x: FloatTensor<Self>, dim: usize, count: usize) -> FloatTensor<Self> {
        generic::first::<Self>(x, dim, count)
    }

    /// Writes some tokens of `x`, `[batch, heads, tokens, dim]`, into a buffer, `[batch, heads, capacity, dim]`, from token `start`
    /// on: where the buffer lies, if nobody else holds it.
    fn put(buffer: FloatTensor<Self>, x: FloatTensor<Self>, tokens: Range<usize>, start: usize) -> FloatTensor<Self> {
        generic::put::<Self>(buffer, x, tokens, start)
    }

    /// `x Wᵀ + b`: `[rows, d_in]` to `[rows, d_out]`; the weight is `[d_out, d_in]`.
    fn linear_layer(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        generic::linear::<Self>(x, weight, bias)
    }

    /// [`Kernels::linear_layer`] with a weight in another format than the rest; products are of the input's.
    fn linear_layer_of_stored(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        generic::linear_of_stored::<Self>(x, weight, bias)
    }

    /// [`Kernels::linear_layer`] with a quantised weight; products are of the input's format.
    fn linear_layer_of_quantised(
        x: FloatTensor<Self>,
        weight: Quantised<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        generic::linear_of_quantised::<Self>(x, weight, bias)
    }

    /// A linear layer and what becomes of its outputs, in the format of `x`: one of the three above, and its [`Finish`].
    fn layer(
        x: FloatTensor<Self>,
        weight: Matrix<Self>,
        bias: Option<FloatTensor<Self>>,
        finish: Finish<Self>,
    ) -> FloatTensor<Self> {
        generic::layer::<Self>(x, weight, bias, finish)
    }

    /// The numbers of a quantised matrix, `[rows, columns]`, in a format.
    fn dequantise(weight: Quantised<Self>, dtype: DType) -> FloatTensor<Self> {
        let scales = tensor(weight.scales);
        primitive(generic::dequantise::<Self>(weight.scheme, Tensor::new(weight.codes), scales, dtype))
    }

    /// `x + tanh(gate) more`; the gate is `[1]`, in any format.
    fn gated_sum(x: FloatTensor<Self>, more: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        generic::gated_sum::<Self>(x, more, gate)
    }

    /// Rotary embedding (arXiv 2104.09864): turns the first `dims` coordinates of `[batch, heads, tokens, dim]` by the
    /// angles whose cosines and sines are `[1, 1, tokens, dims]`, laid out for the pairing. Backwards it turns by the
    /// opposite angles.
    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
    ) -> FloatTensor<Self> {
        generic::rotate::<Self>(x, cos, sin, pairing)
    }

    /// Mean of `-log softmax(logits)[target]` over the rows of `[rows, vocab]`: `[1]`, computed in f32 at least and given so.
    /// Targets lie in `0..vocab`.
    fn cross_entropy(logits: FloatTensor<Self>, targets: &[i32]) -> FloatTensor<Self> {
        generic::cross_entropy::<Self>(logits, targets)
    }
}

/// A backend that models are trained on: the gradients of [`Kernels`], and updates. `Autodiff` turns one into a
/// [`Differentiable`] and is none itself, as there are no gradients of gradients here.
pub trait Gradients: Kernels {
    /// The gradient of [`Kernels::activate`] at `x`, times `grad`.
    fn activate_backward(kind: Activation, x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        generic::activate_backward::<Self>(kind, x, grad)
    }

    /// Gradients of [`Kernels::norm`]: of `x`, and where the weight is `trained` of `weight` and the bias, which has the
    /// weight's format.
    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
        trained: bool,
    ) -> (FloatTensor<Self>, Option<[FloatTensor<Self>; 2]>) {
        generic::norm_backward::<Self>(x, weight, grad, eps, trained)
    }

    /// Gradients of [`Kernels::attend`]: of `q`, `k` and `v`.
    fn attend_backward(attention: Attention<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        generic::attend_backward::<Self>(attention, grad)
    }

    /// The gradient of [`Kernels::linear_layer`] for its input.
    fn linear_input_gradient(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        generic::linear_input_gradient::<Self>(weight, grad)
    }

    /// The gradient of [`Kernels::linear_layer`] for its weight.
    fn linear_weight_gradient(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        generic::linear_weight_gradient::<Self>(x, grad)
    }

    /// The gradient of [`Kernels::linear_layer`] for its bias.
    fn linear_bias_gradient(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        generic::linear_bias_gradient::<Self>(grad)
    }

    /// Gradients of [`Kernels::gated_sum`]: of `more` and the gate.
    fn gated_sum_backward(
        more: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> [FloatTensor<Self>; 2] {
        generic::gated_sum_backward::<Self>(more, gate, grad)
    }

    /// The gradient of [`Kernels::columns`] for an input of `width` columns: `grad` among zeros.
    fn columns_backward(grad: FloatTensor<Self>, first: usize, width: usize) -> FloatTensor<Self> {
        generic::columns_backward::<Self>(grad, first, width)
    }

    /// The gradient of [`Kernels::cross_entropy`], times `grad`, `[1]`, in the format of the logits.
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: &[i32],
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        generic::cross_entropy_backward::<Self>(logits, targets, grad)
    }

    /// The sum of the squares of all numbers, in f32 at least: `[1]`.
    fn sum_squares(all: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        generic::sum_squares::<Self>(all)
    }

    /// Updates a weight and its two means of the gradient; all flat.
    fn adamw(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> [FloatTensor<Self>; 3] {
        generic::adamw::<Self>(weight, gradient, first, second, step)
    }
}

/// A backend that computes gradients over one with these operations.
pub trait Differentiable: Kernels + AutodiffBackend<InnerBackend: Gradients> {}

impl<B: Kernels + AutodiffBackend<InnerBackend: Gradients>> Differentiable for B {}

#[cfg(feature = "ndarray")]
impl Kernels for burn_ndarray::NdArray {}

#[cfg(feature = "ndarray")]
impl Gradients for burn_ndarray::NdArray {}

/// [`Kernels::product`].
pub fn product<B: Kernels, const D: usize>(lhs: Tensor<B, D>, rhs: Tensor<B, D>) -> Tensor<B, D> {
    tensor(B::product(primitive(lhs), primitive(rhs)))
}

/// [`Kernels::cast`].
pub fn cast<B: Kernels, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    if x.dtype() == dtype { x } else { tensor(B::cast(primitive(x), dtype)) }
}

/// [`Kernels::activate`].
pub fn activate<B: Kernels, const D: usize>(kind: Activation, x: Tensor<B, D>) -> Tensor<B, D> {
    tensor(B::activate(kind, primitive(x)))
}

/// [`Kernels::norm`] of `[..., dim]`; weight and bias are `[dim]`.
pub fn layer_norm<B: Kernels, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Option<Tensor<B, 1>>,
    eps: f64,
) -> Tensor<B, D> {
    tensor(B::norm(primitive(x), primitive(weight), bias.map(primitive), eps))
}

/// [`Kernels::attend`].
pub fn attend<B: Kernels>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    scale: f64,
    hidden: Option<Tensor<B, 4, Bool>>,
    bias: Option<Tensor<B, 4>>,
) -> Tensor<B, 4> {
    tensor(B::attend(Attention {
        q: primitive(q),
        k: primitive(k),
        v: primitive(v),
        scale,
        hidden: hidden.map(Tensor::into_primitive),
        bias: bias.map(primitive),
    }))
}

/// [`Kernels::attend_each`].
pub fn attend_each<B: Kernels>(q: Tensor<B, 4>, pasts: Vec<Past<B>>, scale: f64) -> Tensor<B, 4> {
    tensor(B::attend_each(primitive(q), pasts, scale))
}

/// [`Kernels::columns`].
pub fn columns<B: Kernels, const D: usize>(x: Tensor<B, D>, first: usize, count: usize) -> Tensor<B, D> {
    tensor(B::columns(primitive(x), first, count))
}

/// [`Kernels::first`].
pub fn first<B: Kernels, const D: usize>(x: Tensor<B, D>, dim: usize, count: usize) -> Tensor<B, D> {
    tensor(B::first(primitive(x), dim, count))
}

/// [`Kernels::put`].
pub fn put<B: Kernels>(buffer: Tensor<B, 4>, x: Tensor<B, 4>, tokens: Range<usize>, start: usize) -> Tensor<B, 4> {
    tensor(B::put(primitive(buffer), primitive(x), tokens, start))
}

/// [`Kernels::linear_layer`], in the format of `x`, whatever the weight is stored as.
pub fn linear<B: Kernels>(x: Tensor<B, 2>, weight: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
    let bias = bias.map(|bias| primitive(cast(bias, x.dtype())));
    let layer = if x.dtype() == weight.dtype() { B::linear_layer } else { B::linear_layer_of_stored };
    tensor(layer(primitive(x), primitive(weight), bias))
}

/// [`Kernels::layer`]: `[rows, d_in]` to `[rows, d_out]`.
pub fn layer<B: Kernels>(
    x: Tensor<B, 2>,
    weight: Matrix<B>,
    bias: Option<Tensor<B, 1>>,
    finish: Finish<B>,
) -> Tensor<B, 2> {
    let bias = bias.map(|bias| primitive(cast(bias, x.dtype())));
    tensor(B::layer(primitive(x), weight, bias, finish))
}

/// What becomes of a layer's outputs.
pub fn finished<B: Kernels>(y: Tensor<B, 2>, finish: Finish<B>) -> Tensor<B, 2> {
    tensor(generic::finished::<B>(primitive(y), finish))
}

/// [`Kernels::dequantise`].
pub fn dequantise<B: Kernels>(
    scheme: Scheme,
    codes: Tensor<B, 2, Int>,
    scales: Tensor<B, 2>,
    dtype: DType,
) -> Tensor<B, 2> {
    tensor(B::dequantise(Quantised { scheme, codes: codes.into_primitive(), scales: primitive(scales) }, dtype))
}

/// [`Kernels::gated_sum`].
pub fn gated_sum<B: Kernels, const D: usize>(x: Tensor<B, D>, more: Tensor<B, D>, gate: Tensor<B, 1>) -> Tensor<B, D> {
    tensor(B::gated_sum(primitive(x), primitive(more), primitive(gate)))
}

/// [`Kernels::rotate`].
pub fn rotate<B: Kernels>(x: Tensor<B, 4>, cos: Tensor<B, 4>, sin: Tensor<B, 4>, pairing: Pairing) -> Tensor<B, 4> {
    tensor(B::rotate(primitive(x), primitive(cos), primitive(sin), pairing))
}

/// [`Kernels::cross_entropy`].
pub fn cross_entropy<B: Kernels>(logits: Tensor<B, 2>, targets: &[i32]) -> Tensor<B, 1> {
    tensor(B::cross_entropy(primitive(logits), targets))
}

/// [`Gradients::adamw`].
pub fn adamw<B: Gradients>(
    weight: Tensor<B, 1>,
    gradient: Tensor<B, 1>,
    first: Tensor<B, 1>,
    second: Tensor<B, 1>,
    step: AdamWStep,
) -> [Tensor<B, 1>; 3] {
    B::adamw(primitive(weight), primitive(gradient), primitive(first), primitive(second), step).map(tensor)
}

/// [`Gradients::sum_squares`].
pub fn sum_squares<B: Gradients>(all: impl Iterator<Item = Tensor<B, 1>>) -> Tensor<B, 1> {
    tensor(B::sum_squares(all.map(primitive).collect()))
}

/// What a tensor is to its backend.
pub fn primitive<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

fn tensor<B: Backend, const D: usize>(x: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}
