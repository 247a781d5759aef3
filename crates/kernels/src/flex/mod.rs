//! Vectorised kernels for burn-flex, f32. Loops are plain Rust that the compiler vectorises for the processor found at
//! run time (`lanes`); rows are shared out over threads in blocks of fixed size, so that results do not depend on
//! how many threads there are.

mod adamw;
mod attention;
mod elementwise;
mod fixed;
mod formats;
mod halves;
mod lanes;
mod layout;
mod linear;
mod loss;
pub mod math;
mod norm;
mod panels;
mod product;
mod quantised;
mod stored;

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{Bytes, DType, Shape, bf16, f16};
use burn_flex::{Flex, FlexTensor, Layout};
use flamingo_config::{Activation, Pairing};
use rayon::prelude::*;

use formats::{is_half, narrowed, widened};

use crate::{AdamWStep, Attention, Gradients, Kernels, Past, Quantised, generic};

pub use linear::FEW;

/// Whether this processor multiplies bf16: then products of more than [`FEW`] rows by weights that are no finer than
/// that (bf16, q8, q4) round their inputs to it, as PyTorch's autocast does.
pub fn multiplies_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return halves::known();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Multiplications and additions of f32 a second in a product of large matrices: what products are measured against.
pub fn product_rate() -> f64 {
    const SIZE: usize = 1024;
    let (x, weight) = (vec![1.0f32; SIZE * SIZE], vec![1.0f32; SIZE * SIZE]);
    let mut out = vec![0.0f32; SIZE * SIZE];
    let times = (0..7).map(|_| {
        let start = std::time::Instant::now();
        stored::many_rows(&x, &stored::Plain::new(&weight, SIZE), &mut out, SIZE);
        start.elapsed().as_secs_f64()
    });
    2.0 * (SIZE as f64).powi(3) / times.fold(f64::INFINITY, f64::min)
}

/// Elements that are worth a thread.
const BLOCK: usize = 1 << 14;

/// Rows of this length that make a block.
fn rows_at_once(length: usize) -> usize {
    (BLOCK / length.max(1)).max(1)
}

/// A tensor of these values.
fn fresh(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), DType::F32)
}

/// Numbers that `fill` writes block by block, on all threads; it gets a block's place and its zeros. Cleared like this they
/// are in the cache when they are written, and one thread does not clear them all while the others wait.
fn filled(count: usize, block: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    filled_beside(count, block, fill).0
}

/// [`filled`] numbers, and what `fill` gives for each block.
fn filled_beside<T: Send>(
    count: usize,
    block: usize,
    fill: impl Fn(usize, &mut [f32]) -> T + Sync,
) -> (Vec<f32>, Vec<T>) {
    let mut numbers: Vec<f32> = Vec::with_capacity(count);
    let fill = |place, block: &mut [MaybeUninit<f32>]| {
        block.fill(MaybeUninit::new(0.0));
        // SAFETY: all of the block was initialised in the line above.
        fill(place, unsafe { &mut *(std::ptr::from_mut(block) as *mut [f32]) })
    };
    let blocks = &mut numbers.spare_capacity_mut()[..count];
    let beside = match blocks.len() {
        0 => Vec::new(),
        // Not worth waking a thread.
        _ if count <= block => vec![fill(0, blocks)],
        _ => blocks.par_chunks_mut(block.max(1)).enumerate().map(|(place, block)| fill(place, block)).collect(),
    };
    // SAFETY: every block was initialised, and together they are `count` numbers.
    unsafe { numbers.set_len(count) };
    (numbers, beside)
}

/// The values in row-major order; copies only what does not lie that way.
fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() { x } else { x.to_contiguous() }
}

/// The values of a contiguous f32 tensor.
fn values(x: &FlexTensor) -> &[f32] {
    &x.storage()[elements(x)]
}

/// Where the elements of a contiguous tensor are.
fn elements(x: &FlexTensor) -> Range<usize> {
    let start = x.layout().start_offset();
    start..start + x.layout().num_elements()
}

/// Whether all is f32 or halves, which kernels read as f32.
fn fits_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|x| x.dtype() == DType::F32 || is_half(x.dtype()))
}

fn all_f32<const N: usize>(tensors: [&FlexTensor; N]) -> bool {
    tensors.iter().all(|x| x.dtype() == DType::F32)
}

/// An attention of f32.
fn widened_attention(a: Attention<Flex>) -> Attention<Flex> {
    let [q, k, v] = [a.q, a.k, a.v].map(widened);
    Attention { q, k, v, bias: a.bias.map(widened), ..a }
}

impl Kernels for Flex {
    const ROWS_ALIKE: usize = FEW;

    fn cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
        match (x.dtype(), dtype) {
            (from, to) if from == to => x,
            (from, DType::F32) if is_half(from) => widened(x),
            (DType::F32, to) if is_half(to) => narrowed(x, to),
            _ => generic::cast::<Self>(x, dtype),
        }
    }

    fn activate(kind: Activation, x: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = x.dtype();
        if !fits_f32([&x]) {
            return generic::activate::<Self>(kind, x);
        }
        narrowed(elementwise::activate(kind, widened(x)), dtype)
    }

    fn norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        eps: f64,
    ) -> FloatTensor<Self> {
        let dtype = x.dtype();
        if dtype == DType::F64 {
            return generic::norm::<Self>(x, weight, bias, eps);
        }
        let to_f32 = |x| Self::cast(x, DType::F32);
        let y = norm::forward(to_f32(x), to_f32(weight), bias.map(to_f32), eps);
        narrowed(y, dtype)
    }

    fn attend(a: Attention<Self>) -> FloatTensor<Self> {
        let dtype = a.q.dtype();
        if !fits_f32([&a.q, &a.k, &a.v]) {
            return generic::attend::<Self>(a);
        }
        narrowed(attention::forward(widened_attention(a)), dtype)
    }

    fn attend_each(q: FloatTensor<Self>, pasts: Vec<Past<Self>>, scale: f64) -> FloatTensor<Self> {
        let all_f32 = pasts.iter().all(|past| [&past.k, &past.v].iter().all(|x| x.dtype() == DType::F32));
        if q.dtype() != DType::F32 || !all_f32 {
            return generic::attend_each::<Self>(q, pasts, scale);
        }
        attention::forward_each(q, pasts, scale)
    }

    fn columns(x: FloatTensor<Self>, first: usize, count: usize) -> FloatTensor<Self> {
        if x.dtype() != DType::F32 || !x.is_contiguous() {
            return generic::columns::<Self>(x, first, count);
        }
        layout::columns(x, first, count)
    }

    fn put(buffer: FloatTensor<Self>, x: FloatTensor<Self>, tokens: Range<usize>, start: usize) -> FloatTensor<Self> {
        if !all_f32([&buffer, &x]) || !layout::is_whole(&buffer) {
            return generic::put::<Self>(buffer, x, tokens, start);
        }
        layout::put(buffer, x, tokens, start)
    }

    fn linear_layer(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        match x.dtype() {
            dtype if dtype != weight.dtype() => generic::linear::<Self>(x, weight, bias),
            DType::F32 => linear::forward(x, weight, bias),
            DType::BF16 => linear::forward_of_halves::<bf16>(x, weight, bias),
            DType::F16 => linear::forward_of_halves::<f16>(x, weight, bias),
            _ => generic::linear::<Self>(x, weight, bias),
        }
    }

    fn linear_layer_of_stored(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        if x.dtype() != DType::F32 || !matches!(weight.dtype(), DType::F16 | DType::BF16) {
            return generic::linear_of_stored::<Self>(x, weight, bias);
        }
        linear::forward(x, weight, bias)
    }

    fn linear_layer_of_quantised(
        x: FloatTensor<Self>,
        weight: Quantised<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let layout = [weight.codes.dtype(), weight.scales.dtype(), x.dtype()];
        if layout != [DType::I32, DType::F16, DType::F32] {
            return generic::linear_of_quantised::<Self>(x, weight, bias);
        }
        linear::forward_of_quantised(x, weight.scheme, weight.codes, weight.scales, bias)
    }

    fn gated_sum(x: FloatTensor<Self>, more: FloatTensor<Self>, gate: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = x.dtype();
        if !fits_f32([&x, &more]) {
            return generic::gated_sum::<Self>(x, more, gate);
        }
        let gate = contiguous(Self::cast(gate, DType::F32));
        narrowed(elementwise::gated_sum(widened(x), widened(more), values(&gate)[0]), dtype)
    }

    fn rotate(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        pairing: Pairing,
    ) -> FloatTensor<Self> {
        let dtype = x.dtype();
        if !fits_f32([&x, &cos, &sin]) {
            return generic::rotate::<Self>(x, cos, sin, pairing);
        }
        narrowed(layout::rotate(widened(x), widened(cos), widened(sin), pairing), dtype)
    }

    fn cross_entropy(logits: FloatTensor<Self>, targets: &[i32]) -> FloatTensor<Self> {
        match logits.dtype() {
            DType::F32 => loss::forward::<f32>(logits, targets),
            DType::BF16 => loss::forward::<bf16>(logits, targets),
            DType::F16 => loss::forward::<f16>(logits, targets),
            _ => generic::cross_entropy::<Self>(logits, targets),
        }
    }
}

impl Gradients for Flex {
    fn activate_backward(kind: Activation, x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = x.dtype();
        if !fits_f32([&x, &grad]) {
            return generic::activate_backward::<Self>(kind, x, grad);
        }
        narrowed(elementwise::activate_backward(kind, widened(x), widened(grad)), dtype)
    }

    fn norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f64,
        trained: bool,
    ) -> (FloatTensor<Self>, Option<[FloatTensor<Self>; 2]>) {
        let (of_x, of_weight) = (x.dtype(), weight.dtype());
        if of_x == DType::F64 {
            return generic::norm_backward::<Self>(x, weight, grad, eps, trained);
        }
        let [x, weight, grad] = [x, weight, grad].map(|x| Self::cast(x, DType::F32));
        let (d_x, sums) = norm::backward(x, weight, grad, eps, trained);
        (narrowed(d_x, of_x), sums.map(|sums| sums.map(|sum| Self::cast(sum, of_weight))))
    }

    fn attend_backward(a: Attention<Self>, grad: FloatTensor<Self>) -> [FloatTensor<Self>; 3] {
        let dtype = a.q.dtype();
        if !fits_f32([&a.q, &a.k, &a.v, &grad]) {
            return generic::attend_backward::<Self>(a, grad);
        }
        attention::backward(widened_attention(a), widened(grad)).map(|gradient| narrowed(gradient, dtype))
    }

    fn linear_input_gradient(weight: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        match grad.dtype() {
            dtype if dtype != weight.dtype() => generic::linear_input_gradient::<Self>(weight, grad),
            DType::F32 => linear::input_gradient(weight, grad),
            DType::BF16 => linear::input_gradient_of_halves::<bf16>(weight, grad),
            DType::F16 => linear::input_gradient_of_halves::<f16>(weight, grad),
            _ => generic::linear_input_gradient::<Self>(weight, grad),
        }
    }

    fn linear_weight_gradient(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = grad.dtype();
        if !fits_f32([&x, &grad]) {
            return generic::linear_weight_gradient::<Self>(x, grad);
        }
        narrowed(linear::weight_gradient(widened(x), widened(grad)), dtype)
    }

    fn linear_bias_gradient(grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let dtype = grad.dtype();
        if !fits_f32([&grad]) {
            return generic::linear_bias_gradient::<Self>(grad);
        }
        narrowed(linear::bias_gradient(widened(grad)), dtype)
    }

    fn columns_backward(grad: FloatTensor<Self>, first: usize, width: usize) -> FloatTensor<Self> {
        if grad.dtype() != DType::F32 {
            return generic::columns_backward::<Self>(grad, first, width);
        }
        layout::among_zeros(grad, first, width)
    }

    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        targets: &[i32],
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        match logits.dtype() {
            DType::F32 => loss::backward(logits, targets, grad),
            DType::BF16 => loss::backward_of_halves::<bf16>(logits, targets, grad),
            DType::F16 => loss::backward_of_halves::<f16>(logits, targets, grad),
            _ => generic::cross_entropy_backward::<Self>(logits, targets, grad),
        }
    }

    fn sum_squares(all: Vec<FloatTensor<Self>>) -> FloatTensor<Self> {
        if !all.iter().all(|x| fits_f32([x])) {
            return generic::sum_squares::<Self>(all);
        }
        norm::sum_squares(all)
    }

    fn adamw(
        weight: FloatTensor<Self>,
        gradient: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        step: AdamWStep,
    ) -> [FloatTensor<Self>; 3] {
        if !all_f32([&weight, &gradient, &first, &second]) {
            return generic::adamw::<Self>(weight, gradient, first, second, step);
        }
        adamw::update(weight, gradient, first, second, step)
    }
}
