//! Going backwards layer by layer, a graph each: what trains in a layer has its whole gradient as soon as the layer is done, and
//! can be sent to others while the next is computed.
//!
//! With gradient checkpointing (arXiv 1604.06174) the forward pass keeps each layer's input and nothing else, and a layer is
//! computed again before it is gone through. Memory for activations falls from all of every layer's to one layer's and an
//! input each; time rises by a forward pass.

use burn::module::AutodiffModule;
use burn::tensor::{Tensor, backend::AutodiffBackend};
use flamingo_kernels::Differentiable;
use flamingo_model::{Flamingo, Text, next_token_loss_of_hidden};

use crate::trainer::Trainer;

/// The pictures of a batch.
pub struct Pictures<'a, B: AutodiffBackend> {
    /// Patch tokens of the distinct ones, `[distinct, 1, 1, patches, width]`; called once forwards and, where the forward pass
    /// keeps [`Keep::Inputs`], once backwards.
    pub tokens: &'a mut dyn FnMut() -> Tensor<B, 5>,
    /// Which of them stands at each place.
    pub places: &'a [i32],
    /// Places in each row.
    pub images: usize,
}

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Everything.
    Graphs,
    /// Inputs of layers.
    Inputs,
}

/// What has its whole gradient once a part of the backward pass is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// What comes after the last layer, a head that is the embedding table left out.
    Head,
    /// A layer with the cross-attention block before it.
    Layer(usize),
    /// All that is left: it has its gradient at the end.
    Rest,
}

impl Stage {
    /// The stage that a parameter belongs to, by its module path.
    fn of(path: &str) -> Self {
        let mut parts = path.split('.');
        let number = |part: Option<&str>| part.and_then(|part| part.parse().ok());
        match (parts.next(), parts.next()) {
            (Some("cross_attention"), layer) => number(layer).map_or(Self::Rest, Self::Layer),
            (Some("decoder"), Some("blocks")) => number(parts.next()).map_or(Self::Rest, Self::Layer),
            (Some("decoder"), Some("norm" | "project_out" | "head")) => Self::Head,
            _ => Self::Rest,
        }
    }
}

/// A layer's graph, between leaves and its output.
struct Through<B: AutodiffBackend> {
    x: Tensor<B, 3>,
    latents: Option<Tensor<B, 4>>,
    y: Tensor<B, 3>,
}

/// What is kept of a layer.
enum Kept<B: AutodiffBackend> {
    Graph(Through<B>),
    Input(Tensor<B::InnerBackend, 3>),
}

impl<B: Differentiable> Trainer<B> {
    /// What trains in a Flamingo of so many layers, by its place in [`Trainer::parameters`], in the order in which
    /// [`Trainer::backward_by_layers`] is done with it.
    pub fn stages(&self, layers: usize) -> Vec<(Stage, Vec<usize>)> {
        let order = [Stage::Head].into_iter().chain((0..layers).rev().map(Stage::Layer)).chain([Stage::Rest]);
        let of = |stage| {
            let paths = self.paths().enumerate();
            (stage, paths.filter(|(_, path)| Stage::of(path) == stage).map(|(place, _)| place).collect())
        };
        order.map(of).collect()
    }

    /// [`Trainer::backward`] of the mean next-token loss, a layer at a time; tells of each stage but [`Stage::Rest`] when it is
    /// done. Returns the loss; one that is no number adds nothing, and nothing is told.
    #[allow(clippy::too_many_arguments)]
    pub fn backward_by_layers(
        &mut self,
        model: &Flamingo<B>,
        text: &Text,
        mut pictures: Option<Pictures<B>>,
        labels: &[i64],
        weight: f64,
        keep: Keep,
        done: &mut dyn FnMut(&mut Self, Stage),
    ) -> f32 {
        let inner = model.valid();
        let layers = model.decoder.blocks.len();
        let pictures_train = self.trains("resampler.") || self.trains("vision.");
        let decoder_trains = self.trains("decoder.");
        // No gradient is asked for below this layer.
        let lowest = match decoder_trains {
            true => 0,
            false => model.cross_attention.iter().position(Option::is_some).unwrap_or(layers),
        };

        // Forwards.
        let mut seen: Option<Tensor<B, 4>> = None;
        let latents = pictures.as_mut().map(|p| match keep {
            Keep::Graphs => seen.insert(model.latents((p.tokens)(), p.places, p.images)).clone().inner(),
            Keep::Inputs => inner.latents((p.tokens)().inner(), p.places, p.images),
        });
        let embedded = (keep == Keep::Graphs).then(|| model.embed(text));
        let mut x = embedded.as_ref().map_or_else(|| inner.embed(text), |x| x.clone().inner());
        let leaf = |latents: &Tensor<B::InnerBackend, 4>| {
            let leaf = Tensor::<B, 4>::from_inner(latents.clone());
            if pictures_train { leaf.require_grad() } else { leaf }
        };
        let with_gradients =
            model.conditions(text, latents.as_ref().map(leaf).as_ref(), &Tensor::from_inner(x.clone()));
        let conditions = inner.conditions(text, latents.as_ref(), &x);
        let through = |layer: usize, x: Tensor<B::InnerBackend, 3>| {
            let x = Tensor::<B, 3>::from_inner(x);
            let x = if layer > lowest || decoder_trains { x.require_grad() } else { x };
            let latents = latents.as_ref().map(leaf);
            let y = model.layer(layer, x.clone(), latents.as_ref(), &with_gradients);
            Through { x, latents, y }
        };
        let mut kept = Vec::with_capacity(layers - lowest);
        for layer in 0..layers {
            match keep {
                Keep::Graphs if layer >= lowest => {
                    let graph = through(layer, x);
                    x = graph.y.clone().inner();
                    kept.push(Kept::Graph(graph));
                }
                _ => {
                    let y = inner.layer(layer, x.clone(), latents.as_ref(), &conditions);
                    if layer >= lowest {
                        kept.push(Kept::Input(x));
                    }
                    x = y;
                }
            }
        }

        // Backwards.
        let last = Tensor::<B, 3>::from_inner(x).require_grad();
        let loss = next_token_loss_of_hidden(&model.decoder, last.clone(), labels);
        let value = loss.to_data().iter::<f32>().next().unwrap_or(f32::NAN);
        if value.is_nan() {
            return value;
        }
        let gradients = (loss * weight).backward();
        self.collect(model, &gradients);
        done(self, Stage::Head);
        let mut slope = last.grad(&gradients);
        // Nothing of it is kept while the layers are gone through.
        drop((gradients, last));
        let mut slope_of_latents: Option<Tensor<B::InnerBackend, 4>> = None;
        for layer in (0..layers).rev() {
            if let Some((above, kept)) = slope.take().zip(kept.pop()) {
                let Through { x, latents, y } = match kept {
                    Kept::Graph(graph) => graph,
                    Kept::Input(x) => through(layer, x),
                };
                let gradients = (y * Tensor::from_inner(above)).sum().backward();
                self.collect(model, &gradients);
                slope = x.grad(&gradients);
                if let Some(more) = latents.and_then(|latents| latents.grad(&gradients)) {
                    slope_of_latents = Some(match slope_of_latents.take() {
                        Some(before) => before + more,
                        None => more,
                    });
                }
            }
            done(self, Stage::Layer(layer));
        }
        if let Some(slope) = slope
            && decoder_trains
        {
            let embedded = embedded.unwrap_or_else(|| model.embed(text));
            self.collect(model, &(embedded * Tensor::from_inner(slope)).sum().backward());
        }
        if let (Some(p), Some(slope)) = (pictures, slope_of_latents) {
            let latents = seen.unwrap_or_else(|| model.latents((p.tokens)(), p.places, p.images));
            self.collect(model, &(latents * Tensor::from_inner(slope)).sum().backward());
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_belong_to_the_stage_that_is_the_last_to_add_to_them() {
        for (path, stage) in [
            ("cross_attention.3.gate", Stage::Layer(3)),
            ("cross_attention.11.ff.up.weight", Stage::Layer(11)),
            ("decoder.blocks.0.attention.qkv.weight", Stage::Layer(0)),
            ("decoder.norm.weight", Stage::Head),
            ("decoder.head.weight", Stage::Head),
            ("decoder.embedding.added", Stage::Rest),
            ("decoder.project_in.weight", Stage::Rest),
            ("decoder.position_embedding", Stage::Rest),
            ("resampler.latents", Stage::Rest),
            ("vision.blocks.2.norm1.weight", Stage::Rest),
        ] {
            assert_eq!(Stage::of(path), stage, "{path}");
        }
    }
}
