//! `verify` itself: it notices what is wrong, and what it dumps reads back.

use std::path::{Path, PathBuf};

use flamingo_engine::Device;
use xtask::verify::{self, Outcome};

fn case() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/mpt1b")
}

#[test]
fn the_check_notices_wrong_numbers() {
    let case = case();
    let mut values = verify::compute(&case, Device::Flex).expect("values");
    let Some(verify::Value::Floats(logits)) = values.arrays.get_mut("right.logits") else { panic!("logits") };
    logits.data[0] += 0.1;
    let summary = verify::check(&case, &values, Device::Flex).expect("a summary");
    assert!(!summary.passed());
    assert_eq!(summary.rows.iter().filter(|r| r.outcome == Outcome::Fail).count(), 1);
    values.arrays.remove("right.loss");
    let summary = verify::check(&case, &values, Device::Flex).expect("a summary");
    assert_eq!(summary.rows.iter().filter(|r| r.outcome == Outcome::Fail).count(), 2);
}

#[test]
fn the_check_notices_wrong_gradients_losses_and_weights() {
    let case = case();
    let values = verify::compute(&case, Device::Flex).expect("values");
    assert!(verify::check(&case, &values, Device::Flex).expect("a summary").passed());
    for name in ["grad.perceiver.latents", "train.losses_mmc4", "train.grad_norms", "train.final.perceiver.latents"] {
        let mut wrong = values.clone();
        let Some(verify::Value::Floats(array)) = wrong.arrays.get_mut(name) else { panic!("{name}") };
        array.data.iter_mut().for_each(|x| *x *= 1.01);
        let summary = verify::check(&case, &wrong, Device::Flex).expect("a summary");
        assert!(summary.rows.iter().any(|row| row.name == name && row.outcome == Outcome::Fail), "{name}");
    }
}

#[test]
fn dumped_values_read_back_under_the_recordings_names() {
    let values = verify::compute(&case(), Device::Flex).expect("values");
    let work = tempfile::tempdir().expect("a temporary folder");
    let file = work.path().join("dump.safetensors");
    values.write(&file).expect("a dump");
    let bytes = std::fs::read(&file).expect("a dump");
    let dump = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(dump.names().len(), values.arrays.len());
    let logits = dump.tensor("right.logits").expect("logits");
    assert_eq!(logits.dtype(), safetensors::Dtype::F32);
    assert_eq!(dump.tensor("gen.3.sequences").expect("ids").dtype(), safetensors::Dtype::I32);
    assert_eq!(std::fs::read_dir(work.path()).expect("a folder").count(), 1, "a partial file is left");
}
