//! Activations by name.

use burn::tensor::{Tensor, activation, backend::Backend};
use flamingo_config::Activation;

/// Applies `kind` to each element.
pub(crate) fn activate<B: Backend, const D: usize>(kind: Activation, x: Tensor<B, D>) -> Tensor<B, D> {
    match kind {
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => gelu_tanh(x),
        Activation::QuickGelu => x.clone() * activation::sigmoid(x * 1.702),
        Activation::Relu => activation::relu(x),
        Activation::Silu => activation::silu(x),
    }
}

/// Exact GELU. Burn differentiates it as if it were the tanh approximation (its default `gelu_backward`, which all
/// backends but flex use), which is wrong by up to a thousandth: in training it is spelled out.
fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    if !B::ad_enabled(&x.device()) {
        return activation::gelu(x);
    }
    let share = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() * 0.5 + 0.5;
    x * share
}

/// GELU's tanh approximation, `gelu_new` in transformers.
fn gelu_tanh<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let cube = x.clone() * x.clone() * x.clone();
    let inner = (x.clone() + cube * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
    x * 0.5 * (inner.tanh() + 1.0)
}
