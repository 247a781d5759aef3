//! A model in training: gradients in, weights out.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Shape, Tensor, TensorData, backend::Backend};
use flamingo_config::ModelConfig;
use flamingo_kernels::{Differentiable, Gradients, sum_squares};
use flamingo_model::{Flamingo, Path};

use crate::adamw::{AdamW, Moments};
use crate::muon::{Muon, directions};
use crate::parts::{ADDED, Part};

/// A tensor with its module path and shape, flat.
#[derive(Clone, Debug)]
pub struct Named<T> {
    /// The module path.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: T,
}

/// Something that trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// How many numbers it is.
    pub count: usize,
    /// Whether a part of it can be updated by itself.
    pub divisible: bool,
}

/// How gradients become updates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Optimizer {
    /// For everything, or for what `muon` leaves.
    pub adamw: AdamW,
    /// For the matrices of transformer blocks.
    pub muon: Option<Muon>,
}

impl From<AdamW> for Optimizer {
    fn from(adamw: AdamW) -> Self {
        Self { adamw, muon: None }
    }
}

/// What training keeps beside the model: gradients, which add up between updates, and the optimizer's state.
pub struct Trainer<B: Differentiable> {
    optimizer: Optimizer,
    decays: fn(&str) -> bool,
    slots: BTreeMap<String, Slot<B::InnerBackend>>,
}

/// What is kept for one trainable parameter.
struct Slot<B: Backend> {
    shape: Vec<usize>,
    /// Which of its numbers are updated here.
    range: Range<usize>,
    /// 0 where a gradient is dropped; `None` where all count.
    mask: Option<Tensor<B, 1>>,
    gradient: Option<Tensor<B, 1>>,
    moments: Option<Moments<B>>,
    /// Matrices that Muon updates; 0 for AdamW.
    matrices: usize,
}

/// Which parameters train and how, by module path.
pub struct Plan<'a, B: Backend> {
    /// Whether a parameter trains. What does not is frozen: no gradient is computed or stored.
    pub trains: &'a dyn Fn(&str) -> bool,
    /// Whether weight decay applies to it.
    pub decays: fn(&str) -> bool,
    /// Factors of a parameter's gradient, flat: 0 where it is dropped.
    pub masks: BTreeMap<String, Tensor<B, 1>>,
}

impl<B: Differentiable> Trainer<B> {
    /// Takes a model into training.
    pub fn new(model: &mut impl Module<B>, mut plan: Plan<B::InnerBackend>, optimizer: Optimizer) -> Self {
        let mut freeze = Freeze { trains: plan.trains, path: Path::default(), shapes: Vec::new() };
        *model = model.clone().map(&mut freeze);
        let slots = freeze.shapes.into_iter().map(|(name, shape)| {
            let mask = plan.masks.remove(&name);
            let matrices = optimizer.muon.map_or(0, |_| Muon::matrices(&name, &shape));
            let range = 0..shape.iter().product();
            (name, Slot { shape, range, mask, gradient: None, moments: None, matrices })
        });
        Self { optimizer, decays: plan.decays, slots: slots.collect() }
    }

    /// Takes a Flamingo into training as upstream does: everything outside of `parts` is frozen, of the added
    /// embeddings the rows of `<image>` and `<|endofchunk|>` train, and weight decay applies to cross-attention.
    pub fn flamingo(
        model: &mut Flamingo<B>,
        config: &ModelConfig,
        parts: &[Part],
        optimizer: Optimizer,
        device: &B::Device,
    ) -> Self {
        let mut masks = BTreeMap::new();
        if !parts.contains(&Part::Decoder) {
            let dim = model.decoder.embedding.added.lazy_shape()[1];
            masks.insert(ADDED.to_string(), added_mask(config, dim, device));
        }
        let trains = |path: &str| Part::trains(parts, path);
        Self::new(model, Plan { trains: &trains, decays: Part::decays, masks }, optimizer)
    }

    /// Adds the gradients of `loss` times `weight`.
    pub fn backward(&mut self, model: &impl Module<B>, loss: Tensor<B, 1>, weight: f64) {
        self.collect(model, &(loss * weight).backward());
    }

    /// Adds what a backward pass found.
    pub(crate) fn collect(&mut self, model: &impl Module<B>, gradients: &B::Gradients) {
        model.visit(&mut Collect::<B> { gradients, slots: &mut self.slots, path: Path::default() });
    }

    /// Whether a parameter trains whose path begins so.
    pub(crate) fn trains(&self, prefix: &str) -> bool {
        self.slots.keys().any(|path| path.starts_with(prefix))
    }

    /// Scales the gradients so that their norm is `max_norm` at most; returns the norm before
    /// (`torch.nn.utils.clip_grad_norm_`). A norm that is no number leaves them as they are.
    pub fn clip(&mut self, max_norm: f64) -> f64 {
        let mut gradients = self.slots.values().filter_map(|slot| slot.gradient.clone()).peekable();
        if gradients.peek().is_none() {
            return 0.0;
        }
        let total = sum_squares(gradients).sqrt().into_data();
        let norm: f64 = total.iter::<f64>().next().unwrap_or(f64::NAN);
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            for slot in self.slots.values_mut() {
                slot.gradient = slot.gradient.take().map(|gradient| gradient * factor);
            }
        }
        norm
    }

    /// Updates the weights and forgets the gradients. Parameters that got none stay as they are. After a panic in between the
    /// weights are gone until [`Trainer::restore`].
    pub fn update(&mut self, model: &mut impl Module<B>, learning_rate: f64) {
        let mut directions = self.take_directions();
        // Out of the model: a weight that nobody else holds is updated where it lies.
        let moves = |path: &String, slot: &Slot<_>| slot.gradient.is_some() || directions.contains_key(path);
        let moving = self.slots.iter().filter(|(path, slot)| moves(path, slot)).map(|(path, _)| path.clone()).collect();
        let mut taken = TakeWeights { moving, weights: BTreeMap::new(), path: Path::default() };
        *model = model.clone().map(&mut taken);
        let mut weights = BTreeMap::new();
        for (path, whole) in taken.weights {
            let Some(slot) = self.slots.get_mut(&path) else { continue };
            let (direction, decays) = (directions.remove(&path), (self.decays)(&path));
            let weight = slot.updated(whole, direction, self.optimizer, learning_rate, decays);
            weights.insert(path, weight);
        }
        self.put_weights(model, weights);
    }

    /// Where Muon moves the parameters that it updates, by path. Their gradients are used up.
    fn take_directions(&mut self) -> BTreeMap<String, Tensor<B::InnerBackend, 1>> {
        let Some(muon) = self.optimizer.muon else { return BTreeMap::new() };
        let (mut paths, mut parameters) = (Vec::new(), Vec::new());
        for (path, slot) in &mut self.slots {
            let (matrices @ 1.., &[rows, columns]) = (slot.matrices, slot.shape.as_slice()) else { continue };
            let Some(gradient) = slot.gradient.take() else { continue };
            let (before, steps) = slot.moments.take().map_or((None, 0), |m| (Some(m.first), m.steps));
            let [first, ahead] = muon.advance(gradient, before);
            slot.moments = Some(Moments { first, second: None, steps: steps + 1 });
            paths.push(path.clone());
            parameters.push((ahead, [matrices, rows / matrices, columns]));
        }
        paths.into_iter().zip(directions(parameters)).collect()
    }

    /// What trains, in an order that is the same for every trainer of such a model.
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameter =
            |slot: &Slot<_>| Parameter { count: slot.shape.iter().product(), divisible: slot.matrices == 0 };
        self.slots.values().map(parameter).collect()
    }

    /// Module paths of what trains, in the order of [`Trainer::parameters`].
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }

    /// Says which numbers of each parameter are updated here, in the order of [`Trainer::parameters`]: the optimizer remembers
    /// nothing of others, and [`Trainer::state`] tells of these alone. A parameter that is not divisible goes as a whole.
    pub fn own(&mut self, ranges: Vec<Range<usize>>) {
        for (slot, range) in self.slots.values_mut().zip(ranges) {
            slot.range = range;
        }
    }

    /// Takes the gradients out, whole and flat; `None` for those that are still nothing.
    pub fn take_gradients(&mut self) -> Vec<Option<Tensor<B::InnerBackend, 1>>> {
        self.slots.values_mut().map(|slot| slot.gradient.take()).collect()
    }

    /// [`Trainer::take_gradients`] of some parameters, by their places.
    pub fn take_gradients_of(&mut self, places: &[usize]) -> Vec<Option<Tensor<B::InnerBackend, 1>>> {
        let mut slots: Vec<_> = self.slots.values_mut().collect();
        places.iter().map(|&place| slots[place].gradient.take()).collect()
    }

    /// Puts gradients in for what is updated here. A parameter without one stays as it is.
    pub fn set_gradients(&mut self, gradients: Vec<Option<TensorData>>, device: &B::Device) {
        for (slot, gradient) in self.slots.values_mut().zip(gradients) {
            slot.gradient = gradient.map(|gradient| Tensor::from_data(gradient, device));
        }
    }

    /// The weights that are updated here.
    pub fn owned_weights(&self, model: &impl Module<B>) -> Vec<TensorData> {
        let mut found = self.read(model, true);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.into_iter().map(|weight| weight.values).collect()
    }

    /// Puts all weights in that train, one after the other.
    pub fn set_weights(&self, model: &mut impl Module<B>, mut weights: &[f32], device: &B::Device) {
        let one = |(path, slot): (&String, &Slot<_>)| {
            let (weight, rest) = weights.split_at(slot.shape.iter().product());
            weights = rest;
            (path.clone(), Tensor::from_data(TensorData::new(weight.to_vec(), [weight.len()]), device))
        };
        let weights = self.slots.iter().map(one).collect();
        self.put_weights(model, weights);
    }

    /// Forgets the gradients.
    pub fn discard(&mut self) {
        for slot in self.slots.values_mut() {
            slot.gradient = None;
        }
    }

    /// The gradients so far, those that are still nothing left out.
    pub fn gradients(&self) -> Vec<Named<TensorData>> {
        let given = |(name, slot): (&String, &Slot<B::InnerBackend>)| {
            let values = slot.gradient.as_ref()?.to_data();
            Some(Named { name: name.clone(), shape: slot.shape.clone(), values })
        };
        self.slots.iter().filter_map(given).collect()
    }

    /// Everything that an exact restart needs: `weight.PATH`, and once a parameter was updated `first.PATH`,
    /// `second.PATH` (AdamW's means or Muon's momentum, flat) and `steps.PATH` (one number). Taken between updates: gradients are left out.
    pub fn state(&self, model: &impl Module<B>) -> Vec<Named<TensorData>> {
        let mut state = self.weights(model);
        state.iter_mut().for_each(|weight| weight.name.insert_str(0, "weight."));
        for (path, slot) in &self.slots {
            let Some(moments) = &slot.moments else { continue };
            let count = slot.range.len();
            let mut add = |kind: &str, shape: Vec<usize>, values: TensorData| {
                state.push(Named { name: format!("{kind}.{path}"), shape, values });
            };
            add("first", vec![count], moments.first.to_data());
            if let Some(second) = &moments.second {
                add("second", vec![count], second.to_data());
            }
            add("steps", vec![1], TensorData::new(vec![moments.steps as f32], [1]));
        }
        state
    }

    /// Goes back to what [`Trainer::state`] gave; gradients are forgotten. Returns the name of the first tensor that is
    /// missing or of another shape, in which case nothing has changed.
    pub fn restore(
        &mut self,
        model: &mut impl Module<B>,
        state: Vec<Named<TensorData>>,
        device: &B::Device,
    ) -> Result<(), String> {
        let mut state: BTreeMap<String, Named<TensorData>> = state.into_iter().map(|t| (t.name.clone(), t)).collect();
        let fits = |name: String, shape: &[usize]| match state.get(&name) {
            Some(tensor)
                if tensor.shape == shape && tensor.values.num_elements() == shape.iter().product::<usize>() =>
            {
                Ok(())
            }
            _ => Err(name),
        };
        for (path, slot) in &self.slots {
            fits(format!("weight.{path}"), &slot.shape)?;
            if state.contains_key(&format!("steps.{path}")) {
                let count = slot.shape.iter().product();
                fits(format!("first.{path}"), &[count])?;
                if slot.matrices == 0 {
                    fits(format!("second.{path}"), &[count])?;
                }
                fits(format!("steps.{path}"), &[1])?;
            }
        }
        let mut take = |kind: &str, path: &str| state.remove(&format!("{kind}.{path}")).map(|tensor| tensor.values);
        let mut weights = BTreeMap::new();
        for (path, slot) in &mut self.slots {
            slot.gradient = None;
            let second = take("second", path);
            slot.moments = match (take("first", path), take("steps", path)) {
                (Some(first), Some(steps)) if !slot.range.is_empty() => Some(Moments {
                    first: part(Tensor::from_data(first, device), &slot.range),
                    second: second.map(|second| part(Tensor::from_data(second, device), &slot.range)),
                    steps: steps.iter::<f64>().next().unwrap_or_default() as usize,
                }),
                _ => None,
            };
            if let Some(mut weight) = take("weight", path) {
                weight.shape = Shape::new([weight.num_elements()]);
                weights.insert(path.clone(), Tensor::from_data(weight, device));
            }
        }
        self.put_weights(model, weights);
        Ok(())
    }

    /// Puts some weights in, flat ones, by path.
    fn put_weights(&self, model: &mut impl Module<B>, weights: BTreeMap<String, Tensor<B::InnerBackend, 1>>) {
        *model = model.clone().map(&mut PutWeights { slots: &self.slots, weights, path: Path::default() });
    }

    /// The weights of everything that trains.
    pub fn weights(&self, model: &impl Module<B>) -> Vec<Named<TensorData>> {
        self.read(model, false)
    }

    fn read(&self, model: &impl Module<B>, owned: bool) -> Vec<Named<TensorData>> {
        let mut weights = Weights::<B> { slots: &self.slots, owned, path: Path::default(), found: Vec::new() };
        model.visit(&mut weights);
        weights.found
    }
}

/// 1 in the rows of `<image>` and `<|endofchunk|>`, 0 elsewhere; flat `[added_rows, dim]`.
fn added_mask<B: Backend>(config: &ModelConfig, dim: usize, device: &B::Device) -> Tensor<B, 1> {
    let t = &config.tokens;
    let trains = |row: usize| [t.image, t.endofchunk].contains(&((t.base_rows() + row) as u32));
    let values: Vec<f32> = (0..t.added_rows()).flat_map(|row| vec![if trains(row) { 1.0 } else { 0.0 }; dim]).collect();
    Tensor::from_floats(values.as_slice(), device)
}

/// Turns gradients on for what trains and off for the rest.
struct Freeze<'a> {
    trains: &'a dyn Fn(&str) -> bool,
    path: Path,
    shapes: Vec<(String, Vec<usize>)>,
}

impl<B: Differentiable> ModuleMapper<B> for Freeze<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let path = self.path.name();
        let trains = (self.trains)(&path);
        if trains {
            self.shapes.push((path, param.lazy_shape().to_vec()));
        }
        // Detached first: a leaf of its own, whatever the weights came from.
        param.map(|tensor| tensor.detach().set_require_grad(trains))
    }
}

/// Adds up gradients.
struct Collect<'a, B: Differentiable> {
    gradients: &'a B::Gradients,
    slots: &'a mut BTreeMap<String, Slot<B::InnerBackend>>,
    path: Path,
}

impl<B: Differentiable> ModuleVisitor<B> for Collect<'_, B> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(slot) = self.slots.get_mut(&self.path.name()) else { return };
        let Some(gradient) = param.val().grad(self.gradients) else { return };
        let gradient = flat(gradient);
        let gradient = match &slot.mask {
            Some(mask) => gradient * mask.clone(),
            None => gradient,
        };
        slot.gradient = Some(match slot.gradient.take() {
            Some(before) => before + gradient,
            None => gradient,
        });
    }
}

impl<B: Gradients> Slot<B> {
    /// A weight, flat, moved along its gradient, or where Muon says. The gradient is used up.
    fn updated(
        &mut self,
        whole: Tensor<B, 1>,
        direction: Option<Tensor<B, 1>>,
        optimizer: Optimizer,
        learning_rate: f64,
        decays: bool,
    ) -> Tensor<B, 1> {
        let gradient = self.gradient.take();
        let moved = |weight| match (optimizer.muon, direction, gradient) {
            (Some(muon), Some(direction), _) => muon.step(weight, direction, learning_rate, decays),
            (_, _, Some(gradient)) => {
                optimizer.adamw.update(weight, gradient, &mut self.moments, learning_rate, decays)
            }
            _ => weight,
        };
        match self.range.len() == whole.dims()[0] {
            true => moved(whole),
            false => {
                let weight = moved(part(whole.clone(), &self.range));
                whole.slice_assign([self.range.clone()], weight)
            }
        }
    }
}

/// Takes some weights out of a model, flat, which is left with nothing in their places.
struct TakeWeights<B: Differentiable> {
    moving: BTreeSet<String>,
    weights: BTreeMap<String, Tensor<B::InnerBackend, 1>>,
    path: Path,
}

impl<B: Differentiable> ModuleMapper<B> for TakeWeights<B> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let path = self.path.name();
        if !self.moving.contains(&path) {
            return param;
        }
        param.map(|tensor| {
            let nothing = Tensor::empty([0; D], &tensor.device());
            self.weights.insert(path, flat(tensor.inner()));
            nothing
        })
    }
}

/// Puts weights in, flat ones.
struct PutWeights<'a, B: Differentiable> {
    slots: &'a BTreeMap<String, Slot<B::InnerBackend>>,
    weights: BTreeMap<String, Tensor<B::InnerBackend, 1>>,
    path: Path,
}

impl<B: Differentiable> ModuleMapper<B> for PutWeights<'_, B> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let path = self.path.name();
        let (Some(weight), Some(slot)) = (self.weights.remove(&path), self.slots.get(&path)) else {
            return param;
        };
        param.map(|_| Tensor::from_inner(weight.reshape(Shape::from(slot.shape.clone()))).require_grad())
    }
}

/// Reads weights.
struct Weights<'a, B: Differentiable> {
    slots: &'a BTreeMap<String, Slot<B::InnerBackend>>,
    /// Only what is updated here.
    owned: bool,
    path: Path,
    found: Vec<Named<TensorData>>,
}

impl<B: Differentiable> ModuleVisitor<B> for Weights<'_, B> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        self.path.exit(container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.name();
        let Some(slot) = self.slots.get(&name) else { return };
        let values = match self.owned {
            true if slot.range.is_empty() => return,
            true => part(flat(param.val().inner()), &slot.range).into_data(),
            false => param.val().into_data(),
        };
        self.found.push(Named { name, shape: slot.shape.clone(), values });
    }
}

fn flat<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count])
}

/// Some of a flat tensor's numbers.
fn part<B: Backend>(tensor: Tensor<B, 1>, range: &Range<usize>) -> Tensor<B, 1> {
    if range.len() == tensor.dims()[0] { tensor } else { tensor.slice([range.clone()]) }
}
