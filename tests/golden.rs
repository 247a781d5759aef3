//! Every recording on every backend: the same numbers as upstream; and quantised models. One test each, named `backend::recording`:
//! `cargo test --test golden flex` runs those of one backend.
//!
//! A backend that this build lacks, or whose device this machine lacks, is printed as ignored, and so are the recordings
//! that the repository does not carry. `FLAMINGO_REQUIRE` (`flex,wgpu,recordings`) makes that a failure.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use flamingo_config::{ModelConfig, Scheme};
use flamingo_engine::{Device, Pixels, Precision, Text, probe};
use flamingo_weights::{Dtype, Format, ModelFolder};
use libtest_mimic::{Arguments, Failed, Trial};
use xtask::verify::{self, Outcome};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    let (cases, missing) = recordings();
    if let Some(folder) = missing {
        trials.push(skipped("recordings", format!("there is no {}", folder.display())));
    }
    for (name, device) in [
        ("flex", Device::Flex),
        ("ndarray", Device::NdArray),
        ("wgpu", Device::Wgpu(None)),
        ("cuda", Device::Cuda(None)),
    ] {
        if let Err(error) = probe(device) {
            trials.push(skipped(name, error.to_string()));
            continue;
        }
        for (label, case) in &cases {
            let case = case.clone();
            trials.push(Trial::test(format!("{name}::{label}"), move || check(&case, device)));
        }
        for scheme in [Scheme::Q8, Scheme::Q4] {
            trials.push(Trial::test(format!("{name}::{scheme}"), move || quantised(scheme, device)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What is not there: printed as ignored, or a failure where it is required.
fn skipped(name: &str, reason: String) -> Trial {
    let required = std::env::var("FLAMINGO_REQUIRE").unwrap_or_default();
    let ignored = !required.split(',').any(|required| required == name);
    Trial::test(format!("{name} (skipped: {reason})"), move || Err(reason.into())).with_ignored_flag(ignored)
}

/// Recordings that the repository carries, so that this test says something wherever it runs, and the full set, with
/// their names; the folder of the full set where it is not at hand.
fn recordings() -> (Vec<(String, PathBuf)>, Option<PathBuf>) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = cases("carried", &here.join("tests/fixtures/golden"));
    assert!(!found.is_empty(), "the repository carries recordings");
    let all = std::env::var_os("FLAMINGO_GOLDEN").map_or_else(|| here.join("../shared/golden"), PathBuf::from);
    if !all.is_dir() {
        return (found, Some(all));
    }
    found.extend(cases("all", &all));
    (found, None)
}

/// All folders with a recording below `folder`, and their names.
fn cases(name: &str, folder: &Path) -> Vec<(String, PathBuf)> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of recordings").flatten() {
        let path = entry.path();
        let name = format!("{name}::{}", entry.file_name().display());
        if ["case.json", "clip.json", "preprocess.json", "train_labels.json", "prompts.json"]
            .iter()
            .any(|file| path.join(file).is_file())
        {
            cases.push((name, path));
        } else if entry.file_name() == "_clip" {
            cases.extend(self::cases(&name, &path));
        }
    }
    cases.sort();
    cases
}

fn check(case: &Path, device: Device) -> Result<(), Failed> {
    let values = verify::compute(case, device).map_err(|e| format!("{e:#}"))?;
    let summary = verify::check(case, &values, device).map_err(|e| format!("{e:#}"))?;
    let failed: Vec<_> = summary.rows.iter().filter(|row| row.outcome == Outcome::Fail).collect();
    if !failed.is_empty() {
        return Err(format!("{failed:#?}").into());
    }
    // Only wgpu does not train.
    let left: Vec<_> = summary.rows.iter().filter(|row| row.outcome == Outcome::NotYetComputed).collect();
    if !left.is_empty() && !matches!(device, Device::Wgpu(_)) {
        return Err(format!("not computed: {left:#?}").into());
    }
    if summary.passed() { Ok(()) } else { Err("nothing was compared".into()) }
}

/// A quantised model gives what the numbers that its codes stand for give, whether the folder is quantised or loading is.
fn quantised(scheme: Scheme, device: Device) -> Result<(), Failed> {
    let config = ModelConfig::from_toml(include_str!("quantised.toml")).map_err(|e| e.to_string())?;
    let work = tempfile::tempdir()?;
    let parts = work.path().join("parts");
    xtask::random::write(&config, Dtype::F32, 1, &parts).map_err(|e| format!("{e:#}"))?;
    let convert = |name: &str, format: Format| -> Result<Arc<ModelFolder>, Failed> {
        let out = work.path().join(name);
        flamingo_weights::convert(&xtask::random::inputs(&parts), &config, format, &out, false, &[], &mut |_| {})?;
        Ok(Arc::new(ModelFolder::open(&out)?))
    };
    let whole = convert("whole", Dtype::F32.into())?;
    let folder = convert("quantised", Format { dtype: Dtype::F32, scheme: Some(scheme) })?;
    let side = config.vision.image_size;
    let data = (0..2 * 3 * side * side).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    let pixels = Pixels { rows: 1, images: 2, frames: 1, side, data };
    let ids = [config.tokens.image, 1, 2, config.tokens.endofchunk, config.tokens.image, 3, 4].to_vec();
    let text = Text::new(1, ids.clone(), vec![true; ids.len()]);
    let logits = |folder: &Arc<ModelFolder>, precision: Option<Precision>| -> Result<Vec<f32>, Failed> {
        let engine = flamingo_engine::open(folder, device, precision)?;
        Ok(engine.forward(&text, Some(&pixels), None, false)?.logits.data)
    };
    let farthest = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let exact = logits(&folder, Some(Precision::F32))?;
    for found in [logits(&folder, None)?, logits(&whole, Some(Precision::Quantised(scheme)))?] {
        let far = farthest(&found, &exact);
        // On flex what stays numbers is f16 beside quantised matrices, in the folder f32.
        if far > 2e-3 {
            return Err(format!("logits differ by {far}").into());
        }
    }
    // It is quantised: not what it was.
    if farthest(&exact, &logits(&whole, Some(Precision::F32))?) < 1e-3 {
        return Err("nothing was quantised".into());
    }
    Ok(())
}
