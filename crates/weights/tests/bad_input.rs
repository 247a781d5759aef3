//! Models that are incomplete, mistaken or damaged: one clear error each, and nothing half-written.

mod common;

use std::fs;

use common::{Files, number};
use flamingo_weights::{Dtype, ModelFolder, TensorSpec, WeightsError};
use serde_json::json;

#[test]
fn good_files_convert_and_open() {
    let files = Files::good();
    files.convert(Dtype::F32).expect("a conversion");
    let folder = ModelFolder::open(&files.out()).expect("a folder");
    // A transposed and a fused tensor, number by number.
    let proj = folder.tensor("vision.proj.weight").expect("a tensor");
    assert_eq!(proj.shape, [8, 16]);
    let value = |i: usize| f32::from_le_bytes(proj.bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
    for (row, column) in [(0, 0), (3, 5), (7, 15)] {
        assert_eq!(value(row * 16 + column), number("visual.proj", column * 8 + row));
    }
    assert!(matches!(files.convert(Dtype::F32), Err(WeightsError::Exists(_))));
}

#[test]
fn a_missing_tensor_is_named() {
    let files = Files::new(|specs| specs.retain(|s| s.name != "perceiver.layers.0.0.to_kv.weight"), number);
    let error = files.fails();
    assert!(error.to_string().contains("`perceiver.layers.0.0.to_kv.weight`"), "{error}");
}

#[test]
fn an_unexpected_tensor_is_named() {
    let odd = || TensorSpec { name: "perceiver.odd".into(), shape: vec![2] };
    let error = Files::new(|specs| specs.push(odd()), number).fails();
    assert!(matches!(&error, WeightsError::Unexpected { names, .. } if names == &["perceiver.odd"]), "{error}");
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let reshape = |specs: &mut Vec<TensorSpec>| {
        for spec in specs.iter_mut().filter(|s| s.name == "transformer.blocks.0.attn.Wqkv.weight") {
            spec.shape = vec![16, 48];
        }
    };
    let error = Files::new(reshape, number).fails().to_string();
    assert!(error.contains("Wqkv") && error.contains("[16, 48]") && error.contains("[48, 16]"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let value = |name: &str, i: usize| if name == "visual.ln_pre.bias" && i == 3 { bad } else { number(name, i) };
        let error = Files::new(|_| {}, value).fails();
        assert!(matches!(&error, WeightsError::NotFinite { name, .. } if name == "visual.ln_pre.bias"), "{error}");
    }
}

#[test]
fn a_weight_too_large_for_f16_is_named() {
    let value = |name: &str, i: usize| if name == "perceiver.latents" && i == 0 { 1e5 } else { number(name, i) };
    let files = Files::new(|_| {}, value);
    let error = files.fails();
    assert!(matches!(&error, WeightsError::Overflow { name, .. } if name == "perceiver.latents"), "{error}");
    files.convert(Dtype::Bf16).expect("bf16 holds it");
}

#[test]
fn missing_files_are_named() {
    let files = Files::good();
    fs::remove_file(&files.inputs.clip).expect("a file to remove");
    let error = files.fails();
    assert!(error.to_string().contains("clip.safetensors"), "{error}");
    // A program that prints an error's sources says the reason once all the same.
    assert!(std::error::Error::source(&error).is_none());
    for file in ["model.safetensors", "config.json"] {
        let files = Files::good();
        fs::remove_file(files.inputs.language_model.join(file)).expect("a file to remove");
        assert!(files.fails().to_string().contains(file));
    }
}

#[test]
fn a_tower_of_the_same_shape_that_computes_something_else_is_refused() {
    let v = common::config().vision;
    let tower = |quick: bool, eps: f64| {
        let hidden_act = if quick { "quick_gelu" } else { "gelu" };
        let hugging_face = json!({"projection_dim": v.output_dim, "vision_config": {
            "image_size": v.image_size, "patch_size": v.patch_size, "hidden_size": v.width,
            "num_hidden_layers": v.layers, "num_attention_heads": v.heads, "intermediate_size": v.mlp_width,
            "hidden_act": hidden_act}});
        let open_clip = json!({"model_cfg": {"embed_dim": v.output_dim, "quick_gelu": quick, "vision_cfg": {
            "image_size": v.image_size, "patch_size": v.patch_size, "width": v.width, "layers": v.layers,
            "head_width": v.width / v.heads, "mlp_ratio": v.mlp_width as f64 / v.width as f64}},
            "preprocess_cfg": {"mean": [0.48145466 + eps, 0.4578275, 0.40821073]}});
        [("config.json", hugging_face), ("open_clip_config.json", open_clip)]
    };
    let quick = v.activation == flamingo_config::Activation::QuickGelu;
    for (i, (file, good)) in tower(quick, 0.0).into_iter().enumerate() {
        let files = Files::good();
        let path = files.work.path().join(file);
        fs::write(&path, tower(!quick, 0.0)[i].1.to_string()).expect("a file");
        let error = files.fails().to_string();
        assert!(error.contains(file) && error.contains("activation"), "{error}");
        fs::write(&path, good.to_string()).expect("a file");
        files.convert(Dtype::F32).expect("the right tower");
    }
    let files = Files::good();
    fs::write(files.work.path().join("open_clip_config.json"), tower(quick, 0.01)[1].1.to_string()).expect("a file");
    assert!(files.fails().to_string().contains("normalises"));
    // Another model's config beside the weights says nothing of them.
    let files = Files::good();
    fs::write(files.work.path().join("config.json"), r#"{"model_type": "mpt"}"#).expect("a file");
    files.convert(Dtype::F32).expect("a conversion");
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let files = Files::good();
    let whole = fs::read(&files.inputs.checkpoint).expect("a file");
    for length in (0..whole.len()).step_by(whole.len() / 97 + 1) {
        fs::write(&files.inputs.checkpoint, &whole[..length]).expect("a file");
        files.fails();
    }
}

#[test]
fn a_damaged_folder_does_not_open() {
    let files = Files::good();
    files.convert(Dtype::F32).expect("a conversion");
    let weights = files.out().join("model.safetensors");
    let whole = fs::read(&weights).expect("weights");
    for length in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).expect("a file");
        assert!(ModelFolder::open(&files.out()).is_err(), "{length} bytes");
    }
    fs::write(&weights, &whole).expect("a file");
    let toml = files.out().join("model.toml");
    let text = fs::read_to_string(&toml).expect("a config");
    fs::write(&toml, text.replace("d_ff = 32", "d_ff = 33")).expect("a file");
    let error = ModelFolder::open(&files.out()).expect_err("an error").to_string();
    assert!(error.contains("mlp") && error.contains("33"), "{error}");
    fs::write(&toml, text.replace("d_ff = 32", "d_fff = 32")).expect("a file");
    assert!(ModelFolder::open(&files.out()).is_err());
}

#[test]
fn what_a_killed_conversion_left_is_removed() {
    let files = Files::good();
    // No process has this number: Linux ends at 2^22.
    let left = files.work.path().join(".model.partial-99999999");
    fs::create_dir(&left).expect("a folder");
    fs::write(left.join("model.safetensors"), "half").expect("a file");
    files.convert(Dtype::F32).expect("a conversion");
    assert!(!left.exists());
}

#[test]
fn another_file_than_the_checkpoint_is_noticed() {
    let mut files = Files::good();
    for other in [files.inputs.clip.clone(), files.inputs.language_model.join("model.safetensors")] {
        files.inputs.checkpoint = other;
        let error = files.fails().to_string();
        assert!(error.contains("is it the checkpoint?"), "{error}");
    }
}

#[test]
fn a_folder_in_shards_opens() {
    let files = Files::good();
    files.convert(Dtype::F32).expect("a conversion");
    let whole = ModelFolder::open(&files.out()).expect("a folder");
    let names: Vec<String> = flamingo_weights::layout(whole.config()).into_iter().map(|spec| spec.name).collect();
    let numbers: Vec<Vec<f32>> = names.iter().map(|name| whole.tensor_f32(name).expect("a tensor")).collect();
    drop(whole);
    let mut map = serde_json::Map::new();
    let specs = flamingo_weights::layout(&common::config());
    for (i, shard) in specs.chunks(specs.len() / 2 + 1).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", i + 1);
        let at = |name: &str| names.iter().position(|other| other == name).expect("a name");
        common::safetensors(&files.out().join(&file), shard, |name, i| numbers[at(name)][i]);
        map.extend(shard.iter().map(|spec| (spec.name.clone(), file.clone().into())));
    }
    fs::remove_file(files.out().join("model.safetensors")).expect("a file to remove");
    let index = files.out().join("model.safetensors.index.json");
    fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).expect("an index");
    let folder = ModelFolder::open(&files.out()).expect("a folder");
    for (name, numbers) in names.iter().zip(&numbers) {
        assert_eq!(folder.tensor_f32(name).as_ref(), Some(numbers), "{name}");
    }
    fs::remove_file(files.out().join("model-00002-of-00002.safetensors")).expect("a file to remove");
    let error = ModelFolder::open(&files.out()).expect_err("an error").to_string();
    assert!(error.contains("model-00002-of-00002.safetensors"), "{error}");
}
