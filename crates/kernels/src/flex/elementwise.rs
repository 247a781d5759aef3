//! Activations and their gradients.

use burn::tensor::TensorMetadata;
use burn_flex::FlexTensor;
use flamingo_config::Activation;
use pulp::Arch;

use super::{BLOCK, contiguous, filled, fresh, math, values};

const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBE: f32 = 0.044_715;

pub(super) fn activate(kind: Activation, x: FlexTensor) -> FlexTensor {
    match kind {
        Activation::Gelu => map(x, |x| x * math::normal(x).0),
        Activation::GeluTanh => map(x, |x| x * 0.5 * (1.0 + math::tanh(tanh_inner(x)))),
        Activation::QuickGelu => map(x, |x| x * math::sigmoid(1.702 * x)),
        // In this order NaN stays NaN.
        Activation::Relu => map(x, |x| if x <= 0.0 { 0.0 } else { x }),
        Activation::Silu => map(x, |x| x * math::sigmoid(x)),
    }
}

pub(super) fn activate_backward(kind: Activation, x: FlexTensor, grad: FlexTensor) -> FlexTensor {
    match kind {
        Activation::Gelu => zip(x, grad, |x, g| {
            let (share, density) = math::normal(x);
            g * (share + x * density)
        }),
        Activation::GeluTanh => zip(x, grad, |x, g| {
            let tanh = math::tanh(tanh_inner(x));
            let inner = TANH_SCALE * (1.0 + 3.0 * TANH_CUBE * x * x);
            g * (0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner)
        }),
        Activation::QuickGelu => zip(x, grad, |x, g| g * sigmoid_slope(x, 1.702)),
        Activation::Relu => zip(x, grad, |x, g| if x > 0.0 { g } else { 0.0 }),
        Activation::Silu => zip(x, grad, |x, g| g * sigmoid_slope(x, 1.0)),
    }
}

#[inline(always)]
fn tanh_inner(x: f32) -> f32 {
    TANH_SCALE * (x + TANH_CUBE * x * x * x)
}

/// The derivative of `x sigmoid(a x)`.
#[inline(always)]
fn sigmoid_slope(x: f32, a: f32) -> f32 {
    let share = math::sigmoid(a * x);
    share + a * x * share * (1.0 - share)
}

#[inline(always)]
fn map(x: FlexTensor, f: impl Fn(f32) -> f32 + Sync) -> FlexTensor {
    let shape = x.shape();
    let x = contiguous(x);
    let input = values(&x);
    let arch = Arch::new();
    let output = filled(input.len(), BLOCK, |place, output| {
        arch.dispatch(|| {
            for (y, &x) in output.iter_mut().zip(&input[place * BLOCK..]) {
                *y = f(x);
            }
        });
    });
    fresh(output, shape)
}

#[inline(always)]
fn zip(x: FlexTensor, grad: FlexTensor, f: impl Fn(f32, f32) -> f32 + Sync) -> FlexTensor {
    let shape = x.shape();
    let (x, grad) = (contiguous(x), contiguous(grad));
    let (input, grad) = (values(&x), values(&grad));
    assert_eq!(input.len(), grad.len(), "the gradient has another size");
    let arch = Arch::new();
    let output = filled(input.len(), BLOCK, |place, output| {
        let (input, grad) = (&input[place * BLOCK..], &grad[place * BLOCK..]);
        arch.dispatch(|| {
            for (y, (&x, &g)) in output.iter_mut().zip(input.iter().zip(grad)) {
                *y = f(x, g);
            }
        });
    });
    fresh(output, shape)
}
