//! `verify` itself: it notices what is wrong, and what it dumps reads back.

use std::path::{Path, PathBuf};

use flamingo_engine::Device;
use serde_json::{Value, json};
use xtask::verify::{self, Outcome};

fn recording(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden").join(name)
}

fn case() -> PathBuf {
    recording("mpt1b")
}

/// Names of the rows that fail.
fn failed(case: &Path, values: &verify::Values) -> Vec<String> {
    let summary = verify::check(case, values, Device::Flex).expect("a summary");
    summary.rows.into_iter().filter(|row| row.outcome == Outcome::Fail).map(|row| row.name).collect()
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

/// A rate of training is off by a hundred-thousandth of itself.
#[test]
fn the_check_notices_slightly_wrong_learning_rates() {
    let case = case();
    let values = verify::compute(&case, Device::Flex).expect("values");
    for step in [1, 2] {
        let mut wrong = values.clone();
        let Some(verify::Value::Floats(rates)) = wrong.arrays.get_mut("train.lrs") else { panic!("rates") };
        rates.data[step] *= 1.00001;
        assert_eq!(failed(&case, &wrong), ["train.lrs"]);
    }
}

/// Also what is recorded as a number of `case.json` only: this recording has no tensors of the first step's gradients.
#[test]
fn the_check_notices_what_of_training_is_not_computed() {
    let case = case();
    let mut values = verify::compute(&case, Device::Flex).expect("values");
    values.arrays.retain(|name, _| !name.starts_with("grad.") && !name.starts_with("train."));
    let failed = failed(&case, &values);
    for name in ["train.losses_laion", "train.losses_mmc4", "train.grad_norms", "train.lrs"] {
        assert!(failed.iter().any(|row| row == name), "{name}");
    }
    for group in ["grad.", "norm of grad.", "norm of train.grad0.", "train.final.", "norm of train.final."] {
        assert_eq!(failed.iter().filter(|row| row.starts_with(group)).count(), 70, "{group}");
    }
    // wgpu does not train, and says so.
    let summary = verify::check(&case, &values, Device::Wgpu(None)).expect("a summary");
    assert_eq!(summary.count(Outcome::NotYetComputed), failed.len());
}

#[test]
fn the_check_notices_wrong_and_missing_text_of_training() {
    let folder = recording("train_labels");
    let values = verify::compute(&folder, Device::Flex).expect("values");
    let summary = verify::check(&folder, &values, Device::Flex).expect("a summary");
    let rows: Vec<&verify::Row> = summary.rows.iter().filter(|row| row.outcome != Outcome::Pass).collect();
    assert!(rows.is_empty(), "{rows:#?}");

    let ids = "mmc4.docs.0.ok.input_ids";
    for (place, failing) in [
        ("/laion_text_opt", "laion_text_opt"),
        ("/laion_text_neox/max_tokens_12/attention_mask", "laion_text_neox.max_tokens_12.attention_mask"),
        ("/mmc4/docs/2/error", "mmc4.docs.2.error"),
        ("/mmc4/docs/0/ok/input_ids", ids),
        ("/labels/mmc4", "labels.mmc4"),
        ("/lr_schedules/3", "lr_schedules.3"),
    ] {
        let mut less = values.clone();
        let (parent, last) = place.rsplit_once('/').expect("a place");
        match less.files["train_labels"].pointer_mut(parent).expect(parent) {
            Value::Object(parts) => drop(parts.remove(last)),
            parts => parts[last.parse::<usize>().expect("a number")] = Value::Null,
        }
        assert_eq!(failed(&folder, &less), [failing]);
    }
    for (place, wrong, failing) in [
        ("/mmc4/docs/0/ok/input_ids/0", json!(35), ids),
        ("/mmc4/docs/7/error", json!("Fewer than 2 images in sample"), "mmc4.docs.7.error"),
        ("/lr_schedules/5/lrs/1", json!(2.50001e-5), "lr_schedules.5.lrs"),
    ] {
        let mut off = values.clone();
        *off.files["train_labels"].pointer_mut(place).expect(place) = wrong;
        assert_eq!(failed(&folder, &off), [failing]);
    }
    let mut more = values.clone();
    more.files["train_labels"]["mmc4"]["docs"][2]["ok"] = json!({});
    assert_eq!(failed(&folder, &more), ["mmc4.docs.2.ok"]);
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
