//! Times vision encoding, resampler, prefill and decode on each backend of this build.
//!
//! `cargo bench --bench forward -- [--config NAME|model.toml] [--layers N] [--tokens N] [--images N] [--runs N]
//! [--decode N] [--device D]… [--torch PYTHON]`. Weights are random. `--torch` also runs upstream's PyTorch on the
//! same shapes (benches/compare) and prints ratios: above 1, ours is faster.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use flamingo_config::{DecoderConfig, ModelConfig};
use flamingo_engine::{Device, Pixels, Precision, Text, Timings};
use flamingo_weights::{Dtype, ModelFolder};

struct Args {
    config: String,
    layers: Option<usize>,
    tokens: usize,
    images: usize,
    runs: usize,
    decode: usize,
    devices: Vec<Device>,
    torch: Option<String>,
}

fn args() -> Args {
    let mut args = Args {
        config: "openflamingo-3b".into(),
        layers: Some(2),
        tokens: 256,
        images: 1,
        runs: 5,
        decode: 16,
        devices: Vec::new(),
        torch: None,
    };
    let mut given = std::env::args().skip(1).filter(|arg| arg != "--bench");
    while let Some(name) = given.next() {
        let value = given.next().unwrap_or_else(|| panic!("{name} needs a value"));
        let number = || value.parse().unwrap_or_else(|_| panic!("{name} needs a number"));
        match name.as_str() {
            "--config" => args.config = value,
            "--layers" => args.layers = (value != "all").then(number),
            "--tokens" => args.tokens = number(),
            "--images" => args.images = number(),
            "--runs" => args.runs = number(),
            "--decode" => args.decode = number(),
            "--device" => args.devices.push(value.parse().unwrap_or_else(|e| panic!("{e}"))),
            "--torch" => args.torch = Some(value),
            other => panic!("unknown argument {other}"),
        }
    }
    if args.devices.is_empty() {
        args.devices = flamingo_engine::compiled().iter().map(|name| name.parse().expect("a device")).collect();
    }
    args
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

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2] * 1000.0
}

fn main() {
    let args = args();
    let config = cut(xtask::convert::config(&args.config).expect("a config"), args.layers);
    let work = tempfile::tempdir().expect("a temporary folder");
    let (parts, out) = (work.path().join("parts"), work.path().join("model"));
    xtask::random::write(&config, Dtype::F32, 0, &parts).expect("random weights");
    let inputs = xtask::random::inputs(&parts);
    flamingo_weights::convert(&inputs, &config, Dtype::F32, &out, false, &[], &mut |_| {}).expect("a conversion");
    let folder = Arc::new(ModelFolder::open(&out).expect("a folder"));

    let side = config.vision.image_size;
    let size = args.images * 3 * side * side;
    let data = (0..size).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    let pixels = Pixels { rows: 1, images: args.images, frames: 1, side, data };
    let mut ids: Vec<u32> = (0..args.tokens).map(|i| (i * 31 % config.tokens.base_rows()) as u32).collect();
    for image in 0..args.images {
        ids[image * args.tokens / args.images] = config.tokens.image;
    }
    let text = Text::new(1, ids, vec![true; args.tokens]);

    println!(
        "{} cut to {} blocks, {} image(s), {} tokens, median of {} runs, ms",
        config.name,
        config.decoder.architecture().n_layers,
        args.images,
        args.tokens,
        args.runs
    );
    let row = |name: &str, values: [f64; 4]| {
        println!("{name:<28} {:>10.1} {:>10.1} {:>10.1} {:>13.2}", values[0], values[1], values[2], values[3]);
    };
    println!("{:<28} {:>10} {:>10} {:>10} {:>13}", "", "vision", "resampler", "prefill", "decode/token");
    let mut ours = Vec::new();
    for device in &args.devices {
        let engine = match flamingo_engine::open(&folder, *device, Precision::F32) {
            Ok(engine) => engine,
            Err(error) => {
                println!("{device}: skipped: {error}");
                continue;
            }
        };
        engine.time(&text, &pixels, args.decode).expect("a warm-up");
        let runs: Vec<Timings> =
            (0..args.runs).map(|_| engine.time(&text, &pixels, args.decode).expect("timings")).collect();
        let stage =
            |stage: fn(&Timings) -> std::time::Duration| median(runs.iter().map(|t| stage(t).as_secs_f64()).collect());
        let values = [stage(|t| t.vision), stage(|t| t.resampler), stage(|t| t.prefill), stage(|t| t.decode)];
        row(engine.device(), values);
        ours.push((engine.device().to_string(), values));
    }
    let Some(python) = &args.torch else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/compare/torch_bench.py");
    let output = Command::new(python)
        .arg(script)
        .args(["--shape", &folder_toml(&out), "--tokens", &args.tokens.to_string()])
        .args(["--images", &args.images.to_string(), "--runs", &args.runs.to_string()])
        .args(["--decode-tokens", &args.decode.to_string()])
        .output()
        .expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON from torch_bench.py");
    let theirs = ["vision_ms", "resampler_ms", "prefill_ms", "decode_ms_per_token"]
        .map(|key| json[key].as_f64().expect("a time"));
    row("PyTorch, CPU", theirs);
    for (name, values) in ours {
        row(&format!("ratio, {name}"), std::array::from_fn(|i| theirs[i] / values[i]));
    }
}

/// The path of the cut config.
fn folder_toml(model: &Path) -> String {
    model.join("model.toml").display().to_string()
}
