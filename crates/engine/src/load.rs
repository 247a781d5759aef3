//! From a model folder to a model on a device.

use std::rc::Rc;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Bytes, DType, Shape, Tensor, TensorData, backend::Backend};
use burn_store::{ModuleSnapshot, TensorSnapshot, TensorSnapshotError};
use flamingo_config::ModelConfig;
use flamingo_kernels::Kernels;
use flamingo_model::Flamingo;
use flamingo_weights::{Dtype, ModelFolder};

use crate::EngineError;

/// Burn's name for a number format.
pub(crate) fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

/// Puts a folder's weights on a device, each in the format that `precision` gives for its name.
///
/// Tensors are read from the mapped file one at a time; nothing is initialised at random first.
pub(crate) fn load<B: Kernels>(
    folder: &Arc<ModelFolder>,
    precision: &dyn Fn(&str) -> Dtype,
    device: &B::Device,
) -> Result<Flamingo<B>, EngineError> {
    let mut model = Flamingo::<B>::new(folder.config(), device);
    let names = parameters::<B>(&model).into_iter().map(|(name, _)| name);
    let snapshots = names.filter_map(|name| {
        let dtype = burn_dtype(precision(&name));
        snapshot(folder, name, dtype)
    });
    let result = model.apply(snapshots.collect(), None, None, true);
    if let Some(error) = result.errors.first() {
        return Err(EngineError::Weights(format!("cannot load the weights: {error}")));
    }
    if let Some((name, _)) = result.missing.first() {
        return Err(EngineError::Weights(format!("the model folder has no tensor `{name}`")));
    }
    Ok(model)
}

/// A model with random weights, each in the format that `precision` gives for its name.
pub(crate) fn random<B: Kernels>(
    config: &ModelConfig,
    precision: &dyn Fn(&str) -> Dtype,
    device: &B::Device,
) -> Flamingo<B> {
    struct Cast<'a> {
        precision: &'a dyn Fn(&str) -> Dtype,
        path: Vec<String>,
    }
    impl<B: Backend> ModuleMapper<B> for Cast<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let dtype = burn_dtype((self.precision)(&self.path.join(".")));
            let id = param.id;
            Param::initialized(id, param.val().detach().cast(dtype))
        }
    }
    Flamingo::new(config, device).map(&mut Cast { precision, path: Vec::new() })
}

/// Gives each parameter of a module the numbers that `numbers` has for its path and shape.
pub(crate) fn fill<B: Backend, M: Module<B> + Clone>(
    module: &mut M,
    device: &B::Device,
    numbers: &dyn Fn(&str, &[usize]) -> Vec<f32>,
) {
    struct Fill<'a, B: Backend> {
        numbers: &'a dyn Fn(&str, &[usize]) -> Vec<f32>,
        device: &'a B::Device,
        path: Vec<String>,
    }
    impl<B: Backend> ModuleMapper<B> for Fill<'_, B> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let shape: [usize; D] = param.lazy_shape().dims();
            let numbers = (self.numbers)(&self.path.join("."), &shape);
            let tensor = Tensor::from_data(TensorData::new(numbers, shape), (self.device, DType::F32));
            Param::initialized(param.id, tensor)
        }
    }
    *module = module.clone().map(&mut Fill { numbers, device, path: Vec::new() });
}

/// A tensor of the folder, read and cast when it is needed.
fn snapshot(folder: &Arc<ModelFolder>, name: String, dtype: DType) -> Option<TensorSnapshot> {
    let shape: Shape = folder.tensor(&name)?.shape.to_vec().into();
    let path: Vec<String> = name.split('.').map(str::to_string).collect();
    let folder = folder.clone();
    let read = move || {
        let gone = || TensorSnapshotError::DataError(format!("no tensor `{name}`"));
        let view = folder.tensor(&name).ok_or_else(gone)?;
        let stored = burn_dtype(view.dtype);
        let shape = view.shape.to_vec();
        let data = if stored == dtype {
            TensorData::from_bytes(Bytes::from_bytes_vec(view.bytes.to_vec()), shape, stored)
        } else {
            let numbers = folder.tensor_f32(&name).ok_or_else(gone)?;
            TensorData::new(numbers, shape).convert_dtype(dtype)
        };
        folder.release(&name);
        Ok(data)
    };
    Some(TensorSnapshot::from_closure(Rc::new(read), dtype, shape, path, Vec::new(), ParamId::new()))
}

/// Paths and shapes of all parameters of a model.
pub(crate) fn parameters<B: Backend>(model: &Flamingo<B>) -> Vec<(String, Vec<usize>)> {
    struct Parameters {
        path: Vec<String>,
        all: Vec<(String, Vec<usize>)>,
    }
    impl<B: Backend> ModuleVisitor<B> for Parameters {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_string());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.all.push((self.path.join("."), param.lazy_shape().to_vec()));
        }
    }
    let mut parameters = Parameters { path: Vec::new(), all: Vec::new() };
    model.visit(&mut parameters);
    parameters.all
}
