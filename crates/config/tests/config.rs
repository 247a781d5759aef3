//! What may be a config and what not: absurd numbers are errors that name the field.

use std::path::Path;

use flamingo_config::{ModelConfig, hf};
use serde_json::json;

fn zoo(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models");
    std::fs::read_to_string(folder.join(name).join("model.toml")).expect("a config of the zoo")
}

/// The config with one line replaced.
fn with(text: &str, section: &str, field: &str, value: &str) -> String {
    let (before, rest) = text.split_once(&format!("[{section}]")).expect("the section");
    let (inside, after) = rest.find("\n[").map_or((rest, ""), |end| rest.split_at(end));
    let lines = inside.lines().filter(|line| !line.starts_with(&format!("{field} ")));
    format!("{before}[{section}]\n{field} = {value}\n{}\n{after}", lines.collect::<Vec<_>>().join("\n"))
}

#[test]
fn absurd_numbers_are_errors_that_name_the_field() {
    let cases = [
        ("openflamingo-3b", "vision", "width", vec!["0", "16777216", "9223372036854775807"]),
        ("openflamingo-3b", "vision", "layers", vec!["0", "2000"]),
        ("openflamingo-3b", "vision", "patch_size", vec!["0", "15"]),
        ("openflamingo-3b", "vision", "heads", vec!["0", "7"]),
        ("openflamingo-3b", "resampler", "ff_mult", vec!["0", "16777216"]),
        ("openflamingo-3b", "resampler", "max_num_frames", vec!["0", "9223372036854775807"]),
        ("openflamingo-3b", "cross_attention", "heads", vec!["0", "16777216"]),
        ("openflamingo-3b", "tokens", "vocab_size", vec!["0", "10", "9223372036854775807"]),
        ("openflamingo-3b", "tokens", "image", vec!["50277", "0", "4294967295"]),
        ("openflamingo-3b", "tokens", "generation_pad", vec!["999999"]),
        ("openflamingo-3b", "decoder", "n_layers", vec!["0", "16777216"]),
        ("openflamingo-3b", "decoder", "d_ff", vec!["0", "9223372036854775807"]),
        ("openflamingo-3b", "decoder", "norm_eps", vec!["nan", "-1.0", "inf"]),
        ("openflamingo-3b", "decoder", "alibi_bias_max", vec!["nan", "0.0"]),
        ("openflamingo-4b", "decoder", "rotary_base", vec!["nan", "-1.0"]),
        ("openflamingo-4b", "decoder", "rotary_pct", vec!["nan", "0.0", "2.0", "inf"]),
        ("openflamingo-opt-125m", "decoder", "word_embed_proj_dim", vec!["0", "16777216"]),
        ("openflamingo-opt-125m", "decoder", "max_positions", vec!["0", "9223372036854775807"]),
    ];
    for (name, section, field, values) in cases {
        let text = zoo(name);
        assert!(ModelConfig::from_toml(&text).is_ok(), "{name}");
        for value in values {
            let changed = with(&text, section, field, value);
            let error = ModelConfig::from_toml(&changed).expect_err(&format!("{section}.{field} = {value}"));
            let error = error.to_string();
            let known = [field, "rotated dimensions", "outside tokens.vocab_size"];
            assert!(known.iter().any(|known| error.contains(known)), "{section}.{field} = {value}: {error}");
        }
    }
}

#[test]
fn long_lists_of_layers_are_refused_early() {
    let kinds = vec!["global"; 1000];
    let runs = json!([[kinds, 65_536], [kinds, 65_536]]);
    let config = json!({"model_type": "gpt_neo", "hidden_size": 64, "num_heads": 4, "num_layers": 2,
        "attention_types": runs});
    assert!(hf::decoder(&config).is_err());
    let config = json!({"model_type": "mpt", "d_model": u64::MAX, "n_heads": 4, "n_layers": 2,
        "attn_config": {"alibi": true}, "no_bias": true});
    assert!(hf::decoder(&config).is_ok_and(|decoder| serde_json::to_string(&decoder).is_ok()));
}

#[test]
fn a_decoder_described_to_hugging_face_reads_back() {
    for name in ["openflamingo-3b", "openflamingo-4b", "openflamingo-9b", "openflamingo-opt-1.3b", "golden-tiny"] {
        let config = ModelConfig::from_toml(&zoo(name)).expect("a config");
        assert_eq!(hf::decoder(&hf::language_model(&config.decoder)).expect("a decoder"), config.decoder);
    }
    let others = [
        json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2,
            "intermediate_size": 96, "rope_theta": 5000.0}),
        json!({"model_type": "gptj", "n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8}),
        json!({"model_type": "gpt_neo", "hidden_size": 64, "num_heads": 4, "num_layers": 3, "window_size": 5,
            "attention_types": [[["global", "local", "local"], 1]]}),
        json!({"model_type": "opt", "hidden_size": 64, "word_embed_proj_dim": 32, "num_attention_heads": 4,
            "num_hidden_layers": 2, "ffn_dim": 128, "do_layer_norm_before": false}),
    ];
    for other in others {
        let decoder = hf::decoder(&other).expect("a decoder");
        assert_eq!(hf::decoder(&hf::language_model(&decoder)).expect("a decoder"), decoder);
    }
}
