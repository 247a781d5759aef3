//! Devices by name, probed before they are used: a missing driver is a sentence, not a panic.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use flamingo_config::{ModelConfig, Scheme};
use flamingo_kernels::{Gradients, Kernels};
use flamingo_train::Part;
use flamingo_weights::ModelFolder;

use crate::contrastive::{BurnContrastive, ContrastiveOptions};
use crate::engine::{BurnEngine, Engine, guard};
use crate::load::{Format, burn_dtype, load, random};
use crate::training::{BurnTraining, Training, TrainingOptions};
use crate::{Dtype, EngineError, Precision};

/// A device as a user names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Device {
    /// The best there is: CUDA, else a real GPU through wgpu, else the CPU. Never a software GPU.
    #[default]
    Auto,
    /// The CPU, through burn-flex.
    Flex,
    /// The CPU, through burn-ndarray.
    NdArray,
    /// A GPU through wgpu (Vulkan, Metal, DirectX 12), by its place in the list of adapters.
    Wgpu(Option<usize>),
    /// An NVIDIA GPU, by its number.
    Cuda(Option<usize>),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => {
                let index = index.parse().map_err(|_| format!("`{index}` in `{text}` is not a number"))?;
                (name, Some(index))
            }
            None => (text, None),
        };
        match (name, index) {
            ("auto", None) => Ok(Self::Auto),
            ("flex", None) => Ok(Self::Flex),
            ("ndarray", None) => Ok(Self::NdArray),
            ("wgpu", index) => Ok(Self::Wgpu(index)),
            ("cuda", index) => Ok(Self::Cuda(index)),
            _ => Err(format!("unknown device `{text}`: auto, flex, ndarray, wgpu[:N] or cuda[:N]")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Flex => write!(f, "flex"),
            Self::NdArray => write!(f, "ndarray"),
            Self::Wgpu(None) => write!(f, "wgpu"),
            Self::Wgpu(Some(index)) => write!(f, "wgpu:{index}"),
            Self::Cuda(None) => write!(f, "cuda"),
            Self::Cuda(Some(index)) => write!(f, "cuda:{index}"),
        }
    }
}

/// Names of the backends in this build.
pub fn compiled() -> Vec<&'static str> {
    [
        ("flex", cfg!(feature = "flex")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("wgpu", cfg!(feature = "wgpu")),
        ("cuda", cfg!(feature = "cuda")),
    ]
    .into_iter()
    .filter_map(|(name, there)| there.then_some(name))
    .collect()
}

/// Whether a device can be used.
///
/// # Errors
/// [`EngineError::Device`] if it is not compiled in or not there.
pub fn probe(device: Device) -> Result<(), EngineError> {
    let (name, there) = match device {
        Device::Auto => return Ok(()),
        Device::Flex => ("flex", cfg!(feature = "flex")),
        Device::NdArray => ("ndarray", cfg!(feature = "ndarray")),
        #[cfg(feature = "wgpu")]
        Device::Wgpu(index) => return wgpu_adapters::find(index).map(|_| ()),
        #[cfg(not(feature = "wgpu"))]
        Device::Wgpu(_) => ("wgpu", false),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => return cuda::find(index).map(|_| ()),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => ("cuda", false),
    };
    if there { Ok(()) } else { Err(absent(name)) }
}

/// A device that is there.
#[derive(Clone, Debug)]
pub struct Found {
    /// How a user names it.
    pub device: Device,
    /// What it is.
    pub name: String,
    /// Whether [`Device::Auto`] stands for it.
    pub auto: bool,
    /// Its memory in bytes, where it tells and has its own.
    pub memory: Option<u64>,
    /// Bytes of its largest buffer, where there is such a limit.
    pub largest_buffer: Option<u64>,
    /// Formats that weights may have on it.
    pub formats: Vec<Dtype>,
    /// Instructions of the processor that kernels here ask for, and whether it has them.
    pub instructions: Vec<(&'static str, bool)>,
}

/// Looks for devices: for each backend those that it can use, or why there are none.
pub fn survey() -> Vec<(&'static str, Result<Vec<Found>, EngineError>)> {
    let mut all = vec![
        ("flex", survey_flex()),
        ("ndarray", survey_ndarray()),
        ("wgpu", guard(survey_wgpu)),
        ("cuda", guard(survey_cuda)),
    ];
    let best = match best() {
        Device::Cuda(None) => Device::Cuda(Some(0)),
        best => best,
    };
    for found in all.iter_mut().filter_map(|(_, found)| found.as_mut().ok()).flatten() {
        found.auto = found.device == best;
    }
    all
}

/// A device of a backend without limits of its own.
fn found<B: Kernels>(device: Device, name: String, handle: &B::Device) -> Found {
    let formats = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    Found {
        device,
        name,
        auto: false,
        memory: None,
        largest_buffer: None,
        formats: formats.into_iter().filter(|&dtype| B::supports_dtype(handle, burn_dtype(dtype))).collect(),
        instructions: Vec::new(),
    }
}

/// Where a model's weights come from.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// A folder.
    Folder(&'a Arc<ModelFolder>),
    /// Nowhere: random numbers made on the device, to measure time and memory at a size.
    Random(&'a ModelConfig),
}

/// Loads a model onto a device. Without a precision, quantised matrices stay so, and numbers are f32; flex computes in
/// that whatever they are stored as, so there they stay as they are, too.
///
/// # Errors
/// [`EngineError::Device`] if the device is not compiled in or not there, [`EngineError::Weights`] if the
/// weights do not fit the model.
pub fn open(
    folder: &Arc<ModelFolder>,
    device: Device,
    precision: impl Into<Option<Precision>>,
) -> Result<Box<dyn Engine>, EngineError> {
    let device = if device == Device::Auto { best() } else { device };
    let precision = precision.into().unwrap_or_else(|| match folder.precision() {
        Precision::Plain(_) if device != Device::Flex => Precision::F32,
        stored => stored,
    });
    open_weights(Weights::Folder(folder), device, precision)
}

/// [`open`] of weights from anywhere.
///
/// # Errors
/// As [`open`].
pub fn open_weights(weights: Weights, device: Device, precision: Precision) -> Result<Box<dyn Engine>, EngineError> {
    match device {
        Device::Auto => open_weights(weights, best(), precision),
        Device::Flex => open_flex(weights, precision),
        Device::NdArray => open_ndarray(weights, precision),
        Device::Wgpu(index) => open_wgpu(weights, index, precision),
        Device::Cuda(index) => open_cuda(weights, index, precision),
    }
}

/// What `auto` stands for on this machine.
fn best() -> Device {
    #[cfg(feature = "cuda")]
    if cuda::devices().is_ok_and(|count| count > 0) {
        return Device::Cuda(None);
    }
    #[cfg(feature = "wgpu")]
    if wgpu_adapters::plausible()
        && let Some(index) = wgpu_adapters::list().iter().position(|adapter| adapter.is_gpu())
    {
        return Device::Wgpu(Some(index));
    }
    if cfg!(feature = "flex") { Device::Flex } else { Device::NdArray }
}

/// Loads a model onto a device to train it.
///
/// # Errors
/// As [`open`]; [`EngineError::Device`] for a backend that does not train.
pub fn open_training(
    folder: &Arc<ModelFolder>,
    device: Device,
    options: &TrainingOptions,
) -> Result<Box<dyn Training>, EngineError> {
    open_training_weights(Weights::Folder(folder), device, options)
}

/// [`open_training`] of weights from anywhere.
///
/// # Errors
/// As [`open_training`].
pub fn open_training_weights(
    weights: Weights,
    device: Device,
    options: &TrainingOptions,
) -> Result<Box<dyn Training>, EngineError> {
    on_device(device, Flamingos { weights, options })
}

/// Loads a model's vision tower onto a device to train it beside a text tower with random weights. Its
/// [`Training::backward`] takes one picture a text and no labels; the tower's weights are those named `vision.…`.
///
/// # Errors
/// As [`open_training`].
pub fn open_contrastive(
    folder: &Arc<ModelFolder>,
    device: Device,
    options: &ContrastiveOptions,
) -> Result<Box<dyn Training>, EngineError> {
    on_device(device, Towers { folder, options })
}

/// What opens a training once the backend is known.
trait Opens {
    fn open<B: Gradients>(self, device: B::Device, name: String) -> Result<Box<dyn Training>, EngineError>;
}

struct Flamingos<'a> {
    weights: Weights<'a>,
    options: &'a TrainingOptions,
}

impl Opens for Flamingos<'_> {
    fn open<B: Gradients>(self, device: B::Device, name: String) -> Result<Box<dyn Training>, EngineError> {
        let dtype = self.options.precision;
        let trains = |name: &str| Part::trains(&self.options.parts, name);
        let engine =
            ready::<burn_autodiff::Autodiff<B>>(self.weights, device, name, Stored::plain(dtype), dtype, &trains)?;
        Ok(Box::new(BurnTraining::new(engine, self.options)))
    }
}

struct Towers<'a> {
    folder: &'a Arc<ModelFolder>,
    options: &'a ContrastiveOptions,
}

impl Opens for Towers<'_> {
    fn open<B: Gradients>(self, device: B::Device, _: String) -> Result<Box<dyn Training>, EngineError> {
        Ok(Box::new(BurnContrastive::<burn_autodiff::Autodiff<B>>::new(self.folder, self.options, device)?))
    }
}

fn on_device(device: Device, opens: impl Opens) -> Result<Box<dyn Training>, EngineError> {
    probe(device)?;
    let device = match device {
        // Training on wgpu is not there: what `auto` finds for inference may not do.
        Device::Auto => match best() {
            Device::Wgpu(_) => Device::Flex,
            best => best,
        },
        named => named,
    };
    guard(|| match device {
        #[cfg(feature = "flex")]
        Device::Flex => opens.open::<burn_flex::Flex>(burn_flex::FlexDevice, "CPU (flex)".into()),
        #[cfg(feature = "ndarray")]
        Device::NdArray => {
            opens.open::<burn_ndarray::NdArray>(burn_ndarray::NdArrayDevice::Cpu, "CPU (ndarray)".into())
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => {
            let index = cuda::find(index)?;
            opens.open::<burn_cuda::Cuda>(burn_cuda::CudaDevice { index }, format!("cuda:{index}"))
        }
        other => Err(EngineError::Device(format!("there is no training on {other}: use flex, ndarray or cuda"))),
    })
}

/// What weights are on a device.
#[derive(Clone, Copy)]
struct Stored {
    scheme: Option<Scheme>,
    /// The format of what is numbers.
    dtype: Dtype,
    /// The format of scales.
    scales: Dtype,
    /// Words of 32 bits that a buffer holds at most.
    words: usize,
}

impl Stored {
    fn plain(dtype: Dtype) -> Self {
        Self { scheme: None, dtype, scales: dtype, words: usize::MAX }
    }

    /// Beside quantised matrices numbers are `others`.
    fn new(precision: Precision, others: Dtype, scales: Dtype) -> Self {
        match precision {
            Precision::Plain(dtype) => Self::plain(dtype),
            Precision::Quantised(scheme) => Self { scheme: Some(scheme), dtype: others, scales, words: usize::MAX },
        }
    }
}

#[cfg(any(feature = "flex", feature = "ndarray", feature = "wgpu", feature = "cuda"))]
fn start<B: Kernels>(
    weights: Weights,
    device: B::Device,
    name: String,
    stored: Stored,
    compute: Dtype,
) -> Result<Box<dyn Engine>, EngineError> {
    guard(|| {
        let engine: Box<dyn Engine> = Box::new(ready::<B>(weights, device, name, stored, compute, &|_| false)?);
        Ok(engine)
    })
}

/// A model with weights stored in one way, but for those that stay in f32, that computes in some format.
fn ready<B: Kernels>(
    weights: Weights,
    device: B::Device,
    name: String,
    stored: Stored,
    compute: Dtype,
    stays_f32: &dyn Fn(&str) -> bool,
) -> Result<BurnEngine<B>, EngineError> {
    let Stored { scheme, dtype, scales, words } = stored;
    if !B::supports_dtype(&device, burn_dtype(dtype)) {
        return Err(EngineError::Device(format!("{name} does not compute in {dtype}: use --precision f32")));
    }
    let dtype = |name: &str, dimensions: usize| match name {
        _ if stays_f32(name) => Dtype::F32,
        // Norms, biases and gates are little and read at each use: as they are computed with.
        _ if dimensions == 1 && compute == Dtype::F32 => Dtype::F32,
        _ if scheme.is_some() && name.ends_with(".scales") => scales,
        _ => dtype,
    };
    let format = Format { scheme, dtype: &dtype, words };
    let (mut model, config) = match weights {
        Weights::Folder(folder) => (load::<B>(folder, format, &device)?, folder.config()),
        Weights::Random(config) => (random::<B>(config, format, &device), config),
    };
    model.compute = Some(burn_dtype(compute));
    // What loading took beside the weights is the system's again.
    B::memory_cleanup(&device);
    let precision = scheme.map_or(Precision::Plain(stored.dtype), Precision::Quantised);
    tracing::debug!(device = name, %precision, "model loaded");
    Ok(BurnEngine { model, config: config.clone(), device, precision, compute, name })
}

/// The sentence for a backend that is not in this build.
fn absent(name: &str) -> EngineError {
    EngineError::Device(format!(
        "this build has no {name} backend (it has: {}); rebuild with `--features {name}`",
        compiled().join(", ")
    ))
}

#[cfg(feature = "flex")]
fn open_flex(weights: Weights, precision: Precision) -> Result<Box<dyn Engine>, EngineError> {
    // Fewer bits save memory and its bandwidth; a CPU computes in f32. Beside quantised matrices numbers stay as they are.
    let others = match weights {
        Weights::Folder(folder) if folder.precision().scheme().is_some() => folder.dtype(),
        _ => Dtype::F16,
    };
    let stored = Stored::new(precision, others, Dtype::F16);
    start::<burn_flex::Flex>(weights, burn_flex::FlexDevice, "CPU (flex)".into(), stored, Dtype::F32)
}

#[cfg(feature = "flex")]
fn survey_flex() -> Result<Vec<Found>, EngineError> {
    // As lanes.rs, fixed.rs and halves.rs of flamingo-kernels ask.
    #[cfg(target_arch = "x86_64")]
    let instructions = vec![
        (
            "AVX2",
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"),
        ),
        ("AVX-512", is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")),
        ("AVX-512 VNNI", is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vnni")),
        ("AVX-512 BF16", flamingo_kernels::flex::multiplies_bf16()),
    ];
    #[cfg(target_arch = "aarch64")]
    let instructions = vec![("NEON", true)];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let instructions = Vec::new();
    let name = format!("the CPU, {} threads", rayon::current_num_threads());
    Ok(vec![Found { instructions, ..found::<burn_flex::Flex>(Device::Flex, name, &burn_flex::FlexDevice) }])
}

#[cfg(not(feature = "flex"))]
fn open_flex(_: Weights, _: Precision) -> Result<Box<dyn Engine>, EngineError> {
    Err(absent("flex"))
}

#[cfg(not(feature = "flex"))]
fn survey_flex() -> Result<Vec<Found>, EngineError> {
    Err(absent("flex"))
}

#[cfg(feature = "ndarray")]
fn open_ndarray(weights: Weights, precision: Precision) -> Result<Box<dyn Engine>, EngineError> {
    let (device, name) = (burn_ndarray::NdArrayDevice::Cpu, "CPU (ndarray)".into());
    let stored = Stored::new(precision, Dtype::F32, Dtype::F32);
    start::<burn_ndarray::NdArray>(weights, device, name, stored, stored.dtype)
}

#[cfg(feature = "ndarray")]
fn survey_ndarray() -> Result<Vec<Found>, EngineError> {
    let cpu = burn_ndarray::NdArrayDevice::Cpu;
    let name = format!("the CPU, {} threads", rayon::current_num_threads());
    Ok(vec![found::<burn_ndarray::NdArray>(Device::NdArray, name, &cpu)])
}

#[cfg(not(feature = "ndarray"))]
fn survey_ndarray() -> Result<Vec<Found>, EngineError> {
    Err(absent("ndarray"))
}

#[cfg(not(feature = "ndarray"))]
fn open_ndarray(_: Weights, _: Precision) -> Result<Box<dyn Engine>, EngineError> {
    Err(absent("ndarray"))
}

#[cfg(feature = "wgpu")]
fn open_wgpu(weights: Weights, index: Option<usize>, precision: Precision) -> Result<Box<dyn Engine>, EngineError> {
    let adapter = wgpu_adapters::find(index)?;
    let stored = Stored { words: adapter.words, ..Stored::new(precision, Dtype::F32, Dtype::F32) };
    start::<burn_wgpu::Wgpu>(weights, adapter.device, format!("{} (wgpu)", adapter.name), stored, stored.dtype)
}

#[cfg(feature = "wgpu")]
fn survey_wgpu() -> Result<Vec<Found>, EngineError> {
    wgpu_adapters::find(None)?;
    let adapters = wgpu_adapters::list().into_iter().enumerate();
    let described = adapters.map(|(index, adapter)| {
        let kind = if adapter.is_gpu() { "" } else { ", software on the CPU" };
        let name = format!("{}{kind}", adapter.name);
        Found {
            largest_buffer: Some(adapter.words as u64 * 4),
            ..found::<burn_wgpu::Wgpu>(Device::Wgpu(Some(index)), name, &adapter.device)
        }
    });
    Ok(described.collect())
}

#[cfg(not(feature = "wgpu"))]
fn survey_wgpu() -> Result<Vec<Found>, EngineError> {
    Err(absent("wgpu"))
}

#[cfg(not(feature = "wgpu"))]
fn open_wgpu(_: Weights, _: Option<usize>, _: Precision) -> Result<Box<dyn Engine>, EngineError> {
    Err(absent("wgpu"))
}

#[cfg(feature = "cuda")]
fn open_cuda(weights: Weights, index: Option<usize>, precision: Precision) -> Result<Box<dyn Engine>, EngineError> {
    let index = cuda::find(index)?;
    let stored = Stored::new(precision, Dtype::Bf16, Dtype::F16);
    start::<burn_cuda::Cuda>(weights, burn_cuda::CudaDevice { index }, format!("cuda:{index}"), stored, stored.dtype)
}

#[cfg(feature = "cuda")]
fn survey_cuda() -> Result<Vec<Found>, EngineError> {
    cuda::find(None)?;
    let gpus = 0..cuda::devices().map_err(EngineError::Device)?;
    let described = gpus.map(|index| {
        let (name, memory) = cuda::describe(index).map_or(("an NVIDIA GPU".into(), None), |(n, m)| (n, Some(m)));
        let device = burn_cuda::CudaDevice { index };
        Found { memory, ..found::<burn_cuda::Cuda>(Device::Cuda(Some(index)), name, &device) }
    });
    Ok(described.collect())
}

#[cfg(not(feature = "cuda"))]
fn survey_cuda() -> Result<Vec<Found>, EngineError> {
    Err(absent("cuda"))
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: Weights, _: Option<usize>, _: Precision) -> Result<Box<dyn Engine>, EngineError> {
    Err(absent("cuda"))
}

#[cfg(feature = "wgpu")]
mod wgpu_adapters {
    //! The adapters that wgpu sees, real GPUs first.

    use burn_wgpu::WgpuDevice;
    use burn_wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
    use wgpu::DeviceType;

    use crate::EngineError;

    pub(super) struct Adapter {
        pub(super) device: WgpuDevice,
        pub(super) name: String,
        /// Words of 32 bits that a kernel's buffer has at most.
        pub(super) words: usize,
    }

    impl Adapter {
        /// Whether this is hardware rather than a CPU that plays one.
        pub(super) fn is_gpu(&self) -> bool {
            !matches!(self.device, WgpuDevice::Cpu)
        }
    }

    /// Whether it is worth asking. A GPU on Linux has a device node; without one, loading every Vulkan driver would
    /// only cost time and let them complain on stderr.
    pub(super) fn plausible() -> bool {
        let nodes = ["/dev/dri", "/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-ctrl", "/dev/dxg", "/dev/mali0"];
        !cfg!(target_os = "linux") || nodes.iter().any(|node| std::path::Path::new(node).exists())
    }

    /// The adapter at a place in the list, the first unless said.
    ///
    /// # Errors
    /// [`EngineError::Device`] if there is none.
    pub(super) fn find(index: Option<usize>) -> Result<Adapter, EngineError> {
        let mut adapters = list();
        let (index, count) = (index.unwrap_or(0), adapters.len());
        if index < count {
            return Ok(adapters.swap_remove(index));
        }
        Err(EngineError::Device(match count {
            0 => "no GPU was found through wgpu: install a Vulkan driver, or use --device flex".into(),
            _ => format!("there is no wgpu:{index}; adapters: wgpu:0 to wgpu:{}", count - 1),
        }))
    }

    /// Discrete, integrated and virtual GPUs, then software adapters.
    pub(super) fn list() -> Vec<Adapter> {
        let backends = AutoGraphicsApi::backend().into();
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
            backends,
            ..wgpu::InstanceDescriptor::new_without_display_handle()
        });
        let found = pollster::block_on(instance.enumerate_adapters(backends));
        let kinds = [DeviceType::DiscreteGpu, DeviceType::IntegratedGpu, DeviceType::VirtualGpu, DeviceType::Cpu];
        let mut adapters = Vec::new();
        for kind in kinds {
            for (index, adapter) in found.iter().filter(|a| a.get_info().device_type == kind).enumerate() {
                let device = match kind {
                    DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(index),
                    DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(index),
                    DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(index),
                    _ => WgpuDevice::Cpu,
                };
                let limits = adapter.limits();
                let bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
                let words = usize::try_from(bytes / 4).unwrap_or(usize::MAX);
                adapters.push(Adapter { device, name: adapter.get_info().name, words });
            }
        }
        adapters
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    //! Whether CUDA can be used: burn-cuda panics where it cannot.

    use std::panic::catch_unwind;
    use std::sync::Once;

    use libloading::{Library, Symbol};

    use crate::EngineError;

    /// The number of a device that is there, 0 unless said.
    ///
    /// # Errors
    /// [`EngineError::Device`] if it is not, or CUDA cannot be used.
    pub(super) fn find(index: Option<usize>) -> Result<usize, EngineError> {
        let (index, count) = (index.unwrap_or(0), devices().map_err(EngineError::Device)?);
        if index < count {
            KEPT.call_once(keep_kernels);
            return Ok(index);
        }
        Err(EngineError::Device(format!("there is no cuda:{index}: this machine has {count} CUDA device(s)")))
    }

    const COMPILERS: [&str; 5] =
        ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11", "nvrtc64_120_0.dll"];

    static KEPT: Once = Once::new();

    /// Has compiled kernels kept in the user's cache, apart for each kind of device and compiler: compiling takes longer than
    /// loading a model. CubeCL gives up where it cannot write them, so that is tried first.
    fn keep_kernels() {
        let keep = || -> Option<()> {
            let (kind, [major, minor]) = (kind()?, compiler()?);
            let folder = dirs::cache_dir()?.join(format!("openflamingo-rs/cuda/{kind}-nvrtc{major}.{minor}"));
            std::fs::create_dir_all(&folder).ok()?;
            let probe = folder.join(format!("writable-{}", std::process::id()));
            std::fs::write(&probe, [0; 1 << 16]).and_then(|()| std::fs::remove_file(&probe)).ok()?;
            flamingo_kernels::keep_compiled(&folder);
            Some(())
        };
        // A broken cubecl.toml is a panic, of which the device will tell.
        if !matches!(catch_unwind(keep), Ok(Some(()))) {
            tracing::debug!("compiled kernels are not kept");
        }
    }

    /// The version of CUDA's run-time compiler.
    fn compiler() -> Option<[i32; 2]> {
        let library = first(&COMPILERS)?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the function has this signature in every version, and what it writes outlives the call.
        let status = unsafe {
            let version: Symbol<unsafe extern "C" fn(*mut i32, *mut i32) -> i32> =
                library.get(b"nvrtcVersion\0").ok()?;
            version(&mut major, &mut minor)
        };
        (status == 0).then_some([major, minor])
    }

    /// The compute capability and the driver's version, "9.0-driver13000" for an H100; nothing where devices differ, as what
    /// is compiled for one does not run on another.
    fn kind() -> Option<String> {
        const MAJOR: i32 = 75;
        const MINOR: i32 = 76;
        let driver = driver()?;
        // SAFETY: the functions have these signatures in every driver, and what they write outlives the calls.
        unsafe {
            let device: Symbol<unsafe extern "C" fn(*mut i32, i32) -> i32> = driver.get(b"cuDeviceGet\0").ok()?;
            let attribute: Symbol<unsafe extern "C" fn(*mut i32, i32, i32) -> i32> =
                driver.get(b"cuDeviceGetAttribute\0").ok()?;
            let kind = |ordinal: usize| {
                let (mut handle, mut major, mut minor) = (0, 0, 0);
                let status = device(&mut handle, ordinal as i32)
                    | attribute(&mut major, MAJOR, handle)
                    | attribute(&mut minor, MINOR, handle);
                (status == 0).then(|| format!("{major}.{minor}"))
            };
            let version: Symbol<unsafe extern "C" fn(*mut i32) -> i32> = driver.get(b"cuDriverGetVersion\0").ok()?;
            let mut number = 0;
            if version(&mut number) != 0 {
                return None;
            }
            let kinds = (0..devices().ok()?).map(kind).collect::<Option<Vec<_>>>()?;
            let one = kinds.first()?;
            kinds.iter().all(|kind| kind == one).then(|| format!("{one}-driver{number}"))
        }
    }

    /// A device's name and its memory in bytes; [`devices`] has started the driver.
    pub(super) fn describe(index: usize) -> Option<(String, u64)> {
        let driver = driver()?;
        let ordinal = i32::try_from(index).ok()?;
        let (mut handle, mut name, mut memory) = (0, [0u8; 256], 0usize);
        // SAFETY: the functions have these signatures in every driver, and what they write outlives the calls; the name is
        // cut to the length that is given.
        let status = unsafe {
            let device: Symbol<unsafe extern "C" fn(*mut i32, i32) -> i32> = driver.get(b"cuDeviceGet\0").ok()?;
            let called: Symbol<unsafe extern "C" fn(*mut u8, i32, i32) -> i32> =
                driver.get(b"cuDeviceGetName\0").ok()?;
            let total: Symbol<unsafe extern "C" fn(*mut usize, i32) -> i32> =
                driver.get(b"cuDeviceTotalMem_v2\0").ok()?;
            match device(&mut handle, ordinal) {
                0 => called(name.as_mut_ptr(), name.len() as i32, handle) | total(&mut memory, handle),
                failed => failed,
            }
        };
        let name = std::ffi::CStr::from_bytes_until_nul(&name).ok()?.to_string_lossy().into_owned();
        (status == 0).then_some((name, memory as u64))
    }

    fn driver() -> Option<Library> {
        first(&["libcuda.so.1", "libcuda.so", "nvcuda.dll"])
    }

    /// Number of CUDA devices.
    ///
    /// # Errors
    /// One sentence: which library or device is missing.
    pub(super) fn devices() -> Result<usize, String> {
        let driver = driver()
            .ok_or("no CUDA driver was found: install NVIDIA's driver, or use --device wgpu or --device flex")?;
        first(&COMPILERS).ok_or("CUDA's run-time compiler (libnvrtc) was not found: install the CUDA toolkit")?;
        // SAFETY: both functions have these signatures in every driver that exports them, and `count` outlives
        // the call.
        let (status, count) = unsafe {
            let init: Symbol<unsafe extern "C" fn(u32) -> i32> =
                driver.get(b"cuInit\0").map_err(|_| "the CUDA driver is broken: it has no cuInit")?;
            let get: Symbol<unsafe extern "C" fn(*mut i32) -> i32> = driver
                .get(b"cuDeviceGetCount\0")
                .map_err(|_| "the CUDA driver is broken: it has no cuDeviceGetCount")?;
            let mut count = 0;
            let status = init(0);
            (if status == 0 { get(&mut count) } else { status }, count)
        };
        match (status, count) {
            (0, 1..) => Ok(count as usize),
            (0, _) => Err("the CUDA driver found no device: use --device wgpu or --device flex".into()),
            (status, _) => Err(format!("the CUDA driver failed to start (error {status})")),
        }
    }

    fn first(names: &[&str]) -> Option<Library> {
        // SAFETY: NVIDIA's libraries run no code of consequence when they are loaded.
        names.iter().find_map(|name| unsafe { Library::new(*name).ok() })
    }
}
