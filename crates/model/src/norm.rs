//! Layer norm and RMS norm, computed in f32 whatever the model's dtype.

use burn::module::{Initializer, Module, Param};
use burn::tensor::{DType, Tensor, backend::Backend};
use flamingo_config::Norm as NormKind;
use flamingo_kernels::{Kernels, layer_norm};

/// A norm over the last dimension.
#[derive(Module, Debug)]
pub struct Norm<B: Backend> {
    /// `[dim]`.
    pub weight: Param<Tensor<B, 1>>,
    /// `[dim]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    eps: f64,
    rms: bool,
}

impl<B: Kernels> Norm<B> {
    /// A norm of the given kind.
    pub fn new(kind: NormKind, dim: usize, eps: f64, device: &B::Device) -> Self {
        match kind {
            NormKind::Layer { bias } => Self::layer(dim, bias, eps, device),
            NormKind::Rms => Self { rms: true, ..Self::layer(dim, false, eps, device) },
        }
    }

    /// A layer norm, with or without a bias.
    pub fn layer(dim: usize, bias: bool, eps: f64, device: &B::Device) -> Self {
        Self {
            weight: Initializer::Ones.init([dim], device),
            bias: bias.then(|| Initializer::Zeros.init([dim], device)),
            eps,
            rms: false,
        }
    }

    /// `[..., dim]` to the same shape and dtype.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        if !self.rms {
            return layer_norm(x, self.weight.val(), self.bias.as_ref().map(Param::val), self.eps);
        }
        let dtype = x.dtype();
        let (x, weight) = (x.cast(DType::F32), self.weight.val().cast(DType::F32));
        let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
        let y = x / (mean_square + self.eps).sqrt() * weight.unsqueeze();
        y.cast(dtype)
    }
}
