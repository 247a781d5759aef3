//! Configs from upstream's own files.

use std::path::Path;

use flamingo_config::{ConfigError, CrossAttentionConfig, ModelConfig, ResamplerConfig, TokenConfig, hf};
use serde_json::Value;

use crate::WeightsError;

/// A model's config from its parts: the vision tower's and the language model's own configs, and upstream's
/// dimensions as a JSON object
/// `{perceiver: {depth, dim_head, heads, num_latents, ff_mult}, cross_attn: {dim_head, heads, ff_mult,
/// only_attend_immediate_media}, cross_attn_every_n_layers, eoc_token_id, media_token_id, pad_token_id,
/// vocab_size}`.
///
/// # Errors
/// [`ConfigError`] for a field that is missing or a combination that cannot be a model.
pub fn config_from_parts(
    name: &str,
    clip: &Value,
    language_model: &Value,
    flamingo: &Value,
) -> Result<ModelConfig, ConfigError> {
    let size = |value: &Value, field: &str| {
        let number = value[field].as_u64().map(|n| n as usize);
        number.ok_or_else(|| ConfigError::MissingField { file: "OpenFlamingo", field: field.to_string() })
    };
    let optional = |value: &Value, field: &str| value[field].as_u64().map(|n| n as usize);
    let (perceiver, cross) = (&flamingo["perceiver"], &flamingo["cross_attn"]);
    let endofchunk = size(flamingo, "eoc_token_id")? as u32;
    let config = ModelConfig {
        name: name.to_string(),
        source: None,
        tokens: TokenConfig {
            vocab_size: size(flamingo, "vocab_size")?,
            endofchunk,
            image: size(flamingo, "media_token_id")? as u32,
            pad: size(flamingo, "pad_token_id")? as u32,
            generation_pad: language_model["pad_token_id"].as_u64().map_or(endofchunk, |id| id as u32),
        },
        vision: hf::vision(clip)?,
        resampler: ResamplerConfig {
            depth: size(perceiver, "depth")?,
            dim_head: size(perceiver, "dim_head")?,
            heads: size(perceiver, "heads")?,
            num_latents: size(perceiver, "num_latents")?,
            ff_mult: size(perceiver, "ff_mult")?,
            max_num_frames: optional(perceiver, "max_num_frames"),
            max_num_media: optional(perceiver, "max_num_media"),
        },
        cross_attention: CrossAttentionConfig {
            every_n_layers: size(flamingo, "cross_attn_every_n_layers")?,
            dim_head: size(cross, "dim_head")?,
            heads: size(cross, "heads")?,
            ff_mult: size(cross, "ff_mult")?,
            only_attend_immediate_media: cross["only_attend_immediate_media"].as_bool().unwrap_or(true),
        },
        decoder: hf::decoder(language_model)?,
    };
    config.check()?;
    Ok(config)
}

/// Compares a config with the language model's own `config.json`, where the folder has one.
///
/// # Errors
/// [`WeightsError::Mismatch`] with the first fields that differ.
pub fn check_language_model(config: &ModelConfig, folder: &Path) -> Result<(), WeightsError> {
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).map_err(WeightsError::io("read", &path))?;
    let json: Value =
        serde_json::from_str(&text).map_err(|e| WeightsError::format(&path, format!("is not JSON: {e}")))?;
    let theirs = hf::decoder(&json).map_err(|reason| WeightsError::Config { path: path.clone(), reason })?;
    if theirs == config.decoder {
        return Ok(());
    }
    let (ours, theirs) = (serde_json::json!(config.decoder), serde_json::json!(theirs));
    let fields = ours.as_object().into_iter().flatten().filter(|(field, value)| theirs[field.as_str()] != **value);
    let differences: Vec<String> = fields
        .map(|(field, value)| format!("{field}: {value} in model.toml, {} there", theirs[field.as_str()]))
        .collect();
    Err(WeightsError::Mismatch(format!(
        "model.toml and {} describe different language models ({})",
        path.display(),
        differences.join("; ")
    )))
}
