//! From sources to recipes: which runs of which source tensors make up each tensor of a model folder.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use flamingo_config::ModelConfig;

use crate::layout::TensorSpec;
use crate::readers::{SourceTensor, Tensors};
use crate::tables::{self, DecoderTable, How, Table};
use crate::{WeightsError, layout};

/// How one tensor is made.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) spec: TensorSpec,
    /// Its parts, in order.
    pub(crate) pieces: Vec<Piece>,
}

/// A run of elements.
#[derive(Debug)]
pub(crate) enum Piece {
    /// Consecutive elements of a source, in row-major order.
    Run { name: String, tensor: SourceTensor, start: usize, count: usize },
    /// A whole matrix, transposed.
    Transposed { name: String, tensor: SourceTensor },
    /// Zeros: rows that are in no file.
    Zeros { count: usize },
}

/// All recipes, and what became of every source tensor.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) recipes: Vec<Recipe>,
    /// Source tensors that are known and unused.
    pub(crate) dropped: Vec<String>,
    /// Tensors, or rows of them, that are in no file.
    pub(crate) initialised: Vec<String>,
}

/// The opened sources.
pub(crate) struct Sources {
    pub(crate) clip: (PathBuf, Tensors),
    pub(crate) language_model: (PathBuf, Tensors),
    pub(crate) checkpoint: (PathBuf, Tensors),
}

/// Works out every tensor of the folder. Strict: whatever is missing, of the wrong shape or unexplained is an
/// error.
pub(crate) fn plan(config: &ModelConfig, sources: Sources) -> Result<Plan, WeightsError> {
    let names = tables::decoder(&config.decoder);
    let tied = config.decoder.architecture().tied_head;

    let (clip_path, clip) = sources.clip;
    let clip = Part::new(without_prefix(clip, "module."), clip_path, names);
    let clip_table = if clip.tensors.keys().any(|name| name.starts_with("vision_model.")) {
        &tables::CLIP_HF
    } else {
        &tables::CLIP
    };
    let (checkpoint_path, checkpoint) = sources.checkpoint;
    let checkpoint = split_checkpoint(checkpoint, names, &checkpoint_path)?;
    let flamingo =
        Part { spelling: checkpoint.spelling, ..Part::new(checkpoint.flamingo, checkpoint_path.clone(), names) };
    let (lm_path, lm) = sources.language_model;
    let mut language_model = Part::new(with_prefix(lm, names), lm_path, names);
    let mut dropped = checkpoint.dropped;
    // What the checkpoint has of the language model is newer.
    // Upstream drops frozen embeddings from its checkpoints, but not the head that shares their table.
    let has_embedding = checkpoint.trained.contains_key(names.embedding);
    for (name, tensor) in checkpoint.trained {
        let spelled = format!("lang_encoder.{name}");
        let name = if tied && !has_embedding && name == names.head { names.embedding.to_string() } else { name };
        if language_model.tensors.insert(name.clone(), tensor).is_some() {
            dropped.push(format!("{name} of the language model (the checkpoint's is newer)"));
        }
        language_model.spelling.insert(name, spelled);
    }

    let mut parts =
        Parts { clip, clip_table, flamingo, language_model, names, heads: config.decoder.architecture().n_heads };
    let mut initialised = Vec::new();
    let mut recipes = Vec::new();
    for spec in layout(config) {
        let pieces = parts.pieces(&spec, config, &mut initialised)?;
        recipes.push(Recipe { spec, pieces });
    }
    dropped.extend(parts.clip.leftovers(|name| clip_table.drops(name))?);
    dropped.extend(parts.flamingo.leftovers(|name| tables::FLAMINGO.drops(name))?);
    let duplicate = |name: &str| tied && name == names.head;
    let leftovers = parts.language_model.leftovers(|name| names.table.drops(name) || duplicate(name));
    dropped.extend(leftovers.map_err(|error| blame(error, &parts.flamingo.path))?);
    Ok(Plan { recipes, dropped, initialised })
}

/// One of the three sources, and which of its tensors were used.
struct Part {
    tensors: Tensors,
    path: PathBuf,
    used: BTreeSet<String>,
    /// How the file spells those names that it spells differently.
    spelling: BTreeMap<String, String>,
    names: &'static DecoderTable,
}

impl Part {
    fn new(tensors: Tensors, path: PathBuf, names: &'static DecoderTable) -> Self {
        Self { tensors, path, used: BTreeSet::new(), spelling: BTreeMap::new(), names }
    }

    /// A name as the file spells it, or would.
    fn spelled(&self, name: &str) -> String {
        let gated = || {
            let (layer, rest) = name.strip_prefix("gated.")?.split_once('.')?;
            Some(format!("lang_encoder.{}.{layer}.gated_cross_attn_layer.{rest}", self.names.blocks))
        };
        self.spelling.get(name).cloned().or_else(gated).unwrap_or_else(|| name.to_string())
    }

    fn take(&mut self, name: &str, target: &str) -> Result<SourceTensor, WeightsError> {
        let tensor = self.tensors.get(name).cloned();
        let missing = || WeightsError::Missing { name: self.spelled(name), target: target.to_string() };
        let tensor = tensor.ok_or_else(missing)?;
        self.used.insert(name.to_string());
        Ok(tensor)
    }

    /// Unused tensors, all of which must be known.
    fn leftovers(&self, known: impl Fn(&str) -> bool) -> Result<Vec<String>, WeightsError> {
        let unused = self.tensors.keys().filter(|name| !self.used.contains(*name));
        let (dropped, names): (Vec<_>, Vec<_>) = unused.partition(|name| known(name));
        let spelled =
            |names: Vec<&String>| -> Vec<String> { names.into_iter().map(|name| self.spelled(name)).collect() };
        let (dropped, names) = (spelled(dropped), spelled(names));
        if names.is_empty() { Ok(dropped) } else { Err(WeightsError::Unexpected { path: self.path.clone(), names }) }
    }
}

/// Names the checkpoint where what is unexpected among the language model's tensors came from there.
fn blame(error: WeightsError, checkpoint: &Path) -> WeightsError {
    match error {
        WeightsError::Unexpected { names, .. } if names.iter().any(|name| name.starts_with("lang_encoder.")) => {
            let names = names.into_iter().filter(|name| name.starts_with("lang_encoder.")).collect();
            WeightsError::Unexpected { path: checkpoint.to_path_buf(), names }
        }
        error => error,
    }
}

struct Parts {
    clip: Part,
    clip_table: &'static Table,
    flamingo: Part,
    language_model: Part,
    names: &'static DecoderTable,
    heads: usize,
}

impl Parts {
    fn pieces(
        &mut self,
        spec: &TensorSpec,
        config: &ModelConfig,
        initialised: &mut Vec<String>,
    ) -> Result<Vec<Piece>, WeightsError> {
        let target = spec.name.as_str();
        let base = config.tokens.base_rows();
        match target {
            "decoder.embedding.base" => return self.rows(self.names.embedding, spec, 0, config, initialised),
            "decoder.embedding.added" => return self.rows(self.names.embedding, spec, base, config, initialised),
            "decoder.head.weight" => return self.rows(self.names.head, spec, 0, config, initialised),
            "decoder.head.bias" => {
                let bias = self.names.head.replace(".weight", ".bias");
                return self.rows(&bias, spec, 0, config, initialised);
            }
            _ => {}
        }
        let (table, part) = match target.split('.').next() {
            Some("vision") => (self.clip_table, &mut self.clip),
            Some("resampler" | "cross_attention") => (&tables::FLAMINGO, &mut self.flamingo),
            _ => (&self.names.table, &mut self.language_model),
        };
        let (how, sources) = table
            .sources(target)
            .ok_or_else(|| WeightsError::Mismatch(format!("no name table has a row for `{target}`")))?;
        let mut tensors = Vec::with_capacity(sources.len());
        for name in sources {
            let tensor = part.take(&name, target)?;
            tensors.push((part.spelled(&name), tensor));
        }
        assemble(spec, how, tensors, self.heads)
    }

    /// Consecutive rows of a table. The language model's may have more rows than the model, or (it was never
    /// resized) fewer; the checkpoint's has as many.
    fn rows(
        &mut self,
        name: &str,
        spec: &TensorSpec,
        first: usize,
        config: &ModelConfig,
        initialised: &mut Vec<String>,
    ) -> Result<Vec<Piece>, WeightsError> {
        let tensor = self.language_model.take(name, &spec.name)?;
        let trained = self.language_model.spelling.contains_key(name);
        let name = &self.language_model.spelled(name);
        let vocab_size = config.tokens.vocab_size;
        if tensor.shape.len() != spec.shape.len() || tensor.shape[1..] != spec.shape[1..] {
            return Err(wrong_shape(name, &tensor, spec, vocab_size));
        }
        if trained && tensor.shape[0] != vocab_size {
            return Err(wrong_shape(name, &tensor, spec, vocab_size));
        }
        let wanted = spec.shape[0];
        let there = wanted.min(tensor.shape[0].saturating_sub(first));
        let lacking = wanted - there;
        // Only what upstream adds can be lacking; a base table that is too short belongs to another model.
        if there == 0 && first == 0 || lacking > 0 && spec.name == "decoder.embedding.base" {
            return Err(wrong_shape(name, &tensor, spec, first + wanted));
        }
        let row = tensor.row_len();
        let mut pieces = Vec::new();
        if there > 0 {
            pieces.push(Piece::Run { name: name.to_string(), tensor, start: first * row, count: there * row });
        }
        if lacking > 0 {
            pieces.push(Piece::Zeros { count: lacking * row });
            initialised.push(format!(
                "{}: its last {lacking} rows are in no file and were set to zero (upstream would draw them at random)",
                spec.name
            ));
        }
        Ok(pieces)
    }
}

fn wrong_shape(name: &str, tensor: &SourceTensor, spec: &TensorSpec, rows: usize) -> WeightsError {
    let mut expected = spec.shape.clone();
    if let Some(first) = expected.first_mut() {
        *first = rows;
    }
    WeightsError::Shape { name: name.to_string(), target: spec.name.clone(), found: tensor.shape.clone(), expected }
}

/// Pieces of a tensor from whole sources, shapes checked.
fn assemble(
    spec: &TensorSpec,
    how: How,
    sources: Vec<(String, SourceTensor)>,
    heads: usize,
) -> Result<Vec<Piece>, WeightsError> {
    let elements = |shape: &[usize]| shape.iter().product::<usize>();
    let count = sources.len();
    for (name, tensor) in &sources {
        let mut expected = spec.shape.clone();
        let fits = match how {
            How::Copy | How::PerHead => {
                expected[0] /= count;
                tensor.shape == expected && spec.shape[0].is_multiple_of(count)
            }
            How::Reshape => tensor.shape.first() == expected.first() && elements(&tensor.shape) == elements(&expected),
            How::Transpose => {
                expected.reverse();
                tensor.shape == expected
            }
        };
        if !fits {
            let (name, target) = (name.clone(), spec.name.clone());
            return Err(WeightsError::Shape { name, target, found: tensor.shape.clone(), expected });
        }
    }
    let whole = |(name, tensor): (String, SourceTensor)| {
        let count = elements(&tensor.shape);
        Piece::Run { name, tensor, start: 0, count }
    };
    Ok(match how {
        How::Copy | How::Reshape => sources.into_iter().map(whole).collect(),
        How::Transpose => sources.into_iter().map(|(name, tensor)| Piece::Transposed { name, tensor }).collect(),
        How::PerHead => {
            // Source rows: head 0 q, head 0 k, head 0 v, head 1 q, … Ours: all q, all k, all v.
            let mut pieces = Vec::with_capacity(3 * heads);
            for (name, tensor) in sources {
                let part = elements(&tensor.shape) / (3 * heads);
                for which in 0..3 {
                    for head in 0..heads {
                        let (name, tensor) = (name.clone(), tensor.clone());
                        pieces.push(Piece::Run { name, tensor, start: (3 * head + which) * part, count: part });
                    }
                }
            }
            pieces
        }
    })
}

/// Names without a prefix that all of them have (`torch.nn.DataParallel` and FSDP wrap a model so).
fn without_prefix(tensors: Tensors, prefix: &str) -> Tensors {
    if !tensors.keys().all(|name| name.starts_with(prefix)) {
        return tensors;
    }
    tensors.into_iter().map(|(name, tensor)| (name[prefix.len()..].to_string(), tensor)).collect()
}

/// A language model's names with the prefix that its bare form leaves out (`GPTNeoXModel` beside
/// `GPTNeoXForCausalLM`).
fn with_prefix(tensors: Tensors, names: &DecoderTable) -> Tensors {
    if tensors.contains_key(names.embedding) {
        return tensors;
    }
    for prefix in names.prefixes {
        let bare = names.embedding.strip_prefix(prefix).unwrap_or(names.embedding);
        if tensors.contains_key(bare) {
            let head = names.head.trim_end_matches("weight");
            let named = |name: String| if name.starts_with(head) { name } else { format!("{prefix}{name}") };
            return tensors.into_iter().map(|(name, tensor)| (named(name), tensor)).collect();
        }
    }
    tensors
}

/// A checkpoint's tensors, sorted.
struct Checkpoint {
    /// OpenFlamingo's own; those of gated blocks are renamed to `gated.{layer}.…`.
    flamingo: Tensors,
    /// How the file spells the renamed ones.
    spelling: BTreeMap<String, String>,
    /// Newer versions of the language model's.
    trained: Tensors,
    /// What is there a second time.
    dropped: Vec<String>,
}

fn split_checkpoint(tensors: Tensors, names: &DecoderTable, path: &Path) -> Result<Checkpoint, WeightsError> {
    let (mut flamingo, mut trained, mut first_spelling) = (Tensors::new(), Tensors::new(), Tensors::new());
    let (mut spelling, mut dropped) = (BTreeMap::new(), Vec::new());
    for (name, tensor) in without_prefix(tensors, "module.") {
        let Some(rest) = name.strip_prefix("lang_encoder.") else {
            flamingo.insert(name, tensor);
            continue;
        };
        // Decoder blocks that upstream's wrapper keeps a second time.
        if rest.starts_with("old_decoder_blocks.") {
            dropped.push(name);
            continue;
        }
        if let Some(gated) = rest.strip_prefix("gated_cross_attn_layers.") {
            first_spelling.insert(format!("gated.{gated}"), tensor);
            continue;
        }
        let in_block = rest.strip_prefix(names.blocks).and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
        match in_block {
            Some((layer, rest)) => match rest.strip_prefix("gated_cross_attn_layer.") {
                Some(gated) => {
                    let gated = format!("gated.{layer}.{gated}");
                    spelling.insert(gated.clone(), name);
                    flamingo.insert(gated, tensor);
                }
                None => {
                    let rest = rest.strip_prefix("decoder_layer.").unwrap_or(rest);
                    trained.insert(format!("{}.{layer}.{rest}", names.blocks), tensor);
                }
            },
            None => {
                trained.insert(rest.to_string(), tensor);
            }
        }
    }
    for (name, tensor) in first_spelling {
        let first = name.replacen("gated", "lang_encoder.gated_cross_attn_layers", 1);
        match flamingo.entry(name) {
            Entry::Occupied(_) => dropped.push(first),
            Entry::Vacant(place) => {
                spelling.insert(place.key().clone(), first);
                place.insert(tensor);
            }
        }
    }
    if !flamingo.keys().any(|name| name.starts_with("perceiver.") || name.starts_with("gated.")) {
        return Err(WeightsError::format(path, "holds no tensor of OpenFlamingo: is it the checkpoint?"));
    }
    Ok(Checkpoint { flamingo, spelling, trained, dropped })
}
