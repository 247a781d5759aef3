//! Contrastive pre-training of a vision tower on a device.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use flamingo_config::TextTowerConfig;
use flamingo_kernels::Differentiable;
use flamingo_model::{Contrastive, Text};
use flamingo_train::{AdamW, Plan, Trainer};
use flamingo_weights::ModelFolder;

use crate::EngineError;
use crate::array::{Array, Pixels};
use crate::engine::guard;
use crate::load;
use crate::training::{Training, array, named, no_tensor};

/// [`Training`] of a vision tower with a text tower beside it.
pub(crate) struct BurnContrastive<B: Differentiable> {
    model: Contrastive<B>,
    trainer: Trainer<B>,
    device: B::Device,
    side: usize,
    vocab: usize,
}

impl<B: Differentiable> BurnContrastive<B> {
    /// The vision tower starts from the folder, the text tower from random weights of the seed.
    pub(crate) fn new(
        folder: &Arc<ModelFolder>,
        text: &TextTowerConfig,
        optimizer: AdamW,
        seed: u64,
        device: B::Device,
    ) -> Result<Self, EngineError> {
        let config = folder.config();
        let mut model = Contrastive::<B>::new(config, text, &device);
        load::fill(&mut model, &device, &|name, shape| {
            folder.tensor_f32(name).unwrap_or_else(|| flamingo_weights::initial(name, shape, seed))
        });
        // As in CLIP: matrices decay; norms, biases, positions and the scale do not.
        let decays = |path: &str| path.ends_with(".weight") && !path.contains("norm");
        let plan = Plan { trains: &|_| true, decays, masks: Default::default() };
        let trainer = Trainer::new(&mut model, plan, optimizer);
        Ok(Self { model, trainer, device, side: config.vision.image_size, vocab: config.tokens.vocab_size })
    }
}

impl<B: Differentiable> Training for BurnContrastive<B> {
    fn backward(&mut self, text: &Text, pixels: Option<&Pixels>, _: &[i64], weight: f64) -> Result<f32, EngineError> {
        guard(|| {
            let pixels = pixels.filter(|p| p.rows == text.rows && p.images == 1 && p.frames == 1);
            let Some(pixels) = pixels else {
                return Err(EngineError::Input("contrastive training takes one picture a text".into()));
            };
            pixels.check(self.side)?;
            if text.ids.iter().any(|&id| id as usize >= self.vocab) {
                return Err(EngineError::Input("a token id is outside the vocabulary".into()));
            }
            let data = TensorData::new(pixels.data.clone(), [pixels.rows, 3, self.side, self.side]);
            let loss = self.model.loss(Tensor::from_data(data, &self.device), text);
            let value = Array::from_tensor(&loss)?.data[0];
            if !value.is_nan() {
                self.trainer.backward(&self.model, loss, weight);
            }
            Ok(value)
        })
    }

    fn clip(&mut self, max_norm: f64) -> Result<f64, EngineError> {
        guard(|| Ok(self.trainer.clip(max_norm)))
    }

    fn update(&mut self, learning_rate: f64) -> Result<(), EngineError> {
        guard(|| {
            self.trainer.update(&mut self.model, learning_rate);
            Ok(())
        })
    }

    fn discard(&mut self) {
        self.trainer.discard();
    }

    fn gradients(&self) -> Result<Vec<(String, Array)>, EngineError> {
        guard(|| self.trainer.gradients().into_iter().map(array).collect())
    }

    fn weights(&self) -> Result<Vec<(String, Array)>, EngineError> {
        guard(|| self.trainer.weights(&self.model).into_iter().map(array).collect())
    }

    fn state(&self) -> Result<Vec<(String, Array)>, EngineError> {
        guard(|| self.trainer.state(&self.model).into_iter().map(array).collect())
    }

    fn restore(&mut self, state: Vec<(String, Array)>) -> Result<(), EngineError> {
        guard(|| self.trainer.restore(&mut self.model, named(state), &self.device).map_err(no_tensor))
    }
}
