//! The operations in Burn's own.

use std::ops::Range;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{AttentionModuleOptions, FloatTensor};
use burn::tensor::{Bool, DType, ElementConversion, Int, Slice, Tensor, TensorMetadata, activation, module};
use flamingo_config::{Activation, BLOCK, LEVELS, Pairing, Scheme};

use crate::{AdamWStep, Attention, Finish, Kernels, Matrix, Past, Quantised, primitive, product, tensor};

/// Queries up to which the scores are computed by plain matrix products. Those read keys and values where
/// they lie (slices of a cache); the fused kernels copy them first, which is most of the work when one
/// token looks at a thousand.
const FEW_QUERIES: usize = 8;

/// `sqrt(2 / π)`, of the tanh approximation.
const TANH_SCALE: f64 = 0.797_884_560_802_865_4;
const TANH_CUBE: f64 = 0.044_715;

/// Runs an operation that does not care about shapes on the flat tensor.
fn flat<B: Backend>(x: FloatTensor<B>, work: impl FnOnce(Tensor<B, 1>) -> Tensor<B, 1>) -> FloatTensor<B> {
    let shape = x.shape();
    let count = shape.num_elements();
    let y = work(tensor(B::float_reshape(x, [count].into())));
    B::float_reshape(primitive(y), shape)
}

pub(crate) fn activate<B: Backend>(kind: Activation, x: FloatTensor<B>) -> FloatTensor<B> {
    flat::<B>(x, |x| match kind {
        Activation::Gelu => activation::gelu(x),
        Activation::GeluTanh => x.clone() * 0.5 * (tanh_inner(x).tanh() + 1.0),
        Activation::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
        Activation::Relu => activation::relu(x),
        Activation::Silu => activation::silu(x),
    })
}

fn tanh_inner<B: Backend>(x: Tensor<B, 1>) -> Tensor<B, 1> {
    let cube = x.clone() * x.clone() * x.clone();
    (x + cube * TANH_CUBE) * TANH_SCALE
}

pub(crate) fn activate_backward<B: Backend>(
    kind: Activation,
    x: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let count = x.shape().num_elements();
    let grad: Tensor<B, 1> = tensor(B::float_reshape(grad, [count].into()));
    flat::<B>(x, |x| {
        let slope = match kind {
            Activation::Gelu => {
                let share = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() * 0.5 + 0.5;
                let density = (x.clone() * x.clone() * -0.5).exp() * (TANH_SCALE * 0.5);
                share + x * density
            }
            Activation::GeluTanh => {
                let tanh = tanh_inner(x.clone()).tanh();
                let inner = (x.clone() * x.clone() * (3.0 * TANH_CUBE) + 1.0) * TANH_SCALE;
                let sech = (tanh.clone() * tanh.clone()).neg() + 1.0;
                (tanh + 1.0) * 0.5 + x * 0.5 * sech * inner
            }
            Activation::QuickGelu => sigmoid_slope(x, 1.702),
            Activation::Relu => x.greater_elem(0.0).float().cast(grad.dtype()),
            Activation::Silu => sigmoid_slope(x, 1.0),
        };
        slope * grad
    })
}

/// The derivative of `x sigmoid(a x)`.
fn sigmoid_slope<B: Backend>(x: Tensor<B, 1>, a: f64) -> Tensor<B, 1> {
    let share = activation::sigmoid(x.clone() * a);
    let rest = share.clone().neg() + 1.0;
    share.clone() + x * a * share * rest
}

/// In another format, if it has not that one.
pub(crate) fn cast<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if x.dtype() == dtype { x } else { B::float_cast(x, dtype.into()) }
}

/// The format that sums over numbers of this one are made in.
fn wide(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

pub(crate) fn norm<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    eps: f64,
) -> FloatTensor<B> {
    let (dtype, wide) = (x.dtype(), wide(x.dtype()));
    let bias = bias.map(|bias| cast::<B>(bias, wide));
    cast::<B>(B::layer_norm(cast::<B>(x, wide), cast::<B>(weight, wide), bias, eps), dtype)
}

pub(crate) fn norm_backward<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    grad: FloatTensor<B>,
    eps: f64,
    trained: bool,
) -> (FloatTensor<B>, Option<[FloatTensor<B>; 2]>) {
    let (of_x, of_weight, format) = (x.dtype(), weight.dtype(), wide(x.dtype()));
    let [x, weight, grad] = [x, weight, grad].map(|x| cast::<B>(x, format));
    let shape = x.shape();
    let dim = shape[shape.num_dims() - 1];
    let rows = shape.num_elements() / dim.max(1);
    let matrix = |x: FloatTensor<B>| -> Tensor<B, 2> { tensor(B::float_reshape(x, [rows, dim].into())) };
    let (x, grad) = (matrix(x), matrix(grad));
    let weight: Tensor<B, 1> = tensor(weight);

    let centred = x.clone() - x.mean_dim(1);
    let deviation = ((centred.clone() * centred.clone()).mean_dim(1) + eps).sqrt();
    let normal = centred / deviation.clone();
    let sums = trained.then(|| [sum_rows(grad.clone() * normal.clone()), sum_rows(grad.clone())]);
    let scaled = grad * weight.unsqueeze();
    let along = (scaled.clone() * normal.clone()).mean_dim(1);
    let d_x = (scaled.clone() - scaled.mean_dim(1) - normal * along) / deviation;
    let sums = sums.map(|sums| sums.map(|gradient| cast::<B>(primitive(gradient), of_weight)));
    (cast::<B>(B::float_reshape(primitive(d_x), shape), of_x), sums)
}

pub(crate) fn attend<B: Kernels>(a: Attention<B>) -> FloatTensor<B> {
    // [batch, heads, tokens, dim].
    let (queries, dim) = (a.q.shape()[2], a.q.shape()[3]);
    if queries <= FEW_QUERIES {
        return attend_by_products::<B>(a);
    }
    let [q, k, v]: [Tensor<B, 4>; 3] = [a.q, a.k, a.v].map(tensor);
    let [batch, heads, queries, _] = q.dims();
    let full = [batch, heads, queries, k.dims()[2]];
    let hidden = a.hidden.map(|hidden| Tensor::<B, 4, Bool>::new(hidden).expand(full));
    let bias = a.bias.map(|bias| tensor::<B, 4>(bias).expand(full));
    // Fused kernels take the default scale only: what remains of ours goes into the queries.
    let default_scale = 1.0 / (dim as f64).sqrt();
    let q = if (a.scale / default_scale - 1.0).abs() < 1e-12 { q } else { q * (a.scale / default_scale) };
    let options = AttentionModuleOptions { scale: None, softcap: None, is_causal: false };
    primitive(module::attention(q, k, v, hidden, bias, options))
}

/// [`attend`] with all scores in memory.
pub(crate) fn attend_by_products<B: Kernels>(a: Attention<B>) -> FloatTensor<B> {
    let [q, k, v]: [Tensor<B, 4>; 3] = [a.q, a.k, a.v].map(tensor);
    let [batch, heads, queries, _] = q.dims();
    let full = [batch, heads, queries, k.dims()[2]];
    let hidden = a.hidden.map(|hidden| Tensor::<B, 4, Bool>::new(hidden).expand(full));
    primitive(product(weights(q, k, a.scale, hidden, a.bias.map(tensor)), v))
}

pub(crate) fn attend_each<B: Kernels>(q: FloatTensor<B>, pasts: Vec<Past<B>>, scale: f64) -> FloatTensor<B> {
    let q: Tensor<B, 4> = tensor(q);
    let mut first = 0;
    let each = pasts.into_iter().map(|past| {
        let own = q.clone().narrow(2, first, past.queries);
        first += past.queries;
        let [k, v] = [past.k, past.v].map(|x| crate::first(x, 2, past.keys));
        crate::attend(own, k, v, scale, past.hidden, past.bias)
    });
    primitive(Tensor::cat(each.collect(), 2))
}

/// `softmax(scale q kᵀ + bias, hidden = -inf)`; `hidden` has the scores' shape.
fn weights<B: Kernels>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    scale: f64,
    hidden: Option<Tensor<B, 4, Bool>>,
    bias: Option<Tensor<B, 4>>,
) -> Tensor<B, 4> {
    let mut scores = product(q * scale, k.transpose());
    if let Some(bias) = bias {
        scores = scores + bias;
    }
    if let Some(hidden) = hidden {
        scores = scores.mask_fill(hidden, f32::NEG_INFINITY);
    }
    activation::softmax(scores, 3)
}

pub(crate) fn attend_backward<B: Kernels>(a: Attention<B>, grad: FloatTensor<B>) -> [FloatTensor<B>; 3] {
    let (q, k, v): (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>) = (tensor(a.q), tensor(a.k), tensor(a.v));
    let grad: Tensor<B, 4> = tensor(grad);
    let [batch, heads, queries, _] = q.dims();
    let full = [batch, heads, queries, k.dims()[2]];
    let hidden = a.hidden.map(|hidden| Tensor::<B, 4, Bool>::new(hidden).expand(full));
    let weights = weights(q.clone(), k.clone(), a.scale, hidden, a.bias.map(tensor));
    let d_v = product(weights.clone().transpose(), grad.clone());
    let d_weights = product(grad, v.transpose());
    let along = (d_weights.clone() * weights.clone()).sum_dim(3);
    let d_scores = (d_weights - along) * weights * a.scale;
    let d_q = product(d_scores.clone(), k);
    let d_k = product(d_scores.transpose(), q);
    [d_q, d_k, d_v].map(primitive)
}

pub(crate) fn linear<B: Kernels>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let y = B::product(x, B::float_transpose(weight));
    match bias {
        Some(bias) => primitive(tensor::<B, 2>(y) + tensor::<B, 1>(bias).unsqueeze()),
        None => y,
    }
}

pub(crate) fn linear_of_stored<B: Kernels>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    B::linear_layer(x, B::cast(weight, dtype), bias)
}

pub(crate) fn layer<B: Kernels>(
    x: FloatTensor<B>,
    weight: Matrix<B>,
    bias: Option<FloatTensor<B>>,
    finish: Finish<B>,
) -> FloatTensor<B> {
    let y = match weight {
        Matrix::Plain(weight) if weight.dtype() == x.dtype() => B::linear_layer(x, weight, bias),
        Matrix::Plain(weight) => B::linear_layer_of_stored(x, weight, bias),
        Matrix::Quantised(weight) => B::linear_layer_of_quantised(x, weight, bias),
    };
    finished::<B>(y, finish)
}

pub(crate) fn finished<B: Kernels>(y: FloatTensor<B>, finish: Finish<B>) -> FloatTensor<B> {
    match finish {
        Finish::Plain => y,
        Finish::Activated(kind) => B::activate(kind, y),
        Finish::Added(x) => B::float_add(x, y),
        Finish::Gated { x, gate } => B::gated_sum(x, y, gate),
    }
}

pub(crate) fn linear_input_gradient<B: Kernels>(weight: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    B::product(grad, weight)
}

pub(crate) fn linear_weight_gradient<B: Kernels>(x: FloatTensor<B>, grad: FloatTensor<B>) -> FloatTensor<B> {
    B::product(B::float_transpose(grad), x)
}

pub(crate) fn linear_bias_gradient<B: Backend>(grad: FloatTensor<B>) -> FloatTensor<B> {
    primitive(sum_rows(tensor::<B, 2>(grad)))
}

/// The sum over the rows of `[rows, columns]`.
fn sum_rows<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 1> {
    let columns = x.dims()[1];
    x.sum_dim(0).reshape([columns])
}

pub(crate) fn linear_of_quantised<B: Kernels>(
    x: FloatTensor<B>,
    weight: Quantised<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let weight = dequantise::<B>(weight.scheme, Tensor::new(weight.codes), tensor(weight.scales), x.dtype());
    B::linear_layer(x, primitive(weight), bias)
}

pub(crate) fn dequantise<B: Backend>(
    scheme: Scheme,
    codes: Tensor<B, 2, Int>,
    scales: Tensor<B, 2>,
    dtype: DType,
) -> Tensor<B, 2> {
    let [rows, blocks] = scales.dims();
    let (size, words) = (rows * blocks * BLOCK, scheme.words());
    let codes = codes.reshape([rows * blocks, words]);
    let values = match scheme {
        Scheme::Q8 => {
            // No shift to the left: ndarray's would leave 32 bits. The upper half of a byte's numbers is negative.
            let byte = |i: i32| codes.clone().bitwise_right_shift_scalar((8 * i).elem()).bitwise_and_scalar(255.elem());
            let bytes = Tensor::stack::<3>((0..4).map(byte).collect(), 2);
            bytes.bitwise_xor_scalar(128.elem()).float() - 128.0
        }
        Scheme::Q4 => {
            let half = |i: i32| codes.clone().bitwise_right_shift_scalar((4 * i).elem()).bitwise_and_scalar(15.elem());
            let halves = (0..2)
                .map(|half_of_byte| Tensor::stack::<3>((0..4).map(|byte| half(2 * byte + half_of_byte)).collect(), 2));
            let chosen = Tensor::stack::<4>(halves.collect(), 1).reshape([size]);
            let levels = Tensor::<B, 1>::from_floats(LEVELS.map(f32::from), &scales.device());
            levels.select(0, chosen).reshape([rows * blocks, BLOCK, 1])
        }
    };
    let scales = scales.cast(DType::F32).reshape([rows * blocks, 1]) / 128.0;
    let numbers = values.cast(DType::F32).reshape([rows * blocks, BLOCK]) * scales;
    numbers.cast(dtype).reshape([rows, blocks * BLOCK])
}

pub(crate) fn gated_sum<B: Backend>(x: FloatTensor<B>, more: FloatTensor<B>, gate: FloatTensor<B>) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let flat = |x: FloatTensor<B>| -> Tensor<B, 1> { tensor(B::float_reshape(x, [shape.num_elements()].into())) };
    let open = tensor::<B, 1>(cast::<B>(gate, wide(dtype))).tanh().cast(dtype);
    B::float_reshape(primitive(flat(x) + flat(more) * open), shape.clone())
}

pub(crate) fn gated_sum_backward<B: Backend>(
    more: FloatTensor<B>,
    gate: FloatTensor<B>,
    grad: FloatTensor<B>,
) -> [FloatTensor<B>; 2] {
    let (shape, dtype, of_gate) = (more.shape(), more.dtype(), gate.dtype());
    let wide = wide(dtype);
    let flat = |x: FloatTensor<B>| -> Tensor<B, 1> { tensor(B::float_reshape(x, [shape.num_elements()].into())) };
    let open = tensor::<B, 1>(cast::<B>(gate, wide)).tanh();
    let (more, grad) = (flat(more), flat(grad));
    let along = (more.cast(wide) * grad.clone().cast(wide)).sum();
    let d_gate = (open.clone() * open.clone()).neg().add_scalar(1.0) * along;
    let d_more = B::float_reshape(primitive(grad * open.cast(dtype)), shape);
    [d_more, cast::<B>(primitive(d_gate), of_gate)]
}

pub(crate) fn columns<B: Backend>(x: FloatTensor<B>, first: usize, count: usize) -> FloatTensor<B> {
    let last = x.shape().num_dims() - 1;
    let mut slices: Vec<Slice> = x.shape().iter().map(|&size| Slice::from(0..size)).collect();
    slices[last] = Slice::from(first..first + count);
    B::float_slice(x, &slices)
}

pub(crate) fn put<B: Backend>(
    buffer: FloatTensor<B>,
    x: FloatTensor<B>,
    tokens: Range<usize>,
    start: usize,
) -> FloatTensor<B> {
    if tokens.is_empty() {
        return buffer;
    }
    let (buffer, x) = (tensor::<B, 4>(buffer), tensor::<B, 4>(x));
    let [batch, heads, all, dim] = x.dims();
    let own = start..start + tokens.len();
    let x = if tokens == (0..all) { x } else { x.narrow(2, tokens.start, tokens.len()) };
    primitive(buffer.slice_assign([0..batch, 0..heads, own, 0..dim], x))
}

pub(crate) fn first<B: Backend>(x: FloatTensor<B>, dim: usize, count: usize) -> FloatTensor<B> {
    let mut slices: Vec<Slice> = x.shape().iter().map(|&size| Slice::from(0..size)).collect();
    slices[dim] = Slice::from(0..count);
    B::float_slice(x, &slices)
}

pub(crate) fn sum_squares<B: Backend>(all: Vec<FloatTensor<B>>) -> FloatTensor<B> {
    let square = |x: FloatTensor<B>| {
        let (dtype, count) = (wide(x.dtype()), x.shape().num_elements());
        let x: Tensor<B, 1> = tensor(cast::<B>(B::float_reshape(x, [count].into()), dtype));
        (x.clone() * x).sum()
    };
    primitive(Tensor::cat(all.into_iter().map(square).collect(), 0).sum())
}

pub(crate) fn columns_backward<B: Backend>(grad: FloatTensor<B>, first: usize, width: usize) -> FloatTensor<B> {
    let mut shape = grad.shape();
    let last = shape.num_dims() - 1;
    let count = shape[last];
    let mut slices: Vec<Slice> = shape.iter().map(|&size| Slice::from(0..size)).collect();
    slices[last] = Slice::from(first..first + count);
    shape[last] = width;
    let zeros = B::float_zeros(shape, &B::float_device(&grad), grad.dtype().into());
    B::float_slice_assign(zeros, &slices, grad)
}

pub(crate) fn rotate<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    pairing: Pairing,
) -> FloatTensor<B> {
    let (x, cos, sin): (Tensor<B, 4>, Tensor<B, 4>, Tensor<B, 4>) = (tensor(x), tensor(cos), tensor(sin));
    let ([rows, heads, tokens, head_dim], [_, _, _, dims]) = (x.dims(), cos.dims());
    let turned = x.clone().narrow(3, 0, dims);
    // (x1, x2) -> (-x2, x1) within each pair.
    let quarter = match pairing {
        Pairing::Halves => {
            let (x1, x2) = (turned.clone().narrow(3, 0, dims / 2), turned.clone().narrow(3, dims / 2, dims / 2));
            Tensor::cat(vec![x2.neg(), x1], 3)
        }
        Pairing::Neighbours => {
            let pairs = turned.clone().reshape([rows, heads, tokens, dims / 2, 2]);
            let (x1, x2) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
            Tensor::cat(vec![x2.neg(), x1], 4).reshape([rows, heads, tokens, dims])
        }
    };
    let turned = turned * cos + quarter * sin;
    if dims == head_dim {
        return primitive(turned);
    }
    primitive(Tensor::cat(vec![turned, x.narrow(3, dims, head_dim - dims)], 3))
}

fn column<B: Backend>(targets: &[i32], device: &B::Device) -> Tensor<B, 2, Int> {
    Tensor::<B, 1, Int>::from_ints(targets, device).reshape([targets.len(), 1])
}

pub(crate) fn cross_entropy<B: Backend>(logits: FloatTensor<B>, targets: &[i32]) -> FloatTensor<B> {
    let wide = wide(logits.dtype());
    let logits: Tensor<B, 2> = tensor(cast::<B>(logits, wide));
    let column = column(targets, &logits.device());
    let log_probs = activation::log_softmax(logits, 1).gather(1, column);
    primitive(log_probs.sum().neg() / targets.len() as f64)
}

pub(crate) fn cross_entropy_backward<B: Backend>(
    logits: FloatTensor<B>,
    targets: &[i32],
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let (dtype, wide) = (logits.dtype(), wide(logits.dtype()));
    let (logits, grad): (Tensor<B, 2>, Tensor<B, 1>) = (tensor(cast::<B>(logits, wide)), tensor(cast::<B>(grad, wide)));
    let column = column(targets, &logits.device());
    let minus_one = logits.zeros_like().narrow(1, 0, 1) - 1.0;
    let slope = activation::softmax(logits, 1).scatter(1, column, minus_one, burn::tensor::IndexingUpdateOp::Add);
    cast::<B>(primitive(slope * (grad / targets.len() as f64).unsqueeze()), dtype)
}

pub(crate) fn adamw<B: Backend>(
    weight: FloatTensor<B>,
    gradient: FloatTensor<B>,
    first: FloatTensor<B>,
    second: FloatTensor<B>,
    step: AdamWStep,
) -> [FloatTensor<B>; 3] {
    let [weight, gradient, first, second]: [Tensor<B, 1>; 4] = [weight, gradient, first, second].map(tensor);
    let first = first * step.beta_1 + gradient.clone() * (1.0 - step.beta_1);
    let second = second * step.beta_2 + gradient.clone() * gradient * (1.0 - step.beta_2);
    let scale = second.clone().sqrt() / step.root_bias_2 + step.eps;
    let weight = weight * step.keep - first.clone() / scale * step.rate;
    [weight, first, second].map(primitive)
}
