//! From a model folder to a model on a device.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{AllocationProperty, Bytes, DType, Int, Tensor, TensorData, backend::Backend, f16};
use burn_store::{ModuleSnapshot, TensorSnapshot, TensorSnapshotError};
use flamingo_config::{ModelConfig, Scheme};
use flamingo_kernels::Kernels;
use flamingo_model::{Flamingo, Init, Path};
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
    /// The format of each parameter that is numbers, by its name and the number of its dimensions.
    pub dtype: &'a dyn Fn(&str, usize) -> Dtype,
    /// Words of 32 bits that a buffer of the device holds at most.
    pub words: usize,
}

impl Format<'_> {
    fn init<B: Backend>(&self, device: &B::Device) -> Init<B> {
        Init { device: device.clone(), scheme: self.scheme, words: self.words }
    }
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
    let mut model = Flamingo::<B>::new(folder.config(), &format.init(device));
    let reader = Rc::new(Reader { folder: folder.clone(), scales: RefCell::default() });
    let mut rows = HashMap::new();
    let names = parameters::<B>(&model).into_iter();
    let snapshots = names.filter_map(|(name, shape)| reader.snapshot(name, shape, format, &mut rows));
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
        dtype: &'a dyn Fn(&str, usize) -> Dtype,
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
            let dtype = burn_dtype((self.dtype)(&self.path.name(), D));
            let id = param.id;
            Param::initialized(id, param.val().detach().cast(dtype))
        }
    }
    Flamingo::new(config, &format.init(device)).map(&mut Cast { dtype: format.dtype, path: Path::default() })
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
    /// Scales of what was quantised last, whose codes were asked for before them.
    scales: RefCell<(String, Vec<f16>)>,
}

/// Where a parameter is in a folder.
struct Source {
    /// Its name there: the parameter's, but for pieces of split matrices.
    tensor: String,
    /// The row of the tensor that is the parameter's first.
    first: usize,
    /// The parameter, without `.codes` or `.scales`.
    parameter: String,
    shape: Vec<usize>,
}

impl Source {
    /// The parameter's share of what the tensor has so many of a row.
    fn share(&self, of_row: usize) -> Range<usize> {
        let rows = self.shape.first().copied().unwrap_or(1);
        self.first * of_row..(self.first + rows) * of_row
    }
}

impl Reader {
    /// A parameter, read when it is needed. `rows` counts those of split tensors that earlier pieces have.
    fn snapshot(
        self: &Rc<Self>,
        name: String,
        shape: Vec<usize>,
        format: Format,
        rows: &mut HashMap<String, usize>,
    ) -> Option<TensorSnapshot> {
        let of_quantised = name.rsplit_once('.').filter(|(_, part)| ["codes", "scales"].contains(part));
        let (parameter, codes) = match of_quantised {
            Some((matrix, part)) => (matrix.to_string(), Some(part == "codes")),
            None => (name.clone(), None),
        };
        let dtype = match codes {
            Some(true) => DType::I32,
            _ => burn_dtype((format.dtype)(&name, shape.len())),
        };
        let (mut tensor, mut first) = (parameter.clone(), 0);
        if self.shape(&tensor).is_none() {
            // Pieces of a split matrix are numbered, and come in order.
            let (matrix, number) = parameter.rsplit_once('.')?;
            number.parse::<usize>().ok()?;
            self.shape(matrix)?;
            let read = rows.entry(format!("{matrix} {codes:?}")).or_default();
            (tensor, first) = (matrix.to_string(), *read);
            *read += shape[0];
        }
        let source = Source { tensor, first, parameter, shape: shape.clone() };
        let path: Vec<String> = name.split('.').map(str::to_string).collect();
        let reader = self.clone();
        let read = move || {
            let data = match codes {
                Some(true) => reader.codes(&source)?,
                Some(false) => reader.scales(&source, dtype),
                None => reader.numbers(&source, dtype),
            };
            data.ok_or_else(|| TensorSnapshotError::DataError(format!("no tensor `{name}`")))
        };
        Some(TensorSnapshot::from_closure(Rc::new(read), dtype, shape.into(), path, Vec::new(), ParamId::new()))
    }

    fn numbers(&self, source: &Source, dtype: DType) -> Option<TensorData> {
        if self.folder.tensor(&source.tensor).is_some_and(|view| burn_dtype(view.dtype) == dtype) {
            return self.in_place(&source.tensor, source, dtype);
        }
        Some(TensorData::new(self.numbers_f32(source)?, source.shape.clone()).convert_dtype(dtype))
    }

    /// Numbers of a matrix or its piece, whatever they are stored as.
    fn numbers_f32(&self, source: &Source) -> Option<Vec<f32>> {
        let mut numbers = self.folder.tensor_f32(&source.tensor)?;
        let of_row = self.shape(&source.tensor)?.iter().skip(1).product();
        let share = source.share(of_row);
        numbers.truncate(share.end);
        numbers.drain(..share.start);
        self.folder.release(&source.tensor);
        Some(numbers)
    }

    /// Codes as the folder has them, or made of its numbers.
    fn codes(&self, source: &Source) -> Result<Option<TensorData>, TensorSnapshotError> {
        let Source { tensor, parameter, shape, .. } = source;
        let Some(&[_, columns]) = self.shape(tensor).as_deref() else { return Ok(None) };
        let scheme = [Scheme::Q8, Scheme::Q4].into_iter().find(|scheme| scheme.row_words(columns) == shape[1]);
        let Some(scheme) = scheme else { return Ok(None) };
        if self.folder.quantised(tensor).is_some_and(|view| view.scheme == scheme) {
            return Ok(self.in_place(&format!("{tensor}.codes"), source, DType::I32));
        }
        let Some(numbers) = self.numbers_f32(source) else { return Ok(None) };
        let (codes, scales) = quantise(scheme, &numbers);
        if scales.iter().any(|scale| !scale.is_finite()) {
            let what = format!("`{tensor}` has numbers that are too large to quantise, or none: open it in f32");
            return Err(TensorSnapshotError::DataError(what));
        }
        self.scales.replace((parameter.clone(), scales));
        Ok(Some(TensorData::from_bytes_vec(codes, shape.clone(), DType::I32)))
    }

    fn scales(&self, source: &Source, dtype: DType) -> Option<TensorData> {
        let (of, scales) = self.scales.take();
        let scales = if of == source.parameter {
            TensorData::new(scales, source.shape.clone())
        } else {
            self.in_place(&format!("{}.scales", source.tensor), source, DType::F16)?
        };
        Some(if dtype == DType::F16 { scales } else { scales.convert_dtype(dtype) })
    }

    /// The shape of a tensor or a quantised matrix of the folder.
    fn shape(&self, tensor: &str) -> Option<Vec<usize>> {
        let plain = self.folder.tensor(tensor).map(|view| view.shape.to_vec());
        plain.or_else(|| self.folder.quantised(tensor).map(|view| view.shape.to_vec()))
    }

    /// A tensor or its piece where it lies in the mapped file. Backends copy what they want to write to, or to keep elsewhere.
    fn in_place(&self, name: &str, source: &Source, dtype: DType) -> Option<TensorData> {
        let bytes = bytes::Bytes::from_owner(self.folder.mapped(name)?);
        let of_row = source.shape.iter().skip(1).product::<usize>() * dtype.size();
        let bytes = bytes.slice(source.share(of_row));
        let aligned = bytes.as_ptr().addr().is_multiple_of(dtype.size());
        // Numbers of a file that another program wrote may begin anywhere.
        let bytes = if aligned {
            Bytes::from_shared(bytes, AllocationProperty::File)
        } else {
            Bytes::from_bytes_vec(bytes.to_vec())
        };
        Some(TensorData::from_bytes(bytes, source.shape.clone(), dtype))
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::path::Path;

    use burn_flex::{Flex, FlexDevice};
    use flamingo_model::Text;
    use flamingo_weights::Precision;

    use super::*;
    use crate::engine::{BurnEngine, Engine};

    /// Logits of a few tokens by a model whose buffers hold so many words.
    fn logits(folder: &Arc<ModelFolder>, scheme: Option<Scheme>, dtype: Dtype, words: usize) -> (usize, Vec<f32>) {
        let dtype = |name: &str, _| if name.ends_with(".scales") { Dtype::F16 } else { dtype };
        let model = load::<Flex>(folder, Format { scheme, dtype: &dtype, words }, &FlexDevice).expect("it loads");
        let engine = BurnEngine {
            model,
            config: folder.config().clone(),
            device: FlexDevice,
            precision: Precision::Plain(Dtype::F32),
            compute: Dtype::F32,
            name: "flex".into(),
        };
        let text = Text::new(1, vec![1, 50, 200, 999, 1001, 7], vec![true; 6]);
        let logits = engine.forward(&text, None, None, false).expect("a forward pass").logits;
        (engine.parameters().len(), logits.data)
    }

    #[test]
    fn matrices_larger_than_a_buffer_are_split() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
        let folder = Arc::new(ModelFolder::open(&models.join("flamingo-tiny-neox")).expect("a shipped model"));
        for scheme in [None, Some(Scheme::Q8), Some(Scheme::Q4)] {
            for dtype in [Dtype::F32, Dtype::F16] {
                let (count, wanted) = logits(&folder, scheme, dtype, usize::MAX);
                let (more, found) = logits(&folder, scheme, dtype, 20_000);
                assert!(more > count, "nothing was split");
                let off = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(off < 1e-4, "{scheme:?} {dtype:?}: off by {off}");
            }
        }
    }
}
