//! Modules, name tables and config files agree, though neither knows the other.

use std::path::Path;
use std::sync::Arc;

use flamingo_config::Scheme;
use flamingo_engine::{Device, Precision};
use flamingo_weights::{Dtype, Format, ModelFolder, TensorSpec, layout, upstream_tensors};
use flamingo_zoo::{list, parts};

fn zoo() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

#[test]
fn the_modules_have_exactly_the_tensors_of_the_layout() {
    // One small model of each family: the numbers are small.toml's, the choices the family's.
    let small = include_str!("../xtask/src/small.toml");
    let head = small.split("[decoder]").next().expect("a config");
    let families = [
        "family = \"mpt\"\nalibi_bias_max = 8.0\nqk_norm = false",
        "family = \"mosaic_gpt\"\nalibi_bias_max = 8.0\nqk_norm = true",
        "family = \"gpt_neox\"\nrotary_pct = 0.25\nrotary_base = 10000.0\nparallel_residual = true\nactivation = \"gelu\"",
        "family = \"opt\"\nword_embed_proj_dim = 12\npre_norm = false\nfinal_norm = false\nactivation = \"relu\"",
        "family = \"opt\"\nword_embed_proj_dim = 16\npre_norm = true\nfinal_norm = true\nactivation = \"relu\"",
        "family = \"llama\"\nrotary_base = 10000.0",
        "family = \"gpt_j\"\nrotary_dim = 4\nactivation = \"gelu_tanh\"",
        "family = \"gpt_neo\"\nlocal_layers = [false, true]\nwindow_size = 4\nactivation = \"gelu_tanh\"",
    ];
    for family in families {
        let decoder = "d_model = 16\nn_heads = 2\nn_layers = 2\nd_ff = 32\nmax_positions = 32\nnorm_eps = 1e-5";
        let text = format!("{head}[decoder]\n{family}\n{decoder}\n");
        let mut config = flamingo_config::ModelConfig::from_toml(&text).expect("a config");
        config.resampler.max_num_frames = Some(3);
        config.resampler.max_num_media = Some(2);
        config.cross_attention.every_n_layers = 2;

        let work = tempfile::tempdir().expect("a temporary folder");
        let (parts, out) = (work.path().join("parts"), work.path().join("model"));
        xtask::random::write(&config, Dtype::F32, 1, &parts).expect("random weights");
        let inputs = xtask::random::inputs(&parts);
        flamingo_weights::convert(&inputs, &config, Dtype::F32, &out, false, &[], &mut |_| {}).expect("a conversion");
        let folder = Arc::new(ModelFolder::open(&out).expect("a folder"));
        let engine = flamingo_engine::open(&folder, Device::Flex, Precision::F32).expect("an engine");

        let mut modules = engine.parameters();
        let mut tensors: Vec<_> = layout(&config).into_iter().map(|spec| (spec.name, spec.shape)).collect();
        modules.sort();
        tensors.sort();
        assert_eq!(modules, tensors, "{family}");
    }
}

#[test]
fn the_modules_are_quantised_where_folders_are() {
    let config = flamingo_config::ModelConfig::from_toml(include_str!("quantised.toml")).expect("a config");
    let work = tempfile::tempdir().expect("a temporary folder");
    let parts = work.path().join("parts");
    xtask::random::write(&config, Dtype::F32, 1, &parts).expect("random weights");
    let inputs = xtask::random::inputs(&parts);
    for scheme in [Scheme::Q8, Scheme::Q4] {
        let out = work.path().join(scheme.to_string());
        let format = Format { dtype: Dtype::F16, scheme: Some(scheme) };
        flamingo_weights::convert(&inputs, &config, format, &out, false, &[], &mut |_| {}).expect("a conversion");
        let folder = Arc::new(ModelFolder::open(&out).expect("a folder"));
        assert_eq!(folder.precision(), Precision::Quantised(scheme));
        let size = std::fs::metadata(out.join("model.safetensors")).expect("a file").len();
        let numbers: u64 = layout(&config).iter().map(|spec| spec.bytes(format)).sum();
        assert!((numbers..numbers + 20_000).contains(&size), "{size} bytes for {numbers}");

        let engine = flamingo_engine::open(&folder, Device::Flex, None).expect("an engine");
        let mut modules = engine.parameters();
        let mut tensors = Vec::new();
        for TensorSpec { name, shape } in layout(&config) {
            let Some(quantised) = folder.quantised(&name) else {
                tensors.push((name, shape));
                continue;
            };
            assert_eq!(quantised.shape, shape[..]);
            let blocks = shape[1] / 32;
            tensors.push((format!("{name}.codes"), vec![shape[0], blocks * quantised.scheme.words()]));
            tensors.push((format!("{name}.scales"), vec![shape[0], blocks]));
        }
        modules.sort();
        tensors.sort();
        assert_eq!(modules, tensors, "{scheme}");
        let words = |matrix: &str| folder.quantised(matrix).map(|view| view.scheme);
        assert_eq!(words("decoder.blocks.0.mlp.up.weight"), Some(scheme));
        assert_eq!(words("decoder.embedding.base"), Some(Scheme::Q8));
        assert_eq!(words("vision.patch_embedding.weight"), None);
    }
}

#[test]
fn every_config_of_the_zoo_is_sound() {
    let entries = list(&zoo()).expect("a zoo");
    assert!(entries.len() >= 10);
    for entry in entries {
        let config = entry.config.unwrap_or_else(|e| panic!("{}: {e}", entry.name));
        assert_eq!(config.name, entry.name);
        assert!(entry.path.join("README.md").is_file(), "{} has no card", entry.name);
        let upstream = upstream_tensors(&config);
        assert!(!upstream.clip.is_empty() && !upstream.checkpoint.is_empty() && !upstream.language_model.is_empty());
        assert_eq!(flamingo_config::ModelConfig::from_toml(&config.to_toml()).expect("the same again"), config);
    }
}

#[test]
fn released_models_have_the_published_sizes() {
    // Parameters that upstream's code counts: cross-attention with 24, 16 and 8 blocks, CLIP ViT-L/14.
    for (name, blocks) in [("openflamingo-3b", 24), ("openflamingo-4b", 16), ("openflamingo-9b", 8)] {
        let entry = list(&zoo()).expect("a zoo").into_iter().find(|e| e.name == name).expect("a released model");
        let config = entry.config.expect("a config");
        let layers = config.decoder.architecture().n_layers;
        assert_eq!((0..layers).filter(|&l| config.cross_attention.has_block(l)).count(), blocks, "{name}");
        // open_clip's ViT-L-14 visual tower: 303,966,208 parameters.
        assert_eq!(parts(&config)[0].parameters, 303_966_208, "{name}");
    }
}
