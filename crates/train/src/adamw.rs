//! AdamW as `torch.optim.AdamW` computes it.

use burn::tensor::{Tensor, backend::Backend};
use flamingo_kernels::{AdamWStep, Gradients, adamw};

/// Decoupled weight decay and Adam (arXiv 1711.05101), in PyTorch's order of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the mean gradient.
    pub beta_1: f64,
    /// Decay of the mean squared gradient.
    pub beta_2: f64,
    /// Added to the root of the mean squared gradient.
    pub eps: f64,
    /// Share of a weight that is lost at each step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamW {
    /// Upstream's: PyTorch's defaults and a weight decay of 0.1.
    fn default() -> Self {
        Self { beta_1: 0.9, beta_2: 0.999, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// What is remembered of one parameter's gradients.
#[derive(Clone, Debug)]
pub(crate) struct Moments<B: Backend> {
    /// AdamW's mean of them, or Muon's momentum.
    pub(crate) first: Tensor<B, 1>,
    /// AdamW's mean of their squares.
    pub(crate) second: Option<Tensor<B, 1>>,
    /// Updates so far.
    pub(crate) steps: usize,
}

impl AdamW {
    /// A parameter after one update; all tensors flat.
    pub(crate) fn update<B: Gradients>(
        &self,
        weight: Tensor<B, 1>,
        gradient: Tensor<B, 1>,
        moments: &mut Option<Moments<B>>,
        learning_rate: f64,
        decays: bool,
    ) -> Tensor<B, 1> {
        let before = moments.take();
        let steps = before.as_ref().map_or(0, |m| m.steps) + 1;
        let [first, second] = match before {
            Some(Moments { first, second: Some(second), .. }) => [first, second],
            _ => [gradient.zeros_like(), gradient.zeros_like()],
        };
        let step = AdamWStep {
            beta_1: self.beta_1,
            beta_2: self.beta_2,
            eps: self.eps,
            keep: if decays { 1.0 - learning_rate * self.weight_decay } else { 1.0 },
            rate: learning_rate / (1.0 - self.beta_1.powf(steps as f64)),
            root_bias_2: (1.0 - self.beta_2.powf(steps as f64)).sqrt(),
        };
        let [weight, first, second] = adamw(weight, gradient, first, second, step);
        *moments = Some(Moments { first, second: Some(second), steps });
        weight
    }
}
