//! Reading upstream's own configs: `config.json` of a Hugging Face language model, and open_clip's or
//! Hugging Face's description of a CLIP tower.

use serde_json::{Value, json};

use crate::{
    Activation, ConfigError, DecoderConfig, GptJConfig, GptNeoConfig, GptNeoxConfig, LlamaConfig, MptConfig, OptConfig,
    VisionConfig,
};

/// Fields of one JSON object, with errors that name the file and the field.
struct Fields<'a> {
    json: &'a Value,
    file: &'static str,
}

impl<'a> Fields<'a> {
    fn missing(&self, field: &str) -> ConfigError {
        ConfigError::MissingField { file: self.file, field: field.to_string() }
    }

    /// The field, unless absent or null.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.json.get(field).filter(|value| !value.is_null())
    }

    fn size(&self, field: &str) -> Result<usize, ConfigError> {
        self.get(field).and_then(Value::as_u64).map(|n| n as usize).ok_or_else(|| self.missing(field))
    }

    fn size_or(&self, field: &str, default: usize) -> Result<usize, ConfigError> {
        if self.get(field).is_some() { self.size(field) } else { Ok(default) }
    }

    fn number_or(&self, field: &str, default: f64) -> Result<f64, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| self.missing(field)),
        }
    }

    fn flag_or(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.missing(field)),
        }
    }

    fn text_or(&self, field: &str, default: &'a str) -> Result<&'a str, ConfigError> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => value.as_str().ok_or_else(|| self.missing(field)),
        }
    }

    /// Fails unless the field has the only value that is implemented (or is absent).
    fn require_flag(&self, field: &str, only: bool) -> Result<(), ConfigError> {
        if self.flag_or(field, only)? == only {
            Ok(())
        } else {
            Err(ConfigError::Unsupported(format!("`{field}: {}` in the {} config", !only, self.file)))
        }
    }

    /// Fails if the field is set at all.
    fn require_absent(&self, field: &str) -> Result<(), ConfigError> {
        match self.get(field) {
            None => Ok(()),
            Some(value) => Err(ConfigError::Unsupported(format!("`{field}: {value}` in the {} config", self.file))),
        }
    }
}

fn activation(name: &str) -> Result<Activation, ConfigError> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "quick_gelu" => Ok(Activation::QuickGelu),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        other => Err(ConfigError::Unsupported(format!("activation `{other}`"))),
    }
}

/// The decoder that a language model's `config.json` describes.
///
/// # Errors
/// A missing field, or a setting that changes the mathematics in a way that is not implemented.
pub fn decoder(json: &Value) -> Result<DecoderConfig, ConfigError> {
    let f = Fields { json, file: "language model" };
    Ok(match f.text_or("model_type", "")? {
        "mosaic_gpt" => DecoderConfig::MosaicGpt(mosaic_gpt(&f)?),
        "mpt" => DecoderConfig::Mpt(mpt(&f)?),
        "gpt_neox" => {
            f.require_absent("rope_scaling")?;
            DecoderConfig::GptNeox(GptNeoxConfig {
                d_model: f.size("hidden_size")?,
                n_heads: f.size("num_attention_heads")?,
                n_layers: f.size("num_hidden_layers")?,
                d_ff: f.size("intermediate_size")?,
                max_positions: f.size_or("max_position_embeddings", 2048)?,
                rotary_pct: f.number_or("rotary_pct", 0.25)?,
                rotary_base: f.number_or("rotary_emb_base", 10_000.0)?,
                parallel_residual: f.flag_or("use_parallel_residual", true)?,
                activation: activation(f.text_or("hidden_act", "gelu")?)?,
                tied_head: f.flag_or("tie_word_embeddings", false)?,
                norm_eps: f.number_or("layer_norm_eps", 1e-5)?,
            })
        }
        "opt" => {
            f.require_flag("enable_bias", true)?;
            f.require_flag("layer_norm_elementwise_affine", true)?;
            f.require_flag("tie_word_embeddings", true)?;
            let pre_norm = f.flag_or("do_layer_norm_before", true)?;
            DecoderConfig::Opt(OptConfig {
                d_model: f.size("hidden_size")?,
                word_embed_proj_dim: f.size_or("word_embed_proj_dim", f.size("hidden_size")?)?,
                n_heads: f.size("num_attention_heads")?,
                n_layers: f.size("num_hidden_layers")?,
                d_ff: f.size("ffn_dim")?,
                max_positions: f.size_or("max_position_embeddings", 2048)?,
                pre_norm,
                final_norm: pre_norm && !f.flag_or("_remove_final_layer_norm", false)?,
                activation: activation(f.text_or("activation_function", "relu")?)?,
                norm_eps: 1e-5,
            })
        }
        "llama" => {
            f.require_absent("rope_scaling")?;
            f.require_flag("attention_bias", false)?;
            let n_heads = f.size("num_attention_heads")?;
            if f.size_or("num_key_value_heads", n_heads)? != n_heads {
                return Err(ConfigError::Unsupported("grouped-query attention (LLaMA 2 70B and later)".into()));
            }
            if f.text_or("hidden_act", "silu")? != "silu" {
                return Err(ConfigError::Unsupported("a LLaMA with an activation other than silu".into()));
            }
            DecoderConfig::Llama(LlamaConfig {
                d_model: f.size("hidden_size")?,
                n_heads,
                n_layers: f.size("num_hidden_layers")?,
                d_ff: f.size("intermediate_size")?,
                max_positions: f.size_or("max_position_embeddings", 2048)?,
                rotary_base: f.number_or("rope_theta", 10_000.0)?,
                tied_head: f.flag_or("tie_word_embeddings", false)?,
                norm_eps: f.number_or("rms_norm_eps", 1e-6)?,
            })
        }
        "gptj" => {
            f.require_flag("tie_word_embeddings", false)?;
            let d_model = f.size("n_embd")?;
            let n_heads = f.size("n_head")?;
            DecoderConfig::GptJ(GptJConfig {
                d_model,
                n_heads,
                n_layers: f.size("n_layer")?,
                d_ff: f.size_or("n_inner", d_model.saturating_mul(4))?,
                max_positions: f.size_or("n_positions", 2048)?,
                rotary_dim: f.size_or("rotary_dim", d_model / n_heads.max(1))?,
                activation: activation(f.text_or("activation_function", "gelu_new")?)?,
                norm_eps: f.number_or("layer_norm_epsilon", 1e-5)?,
            })
        }
        "gpt_neo" => {
            let d_model = f.size("hidden_size")?;
            let n_layers = f.size("num_layers")?;
            DecoderConfig::GptNeo(GptNeoConfig {
                d_model,
                n_heads: f.size("num_heads")?,
                n_layers,
                d_ff: f.size_or("intermediate_size", d_model.saturating_mul(4))?,
                max_positions: f.size_or("max_position_embeddings", 2048)?,
                local_layers: gpt_neo_layers(&f)?,
                window_size: f.size_or("window_size", 256)?,
                activation: activation(f.text_or("activation_function", "gelu_new")?)?,
                norm_eps: f.number_or("layer_norm_epsilon", 1e-5)?,
            })
        }
        other => {
            return Err(ConfigError::Unsupported(format!(
                "language model type `{other}` (mosaic_gpt, mpt, gpt_neox, opt, llama, gptj and gpt_neo are)"
            )));
        }
    })
}

/// The `config.json` that describes a decoder: [`decoder`] reads it back.
pub fn language_model(config: &DecoderConfig) -> Value {
    match config {
        DecoderConfig::MosaicGpt(c) => json!({
            "model_type": "mosaic_gpt", "d_model": c.d_model, "n_heads": c.n_heads, "n_layers": c.n_layers,
            "mlp_ratio": c.d_ff / c.d_model, "max_seq_len": c.max_positions, "alibi": true, "no_bias": true,
            "alibi_bias_max": c.alibi_bias_max, "attn_qk_ln": c.qk_norm, "attn_clip_qkv": c.clip_qkv,
            "softmax_scale": c.softmax_scale,
        }),
        DecoderConfig::Mpt(c) => json!({
            "model_type": "mpt", "d_model": c.d_model, "n_heads": c.n_heads, "n_layers": c.n_layers,
            "expansion_ratio": c.d_ff / c.d_model, "max_seq_len": c.max_positions, "no_bias": true,
            "layer_norm_epsilon": c.norm_eps,
            "attn_config": {
                "alibi": true, "alibi_bias_max": c.alibi_bias_max, "qk_ln": c.qk_norm, "clip_qkv": c.clip_qkv,
                "softmax_scale": c.softmax_scale,
            },
        }),
        DecoderConfig::GptNeox(c) => json!({
            "model_type": "gpt_neox", "hidden_size": c.d_model, "num_attention_heads": c.n_heads,
            "num_hidden_layers": c.n_layers, "intermediate_size": c.d_ff, "max_position_embeddings": c.max_positions,
            "rotary_pct": c.rotary_pct, "rotary_emb_base": c.rotary_base,
            "use_parallel_residual": c.parallel_residual, "hidden_act": activation_name(c.activation),
            "tie_word_embeddings": c.tied_head, "layer_norm_eps": c.norm_eps,
        }),
        DecoderConfig::Opt(c) => json!({
            "model_type": "opt", "hidden_size": c.d_model, "word_embed_proj_dim": c.word_embed_proj_dim,
            "num_attention_heads": c.n_heads, "num_hidden_layers": c.n_layers, "ffn_dim": c.d_ff,
            "max_position_embeddings": c.max_positions, "do_layer_norm_before": c.pre_norm,
            "_remove_final_layer_norm": c.pre_norm && !c.final_norm,
            "activation_function": activation_name(c.activation),
        }),
        DecoderConfig::Llama(c) => json!({
            "model_type": "llama", "hidden_size": c.d_model, "num_attention_heads": c.n_heads,
            "num_hidden_layers": c.n_layers, "intermediate_size": c.d_ff, "max_position_embeddings": c.max_positions,
            "rope_theta": c.rotary_base, "tie_word_embeddings": c.tied_head, "rms_norm_eps": c.norm_eps,
        }),
        DecoderConfig::GptJ(c) => json!({
            "model_type": "gptj", "n_embd": c.d_model, "n_head": c.n_heads, "n_layer": c.n_layers, "n_inner": c.d_ff,
            "n_positions": c.max_positions, "rotary_dim": c.rotary_dim,
            "activation_function": activation_name(c.activation), "layer_norm_epsilon": c.norm_eps,
        }),
        DecoderConfig::GptNeo(c) => json!({
            "model_type": "gpt_neo", "hidden_size": c.d_model, "num_heads": c.n_heads, "num_layers": c.n_layers,
            "intermediate_size": c.d_ff, "max_position_embeddings": c.max_positions,
            "attention_layers": c.local_layers.iter().map(|&l| if l { "local" } else { "global" }).collect::<Vec<_>>(),
            "window_size": c.window_size, "activation_function": activation_name(c.activation),
            "layer_norm_epsilon": c.norm_eps,
        }),
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_new",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
        Activation::Silu => "silu",
    }
}

fn mosaic_gpt(f: &Fields) -> Result<MptConfig, ConfigError> {
    f.require_flag("alibi", true)?;
    f.require_flag("no_bias", true)?;
    f.require_flag("prefix_lm", false)?;
    f.require_absent("logit_scale")?;
    let d_model = f.size("d_model")?;
    Ok(MptConfig {
        d_model,
        n_heads: f.size("n_heads")?,
        n_layers: f.size("n_layers")?,
        d_ff: d_model.saturating_mul(f.size_or("mlp_ratio", 4)?),
        max_positions: f.size_or("max_seq_len", 2048)?,
        alibi_bias_max: f.number_or("alibi_bias_max", 8.0)?,
        qk_norm: f.flag_or("attn_qk_ln", false)?,
        clip_qkv: f.get("attn_clip_qkv").and_then(Value::as_f64),
        softmax_scale: f.get("softmax_scale").and_then(Value::as_f64),
        norm_eps: 1e-5,
    })
}

fn mpt(f: &Fields) -> Result<MptConfig, ConfigError> {
    f.require_flag("no_bias", true)?;
    f.require_absent("logit_scale")?;
    let empty = Value::Object(Default::default());
    let attention = Fields { json: f.get("attn_config").unwrap_or(&empty), file: "language model" };
    attention.require_flag("alibi", true)?;
    attention.require_flag("prefix_lm", false)?;
    let d_model = f.size("d_model")?;
    Ok(MptConfig {
        d_model,
        n_heads: f.size("n_heads")?,
        n_layers: f.size("n_layers")?,
        d_ff: d_model.saturating_mul(f.size_or("expansion_ratio", 4)?),
        max_positions: f.size_or("max_seq_len", 2048)?,
        alibi_bias_max: attention.number_or("alibi_bias_max", 8.0)?,
        qk_norm: attention.flag_or("qk_ln", false)?,
        clip_qkv: attention.get("clip_qkv").and_then(Value::as_f64),
        softmax_scale: attention.get("softmax_scale").and_then(Value::as_f64),
        norm_eps: f.number_or("layer_norm_epsilon", 1e-5)?,
    })
}

/// For each GPT-Neo block whether it is local: the flat list where there is one, else the runs of
/// `attention_types` (`[[["global", "local"], 12]]` is twelve times both).
fn gpt_neo_layers(f: &Fields) -> Result<Vec<bool>, ConfigError> {
    let local = |kind: &Value| match kind.as_str() {
        Some("local") => Ok(true),
        Some("global") => Ok(false),
        _ => Err(f.missing("attention_types")),
    };
    if let Some(layers) = f.get("attention_layers").and_then(Value::as_array) {
        return layers.iter().map(local).collect();
    }
    let mut layers = Vec::new();
    for run in f.get("attention_types").and_then(Value::as_array).ok_or_else(|| f.missing("attention_types"))? {
        let kinds = run.get(0).and_then(Value::as_array).ok_or_else(|| f.missing("attention_types"))?;
        let times = run.get(1).and_then(Value::as_u64).ok_or_else(|| f.missing("attention_types"))?;
        for kind in (0..times).flat_map(|_| kinds) {
            // More than any model has: a number of layers that is checked later would not hold this list.
            if layers.len() > 1 << 10 {
                return Err(f.missing("attention_types"));
            }
            layers.push(local(kind)?);
        }
    }
    Ok(layers)
}

/// The vision tower that an open_clip model config (`{"embed_dim": …, "vision_cfg": {…}}`) or a Hugging
/// Face CLIP `config.json` describes.
///
/// # Errors
/// A missing field or an unsupported activation.
pub fn vision(json: &Value) -> Result<VisionConfig, ConfigError> {
    let file = "CLIP";
    let f = Fields { json, file };
    if let Some(inner) = f.get("vision_config") {
        let v = Fields { json: inner, file };
        return Ok(VisionConfig {
            image_size: v.size("image_size")?,
            patch_size: v.size("patch_size")?,
            width: v.size("hidden_size")?,
            layers: v.size("num_hidden_layers")?,
            heads: v.size("num_attention_heads")?,
            mlp_width: v.size("intermediate_size")?,
            activation: activation(v.text_or("hidden_act", "quick_gelu")?)?,
            output_dim: f.size_or("projection_dim", v.size_or("projection_dim", 512)?)?,
        });
    }
    let v = Fields { json: f.get("vision_cfg").ok_or_else(|| f.missing("vision_cfg"))?, file };
    let width = v.size("width")?;
    let ratio = v.number_or("mlp_ratio", 4.0)?;
    Ok(VisionConfig {
        image_size: v.size("image_size")?,
        patch_size: v.size("patch_size")?,
        width,
        layers: v.size("layers")?,
        heads: width / v.size_or("head_width", 64)?.max(1),
        mlp_width: (width as f64 * ratio) as usize,
        activation: if f.flag_or("quick_gelu", false)? { Activation::QuickGelu } else { Activation::Gelu },
        output_dim: f.size("embed_dim")?,
    })
}
