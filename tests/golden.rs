//! Every recording on every backend of this build: the same numbers as upstream.

use std::path::Path;

use flamingo_engine::Device;
use xtask::verify::{self, Outcome};

use crate::recordings;

/// Recordings that the repository carries, so that this test says something wherever it runs.
fn carried() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

/// All folders with a recording below `folder`.
fn cases(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of recordings").flatten() {
        let path = entry.path();
        if ["case.json", "clip.json", "preprocess.json"].iter().any(|file| path.join(file).is_file()) {
            cases.push(path);
        } else if path.file_name().is_some_and(|name| name == "_clip") {
            cases.extend(self::cases(&path));
        }
    }
    cases.sort();
    cases
}

fn check(folder: &Path, device: Device) {
    for case in cases(folder) {
        let values = verify::compute(&case, device).unwrap_or_else(|e| panic!("{}: {e:#}", case.display()));
        let summary = verify::check(&case, &values, device).unwrap_or_else(|e| panic!("{}: {e:#}", case.display()));
        let failed: Vec<_> = summary.rows.iter().filter(|row| row.outcome == Outcome::Fail).collect();
        assert!(failed.is_empty(), "{} on {device}: {failed:#?}", case.display());
        assert!(summary.passed(), "{} on {device}: nothing was compared", case.display());
    }
}

/// Runs the recordings on a device, or says why not.
fn run(device: Device, backend: &str) {
    if !flamingo_engine::compiled().contains(&backend) {
        eprintln!("skipped: {backend} is not in this build (--features {backend})");
        return;
    }
    check(&carried(), device);
    if let Some(folder) = recordings() {
        check(&folder, device);
    }
}

#[test]
fn flex_gives_upstreams_numbers() {
    run(Device::Flex, "flex");
}

#[test]
fn ndarray_gives_upstreams_numbers() {
    run(Device::NdArray, "ndarray");
}

#[test]
fn wgpu_gives_upstreams_numbers() {
    run(Device::Wgpu(None), "wgpu");
}

#[test]
fn the_check_notices_wrong_numbers() {
    let Some(case) = cases(&carried()).into_iter().find(|case| case.join("case.json").is_file()) else {
        panic!("the repository carries a recorded model");
    };
    let mut values = verify::compute(&case, Device::Flex).expect("values");
    let Some(verify::Value::Floats(logits)) = values.0.get_mut("right.logits") else { panic!("logits") };
    logits.data[0] += 0.1;
    let summary = verify::check(&case, &values, Device::Flex).expect("a summary");
    assert!(!summary.passed());
    assert_eq!(summary.rows.iter().filter(|r| r.outcome == Outcome::Fail).count(), 1);
    values.0.remove("right.loss");
    let summary = verify::check(&case, &values, Device::Flex).expect("a summary");
    assert_eq!(summary.rows.iter().filter(|r| r.outcome == Outcome::Fail).count(), 2);
}

#[test]
fn dumped_values_read_back_under_the_recordings_names() {
    let Some(case) = cases(&carried()).into_iter().find(|case| case.join("case.json").is_file()) else {
        panic!("the repository carries a recorded model");
    };
    let values = verify::compute(&case, Device::Flex).expect("values");
    let work = tempfile::tempdir().expect("a temporary folder");
    let file = work.path().join("dump.safetensors");
    values.write(&file).expect("a dump");
    let bytes = std::fs::read(&file).expect("a dump");
    let dump = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(dump.names().len(), values.0.len());
    let logits = dump.tensor("right.logits").expect("logits");
    assert_eq!(logits.dtype(), safetensors::Dtype::F32);
    assert_eq!(dump.tensor("gen.3.sequences").expect("ids").dtype(), safetensors::Dtype::I32);
    assert_eq!(std::fs::read_dir(work.path()).expect("a folder").count(), 1, "a partial file is left");
}
