//! Contrastive pre-training of a vision tower on a device.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use flamingo_config::TextTowerConfig;
use flamingo_kernels::Differentiable;
use flamingo_model::{Contrastive, Text};
use flamingo_train::{Optimizer, Plan, Trainer};
use flamingo_weights::ModelFolder;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::Digest;

use crate::EngineError;
use crate::array::{Array, Pixels};
use crate::load;
use crate::training::Learner;

/// One batch of so many shows whole pictures, so that the tower knows them.
const WHOLE: u32 = 8;

/// How a vision tower trains with captions.
#[derive(Clone, Debug, PartialEq)]
pub struct ContrastiveOptions {
    /// The tower that reads the captions.
    pub text_tower: TextTowerConfig,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Share of a picture's patches that are left out, each time others: 0 for none.
    pub patch_dropout: f64,
    /// Share of the loss that compares captions with the mean of a picture's patch tokens, not with its class token.
    pub patch_loss: f64,
    /// Decides the text tower's first weights and which patches are left out.
    pub seed: u64,
}

/// [`Training`] of a vision tower with a text tower beside it.
pub(crate) struct BurnContrastive<B: Differentiable> {
    model: Contrastive<B>,
    trainer: Trainer<B>,
    device: B::Device,
    side: usize,
    /// Patches of a picture.
    patches: usize,
    /// Share of the patches that are left out.
    patch_dropout: f64,
    patch_loss: f64,
    seed: u64,
    vocab: usize,
}

impl<B: Differentiable> BurnContrastive<B> {
    /// The vision tower starts from the folder, the text tower from random weights of the seed.
    pub(crate) fn new(
        folder: &Arc<ModelFolder>,
        options: &ContrastiveOptions,
        device: B::Device,
    ) -> Result<Self, EngineError> {
        let seed = options.seed;
        let config = folder.config();
        let mut model = Contrastive::<B>::new(config, &options.text_tower, &device);
        load::fill(&mut model, &device, &|name, shape| {
            folder.tensor_f32(name).unwrap_or_else(|| flamingo_weights::initial(name, shape, seed))
        });
        // As in CLIP: matrices decay; norms, biases, positions and the scale do not.
        let decays = |path: &str| path.ends_with(".weight") && !path.contains("norm");
        let plan = Plan { trains: &|_| true, decays, masks: Default::default() };
        let trainer = Trainer::new(&mut model, plan, options.optimizer);
        Ok(Self {
            model,
            trainer,
            device,
            side: config.vision.image_size,
            patches: config.vision.patches(),
            patch_dropout: options.patch_dropout,
            patch_loss: options.patch_loss,
            seed,
            vocab: config.tokens.vocab_size,
        })
    }

    /// The patches of this batch that are looked at; `None` for all, as it is in one batch of [`WHOLE`].
    fn kept(&self, text: &Text) -> Option<Vec<i32>> {
        let count = self.patches;
        let each = count - ((count as f64 * self.patch_dropout) as usize).min(count - 1);
        // Drawn from the texts, so that a run that is taken up again draws the same without anything to remember.
        let mut hash = sha2::Sha256::new_with_prefix(self.seed.to_le_bytes());
        text.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
        if each == count || rng.next_u32() % WHOLE == 0 {
            return None;
        }
        let mut kept = Vec::with_capacity(text.rows * each);
        for row in 0..text.rows {
            let first = (row * count) as i32;
            let mut order: Vec<i32> = (first..first + count as i32).collect();
            for i in 0..each {
                let other = i + rng.next_u32() as usize % (count - i);
                order.swap(i, other);
            }
            order.truncate(each);
            order.sort_unstable();
            kept.extend(order);
        }
        Some(kept)
    }
}

impl<B: Differentiable> Learner for BurnContrastive<B> {
    type Backend = B;
    type Model = Contrastive<B>;

    fn learn(&mut self, text: &Text, pixels: Option<&Pixels>, _: &[i64], weight: f64) -> Result<f32, EngineError> {
        let pixels = pixels.filter(|p| p.rows == text.rows && p.images == 1 && p.frames == 1);
        let Some(pixels) = pixels else {
            return Err(EngineError::Input("contrastive training takes one picture a text".into()));
        };
        pixels.check(self.side)?;
        if text.ids.iter().any(|&id| id as usize >= self.vocab) {
            return Err(EngineError::Input("a token id is outside the vocabulary".into()));
        }
        let data = TensorData::new(pixels.data.clone(), [pixels.rows, 3, self.side, self.side]);
        let kept = self.kept(text);
        let pixels = Tensor::from_data(data, &self.device);
        let loss = self.model.loss(pixels, kept.as_deref(), text, self.patch_loss);
        let value = Array::from_tensor(&loss)?.data[0];
        if !value.is_nan() {
            self.trainer.backward(&self.model, loss, weight);
        }
        Ok(value)
    }

    fn parts(&self) -> (&Trainer<B>, &Contrastive<B>) {
        (&self.trainer, &self.model)
    }

    fn parts_mut(&mut self) -> (&mut Trainer<B>, &mut Contrastive<B>, &B::Device) {
        (&mut self.trainer, &mut self.model, &self.device)
    }
}
