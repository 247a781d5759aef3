//! From a model folder to a model on a device.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{AllocationProperty, Bytes, DType, Int, Tensor, TensorData, backend::Backend, f16};
use burn_store::{ModuleSnapshot, TensorSnapshot, TensorSnapshotError};
use flamingo_config::{BLOCK, ModelConfig, Scheme};
use flamingo_kernels::Kernels;
use flamingo_model::{Flamingo, Path};
use flamingo_weights::{Dtype, ModelFolder, quantise};

use crate::EngineError;

/// Burn's name for a number format.
pub(crate) fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

/// What a model's weights are to be on a device.
#[derive(Clone, Copy)]
pub(crate) struct Format<'a> {
    /// How matrices are quantised, if they are.
    pub scheme: Option<Scheme>,
    /// The format of each parameter that is numbers, by its name.
    pub dtype: &'a dyn Fn(&str) -> Dtype,
}

/// Puts a folder's weights on a device.
///
/// Tensors are read from the mapped file one at a time, or stay there, where a backend computes in the host's memory;
/// nothing is initialised at random first.
pub(crate) fn load<B: Kernels>(
    folder: &Arc<ModelFolder>,
    format: Format,
    device: &B::Device,
) -> Result<Flamingo<B>, EngineError> {
    let mut model = Flamingo::<B>::new(folder.config(), device, format.scheme);
    let reader = Rc::new(Reader { folder: folder.clone(), scales: RefCell::default() });
    let names = parameters::<B>(&model).into_iter();
    let snapshots = names.filter_map(|(name, shape)| reader.snapshot(name, shape, format));
    let result = model.apply(snapshots.collect(), None, None, true);
    if let Some(error) = result.errors.first() {
        return Err(EngineError::Weights(format!("cannot load the weights: {error}")));
    }
    if let Some((name, _)) = result.missing.first() {
        return Err(EngineError::Weights(format!("the model folder has no tensor `{name}`")));
    }
    Ok(model)
}

/// A model with random weights.
pub(crate) fn random<B: Kernels>(config: &ModelConfig, format: Format, device: &B::Device) -> Flamingo<B> {
    struct Cast<'a> {
        dtype: &'a dyn Fn(&str) -> Dtype,
        path: Path,
    }
    impl<B: Backend> ModuleMapper<B> for Cast<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let dtype = burn_dtype((self.dtype)(&self.path.name()));
            let id = param.id;
            Param::initialized(id, param.val().detach().cast(dtype))
        }
    }
    Flamingo::new(config, device, format.scheme).map(&mut Cast { dtype: format.dtype, path: Path::default() })
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
        path: Path,
    }
    impl<B: Backend> ModuleMapper<B> for Fill<'_, B> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let shape: [usize; D] = param.lazy_shape().dims();
            let numbers = (self.numbers)(&self.path.name(), &shape);
            let tensor = Tensor::from_data(TensorData::new(numbers, shape), (self.device, DType::F32));
            Param::initialized(param.id, tensor)
        }
    }
    *module = module.clone().map(&mut Fill { numbers, device, path: Path::default() });
}

/// Reads parameters from a folder.
struct Reader {
    folder: Arc<ModelFolder>,
    /// Scales of the matrix that was quantised last, whose codes were asked for before them.
    scales: RefCell<(String, Vec<f16>)>,
}

impl Reader {
    /// A parameter, read when it is needed.
    fn snapshot(self: &Rc<Self>, name: String, shape: Vec<usize>, format: Format) -> Option<TensorSnapshot> {
        let of_quantised = name.rsplit_once('.').filter(|(_, part)| ["codes", "scales"].contains(part));
        let quantised = of_quantised.map(|(matrix, part)| (matrix.to_string(), part == "codes"));
        let dtype = match quantised {
            Some((_, true)) => DType::I32,
            _ => burn_dtype((format.dtype)(&name)),
        };
        let spec = match &quantised {
            Some((matrix, _)) => matrix,
            None => &name,
        };
        if self.folder.tensor(spec).is_none() && self.folder.quantised(spec).is_none() {
            return None;
        }
        let path: Vec<String> = name.split('.').map(str::to_string).collect();
        let (reader, of_tensor) = (self.clone(), shape.clone());
        let read = move || {
            let data = match &quantised {
                Some((matrix, true)) => reader.codes(matrix, &of_tensor)?,
                Some((matrix, false)) => reader.scales(matrix, &of_tensor, dtype),
                None => reader.numbers(&name, &of_tensor, dtype),
            };
            data.ok_or_else(|| TensorSnapshotError::DataError(format!("no tensor `{name}`")))
        };
        Some(TensorSnapshot::from_closure(Rc::new(read), dtype, shape.into(), path, Vec::new(), ParamId::new()))
    }

    fn numbers(&self, name: &str, shape: &[usize], dtype: DType) -> Option<TensorData> {
        if let Some(stored) = self.folder.tensor(name).map(|view| burn_dtype(view.dtype))
            && stored == dtype
        {
            return self.in_place(name, shape, dtype);
        }
        let numbers = TensorData::new(self.folder.tensor_f32(name)?, shape.to_vec()).convert_dtype(dtype);
        self.folder.release(name);
        Some(numbers)
    }

    /// Codes as the folder has them, or made of its numbers.
    fn codes(&self, matrix: &str, shape: &[usize]) -> Result<Option<TensorData>, TensorSnapshotError> {
        if self.stores(matrix, shape) {
            return Ok(self.in_place(&format!("{matrix}.codes"), shape, DType::I32));
        }
        let Some(numbers) = self.folder.tensor_f32(matrix) else { return Ok(None) };
        // Codes have a row's words for each of its blocks.
        let blocks = numbers.len() / BLOCK;
        let words = shape.iter().product::<usize>() / blocks.max(1);
        let scheme = [Scheme::Q8, Scheme::Q4].into_iter().find(|scheme| scheme.words() == words);
        let Some(scheme) = scheme else { return Ok(None) };
        let (codes, scales) = quantise(scheme, &numbers);
        if scales.iter().any(|scale| !scale.is_finite()) {
            let what = format!("`{matrix}` has numbers that are too large to quantise, or none: open it in f32");
            return Err(TensorSnapshotError::DataError(what));
        }
        self.folder.release(matrix);
        self.scales.replace((matrix.to_string(), scales));
        Ok(Some(TensorData::from_bytes_vec(codes, shape.to_vec(), DType::I32)))
    }

    fn scales(&self, matrix: &str, shape: &[usize], dtype: DType) -> Option<TensorData> {
        let (of, scales) = self.scales.take();
        let scales = if of == matrix {
            TensorData::new(scales, shape.to_vec())
        } else {
            self.in_place(&format!("{matrix}.scales"), shape, DType::F16)?
        };
        Some(if dtype == DType::F16 { scales } else { scales.convert_dtype(dtype) })
    }

    /// Whether the folder has these codes.
    fn stores(&self, matrix: &str, shape: &[usize]) -> bool {
        let view = self.folder.quantised(matrix);
        view.is_some_and(|view| view.codes.len() == shape.iter().product::<usize>() * size_of::<i32>())
    }

    /// A tensor where it lies in the mapped file. Backends copy what they want to write to, or to keep elsewhere.
    fn in_place(&self, name: &str, shape: &[usize], dtype: DType) -> Option<TensorData> {
        let mapped = self.folder.mapped(name)?;
        let bytes = bytes::Bytes::from_owner(mapped);
        let aligned = bytes.as_ptr().addr().is_multiple_of(dtype.size());
        // Numbers of a file that another program wrote may begin anywhere.
        let bytes = if aligned {
            Bytes::from_shared(bytes, AllocationProperty::File)
        } else {
            Bytes::from_bytes_vec(bytes.to_vec())
        };
        Some(TensorData::from_bytes(bytes, shape.to_vec(), dtype))
    }
}

/// Paths and shapes of all parameters of a model.
pub(crate) fn parameters<B: Backend>(model: &Flamingo<B>) -> Vec<(String, Vec<usize>)> {
    struct Parameters {
        path: Path,
        all: Vec<(String, Vec<usize>)>,
    }
    impl<B: Backend> ModuleVisitor<B> for Parameters {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, container: &str) {
            self.path.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.all.push((self.path.name(), param.lazy_shape().to_vec()));
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<B, D, Int>>) {
            self.all.push((self.path.name(), param.lazy_shape().to_vec()));
        }
    }
    let mut parameters = Parameters { path: Path::default(), all: Vec::new() };
    model.visit(&mut parameters);
    parameters.all
}
