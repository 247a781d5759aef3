//! Gradient checkpointing (arXiv 1604.06174): the forward pass keeps each layer's input and nothing else, the backward pass
//! computes a layer again before it goes through it.
//!
//! Memory for activations falls from all of every layer's to one layer's and an input each; time rises by a forward pass.

use burn::module::AutodiffModule;
use burn::tensor::{Tensor, backend::AutodiffBackend};
use flamingo_kernels::Differentiable;
use flamingo_model::{Flamingo, Text, next_token_loss_of_hidden};

use crate::trainer::Trainer;

/// The pictures of a batch.
pub struct Pictures<'a, B: AutodiffBackend> {
    /// Patch tokens of the distinct ones, `[distinct, 1, 1, patches, width]`; called once forwards and once backwards.
    pub tokens: &'a mut dyn FnMut() -> Tensor<B, 5>,
    /// Which of them stands at each place.
    pub places: &'a [i32],
    /// Places in each row.
    pub images: usize,
}

impl<B: Differentiable> Trainer<B> {
    /// [`Trainer::backward`] of the mean next-token loss with gradient checkpointing. Returns the loss; one that is no
    /// number adds nothing.
    pub fn backward_checkpointed(
        &mut self,
        model: &Flamingo<B>,
        text: &Text,
        mut pictures: Option<Pictures<B>>,
        labels: &[i64],
        weight: f64,
    ) -> f32 {
        // Forwards, without a graph.
        let inner = model.valid();
        let latents = pictures.as_mut().map(|p| inner.latents((p.tokens)().inner(), p.places, p.images));
        let x = inner.embed(text);
        let conditions = inner.conditions(text, latents.as_ref(), &x);
        let layers = model.decoder.blocks.len();
        let mut inputs = vec![x];
        for layer in 0..layers {
            inputs.push(inner.layer(layer, inputs[layer].clone(), latents.as_ref(), &conditions));
        }

        // Backwards, a graph a layer.
        let mut input = || Tensor::<B, 3>::from_inner(inputs.pop().expect("an input a layer")).require_grad();
        let last = input();
        let loss = next_token_loss_of_hidden(&model.decoder, last.clone(), labels);
        let value = loss.to_data().iter::<f32>().next().unwrap_or(f32::NAN);
        if value.is_nan() {
            return value;
        }
        let gradients = (loss * weight).backward();
        self.collect(model, &gradients);
        let Some(mut slope) = last.grad(&gradients) else { return value };
        let mut slope_of_latents: Option<Tensor<B::InnerBackend, 4>> = None;
        let leaf = |latents: &Tensor<B::InnerBackend, 4>| Tensor::<B, 4>::from_inner(latents.clone()).require_grad();
        let conditions = model.conditions(text, latents.as_ref().map(leaf).as_ref(), &last);
        for layer in (0..layers).rev() {
            let (x, latents) = (input(), latents.as_ref().map(leaf));
            let y = model.layer(layer, x.clone(), latents.as_ref(), &conditions);
            let gradients = (y * Tensor::from_inner(slope)).sum().backward();
            self.collect(model, &gradients);
            let Some(next) = x.grad(&gradients) else { return value };
            slope = next;
            if let Some(more) = latents.and_then(|latents| latents.grad(&gradients)) {
                slope_of_latents = Some(match slope_of_latents.take() {
                    Some(before) => before + more,
                    None => more,
                });
            }
        }
        if self.trains("decoder.embedding.") || self.trains("decoder.p") {
            let gradients = (model.embed(text) * Tensor::from_inner(slope)).sum().backward();
            self.collect(model, &gradients);
        }
        if let (Some(p), Some(slope)) = (pictures, slope_of_latents)
            && (self.trains("resampler.") || self.trains("vision."))
        {
            let latents = model.latents((p.tokens)(), p.places, p.images);
            let gradients = (latents * Tensor::from_inner(slope)).sum().backward();
            self.collect(model, &gradients);
        }
        value
    }
}
