//! What trains on what: one TOML, upstream's options under upstream's names.

use std::path::PathBuf;

use flamingo_config::TextTowerConfig;
use flamingo_data::DocumentRules;
use flamingo_engine::{AdamW, Dtype, Muon, Optimizer, Part, Schedule, TrainingOptions};
use serde::{Deserialize, Serialize};

use crate::RunError;

/// What is learnt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// The next token of interleaved text: Flamingo's.
    #[default]
    NextToken,
    /// Which caption belongs to which picture: CLIP's, for a vision tower made from nothing.
    Contrastive,
}

/// Optimizers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Upstream's.
    #[default]
    AdamW,
    /// Muon for the matrices of transformer blocks, AdamW for the rest: for models made from nothing.
    Muon,
}

/// Number formats of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunPrecision {
    /// f32 throughout.
    #[default]
    #[serde(rename = "fp32")]
    Fp32,
    /// bf16, but for what trains and its gradients and the optimizer's state, norms, softmax and loss: f32. Upstream's
    /// `bf16`, which makes these bf16 too, is taken for the same.
    #[serde(rename = "amp_bf16", alias = "amp_bfloat16", alias = "bf16")]
    AmpBf16,
}

/// A run's settings. Those that upstream's `train.py` has bear its names, and its defaults but where a field says another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Folder of the run: checkpoints, metrics, and at the end the model.
    pub run_name: PathBuf,
    /// Model folder to start from; it says what upstream's `lm_path`, `vision_encoder_path` and
    /// `cross_attn_every_n_layers` say.
    pub model: PathBuf,
    /// What is learnt.
    #[serde(default)]
    pub objective: Objective,
    /// The text tower of contrastive training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_tower: Option<TextTowerConfig>,
    /// Share of a picture's patches that contrastive training leaves out (open_clip's option): less time, less overfitting.
    #[serde(default)]
    pub patch_dropout: f64,
    /// Share of the contrastive loss that compares captions with the mean of the patch tokens, which Flamingo reads,
    /// rather than with the class token, as CLIP does.
    #[serde(default)]
    pub patch_loss: f64,
    /// Parts that train; the rest is frozen.
    #[serde(default = "upstream_parts")]
    pub train: Vec<Part>,
    /// Keep the embeddings of `<image>` and `<|endofchunk|>` as they are.
    #[serde(default)]
    pub freeze_lm_embeddings: bool,

    /// Shards of captioned pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub laion_shards: Option<String>,
    /// Shards of interleaved documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mmc4_shards: Option<String>,
    /// Pairs in a batch of each device.
    #[serde(default = "n::<128>")]
    pub batch_size_laion: usize,
    /// Documents in a batch of each device; upstream's default is 128.
    #[serde(default = "n::<32>")]
    pub batch_size_mmc4: usize,
    /// Pairs in an epoch.
    #[serde(default = "n::<10_000>")]
    pub train_num_samples_laion: usize,
    /// Documents in an epoch.
    #[serde(default = "n::<10_000>")]
    pub train_num_samples_mmc4: usize,
    /// Weight of the pairs' loss.
    #[serde(default = "one")]
    pub loss_multiplier_laion: f64,
    /// Weight of the documents' loss.
    #[serde(default = "one")]
    pub loss_multiplier_mmc4: f64,
    /// Draw shards with replacement.
    #[serde(default)]
    pub dataset_resampled: bool,
    /// Threads that read and decode each stream, on all devices together: a multiple of their number, or several
    /// devices read the same.
    #[serde(default = "n::<1>")]
    pub workers: usize,
    /// Samples of pairs among which the next is drawn.
    #[serde(default = "n::<5000>")]
    pub shuffle_laion: usize,
    /// Documents among which the next is drawn.
    #[serde(default = "n::<1000>")]
    pub shuffle_mmc4: usize,
    /// Unusable samples in a row that end the run.
    #[serde(default = "n::<1000>")]
    pub max_consecutive_failures: usize,
    /// Mirror every second sample's pictures.
    #[serde(default = "yes")]
    pub horizontal_flip: bool,
    /// Tokens after which a caption is cut off.
    #[serde(default = "n::<32>")]
    pub max_tokens_laion: usize,
    /// Tokens after which a document is cut off.
    #[serde(default = "n::<256>")]
    pub max_tokens_mmc4: usize,
    /// Least similarity of a picture to its sentence; upstream's default is 30 (per cent of CLIP's), ours the paper's.
    #[serde(default = "similarity")]
    pub mmc4_textsim_threshold: f64,
    /// Most pictures of a document.
    #[serde(default = "n::<6>")]
    pub mmc4_max_num_images: usize,
    /// Fewest pictures of a document.
    #[serde(default = "n::<1>")]
    pub mmc4_min_num_images: usize,
    /// Smaller picture files are decoration.
    #[serde(default = "n::<11_000>")]
    pub mmc4_min_bytes: usize,

    /// Decides every random choice.
    #[serde(default = "seed")]
    pub seed: u64,
    /// Epochs, of the stream with fewer batches.
    #[serde(default = "n::<1>")]
    pub num_epochs: usize,
    /// Batches between two updates.
    #[serde(default = "n::<1>")]
    pub gradient_accumulation_steps: usize,
    /// The highest learning rate.
    #[serde(default = "learning_rate")]
    pub learning_rate: f64,
    /// Its course: constant, linear or cosine.
    #[serde(default)]
    pub lr_scheduler: Schedule,
    /// Updates in which it rises from 0.
    #[serde(default = "n::<5000>")]
    pub warmup_steps: usize,
    /// Decay of the cross-attention's weights.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// What turns gradients into updates.
    #[serde(default)]
    pub optimizer: OptimizerKind,
    /// Muon's learning rate, in those of AdamW.
    #[serde(default = "muon_factor")]
    pub muon_factor: f64,
    /// AdamW's decay of the mean squared gradient.
    #[serde(default = "beta_2")]
    pub adam_beta2: f64,
    /// Largest norm of a gradient.
    #[serde(default = "one")]
    pub max_grad_norm: f64,
    /// Number formats.
    #[serde(default)]
    pub precision: RunPrecision,
    /// Keep each layer's input only and compute the rest again: less memory, a forward pass more time.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Mebibytes of a frozen vision tower's output that are kept by picture.
    #[serde(default = "n::<1024>")]
    pub vision_cache_mib: usize,
    /// Rows of a batch that go through the model together: a batch is sorted by length and cut, which saves padding and
    /// memory and changes its loss and gradients by rounding only. 0 for all rows.
    #[serde(default)]
    pub rows_at_once: usize,
    /// Devices send each other gradients as bf16: half as many bytes, and rounded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bf16_gradients: bool,
    /// Upstream's defects where the default differs: order of pictures in documents, gradients clipped before they
    /// are all there, an update of fewer batches at the end of each epoch, a schedule that does not know of accumulation,
    /// every device's loss counting alike however many tokens it predicts. A loss that is no number is left out either way,
    /// with its update; upstream looks at documents' only, and lets other batches of that update count.
    #[serde(default)]
    pub upstream_compat: bool,

    /// Updates between two lines of metrics; upstream's default is 100.
    #[serde(default = "n::<10>")]
    pub logging_steps: usize,
    /// Updates between two checkpoints; 0 for none.
    #[serde(default = "n::<500>")]
    pub checkpoint_steps: usize,
    /// Minutes between two checkpoints; 0 for none.
    #[serde(default)]
    pub checkpoint_minutes: f64,
    /// Checkpoints that are kept.
    #[serde(default = "n::<2>")]
    pub keep_checkpoints: usize,
    /// Keep the last checkpoint only.
    #[serde(default)]
    pub delete_previous_checkpoint: bool,
}

fn n<const N: usize>() -> usize {
    N
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

fn seed() -> u64 {
    42
}

fn similarity() -> f64 {
    0.24
}

fn learning_rate() -> f64 {
    1e-4
}

fn weight_decay() -> f64 {
    0.1
}

fn muon_factor() -> f64 {
    10.0
}

fn beta_2() -> f64 {
    0.999
}

fn upstream_parts() -> Vec<Part> {
    Part::UPSTREAM.to_vec()
}

const SPREAD: &str = "gradients and the optimizer's state are always spread over the workers, the weights never";
const METRICS: &str = "metrics.jsonl in the run's folder holds all numbers, and `flamingo plot` draws them";

/// Upstream's options that this project has elsewhere, and where.
const ELSEWHERE: &[(&str, &str)] = &[
    ("lm_path", "the model folder (`model`) holds the language model"),
    ("vision_encoder_path", "the model folder (`model`) holds the vision tower"),
    ("vision_encoder_pretrained", "the model folder (`model`) holds the vision tower"),
    ("tokenizer_path", "the model folder (`model`) holds the tokenizer"),
    ("cross_attn_every_n_layers", "it is in the model folder's model.toml"),
    ("resume_from_checkpoint", "a run goes on from its last checkpoint by itself"),
    ("offline", "nothing is fetched while training"),
    ("dist_url", "`flamingo train --rendezvous` says where several processes meet"),
    ("dist_backend", "`flamingo train --device` and `--devices` say what computes"),
    ("horovod", "`flamingo train --nodes` trains in several processes"),
    ("no_set_device_rank", "`flamingo train --device` and `--devices` say what computes"),
    ("fsdp", SPREAD),
    ("fsdp_use_orig_params", SPREAD),
    ("fsdp_sharding_strategy", SPREAD),
    ("report_to_wandb", METRICS),
    ("wandb_project", METRICS),
    ("wandb_entity", METRICS),
    ("save_checkpoints_to_wandb", "checkpoints are in the run's folder"),
];

impl Recipe {
    /// Reads a recipe; `overrides` are `key=value` with TOML values, quotes around a string optional.
    ///
    /// # Errors
    /// [`RunError::Recipe`] for anything unknown, missing or inconsistent.
    pub fn from_toml(text: &str, overrides: &[String]) -> Result<Self, RunError> {
        let wrong = |e: toml::de::Error| RunError::Recipe(e.to_string().trim_end().to_string());
        let mut table: toml::Table = text.parse().map_err(wrong)?;
        for entry in overrides {
            let (key, value) = entry
                .split_once('=')
                .ok_or_else(|| RunError::Recipe(format!("`{entry}` is not of the form key=value")))?;
            let parsed = format!("value = {value}").parse::<toml::Table>().ok();
            let value = parsed.and_then(|mut table| table.remove("value"));
            let text = || toml::Value::String(entry[key.len() + 1..].to_string());
            table.insert(key.trim().to_string(), value.unwrap_or_else(text));
        }
        if let Some((key, why)) = ELSEWHERE.iter().find(|(key, _)| table.contains_key(*key)) {
            return Err(RunError::Recipe(format!("`{key}` is not set here: {why}")));
        }
        let recipe: Self = table.try_into().map_err(wrong)?;
        recipe.check()?;
        Ok(recipe)
    }

    fn check(&self) -> Result<(), RunError> {
        let wrong = |why: &str| Err(RunError::Recipe(why.to_string()));
        let positive = [
            ("batch_size_laion", self.batch_size_laion),
            ("batch_size_mmc4", self.batch_size_mmc4),
            ("num_epochs", self.num_epochs),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps),
            ("logging_steps", self.logging_steps),
            ("keep_checkpoints", self.keep_checkpoints),
            ("workers", self.workers),
            ("max_tokens_laion", self.max_tokens_laion),
            ("max_tokens_mmc4", self.max_tokens_mmc4),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(RunError::Recipe(format!("{name} must be at least 1")));
        }
        let numbers = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("muon_factor", self.muon_factor),
            ("loss_multiplier_laion", self.loss_multiplier_laion),
            ("loss_multiplier_mmc4", self.loss_multiplier_mmc4),
            ("checkpoint_minutes", self.checkpoint_minutes),
        ];
        if let Some((name, _)) = numbers.iter().find(|(_, value)| !value.is_finite() || *value < 0.0) {
            return Err(RunError::Recipe(format!("{name} must be a number that is not negative")));
        }
        if self.max_grad_norm.is_nan() || self.max_grad_norm <= 0.0 {
            return wrong("max_grad_norm must be above 0");
        }
        if self.mmc4_min_num_images > self.mmc4_max_num_images {
            return wrong("mmc4_min_num_images must not be above mmc4_max_num_images");
        }
        if self.mmc4_textsim_threshold.is_nan() {
            return wrong("mmc4_textsim_threshold must be a number");
        }
        if !(0.0..1.0).contains(&self.adam_beta2) {
            return wrong("adam_beta2 must be between 0 and 1");
        }
        if !(0.0..1.0).contains(&self.patch_dropout) {
            return wrong("patch_dropout must be at least 0 and below 1");
        }
        if !(0.0..=1.0).contains(&self.patch_loss) {
            return wrong("patch_loss must be between 0 and 1");
        }
        match self.objective {
            Objective::NextToken if self.patch_dropout > 0.0 || self.patch_loss > 0.0 => {
                wrong("patch_dropout and patch_loss are for contrastive training: leave them out")
            }
            _ if self.laion_shards.is_none() && self.mmc4_shards.is_none() => {
                wrong("there is nothing to train on: set laion_shards, mmc4_shards or both")
            }
            Objective::Contrastive if self.laion_shards.is_none() || self.mmc4_shards.is_some() => {
                wrong("contrastive training takes captioned pictures: set laion_shards, and not mmc4_shards")
            }
            Objective::Contrastive
                if self.rows_at_once > 0 || self.gradient_checkpointing || self.train != upstream_parts() =>
            {
                wrong(
                    "contrastive training compares all rows of a batch and trains the whole tower: leave rows_at_once, \
                     gradient_checkpointing and train out",
                )
            }
            Objective::Contrastive if self.text_tower.is_none() => {
                wrong("contrastive training needs a text tower: add [text_tower.decoder]")
            }
            Objective::Contrastive if self.precision != RunPrecision::Fp32 => {
                wrong("contrastive training is in fp32: leave precision out")
            }
            Objective::Contrastive if self.batch_size_laion < 2 => {
                wrong("contrastive training compares the rows of a batch: batch_size_laion must be at least 2")
            }
            Objective::NextToken if self.parts().is_empty() => wrong("nothing trains: `train` names no part"),
            _ if self.batches() == 0 => wrong("an epoch has fewer samples than a batch"),
            _ if self.updates() == 0 => wrong("the run has fewer batches than gradient_accumulation_steps"),
            _ => self.check_text_tower(),
        }
    }

    fn check_text_tower(&self) -> Result<(), RunError> {
        let Some(TextTowerConfig { decoder }) = &self.text_tower else { return Ok(()) };
        decoder.check().map_err(|error| RunError::Recipe(format!("text_tower: {error}")))?;
        let (positions, tokens) = (decoder.architecture().max_positions, self.max_tokens_laion);
        if tokens > positions {
            return Err(RunError::Recipe(format!(
                "captions have up to {tokens} tokens and the text tower places for {positions}: lower max_tokens_laion, \
                 or raise text_tower.decoder.max_positions"
            )));
        }
        Ok(())
    }

    /// The recipe with which one device does what so many do together with this one: what a step learns from, a
    /// schedule and a checkpoint say is the same.
    ///
    /// # Errors
    /// [`RunError::Recipe`] for what several devices cannot do.
    pub(crate) fn for_one(&self, devices: usize) -> Result<Self, RunError> {
        if devices == 1 {
            return Ok(self.clone());
        }
        if self.objective == Objective::Contrastive {
            let why = "contrastive training is on one device: its loss compares all rows of a batch";
            return Err(RunError::Recipe(why.into()));
        }
        if self.upstream_compat && self.gradient_accumulation_steps > 1 {
            let why = "upstream_compat with gradient_accumulation_steps is for one device: leave one of them out";
            return Err(RunError::Recipe(why.into()));
        }
        let batch_size_laion = self.batch_size_laion.saturating_mul(devices);
        let batch_size_mmc4 = self.batch_size_mmc4.saturating_mul(devices);
        let together = Self { batch_size_laion, batch_size_mmc4, ..self.clone() };
        together.check()?;
        Ok(together)
    }

    /// What is trained, in words that are the same wherever it is.
    pub fn purpose(&self) -> String {
        toml::to_string(&Self { run_name: PathBuf::new(), ..self.clone() }).unwrap_or_default()
    }

    /// What trains.
    pub fn parts(&self) -> Vec<Part> {
        let frozen = |part: &Part| self.freeze_lm_embeddings && *part == Part::AddedEmbeddings;
        self.train.iter().copied().filter(|part| !frozen(part)).collect()
    }

    /// Batches of each stream in an epoch.
    fn epoch_batches(&self) -> usize {
        let of = |shards: &Option<String>, samples: usize, batch: usize| shards.as_ref().map(|_| samples / batch);
        let streams = [
            of(&self.laion_shards, self.train_num_samples_laion, self.batch_size_laion),
            of(&self.mmc4_shards, self.train_num_samples_mmc4, self.batch_size_mmc4),
        ];
        streams.into_iter().flatten().min().unwrap_or(0)
    }

    /// Batches of each stream in the whole run.
    pub fn batches(&self) -> usize {
        self.epoch_batches().saturating_mul(self.num_epochs)
    }

    /// Updates in the whole run.
    pub fn updates(&self) -> usize {
        if self.upstream_compat {
            let of_epoch = self.epoch_batches().div_ceil(self.gradient_accumulation_steps);
            return of_epoch.saturating_mul(self.num_epochs);
        }
        self.batches() / self.gradient_accumulation_steps
    }

    /// Batches of each stream that so many updates learn from.
    pub fn batches_until(&self, updates: usize) -> usize {
        let (batches, accumulation) = (self.epoch_batches(), self.gradient_accumulation_steps);
        if self.upstream_compat {
            // Upstream updates at the last batch of each epoch, too (train_utils.py).
            let of_epoch = batches.div_ceil(accumulation).max(1);
            return updates / of_epoch * batches + (updates % of_epoch * accumulation).min(batches);
        }
        updates.saturating_mul(accumulation)
    }

    /// The learning rate of an update, from 0.
    pub fn rate(&self, update: usize) -> f64 {
        // Upstream's schedule counts batches (train.py:427).
        let total = if self.upstream_compat { self.batches() } else { self.updates() };
        self.learning_rate * self.lr_scheduler.factor(update, self.warmup_steps, total)
    }

    pub(crate) fn training_options(&self) -> TrainingOptions {
        TrainingOptions {
            parts: self.parts(),
            optimizer: self.optimizer(),
            precision: match self.precision {
                RunPrecision::Fp32 => Dtype::F32,
                RunPrecision::AmpBf16 => Dtype::Bf16,
            },
            gradient_checkpointing: self.gradient_checkpointing,
            features_bytes: self.vision_cache_mib.saturating_mul(1 << 20),
        }
    }

    pub(crate) fn optimizer(&self) -> Optimizer {
        let weight_decay = self.weight_decay;
        let muon = Muon { factor: self.muon_factor, momentum: 0.95, weight_decay };
        Optimizer {
            adamw: AdamW { weight_decay, beta_2: self.adam_beta2, ..AdamW::default() },
            muon: (self.optimizer == OptimizerKind::Muon).then_some(muon),
        }
    }

    pub(crate) fn document_rules(&self) -> DocumentRules {
        DocumentRules {
            textsim_threshold: self.mmc4_textsim_threshold,
            min_num_images: self.mmc4_min_num_images,
            max_num_images: self.mmc4_max_num_images,
            max_tokens: self.max_tokens_mmc4,
            min_bytes: self.mmc4_min_bytes,
            upstream_compat: self.upstream_compat,
        }
    }

    /// Settings that decide numbers and differ from another recipe's.
    pub(crate) fn differs_from(&self, other: &Self) -> Vec<String> {
        let free = [
            "run_name",
            "logging_steps",
            "checkpoint_steps",
            "checkpoint_minutes",
            "keep_checkpoints",
            "delete_previous_checkpoint",
            "vision_cache_mib",
            "max_consecutive_failures",
        ];
        let table = |recipe: &Self| toml::Table::try_from(recipe).unwrap_or_default();
        let (ours, theirs) = (table(self), table(other));
        let keys = ours.keys().chain(theirs.keys().filter(|key| !ours.contains_key(*key)));
        keys.filter(|key| !free.contains(&key.as_str()) && ours.get(*key) != theirs.get(*key)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "run_name = \"runs/a\"\nmodel = \"models/b\"\nlaion_shards = \"{0..9}.tar\"\n";

    #[test]
    fn defaults_are_upstreams_and_overrides_win() {
        let recipe = Recipe::from_toml(LEAST, &[]).expect("a recipe");
        assert_eq!((recipe.batch_size_laion, recipe.seed, recipe.warmup_steps), (128, 42, 5000));
        assert_eq!((recipe.batches(), recipe.updates()), (78, 78));
        let overrides = ["learning_rate=0.5", "run_name=runs/c", "train=[\"resampler\"]", "num_epochs = 3"];
        let recipe = Recipe::from_toml(LEAST, &overrides.map(String::from)).expect("a recipe");
        assert_eq!((recipe.learning_rate, recipe.batches()), (0.5, 234));
        assert_eq!((recipe.run_name, recipe.train), ("runs/c".into(), vec![Part::Resampler]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (overrides, said) in [
            (vec!["learning_rat=1"], "learning_rat"),
            (vec!["lm_path=x"], "the model folder"),
            (vec!["batch_size_laion=0"], "at least 1"),
            (vec!["batch_size_laion=20000"], "fewer samples than a batch"),
            (vec!["learning_rate=-1"], "not negative"),
            (vec!["learning_rate=nan"], "not negative"),
            (vec!["objective=contrastive"], "text tower"),
            (vec!["patch_dropout=0.5"], "for contrastive training"),
            (vec!["patch_loss=0.5"], "for contrastive training"),
            (vec!["patch_loss=2"], "between 0 and 1"),
            (vec!["patch_dropout=1"], "below 1"),
            (vec!["optimizer=sgd"], "unknown variant"),
            (vec!["objective=contrastive", "rows_at_once=8"], "all rows of a batch"),
            (vec!["objective=contrastive", "train=[\"vision\"]"], "the whole tower"),
            (vec!["train=[\"added_embeddings\"]", "freeze_lm_embeddings=true"], "nothing trains"),
            (vec!["nonsense"], "key=value"),
        ] {
            let overrides: Vec<String> = overrides.into_iter().map(String::from).collect();
            let error = Recipe::from_toml(LEAST, &overrides).expect_err("an error").to_string();
            assert!(error.contains(said), "{overrides:?}: {error}");
        }
        assert!(Recipe::from_toml("run_name = \"a\"\nmodel = \"b\"", &[]).is_err());
    }

    #[test]
    fn the_schedule_counts_updates_and_upstreams_counts_batches() {
        let with = |compat: &str| {
            let overrides = [compat, "gradient_accumulation_steps=2", "lr_scheduler=linear", "warmup_steps=0"];
            Recipe::from_toml(LEAST, &overrides.map(String::from)).expect("a recipe")
        };
        let (ours, theirs) = (with("upstream_compat=false"), with("upstream_compat=true"));
        assert_eq!(ours.updates(), 39);
        assert_eq!(ours.rate(39), 0.0);
        assert!((theirs.rate(39) / theirs.learning_rate - 0.5).abs() < 1e-9);
    }
}
