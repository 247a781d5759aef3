//! What the benches share: options, a model with random weights, PyTorch beside it.

// No bench uses all of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use flamingo_config::{DecoderConfig, ModelConfig};
use flamingo_engine::{Device, Precision};
use flamingo_weights::{Dtype, ModelFolder};

/// What was asked for.
pub struct Options {
    config: String,
    layers: Option<usize>,
    numbers: BTreeMap<String, usize>,
    /// The devices to run on.
    pub devices: Vec<Device>,
    /// The formats of the weights.
    pub precisions: Vec<Precision>,
    python: Option<String>,
}

/// A model folder with random weights; gone with this value.
pub struct RandomModel {
    _work: tempfile::TempDir,
    path: PathBuf,
    /// The folder.
    pub folder: Arc<ModelFolder>,
}

impl Options {
    /// Reads the command line; `numbers` are the options of this bench and their defaults.
    pub fn parse(numbers: &[(&str, usize)], config: &str) -> Self {
        let numbers = numbers.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        let mut options = Self {
            config: config.into(),
            layers: None,
            numbers,
            devices: Vec::new(),
            precisions: Vec::new(),
            python: None,
        };
        let mut given = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(name) = given.next() {
            let value = given.next().unwrap_or_else(|| panic!("{name} needs a value"));
            let number = || value.parse().unwrap_or_else(|_| panic!("{name} needs a number"));
            match name.trim_start_matches("--") {
                "config" => options.config = value,
                "layers" => options.layers = (value != "all").then(number),
                "device" => options.devices.push(value.parse().unwrap_or_else(|e| panic!("{e}"))),
                "precision" => options.precisions.push(value.parse().unwrap_or_else(|e| panic!("{e}"))),
                "torch" => options.python = Some(value),
                other => match options.numbers.get_mut(other) {
                    Some(slot) => *slot = number(),
                    None => panic!("unknown argument {name}"),
                },
            }
        }
        if options.devices.is_empty() {
            options.devices = flamingo_engine::compiled().iter().map(|name| name.parse().expect("a device")).collect();
        }
        if options.precisions.is_empty() {
            options.precisions.push(Precision::F32);
        }
        options
    }

    /// A number of this bench.
    pub fn number(&self, name: &str) -> usize {
        self.numbers[name]
    }

    /// The model that was asked for, with random weights.
    pub fn random_model(&self) -> RandomModel {
        let config = cut(xtask::convert::config(&self.config).expect("a config"), self.layers);
        let work = tempfile::tempdir().expect("a temporary folder");
        let (parts, path) = (work.path().join("parts"), work.path().join("model"));
        xtask::random::write(&config, Dtype::F32, 0, &parts).expect("random weights");
        let inputs = xtask::random::inputs(&parts);
        flamingo_weights::convert(&inputs, &config, Dtype::F32, &path, false, &[], &mut |_| {}).expect("a conversion");
        let folder = Arc::new(ModelFolder::open(&path).expect("a folder"));
        RandomModel { _work: work, path, folder }
    }

    /// Runs a script of benches/compare on the same shapes and reads these numbers from its answer.
    pub fn torch<const N: usize>(
        &self,
        script: &str,
        model: &RandomModel,
        numbers: &[&str],
        keys: [&str; N],
    ) -> Option<[f64; N]> {
        let shape = model.path.join("model.toml").display().to_string();
        self.script(script, &["--shape", &shape], numbers, keys)
    }

    /// Runs a script of benches/compare with these arguments and options of ours, and reads these numbers from its answer.
    pub fn script<const N: usize>(
        &self,
        script: &str,
        args: &[&str],
        numbers: &[&str],
        keys: [&str; N],
    ) -> Option<[f64; N]> {
        let python = self.python.as_ref()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare").join(script);
        let numbers = numbers.iter().flat_map(|name| [format!("--{name}"), self.number(name).to_string()]);
        let output = Command::new(python).arg(script).args(args).args(numbers).output().expect("Python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON from the script");
        Some(keys.map(|key| json[key].as_f64().unwrap_or_else(|| panic!("no {key} in {json}"))))
    }
}

/// The config with its towers cut to at most `layers` blocks.
fn cut(mut config: ModelConfig, layers: Option<usize>) -> ModelConfig {
    let Some(layers) = layers else { return config };
    config.vision.layers = config.vision.layers.min(layers);
    let n_layers = match &mut config.decoder {
        DecoderConfig::MosaicGpt(c) | DecoderConfig::Mpt(c) => &mut c.n_layers,
        DecoderConfig::GptNeox(c) => &mut c.n_layers,
        DecoderConfig::Opt(c) => &mut c.n_layers,
        DecoderConfig::Llama(c) => &mut c.n_layers,
        DecoderConfig::GptJ(c) => &mut c.n_layers,
        DecoderConfig::GptNeo(c) => {
            c.local_layers.truncate(layers);
            &mut c.n_layers
        }
    };
    *n_layers = (*n_layers).min(layers);
    config
}

/// The median of some seconds, in milliseconds.
pub fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2] * 1000.0
}

/// Prints a line of the table.
pub fn row(name: &str, values: &[f64]) {
    print!("{name:<28}");
    values.iter().for_each(|value| print!(" {value:>14.2}"));
    println!();
}

/// The process's peak memory so far; 0 where the system does not say.
pub fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}

/// As in the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
