//! `convert-weights`: upstream's files to one model folder.

use std::fmt;
use std::path::{Path, PathBuf};

use flamingo_config::{ModelConfig, Scheme};
use serde::Serialize;
use serde_json::json;

use crate::recipe::{self, Piece, Sources};
use crate::write::{self, REPORT, Staging, TOKENIZER};
use crate::{Dtype, Precision, WeightsError, check_clip, check_language_model, readers};

/// The three parts that upstream assembles at run time.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// CLIP's weights: OpenAI's TorchScript archive, open_clip's or Hugging Face's file, or a folder of the
    /// latter.
    pub clip: PathBuf,
    /// A Hugging Face language model: config, weights, tokenizer.
    pub language_model: PathBuf,
    /// OpenFlamingo's `checkpoint.pt`, as released or as the trainer writes it.
    pub checkpoint: PathBuf,
}

/// What a conversion writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Format {
    /// The format of numbers.
    pub dtype: Dtype,
    /// How matrices are quantised, if they are.
    pub scheme: Option<Scheme>,
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        Self { dtype, scheme: None }
    }
}

impl From<Precision> for Format {
    /// Beside quantised matrices numbers are f16.
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Plain(dtype) => dtype.into(),
            Precision::Quantised(scheme) => Self { dtype: Dtype::F16, scheme: Some(scheme) },
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Some(scheme) => write!(f, "{scheme} and {}", self.dtype),
            None => self.dtype.fmt(f),
        }
    }
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor being written.
    pub tensor: &'a str,
    /// Bytes written so far.
    pub written: u64,
    /// Bytes to write in all.
    pub total: u64,
}

/// What became of every tensor. Missing, unexpected and misshapen tensors are errors, so a report that exists
/// lists none.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Number format of the folder.
    pub dtype: String,
    /// Our tensors, each with the source tensors that it is made of.
    pub used: Vec<(String, Vec<String>)>,
    /// Source tensors that are known and that no part of the model uses.
    pub dropped: Vec<String>,
    /// Tensors, or rows, that are in no file and were filled in.
    pub initialised: Vec<String>,
    /// Always empty: an error otherwise.
    pub missing: Vec<String>,
    /// Always empty: an error otherwise.
    pub unexpected: Vec<String>,
    /// Always empty: an error otherwise.
    pub wrong_shape: Vec<String>,
}

/// Converts upstream's files to a model folder at `out`.
///
/// `files` (names and contents, of the tokenizer's) go into the folder in place of the language model's.
///
/// Memory stays at a few megabytes whatever the size: tensors are read, checked and written in blocks. The
/// folder appears under its name when it is complete; before that, and after an error, it is not there.
///
/// # Errors
/// Any [`WeightsError`]: a file that cannot be read, a tensor that is missing, misshapen, unexplained or not
/// finite, an output folder that exists (unless `replace`, which replaces converted models and nothing else).
pub fn convert(
    inputs: &Inputs,
    config: &ModelConfig,
    format: impl Into<Format>,
    out: &Path,
    replace: bool,
    files: &[(&str, String)],
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Report, WeightsError> {
    let format = format.into();
    check_language_model(config, &inputs.language_model)?;
    check_clip(config, &inputs.clip)?;
    if replace {
        spare_inputs(inputs, out)?;
    }
    let sources = Sources {
        clip: (inputs.clip.clone(), readers::open(&inputs.clip)?),
        language_model: (inputs.language_model.clone(), readers::open(&inputs.language_model)?),
        checkpoint: (inputs.checkpoint.clone(), readers::open(&inputs.checkpoint)?),
    };
    let plan = recipe::plan(config, sources)?;
    for note in &plan.initialised {
        tracing::warn!("{note}");
    }

    let staging = Staging::begin(out, replace)?;
    let total = plan.recipes.iter().map(|recipe| recipe.spec.bytes(format)).sum();
    let mut written = 0;
    write::tensors(&staging, &plan.recipes, format, &mut |tensor, bytes| {
        written += bytes;
        on_progress(Progress { tensor, written, total });
    })?;

    for (file, content) in files {
        staging.write(file, content)?;
    }
    for file in TOKENIZER.into_iter().filter(|file| files.iter().all(|(given, _)| given != file)) {
        let source = inputs.language_model.join(file);
        if source.is_file() {
            staging.copy(&source, file)?;
        }
    }
    let report = Report {
        dtype: format.to_string(),
        used: plan.recipes.iter().map(|r| (r.spec.name.clone(), sources_of(&r.pieces))).collect(),
        dropped: plan.dropped,
        initialised: plan.initialised,
        missing: Vec::new(),
        unexpected: Vec::new(),
        wrong_shape: Vec::new(),
    };
    staging.write("model.toml", &config.to_toml())?;
    staging.write("config.json", &pretty(&config_json(config, format.dtype)))?;
    staging.write("preprocessor_config.json", &pretty(&preprocessor(config)))?;
    staging.write(REPORT, &pretty(&json!(report)))?;
    staging.write("README.md", &card(config, inputs, format, &report))?;
    staging.finish()?;
    Ok(report)
}

/// Refuses to replace a folder that holds what is to be converted.
fn spare_inputs(inputs: &Inputs, out: &Path) -> Result<(), WeightsError> {
    let Ok(out) = out.canonicalize() else { return Ok(()) };
    for input in [&inputs.clip, &inputs.language_model, &inputs.checkpoint] {
        if input.canonicalize().is_ok_and(|input| input.starts_with(&out)) {
            return Err(WeightsError::Mismatch(format!(
                "{} holds {}, which --force would delete: give another --out",
                out.display(),
                input.display()
            )));
        }
    }
    Ok(())
}

/// Names of the sources in a recipe, each once.
fn sources_of(pieces: &[Piece]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for piece in pieces {
        if let Piece::Run { name, .. } | Piece::Transposed { name, .. } = piece
            && names.last() != Some(name)
        {
            names.push(name.clone());
        }
    }
    names
}

pub(crate) fn pretty(json: &serde_json::Value) -> String {
    format!("{json:#}\n")
}

/// The config for the Python world; `model.toml` is what we read.
pub(crate) fn config_json(config: &ModelConfig, dtype: Dtype) -> serde_json::Value {
    let mut json = json!(config);
    json["model_type"] = json!("openflamingo");
    json["torch_dtype"] = json!(match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
    });
    json
}

/// OpenAI's normalisation, of each channel.
pub(crate) const CLIP_MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
pub(crate) const CLIP_STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// What transformers' `CLIPImageProcessor` needs to do the same.
pub(crate) fn preprocessor(config: &ModelConfig) -> serde_json::Value {
    let side = config.vision.image_size;
    json!({
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": true,
        "size": {"shortest_edge": side},
        "resample": 3,
        "do_center_crop": true,
        "crop_size": {"height": side, "width": side},
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "do_convert_rgb": true,
    })
}

fn card(config: &ModelConfig, inputs: &Inputs, format: Format, report: &Report) -> String {
    let file = |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let mut card = format!(
        "# {}\n\nAn OpenFlamingo model ({} decoder, {} tensors in {format}), converted from\n\n\
         - CLIP: `{}`\n- language model: `{}`\n- checkpoint: `{}`\n\n\
         The weights stay under their owners' licences. `model.safetensors` holds plain tensors with linear weights as \
         `[out, in]`; `conversion_report.json` says what each is made of.\n",
        config.name,
        config.decoder.family(),
        report.used.len(),
        file(&inputs.clip),
        file(&inputs.language_model),
        file(&inputs.checkpoint),
    );
    if !report.initialised.is_empty() {
        card.push_str("\nIn no file, and filled in:\n\n");
        for note in &report.initialised {
            card.push_str(&format!("- {note}\n"));
        }
    }
    card
}
