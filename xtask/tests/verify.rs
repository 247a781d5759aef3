//! `cargo xtask verify --dump` as a command: what it writes has the recording's form.

use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::SafeTensors;
use serde_json::Value;

fn recording(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/golden").join(name)
}

/// Verifies a recording and gives what was dumped.
fn dump(recording: &Path) -> Vec<u8> {
    let work = tempfile::tempdir().expect("a temporary folder");
    let file = work.path().join("dump");
    let done = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["verify", "--device", "flex", "--case"])
        .arg(recording)
        .arg("--dump")
        .arg(&file)
        .output()
        .expect("a run");
    assert!(
        done.status.success(),
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    assert_eq!(std::fs::read_dir(work.path()).expect("a folder").count(), 1, "a partial file is left");
    std::fs::read(file).expect("a dump")
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// Everything dumped is recorded at the same place, learning rates to their last digits.
fn assert_recorded(at: &str, ours: &Value, recorded: &Value) {
    match (ours, recorded) {
        (Value::Object(parts), Value::Object(recorded)) => {
            for (key, part) in parts {
                assert_recorded(&format!("{at}/{key}"), part, recorded.get(key).expect(at));
            }
        }
        (Value::Array(parts), Value::Array(recorded)) => {
            assert_eq!(parts.len(), recorded.len(), "{at}");
            for (i, (part, recorded)) in parts.iter().zip(recorded).enumerate() {
                assert_recorded(&format!("{at}/{i}"), part, recorded);
            }
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().expect("a number"), b.as_f64().expect("a number"));
            assert!((a - b).abs() <= 1e-12 * b.abs(), "{at}: {a}, recorded {b}");
        }
        _ => assert_eq!(ours, recorded, "{at}"),
    }
}

#[test]
fn text_of_training_is_dumped_as_its_file() {
    let folder = recording("train_labels");
    let mut recorded = json(&std::fs::read(folder.join("train_labels.json")).expect("a recording"));
    let ours = json(&dump(&folder));
    assert_recorded("", &ours, &recorded);

    // Without inputs and notes nothing more is recorded.
    for name in ["laion_text_neox", "laion_text_opt"] {
        recorded[name].as_object_mut().expect(name).remove("captions");
    }
    let without = |part: &mut Value, names: &[&str]| {
        part.as_object_mut().expect("an object").retain(|key, _| !names.contains(&key.as_str()));
    };
    without(&mut recorded["mmc4"], &["note", "tokenizer", "image_pool"]);
    without(&mut recorded["labels"], &["texts", "ignore_index"]);
    for (group, given) in [
        ("/mmc4/docs", &["name", "kwargs", "first_random_draw", "sample"][..]),
        ("/gpt_interleaved", &["name", "kwargs", "info"]),
        ("/lr_schedules", &["kind", "warmup_steps", "total_steps", "base_lr"]),
    ] {
        let items = recorded.pointer_mut(group).and_then(Value::as_array_mut).expect(group);
        for item in items {
            without(item, given);
            if let Some(ok) = item.get_mut("ok") {
                without(ok, &["images_shape"]);
            }
        }
    }
    assert_recorded("", &recorded, &ours);
}

#[test]
fn evaluation_is_dumped_under_the_names_of_its_files() {
    let folder = recording("eval");
    let ours = json(&dump(&folder));
    let mut names: Vec<&str> = ours.as_object().expect("files").keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["cider", "e2e/mpt1b", "ok_vqa", "prompts", "rices", "roc_auc", "sampling", "vqa"]);
    for exact in ["ok_vqa", "prompts", "sampling"] {
        let recorded = json(&std::fs::read(folder.join(format!("{exact}.json"))).expect("a recording"));
        assert_recorded(exact, &ours[exact], &recorded);
    }
}

/// Models of two families, a tower and pictures: every tensor that is recorded, in the shape that is recorded.
#[test]
fn tensors_are_dumped_under_the_recordings_names() {
    for name in ["mpt1b", "opt350", "_clip/clip_a", "preprocess"] {
        let folder = recording(name);
        let bytes = std::fs::read(folder.join("golden.safetensors")).expect("a recording");
        let recorded = SafeTensors::deserialize(&bytes).expect("safetensors");
        let bytes = dump(&folder);
        let ours = SafeTensors::deserialize(&bytes).expect("safetensors");
        let inputs = ["input_ids", "attention_mask", "labels", "vision_x", "prompt_ids", "step_ids", "pixels"];
        let mut compared = 0;
        for (tensor, recorded) in recorded.iter() {
            if !inputs.contains(&tensor.rsplit('.').next().unwrap_or(tensor)) {
                let found = ours.tensor(tensor).unwrap_or_else(|_| panic!("{tensor} of {name} is missing"));
                assert_eq!(found.shape(), recorded.shape(), "{tensor} of {name}");
                compared += 1;
            }
        }
        assert!(compared > 5, "{name}");
    }
}
