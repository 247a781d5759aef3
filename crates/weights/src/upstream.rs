//! The tables read backwards: which tensors upstream's files of a model hold.

use flamingo_config::ModelConfig;

use crate::layout;
use crate::layout::TensorSpec;
use crate::tables::{self, DecoderTable, How};

/// Names and shapes of upstream's three files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTensors {
    /// CLIP in OpenAI's and open_clip's layout.
    pub clip: Vec<TensorSpec>,
    /// The language model, special tokens not yet added to its table (which is padded enough to hold them).
    pub language_model: Vec<TensorSpec>,
    /// The released checkpoint.
    pub checkpoint: Vec<TensorSpec>,
}

/// What upstream's files of a model with this config hold.
pub fn upstream_tensors(config: &ModelConfig) -> UpstreamTensors {
    let names = tables::decoder(&config.decoder);
    let architecture = config.decoder.architecture();
    let mut all = UpstreamTensors::default();
    for spec in layout(config) {
        let table = match spec.name.as_str() {
            "decoder.embedding.added" => continue,
            "decoder.embedding.base" => {
                let shape = vec![config.tokens.vocab_size, architecture.embed_dim];
                let table = TensorSpec { name: names.embedding.to_string(), shape };
                all.checkpoint.push(TensorSpec { name: format!("lang_encoder.{}", table.name), ..table.clone() });
                all.language_model.push(table);
                continue;
            }
            "decoder.head.weight" | "decoder.head.bias" => {
                let leaf = spec.name.rsplit('.').next().unwrap_or("weight");
                let name = names.head.replace("weight", leaf);
                all.language_model.push(TensorSpec { name, shape: spec.shape });
                continue;
            }
            name if name.starts_with("vision.") => &tables::CLIP,
            name if name.starts_with("decoder.") => &names.table,
            _ => &tables::FLAMINGO,
        };
        let Some((how, sources)) = table.sources(&spec.name) else { continue };
        let count = sources.len();
        for source in sources {
            let mut shape = spec.shape.clone();
            match how {
                How::Copy | How::PerHead => shape[0] /= count,
                How::Transpose => shape.reverse(),
                // The patch convolution's kernel, and the singleton between rows and width of media times.
                How::Reshape if source.starts_with("visual") => {
                    let patch = config.vision.patch_size;
                    shape = vec![shape[0], 3, patch, patch];
                }
                How::Reshape => shape.insert(1, 1),
            }
            if source.starts_with("gated.") || source.starts_with("perceiver") {
                all.checkpoint.push(TensorSpec { name: in_checkpoint(names, &source), shape });
            } else if source.starts_with("visual") {
                all.clip.push(TensorSpec { name: source, shape });
            } else {
                all.language_model.push(TensorSpec { name: source, shape });
            }
        }
    }
    all
}

/// The name in a checkpoint of a row's source in [`tables::FLAMINGO`].
fn in_checkpoint(names: &DecoderTable, source: &str) -> String {
    match source.strip_prefix("gated.").and_then(|gated| gated.split_once('.')) {
        Some((layer, rest)) => format!("lang_encoder.{}.{layer}.gated_cross_attn_layer.{rest}", names.blocks),
        None => source.to_string(),
    }
}

/// Tensors that go into upstream's checkpoint: each tensor of resampler and cross-attention with its name there. The
/// numbers are the same, in the same order.
pub fn checkpoint_names(config: &ModelConfig) -> Vec<(TensorSpec, String)> {
    let names = tables::decoder(&config.decoder);
    let row = |spec: TensorSpec| {
        let (_, sources) = tables::FLAMINGO.sources(&spec.name)?;
        let name = in_checkpoint(names, sources.first()?);
        Some((spec, name))
    };
    layout(config).into_iter().filter_map(row).collect()
}

/// The name in upstream's checkpoint of the embedding table, base and added rows together.
pub fn embedding_name(config: &ModelConfig) -> String {
    format!("lang_encoder.{}", tables::decoder(&config.decoder).embedding)
}
