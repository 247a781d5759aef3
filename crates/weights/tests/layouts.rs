//! Recorded models, converted from every layout that they are stored in: bitwise the same weights.

use std::fs;
use std::path::{Path, PathBuf};

use flamingo_config::ModelConfig;
use flamingo_weights::{Dtype, Inputs, ModelFolder, Report, WeightsError, config_from_parts, convert};
use serde_json::Value;

use recordings::recorded;

#[path = "../../../tests/recordings.rs"]
mod recordings;

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).expect("a readable file")).expect("JSON")
}

struct Case {
    folder: PathBuf,
    clip: PathBuf,
    config: ModelConfig,
}

fn cases() -> Vec<Case> {
    let Some(golden) = recorded("") else { return Vec::new() };
    let mut cases = Vec::new();
    for entry in fs::read_dir(golden).expect("a folder of recordings") {
        let folder = entry.expect("a readable folder").path();
        if !folder.join("case.json").is_file() {
            continue;
        }
        let case = json(&folder.join("case.json"));
        let clip = folder.join(case["clip"].as_str().expect("a path"));
        let tower = json(&clip.join("clip.json"));
        let lm = json(&folder.join("lm/config.json"));
        let config = config_from_parts("case", &tower["config"], &lm, &case["flamingo"]).expect("a config");
        cases.push(Case { folder, clip, config });
    }
    assert!(cases.len() >= 10, "ten recorded models");
    cases
}

impl Case {
    fn inputs(&self) -> Inputs {
        Inputs {
            clip: self.clip.join("open_clip_pytorch_model.pt"),
            language_model: self.folder.join("lm"),
            checkpoint: self.folder.join("checkpoint.pt"),
        }
    }

    fn convert(&self, inputs: &Inputs) -> Result<(Vec<u8>, Report), WeightsError> {
        self.convert_to(inputs, Dtype::F32)
    }

    fn convert_to(&self, inputs: &Inputs, dtype: Dtype) -> Result<(Vec<u8>, Report), WeightsError> {
        let work = tempfile::tempdir().expect("a temporary folder");
        let out = work.path().join("model");
        let report = convert(inputs, &self.config, dtype, &out, false, &[], &mut |_| {})?;
        ModelFolder::open(&out)?;
        Ok((fs::read(out.join("model.safetensors")).expect("weights"), report))
    }
}

#[test]
fn every_layout_gives_the_same_weights() {
    for case in cases() {
        let first = case.inputs();
        let (expected, report) = case.convert(&first).expect("a conversion");
        assert!(report.initialised.is_empty(), "{}: {:?}", case.folder.display(), report.initialised);

        let mut others = Vec::new();
        for clip in ["hf", "hf/model.safetensors"] {
            others.push(Inputs { clip: case.clip.join(clip), ..first.clone() });
        }
        // A folder with pickles alone, single or sharded: links, so that only that layout is there to be found.
        let work = tempfile::tempdir().expect("a temporary folder");
        for (name, source, wanted) in [
            ("bin", "lm", ["pytorch_model.bin", ""]),
            ("sharded", "lm_sharded", ["model-", "model.safetensors.index.json"]),
            ("sharded_bin", "lm_sharded", ["pytorch_model-", "pytorch_model.bin.index.json"]),
        ] {
            let folder = work.path().join(name);
            fs::create_dir(&folder).expect("a folder");
            for entry in fs::read_dir(case.folder.join(source)).into_iter().flatten().flatten() {
                let file = entry.file_name().to_string_lossy().into_owned();
                let is_wanted = wanted.iter().any(|w| !w.is_empty() && file.starts_with(w));
                if is_wanted || file == "config.json" {
                    fs::copy(entry.path(), folder.join(file)).expect("a copy");
                }
            }
            if fs::read_dir(&folder).expect("a folder").count() > 1 {
                others.push(Inputs { language_model: folder, ..first.clone() });
            }
        }
        for inputs in others {
            let (weights, _) = case.convert(&inputs).unwrap_or_else(|e| panic!("{inputs:?}: {e}"));
            assert!(weights == expected, "{inputs:?} gives other weights");
        }

        // OpenAI's archive holds half-precision numbers: equal to the others where those are rounded.
        let archive = Inputs { clip: case.clip.join("openai_torchscript_fp16.pt"), ..first.clone() };
        let (rounded, _) = case.convert_to(&first, Dtype::F16).expect("a conversion");
        let (weights, _) = case.convert_to(&archive, Dtype::F16).expect("a conversion");
        assert!(weights == rounded, "{archive:?} gives other weights");
    }
}

#[test]
fn a_trainers_checkpoint_converts() {
    let mut seen = 0;
    let cases = cases();
    for case in &cases {
        let checkpoint = case.folder.join("checkpoint_trainer.pt");
        if !checkpoint.is_file() {
            continue;
        }
        seen += 1;
        let (released, _) = case.convert(&case.inputs()).expect("a conversion");
        let (trained, report) = case.convert(&Inputs { checkpoint, ..case.inputs() }).expect("a conversion");
        assert_eq!(released.len(), trained.len());
        assert!(released != trained, "three steps of training leave their mark");
        assert!(report.missing.is_empty() && report.unexpected.is_empty() && report.wrong_shape.is_empty());
    }
    assert!(cases.is_empty() || seen > 0);
}

#[test]
fn half_precision_rounds_and_halves() {
    for case in cases().into_iter().take(2) {
        let work = tempfile::tempdir().expect("a temporary folder");
        let mut sizes = Vec::new();
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            let out = work.path().join(dtype.to_string());
            convert(&case.inputs(), &case.config, dtype, &out, false, &[], &mut |_| {}).expect("a conversion");
            let folder = ModelFolder::open(&out).expect("a folder");
            let tensor = folder.tensor("resampler.latents").expect("a tensor");
            assert_eq!(tensor.dtype, dtype);
            sizes.push(tensor.bytes.len());
        }
        assert_eq!(sizes, [sizes[1] * 2, sizes[1], sizes[1]]);
    }
}

#[test]
fn a_config_of_another_model_is_refused() {
    let cases = cases();
    for case in &cases {
        let other = cases.iter().find(|other| other.config.decoder != case.config.decoder).expect("another model");
        let mut config = case.config.clone();
        config.decoder = other.config.decoder.clone();
        let work = tempfile::tempdir().expect("a temporary folder");
        let out = work.path().join("model");
        let error = convert(&case.inputs(), &config, Dtype::F32, &out, false, &[], &mut |_| {}).expect_err("an error");
        assert!(matches!(error, WeightsError::Mismatch(_)), "{error}");
        assert!(!out.exists());
    }
}
