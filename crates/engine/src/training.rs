//! A model in training on a device.

use std::ops::Range;

use burn::module::Module;
use burn::tensor::backend::BackendTypes;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use flamingo_kernels::Differentiable;
use flamingo_model::{Flamingo, Text};
use flamingo_train::{Keep, Named, Optimizer, Parameter, Part, Pictures, Stage, Trainer};

use crate::array::{Array, Pixels};
use crate::engine::{BurnEngine, compute, guard};
use crate::features::{Features, distinct};
use crate::{Dtype, EngineError};

/// A model in training, whatever the backend. Gradients add up until [`Training::update`] or
/// [`Training::discard`].
pub trait Training: Send {
    /// Adds the gradients of the mean next-token loss times `weight`; returns the loss. A loss that is no number
    /// (no label counts) adds nothing.
    ///
    /// # Errors
    /// [`EngineError::Input`] if text, pixels and labels do not fit together, [`EngineError::Device`] if the device
    /// fails.
    fn backward(
        &mut self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        weight: f64,
    ) -> Result<f32, EngineError>;

    /// Scales the gradients to a norm of `max_norm` at most; returns their norm before.
    ///
    /// # Errors
    /// [`EngineError::Device`] if the device fails.
    fn clip(&mut self, max_norm: f64) -> Result<f64, EngineError>;

    /// What trains, by its place in [`Training::parameters`], in the order in which a backward pass is done with it: what is
    /// in a group has its whole gradient before what comes after.
    fn stages(&self) -> Vec<Vec<usize>>;

    /// [`Training::backward`] that takes the gradients of each group of [`Training::stages`] out, with what was added before, as
    /// soon as they are whole, and hands them over with the group's number: either all groups but the last, in their order, or none.
    /// What it does not hand over is left for [`Training::take_gradients`].
    ///
    /// # Errors
    /// As [`Training::backward`].
    fn backward_in_stages(
        &mut self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        weight: f64,
        ready: Ready,
    ) -> Result<f32, EngineError>;

    /// Updates the weights and forgets the gradients.
    ///
    /// # Errors
    /// [`EngineError::Device`] if the device fails.
    fn update(&mut self, learning_rate: f64) -> Result<(), EngineError>;

    /// Forgets the gradients.
    fn discard(&mut self);

    /// What trains, in an order that is the same wherever this model trains.
    fn parameters(&self) -> Vec<Parameter>;

    /// Says which numbers of each parameter are updated here, in the order of [`Training::parameters`]: the optimizer remembers
    /// nothing of others, and [`Training::state`] tells of these alone. A parameter that is not divisible goes as a whole.
    fn own(&mut self, ranges: Vec<Range<usize>>);

    /// Takes the gradients out, whole and in the order of [`Training::parameters`]; `None` for those that are still nothing.
    ///
    /// # Errors
    /// [`EngineError::Device`] if they cannot be read back.
    fn take_gradients(&mut self) -> Result<Vec<Option<Vec<f32>>>, EngineError>;

    /// Puts gradients in for what is updated here, in the order of [`Training::parameters`]. A parameter without one stays as
    /// it is.
    ///
    /// # Errors
    /// [`EngineError::Device`] if the device fails.
    fn set_gradients(&mut self, gradients: Vec<Option<Vec<f32>>>) -> Result<(), EngineError>;

    /// The weights that are updated here, one after the other in the order of [`Training::parameters`].
    ///
    /// # Errors
    /// [`EngineError::Device`] if they cannot be read back.
    fn owned_weights(&self) -> Result<Vec<f32>, EngineError>;

    /// Puts all weights in that train, one after the other in the order of [`Training::parameters`].
    ///
    /// # Errors
    /// [`EngineError::Device`] if the device fails.
    fn set_weights(&mut self, weights: &[f32]) -> Result<(), EngineError>;

    /// Gradients by module path.
    ///
    /// # Errors
    /// [`EngineError::Device`] if they cannot be read back.
    fn gradients(&self) -> Result<Vec<(String, Array)>, EngineError>;

    /// The weights that train, by module path.
    ///
    /// # Errors
    /// [`EngineError::Device`] if they cannot be read back.
    fn weights(&self) -> Result<Vec<(String, Array)>, EngineError>;

    /// Everything that an exact restart needs, by name: weights and what the optimizer remembers. Gradients are left out.
    ///
    /// # Errors
    /// [`EngineError::Device`] if it cannot be read back.
    fn state(&self) -> Result<Vec<(String, Array)>, EngineError>;

    /// Goes back to what [`Training::state`] gave, of what is updated here and of everything else. After an error nothing has
    /// changed.
    ///
    /// # Errors
    /// [`EngineError::Weights`] if a tensor is missing or has another shape.
    fn restore(&mut self, state: Vec<(String, Array)>) -> Result<(), EngineError>;
}

/// A gradient that may still be on its way from the device: calling it waits for it.
pub type Coming = Box<dyn FnOnce() -> Result<Vec<f32>, EngineError> + Send>;

/// Who is handed the gradients of a group of [`Training::stages`].
pub type Ready<'a> = &'a mut (dyn FnMut(usize, Vec<Option<Coming>>) + Send);

/// How a model trains.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingOptions {
    /// What trains; the rest is frozen.
    pub parts: Vec<Part>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The format of what is frozen and of activations. What trains is kept in f32, as are norms, softmax and loss.
    pub precision: Dtype,
    /// Keep each layer's input only and compute the rest again going backwards: less memory, a forward pass more time.
    pub gradient_checkpointing: bool,
    /// Bytes of a frozen vision tower's output that are remembered by picture; 0 for none.
    pub features_bytes: usize,
}

impl Default for TrainingOptions {
    /// As upstream.
    fn default() -> Self {
        Self {
            parts: Part::UPSTREAM.to_vec(),
            optimizer: Optimizer::default(),
            precision: Dtype::F32,
            gradient_checkpointing: false,
            features_bytes: 0,
        }
    }
}

/// [`Training`] of a Flamingo over a Burn backend.
pub(crate) struct BurnTraining<B: Differentiable> {
    engine: BurnEngine<B>,
    trainer: Trainer<B>,
    features: Option<Features<B>>,
    checkpointing: bool,
}

impl<B: Differentiable> BurnTraining<B> {
    pub(crate) fn new(mut engine: BurnEngine<B>, options: &TrainingOptions) -> Self {
        let (config, device) = (engine.config.clone(), engine.device.clone());
        let trainer = Trainer::flamingo(&mut engine.model, &config, &options.parts, options.optimizer, &device);
        let remember = options.features_bytes > 0 && !options.parts.contains(&Part::Vision);
        let features = remember.then(|| Features::new(options.features_bytes));
        Self { engine, trainer, features, checkpointing: options.gradient_checkpointing }
    }

    /// Whether a batch can be gone through layer by layer.
    fn has_layers(&self, pixels: Option<&Pixels>) -> bool {
        pixels.is_none_or(|pixels| self.engine.pictures_may_repeat(pixels))
    }

    fn by_layers(
        &mut self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        weight: f64,
        done: &mut dyn FnMut(&mut Trainer<B>, Stage),
    ) -> Result<f32, EngineError> {
        let Self { engine, trainer, features, checkpointing } = self;
        let keep = if *checkpointing { Keep::Inputs } else { Keep::Graphs };
        engine.check_batch(text, pixels, labels)?;
        let Some(pixels) = pixels else {
            return Ok(trainer.backward_by_layers(&engine.model, text, None, labels, weight, keep, done));
        };
        engine.check_pixels(pixels)?;
        let (distinct, places) = distinct(pixels);
        let mut tokens = || engine.tokens_of_distinct(pixels.side, &distinct, features.as_mut());
        let pictures = Pictures { tokens: &mut tokens, places: &places, images: pixels.images };
        Ok(trainer.backward_by_layers(&engine.model, text, Some(pictures), labels, weight, keep, done))
    }
}

impl<B: Differentiable> Learner for BurnTraining<B> {
    type Backend = B;
    type Model = Flamingo<B>;

    fn learn(&mut self, text: &Text, pixels: Option<&Pixels>, labels: &[i64], weight: f64) -> Result<f32, EngineError> {
        if self.checkpointing && self.has_layers(pixels) {
            return self.by_layers(text, pixels, labels, weight, &mut |_, _| ());
        }
        let loss = self.engine.loss(text, pixels, labels, self.features.as_mut())?;
        let value = Array::from_tensor(&loss)?.data[0];
        if !value.is_nan() {
            self.trainer.backward(&self.engine.model, loss, weight);
        }
        Ok(value)
    }

    fn stages(&self) -> Vec<(Stage, Vec<usize>)> {
        self.trainer.stages(self.engine.model.decoder.blocks.len())
    }

    fn learn_in_stages(
        &mut self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        weight: f64,
        ready: Ready,
    ) -> Result<f32, EngineError> {
        if !self.has_layers(pixels) {
            return self.learn(text, pixels, labels, weight);
        }
        let stages = Learner::stages(self);
        self.by_layers(text, pixels, labels, weight, &mut |trainer, done| {
            if let Some(group) = stages.iter().position(|(stage, _)| *stage == done) {
                let gradients = trainer.take_gradients_of(&stages[group].1).into_iter();
                ready(group, gradients.map(|gradient| gradient.map(coming)).collect());
            }
        })
    }

    fn parts(&self) -> (&Trainer<B>, &Flamingo<B>) {
        (&self.trainer, &self.engine.model)
    }

    fn parts_mut(&mut self) -> (&mut Trainer<B>, &mut Flamingo<B>, &B::Device) {
        (&mut self.trainer, &mut self.engine.model, &self.engine.device)
    }
}

/// What one kind of training adds to a [`Trainer`]: how a batch becomes gradients. The rest of [`Training`] is the same for all.
pub(crate) trait Learner: Send + Sync {
    type Backend: Differentiable;
    type Model: Module<Self::Backend> + Sync;

    /// [`Training::backward`], by a thread that computes.
    fn learn(&mut self, text: &Text, pixels: Option<&Pixels>, labels: &[i64], weight: f64) -> Result<f32, EngineError>;

    /// [`Training::stages`]: all at the end, where it is not known better.
    fn stages(&self) -> Vec<(Stage, Vec<usize>)> {
        vec![(Stage::Rest, (0..self.parts().0.parameters().len()).collect())]
    }

    /// [`Training::backward_in_stages`], by a thread that computes.
    fn learn_in_stages(
        &mut self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        weight: f64,
        _: Ready,
    ) -> Result<f32, EngineError> {
        self.learn(text, pixels, labels, weight)
    }

    fn parts(&self) -> (&Trainer<Self::Backend>, &Self::Model);

    #[allow(clippy::type_complexity)]
    fn parts_mut(
        &mut self,
    ) -> (&mut Trainer<Self::Backend>, &mut Self::Model, &<Self::Backend as BackendTypes>::Device);
}

impl<L: Learner> Training for L {
    fn backward(
        &mut self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        weight: f64,
    ) -> Result<f32, EngineError> {
        compute::<L::Backend, _>(|| self.learn(text, pixels, labels, weight))
    }

    fn stages(&self) -> Vec<Vec<usize>> {
        Learner::stages(self).into_iter().map(|(_, places)| places).collect()
    }

    fn backward_in_stages(
        &mut self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        weight: f64,
        ready: Ready,
    ) -> Result<f32, EngineError> {
        compute::<L::Backend, _>(|| self.learn_in_stages(text, pixels, labels, weight, ready))
    }

    fn clip(&mut self, max_norm: f64) -> Result<f64, EngineError> {
        let (trainer, ..) = self.parts_mut();
        compute::<L::Backend, _>(|| Ok(trainer.clip(max_norm)))
    }

    fn update(&mut self, learning_rate: f64) -> Result<(), EngineError> {
        let (trainer, model, _) = self.parts_mut();
        compute::<L::Backend, _>(|| {
            trainer.update(model, learning_rate);
            Ok(())
        })
    }

    fn discard(&mut self) {
        self.parts_mut().0.discard();
    }

    fn parameters(&self) -> Vec<Parameter> {
        self.parts().0.parameters()
    }

    fn own(&mut self, ranges: Vec<Range<usize>>) {
        self.parts_mut().0.own(ranges);
    }

    fn take_gradients(&mut self) -> Result<Vec<Option<Vec<f32>>>, EngineError> {
        let (trainer, ..) = self.parts_mut();
        compute::<L::Backend, _>(|| {
            let read = |gradient: Tensor<_, 1>| numbers(gradient.into_data());
            trainer.take_gradients().into_iter().map(|one| one.map(read).transpose()).collect()
        })
    }

    fn set_gradients(&mut self, gradients: Vec<Option<Vec<f32>>>) -> Result<(), EngineError> {
        let (trainer, _, device) = self.parts_mut();
        compute::<L::Backend, _>(|| {
            trainer.set_gradients(gradients.into_iter().map(|one| one.map(flat)).collect(), device);
            Ok(())
        })
    }

    fn owned_weights(&self) -> Result<Vec<f32>, EngineError> {
        let (trainer, model) = self.parts();
        let weights = compute::<L::Backend, _>(|| trainer.owned_weights(model).into_iter().map(numbers).collect());
        weights.map(|weights: Vec<Vec<f32>>| weights.concat())
    }

    fn set_weights(&mut self, weights: &[f32]) -> Result<(), EngineError> {
        let (trainer, model, device) = self.parts_mut();
        compute::<L::Backend, _>(|| {
            trainer.set_weights(model, weights, device);
            Ok(())
        })
    }

    fn gradients(&self) -> Result<Vec<(String, Array)>, EngineError> {
        let (trainer, _) = self.parts();
        compute::<L::Backend, _>(|| trainer.gradients().into_iter().map(array).collect())
    }

    fn weights(&self) -> Result<Vec<(String, Array)>, EngineError> {
        let (trainer, model) = self.parts();
        compute::<L::Backend, _>(|| trainer.weights(model).into_iter().map(array).collect())
    }

    fn state(&self) -> Result<Vec<(String, Array)>, EngineError> {
        let (trainer, model) = self.parts();
        compute::<L::Backend, _>(|| trainer.state(model).into_iter().map(array).collect())
    }

    fn restore(&mut self, state: Vec<(String, Array)>) -> Result<(), EngineError> {
        let (trainer, model, device) = self.parts_mut();
        let missing =
            |name| EngineError::Weights(format!("the training state has no tensor `{name}` of this model's shape"));
        compute::<L::Backend, _>(|| trainer.restore(model, named(state), device).map_err(missing))
    }
}

fn named(state: Vec<(String, Array)>) -> Vec<Named<TensorData>> {
    let named = |(name, array): (String, Array)| Named { name, shape: array.shape, values: flat(array.data) };
    state.into_iter().map(named).collect()
}

fn array(named: Named<TensorData>) -> Result<(String, Array), EngineError> {
    Ok((named.name, Array { shape: named.shape, data: numbers(named.values)? }))
}

fn numbers(values: TensorData) -> Result<Vec<f32>, EngineError> {
    let numbers = values.convert_dtype(DType::F32).into_vec::<f32>();
    numbers.map_err(|e| EngineError::Device(format!("cannot read a tensor back: {e:?}")))
}

fn coming<B: Backend>(gradient: Tensor<B, 1>) -> Coming {
    Box::new(move || guard(|| numbers(gradient.into_data())))
}

fn flat(numbers: Vec<f32>) -> TensorData {
    let count = numbers.len();
    TensorData::new(numbers, [count])
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use flamingo_weights::ModelFolder;

    use super::*;
    use crate::{Device, open_training};

    /// Each of several trainings in one process gets the losses that it gets alone.
    #[test]
    fn trainings_beside_each_other_get_their_own_losses() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let folder = Arc::new(ModelFolder::open(&models.join("flamingo-tiny-neox")).expect("a shipped model"));
        let train = || {
            let options = TrainingOptions { parts: vec![Part::Decoder], ..TrainingOptions::default() };
            let mut training = open_training(&folder, Device::Flex, &options).expect("it trains");
            let ids: Vec<u32> = (0..4 * 64).map(|i| i * 31 % 900).collect();
            let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
            let text = Text::new(4, ids, vec![true; 4 * 64]);
            let step = |_| {
                let loss = training.backward(&text, None, &labels, 1.0).expect("a loss");
                training.update(1e-3).expect("an update");
                loss
            };
            (0..4).map(step).collect::<Vec<f32>>()
        };
        let alone = train();
        let together: Vec<Vec<f32>> = std::thread::scope(|threads| {
            let running: Vec<_> = (0..4).map(|_| threads.spawn(train)).collect();
            running.into_iter().map(|one| one.join().expect("no panic")).collect()
        });
        assert!(together.iter().all(|losses| *losses == alone), "{together:?}, not {alone:?}");
    }
}
