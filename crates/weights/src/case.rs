//! Configs from upstream's own files.

use std::path::Path;

use flamingo_config::{ConfigError, CrossAttentionConfig, ModelConfig, ResamplerConfig, TokenConfig, hf};
use serde_json::{Value, json};

use crate::WeightsError;
use crate::convert::{CLIP_MEAN, CLIP_STD};

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
        caption_prompt: flamingo_config::CAPTION_PROMPT.into(),
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

/// Compares a config with the language model's own `config.json`: two models of one shape can differ in what is
/// computed.
///
/// # Errors
/// [`WeightsError::Mismatch`] with the fields that differ; an error if there is no such file.
pub fn check_language_model(config: &ModelConfig, folder: &Path) -> Result<(), WeightsError> {
    let path = folder.join("config.json");
    let json = json(&path)?;
    let theirs = hf::decoder(&json).map_err(|reason| WeightsError::Config { path: path.clone(), reason })?;
    compare(&path, "language models", &json!(config.decoder), &json!(theirs))
}

/// Compares a config with what stands beside CLIP's weights: Hugging Face's `config.json` or open_clip's
/// `open_clip_config.json`, and the normalisation in `preprocessor_config.json`. OpenAI's archive stands alone.
///
/// # Errors
/// [`WeightsError::Mismatch`] with the fields that differ.
pub fn check_clip(config: &ModelConfig, clip: &Path) -> Result<(), WeightsError> {
    let folder = if clip.is_dir() { clip } else { clip.parent().unwrap_or(Path::new("")) };
    for file in ["config.json", "open_clip_config.json", "preprocessor_config.json"] {
        let path = folder.join(file);
        if !path.is_file() {
            continue;
        }
        let json = json(&path)?;
        let model = json.get("model_cfg").unwrap_or(&json);
        // Another model's config may stand beside a CLIP file.
        if model.get("vision_config").or(model.get("vision_cfg")).is_some() {
            let theirs = hf::vision(model).map_err(|reason| WeightsError::Config { path: path.clone(), reason })?;
            compare(&path, "vision towers", &json!(config.vision), &json!(theirs))?;
        }
        let preprocessing = json.get("preprocess_cfg").unwrap_or(&json);
        for (keys, ours) in [(["image_mean", "mean"], CLIP_MEAN), (["image_std", "std"], CLIP_STD)] {
            let theirs = keys.iter().find_map(|key| preprocessing[*key].as_array());
            let differs = |(theirs, ours): (&Value, &f64)| theirs.as_f64().is_none_or(|x| (x - ours).abs() > 1e-5);
            if theirs.is_some_and(|theirs| theirs.iter().zip(&ours).any(differs)) {
                return Err(WeightsError::Mismatch(format!(
                    "{} normalises pictures with {} other than OpenAI's, which is the one that OpenFlamingo uses",
                    path.display(),
                    keys[0]
                )));
            }
        }
    }
    Ok(())
}

fn json(path: &Path) -> Result<Value, WeightsError> {
    let text = std::fs::read_to_string(path).map_err(WeightsError::io("read", path))?;
    serde_json::from_str(&text).map_err(|e| WeightsError::format(path, format!("is not JSON: {e}")))
}

fn compare(path: &Path, what: &str, ours: &Value, theirs: &Value) -> Result<(), WeightsError> {
    if ours == theirs {
        return Ok(());
    }
    let fields = ours.as_object().into_iter().flatten().filter(|(field, value)| theirs[field.as_str()] != **value);
    let differences: Vec<String> = fields
        .map(|(field, value)| format!("{field}: {value} in model.toml, {} there", theirs[field.as_str()]))
        .collect();
    Err(WeightsError::Mismatch(format!(
        "model.toml and {} describe different {what} ({})",
        path.display(),
        differences.join("; ")
    )))
}
