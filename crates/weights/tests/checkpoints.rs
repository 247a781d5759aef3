//! Spellings of checkpoints, what takes precedence over what, and what becomes of the output folder.

mod common;

use std::fs;
use std::path::Path;

use common::{Files, config, number, safetensors};
use flamingo_weights::{Dtype, ModelFolder, Report, TensorSpec, WeightsError, convert, upstream_tensors};
use serde_json::Value;

const PATH: &str = "lang_encoder.transformer.blocks.0.gated_cross_attn_layer.";
const FIRST: &str = "lang_encoder.gated_cross_attn_layers.0.";
const TABLE: &str = "lang_encoder.transformer.wte.weight";

/// The same table, in a model whose head is tied.
const HEAD: &str = "lang_encoder.lm_head.weight";

impl Files {
    /// Writes another checkpoint: names and shapes as `change` leaves them, numbers by upstream's names.
    fn checkpoint(&self, change: impl Fn(&mut Vec<TensorSpec>)) {
        let mut specs = upstream_tensors(&config()).checkpoint;
        change(&mut specs);
        let value = |name: &str, i: usize| {
            let name = name.strip_prefix("module.").unwrap_or(name).replace(".decoder_layer.", ".");
            number(&name.replace(FIRST, PATH).replace(HEAD, TABLE), i)
        };
        safetensors(&self.inputs.checkpoint, &specs, value);
    }

    fn report(&self) -> Result<Report, WeightsError> {
        convert(&self.inputs, &config(), Dtype::F32, &self.out(), true, &[], &mut |_| {})
    }

    fn weights(&self) -> Vec<u8> {
        self.report().expect("a conversion");
        fs::read(self.out().join("model.safetensors")).expect("weights")
    }
}

fn rename(specs: &mut [TensorSpec], from: &str, to: &str) {
    for spec in specs.iter_mut().filter(|spec| spec.name.starts_with(from)) {
        spec.name = spec.name.replacen(from, to, 1);
    }
}

#[test]
fn every_spelling_gives_the_same_weights() {
    let files = Files::good();
    let expected = files.weights();
    files.checkpoint(|specs| rename(specs, PATH, FIRST));
    assert!(files.weights() == expected, "the first releases' spelling");
    files.checkpoint(|specs| rename(specs, "", "module."));
    assert!(files.weights() == expected, "the trainer's prefix");
    files.checkpoint(|specs| rename(specs, TABLE, HEAD));
    assert!(files.weights() == expected, "frozen embeddings are left out, the head that shares their table is not");

    // The language model without the prefix that its bare form leaves out.
    let specs = upstream_tensors(&config()).language_model;
    let bare: Vec<TensorSpec> = specs
        .into_iter()
        .map(|spec| TensorSpec { name: spec.name.trim_start_matches("transformer.").into(), ..spec })
        .collect();
    let file = files.inputs.language_model.join("model.safetensors");
    safetensors(&file, &bare, |name, i| number(&format!("transformer.{name}"), i));
    files.checkpoint(|_| {});
    assert!(files.weights() == expected, "a bare language model");
}

#[test]
fn of_two_spellings_the_decoders_path_is_taken() {
    let files = Files::good();
    let expected = files.weights();
    let specs = upstream_tensors(&config()).checkpoint;
    let first = |spec: &TensorSpec| spec.name.strip_prefix(PATH).map(|rest| format!("{FIRST}{rest}"));
    let again = specs.iter().filter_map(|spec| Some(TensorSpec { name: first(spec)?, shape: spec.shape.clone() }));
    let old = TensorSpec { name: "lang_encoder.old_decoder_blocks.0.norm_1.weight".into(), shape: vec![16] };
    let all: Vec<TensorSpec> = specs.iter().cloned().chain(again).chain([old]).collect();
    let other = |name: &str, i: usize| if name.starts_with(FIRST) { 9.0 } else { number(name, i) };
    safetensors(&files.inputs.checkpoint, &all, other);
    assert!(files.weights() == expected);
    let report = files.report().expect("a conversion");
    for name in [format!("{FIRST}attn_gate"), "lang_encoder.old_decoder_blocks.0.norm_1.weight".into()] {
        assert!(report.dropped.contains(&name), "{name} is not in {:?}", report.dropped);
    }
}

#[test]
fn names_in_errors_and_reports_are_the_files_own() {
    let files = Files::good();
    let gate = format!("{PATH}attn_gate");
    let report = files.report().expect("a conversion");
    let of = |target: &str| report.used.iter().find(|(name, _)| name == target).map(|(_, sources)| sources.clone());
    assert_eq!(of("cross_attention.0.attention_gate"), Some(vec![gate.clone()]));
    assert_eq!(of("decoder.embedding.added"), Some(vec![TABLE.into()]));
    files.checkpoint(|specs| rename(specs, PATH, FIRST));
    let report = files.report().expect("a conversion");
    assert!(report.used.iter().any(|(_, sources)| sources == &[format!("{FIRST}attn_gate")]));

    files.checkpoint(|specs| specs.retain(|spec| spec.name != gate));
    let error = files.report().expect_err("an error").to_string();
    assert!(error.contains(&format!("`{gate}`")), "{error}");
    files.checkpoint(|specs| specs.iter_mut().filter(|s| s.name == gate).for_each(|s| s.shape = vec![2]));
    let error = files.report().expect_err("an error").to_string();
    assert!(error.contains(&gate) && error.contains("[2]") && error.contains("[1]"), "{error}");
    // A block that the config has no layer for.
    files.checkpoint(|specs| specs.push(TensorSpec { name: gate.replace(".0.", ".7."), shape: vec![1] }));
    let error = files.report().expect_err("an error").to_string();
    assert!(error.contains("blocks.7.gated") && error.contains("checkpoint.safetensors"), "{error}");
    // A tensor of the decoder that nothing explains: the checkpoint's, not the language model's.
    let odd = "lang_encoder.transformer.blocks.0.odd";
    files.checkpoint(|specs| specs.push(TensorSpec { name: odd.into(), shape: vec![1] }));
    let error = files.report().expect_err("an error").to_string();
    assert!(error.contains(odd) && error.contains("checkpoint.safetensors"), "{error}");
}

/// First numbers of the rows of a table of ours.
fn rows(out: &Path, name: &str) -> Vec<f32> {
    let numbers = ModelFolder::open(out).expect("a folder").tensor_f32(name).expect("a tensor");
    numbers.chunks(16).map(|row| row[0]).collect()
}

#[test]
fn a_checkpoint_is_newer_than_its_language_model() {
    let files = Files::good();
    let norm = "transformer.blocks.0.norm_1.weight";
    for infix in ["", "decoder_layer."] {
        let name = format!("lang_encoder.transformer.blocks.0.{infix}norm_1.weight");
        files.checkpoint(|specs| specs.push(TensorSpec { name: name.clone(), shape: vec![16] }));
        let report = files.report().expect("a conversion");
        let spelled = format!("lang_encoder.{norm}");
        assert!(report.used.iter().any(|(_, sources)| sources == std::slice::from_ref(&spelled)), "{spelled}");
        assert!(report.dropped.iter().any(|dropped| dropped.starts_with(norm)), "{:?}", report.dropped);
        let norm = rows(&files.out(), "decoder.blocks.0.norm_1.weight");
        assert_eq!(norm[0], number(&spelled, 0));
    }
}

#[test]
fn a_frozen_table_comes_from_the_language_model() {
    let files = Files::good();
    files.checkpoint(|specs| specs.retain(|spec| spec.name != TABLE));
    // Padded: rows enough for the added tokens, and more.
    let table = |row_count: usize| {
        let mut specs = upstream_tensors(&config()).language_model;
        specs.iter_mut().filter(|s| s.name == "transformer.wte.weight").for_each(|s| s.shape[0] = row_count);
        safetensors(&files.inputs.language_model.join("model.safetensors"), &specs, number);
    };
    let row = |i: usize| number("transformer.wte.weight", 16 * i);
    table(64);
    assert_eq!(files.report().expect("a conversion").initialised, [""; 0]);
    assert_eq!(rows(&files.out(), "decoder.embedding.base"), (0..8).map(row).collect::<Vec<_>>());
    assert_eq!(rows(&files.out(), "decoder.embedding.added"), (8..11).map(row).collect::<Vec<_>>());
    // Never resized: zeros, and it is said.
    for (row_count, added) in [(8, [0.0, 0.0, 0.0]), (9, [row(8), 0.0, 0.0])] {
        table(row_count);
        let initialised = files.report().expect("a conversion").initialised;
        assert!(initialised.len() == 1 && initialised[0].starts_with("decoder.embedding.added"), "{initialised:?}");
        assert_eq!(rows(&files.out(), "decoder.embedding.added"), added);
    }
    table(7);
    let error = files.report().expect_err("an error").to_string();
    assert!(error.contains("[7, 16]") && error.contains("[8, 16]"), "{error}");
}

#[test]
fn a_checkpoints_table_has_the_vocabularys_rows() {
    for row_count in [8, 10, 12] {
        let files = Files::good();
        files.checkpoint(|specs| specs.iter_mut().filter(|s| s.name == TABLE).for_each(|s| s.shape[0] = row_count));
        let error = files.fails().to_string();
        let shapes = [format!("[{row_count}, 16]"), "[11, 16]".into()];
        assert!(error.contains(TABLE) && shapes.iter().all(|shape| error.contains(shape)), "{error}");
    }
}

#[test]
fn the_report_says_what_became_of_every_tensor() {
    let duplicate = |specs: &mut Vec<TensorSpec>| match specs.first().map(|spec| spec.name.clone()) {
        Some(name) if name.starts_with("visual.") => {
            specs.push(TensorSpec { name: "logit_scale".into(), shape: vec![] })
        }
        Some(name) if name.starts_with("transformer.") => {
            specs.push(TensorSpec { name: "lm_head.weight".into(), shape: vec![11, 16] });
        }
        _ => {}
    };
    let files = Files::new(duplicate, number);
    for file in ["tokenizer.json", "vocab.json", "not-a-tokenizer.txt"] {
        fs::write(files.inputs.language_model.join(file), "{}").expect("a file");
    }
    let report = files.report().expect("a conversion");
    let names: Vec<&str> = report.used.iter().map(|(name, _)| name.as_str()).collect();
    let layout = flamingo_weights::layout(&config());
    assert_eq!(names, layout.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>());
    assert!(["logit_scale", "lm_head.weight"].iter().all(|name| report.dropped.contains(&name.to_string())));
    let json = |file: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(files.out().join(file)).expect("a file")).expect("JSON")
    };
    let written = json("conversion_report.json");
    for field in ["missing", "unexpected", "wrong_shape", "initialised"] {
        assert_eq!(written[field], serde_json::json!([]), "{field}");
    }
    assert_eq!(written["used"].as_array().map(Vec::len), Some(layout.len()));
    assert_eq!(json("config.json")["model_type"], "openflamingo");
    assert_eq!(json("preprocessor_config.json")["crop_size"]["height"], 28);
    let mut there: Vec<String> = fs::read_dir(files.out())
        .expect("a folder")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    there.sort();
    let expected = [
        "README.md",
        "config.json",
        "conversion_report.json",
        "model.safetensors",
        "model.toml",
        "preprocessor_config.json",
        "tokenizer.json",
        "vocab.json",
    ];
    assert_eq!(there, expected);
}

/// What stands beside the model folder.
fn beside(files: &Files) -> Vec<String> {
    let entries = fs::read_dir(files.work.path()).expect("a folder");
    let names = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

#[test]
fn force_replaces_a_folder_whole() {
    let files = Files::good();
    let expected = files.weights();
    let older = files.out().join("model-00001-of-00009.safetensors");
    fs::write(&older, "").expect("a file");
    assert!(files.weights() == expected);
    assert!(!older.exists());
    assert_eq!(beside(&files), [""; 0]);
    // After an error the older folder is still there.
    files.checkpoint(|specs| specs.truncate(3));
    files.report().expect_err("an error");
    assert!(fs::read(files.out().join("model.safetensors")).expect("weights") == expected);
    assert_eq!(beside(&files), [""; 0]);
}

#[test]
fn force_replaces_nothing_but_converted_models() {
    let files = Files::good();
    fs::create_dir_all(files.out().join("chapters")).expect("a folder");
    for file in ["thesis.txt", "chapters/one.txt"] {
        fs::write(files.out().join(file), "years of work").expect("a file");
        assert!(files.report().expect_err("an error").to_string().contains("no converted model"));
        assert_eq!(fs::read_to_string(files.out().join(file)).expect("a file"), "years of work");
    }
    // A converted model with something beside it.
    for (file, name) in [("notes.txt", "notes.txt"), ("chapters/one.txt", "chapters")] {
        fs::remove_dir_all(files.out()).expect("a folder");
        files.report().expect("a conversion");
        fs::create_dir_all(files.out().join(file).parent().expect("a folder")).expect("a folder");
        fs::write(files.out().join(file), "years of work").expect("a file");
        assert!(files.report().expect_err("an error").to_string().contains(name));
        assert_eq!(fs::read_to_string(files.out().join(file)).expect("a file"), "years of work");
    }
}

#[test]
fn given_files_take_the_place_of_the_language_models() {
    let files = Files::good();
    for file in ["tokenizer.json", "vocab.json"] {
        fs::write(files.inputs.language_model.join(file), "{}").expect("a file");
    }
    let given = [("tokenizer.json", "{\"with\": \"added tokens\"}".to_string())];
    convert(&files.inputs, &config(), Dtype::F32, &files.out(), false, &given, &mut |_| {}).expect("a conversion");
    let read = |file: &str| fs::read_to_string(files.out().join(file)).expect("a file");
    assert_eq!(read("tokenizer.json"), given[0].1);
    assert_eq!(read("vocab.json"), "{}");
}

#[test]
fn force_spares_a_file_and_the_inputs() {
    let files = Files::good();
    fs::write(files.out(), "someone's notes").expect("a file");
    files.report().expect_err("an error");
    assert_eq!(fs::read_to_string(files.out()).expect("a file"), "someone's notes");

    for out in [files.work.path(), &files.inputs.language_model] {
        let error = convert(&files.inputs, &config(), Dtype::F32, out, true, &[], &mut |_| {}).expect_err("an error");
        assert!(error.to_string().contains("--force would delete"), "{error}");
        assert!(files.inputs.language_model.join("model.safetensors").is_file());
    }
}

#[test]
fn what_an_earlier_process_of_the_same_number_left_is_no_part_of_the_model() {
    let files = Files::good();
    let left = files.work.path().join(format!(".model.partial-{}", std::process::id()));
    fs::create_dir(&left).expect("a folder");
    fs::write(left.join("model-00001-of-00009.safetensors"), "half").expect("a file");
    files.convert(Dtype::F32).expect("a conversion");
    assert!(!files.out().join("model-00001-of-00009.safetensors").exists());
    assert_eq!(beside(&files), [""; 0]);
}
