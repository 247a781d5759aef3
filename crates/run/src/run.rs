//! The run: opened, stepped, saved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use flamingo_data::{
    Decode, Documents, Example, ImageTransform, Loader, LoaderOptions, Pairs, Position, SpecialTokens, Stream,
    Tokenizer, find_shards,
};
use flamingo_engine::{ContrastiveOptions, Device, Training, open_contrastive, open_training};
use flamingo_weights::{Dtype, ModelFolder};

use crate::batch::{TrainingBatch, parts};
use crate::checkpoint::{self, Progress};
use crate::metrics::MetricsFile;
use crate::{Metrics, Objective, Recipe, RunError, export};

/// Steps in a row without a usable loss that end a run.
const MAX_LOST: usize = 100;

/// Names of the streams, as they are in metrics and checkpoints.
const PAIRS: &str = "laion";
const DOCUMENTS: &str = "mmc4";

/// A run between two steps.
pub struct Run {
    recipe: Recipe,
    folder: Arc<ModelFolder>,
    training: Box<dyn Training>,
    streams: Vec<OpenStream>,
    metrics: MetricsFile,
    tokens: SpecialTokens,
    progress: Progress,
    window: Window,
    lost: usize,
    begun: Instant,
    saved: Instant,
}

/// A stream of batches.
struct OpenStream {
    name: &'static str,
    kind: Stream,
    loader: Loader<Example>,
    weight: f64,
}

/// What was seen since the last line of metrics.
#[derive(Default)]
struct Window {
    losses: BTreeMap<&'static str, (f64, usize)>,
    norms: (f64, usize),
    tokens: u64,
    pictures: u64,
    seconds: f64,
}

/// What a step did.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// Its number, from 1.
    pub step: usize,
    /// The loss of each stream's last batch, by its name in the metrics: `laion`, `mmc4`.
    pub losses: Vec<(&'static str, f32)>,
    /// The line that was written down after it, if one was.
    pub metrics: Option<Metrics>,
    /// The checkpoint that was written after it, if one was.
    pub checkpoint: Option<PathBuf>,
}

impl Run {
    /// Begins a run, or goes on after the last checkpoint in its folder.
    ///
    /// # Errors
    /// [`RunError`] for anything that keeps it from training: the model, the device, the shards, a checkpoint that is
    /// damaged or of a run with other settings.
    pub fn open(recipe: Recipe, device: Device) -> Result<Self, RunError> {
        let mut tokenizer = Tokenizer::open(&recipe.model)?;
        let folder = Arc::new(ModelFolder::open(&recipe.model)?);
        let tokens = tokenizer.add_flamingo_tokens()?;
        let wanted = &folder.config().tokens;
        if (tokens.endofchunk, tokens.image) != (wanted.endofchunk, wanted.image) {
            return Err(RunError::Recipe(format!(
                "the tokenizer of {} gives <|endofchunk|> {} and <image> {}, its model.toml says {} and {}",
                recipe.model.display(),
                tokens.endofchunk,
                tokens.image,
                wanted.endofchunk,
                wanted.image
            )));
        }
        let mut training = match (&recipe.objective, &recipe.text_tower) {
            (Objective::Contrastive, Some(text)) => {
                let options = ContrastiveOptions {
                    text_tower: text.clone(),
                    optimizer: recipe.optimizer(),
                    patch_dropout: recipe.patch_dropout,
                    patch_loss: recipe.patch_loss,
                    seed: recipe.seed,
                };
                open_contrastive(&folder, device, &options)?
            }
            _ => open_training(&folder, device, &recipe.training_options())?,
        };
        std::fs::create_dir_all(&recipe.run_name).map_err(RunError::io("write", &recipe.run_name))?;
        let fresh = || Progress {
            step: 0,
            updates: 0,
            streams: BTreeMap::new(),
            seconds: 0.0,
            tokens: 0,
            pictures: 0,
            recipe: recipe.clone(),
        };
        let progress = match checkpoint::latest(&checkpoints(&recipe))? {
            None => fresh(),
            Some((progress, state)) => {
                let differs = recipe.differs_from(&progress.recipe);
                if !differs.is_empty() {
                    return Err(RunError::Recipe(format!(
                        "{} was begun with other settings ({}): set them back, or give another run_name",
                        recipe.run_name.display(),
                        differs.join(", ")
                    )));
                }
                training.restore(state)?;
                tracing::info!(step = progress.step, "going on after the last checkpoint");
                progress
            }
        };
        let metrics = MetricsFile::open(recipe.run_name.join("metrics.jsonl"), progress.step)?;
        let toml = toml::to_string(&recipe).map_err(|e| RunError::Recipe(e.to_string()))?;
        let path = recipe.run_name.join("recipe.toml");
        flamingo_data::write_whole(&path, toml.as_bytes()).map_err(RunError::io("write", &path))?;
        let side = folder.config().vision.image_size;
        let streams = open_streams(&recipe, Arc::new(tokenizer), &tokens, side, &progress.streams)?;
        let now = Instant::now();
        Ok(Self {
            recipe,
            folder,
            training,
            streams,
            metrics,
            tokens,
            progress,
            window: Window::default(),
            lost: 0,
            begun: now,
            saved: now,
        })
    }

    /// The settings.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Steps that were done.
    pub fn done(&self) -> usize {
        self.progress.step
    }

    /// Steps of the whole run.
    pub fn total(&self) -> usize {
        self.recipe.updates()
    }

    /// Samples that were left out so far, by stream and reason.
    pub fn left_out(&self) -> BTreeMap<String, u64> {
        let of = |stream: &OpenStream| {
            let name = stream.name;
            let counts = stream.loader.position().counts.clone();
            let left_out = counts.into_iter().filter(|(kind, _)| kind != "delivered");
            left_out.map(move |(kind, count)| (format!("{name}: {kind}"), count)).collect::<Vec<_>>()
        };
        self.streams.iter().flat_map(of).collect()
    }

    /// One update; `None` when the run is complete.
    ///
    /// # Errors
    /// [`RunError`] if data or device fail, or too many losses in a row are no numbers.
    pub fn step(&mut self) -> Result<Option<Step>, RunError> {
        if self.progress.step >= self.total() {
            return Ok(None);
        }
        let start = Instant::now();
        let mut step = Step { step: self.progress.step + 1, ..Step::default() };
        let accumulation = self.recipe.gradient_accumulation_steps;
        let side = self.folder.config().vision.image_size;
        let (mut lost, mut norm) = (false, 0.0);
        for micro in 0..accumulation {
            step.losses.clear();
            for stream in &mut self.streams {
                let examples = stream.loader.next_batch()?;
                let rows = if self.recipe.objective == Objective::Contrastive { 0 } else { self.recipe.rows_at_once };
                let mut loss = 0.0;
                for (batch, share) in parts(examples, rows, stream.kind, &self.tokens, side) {
                    let TrainingBatch { text, pixels, labels, pictures } = batch;
                    let weight = stream.weight * share / accumulation as f64;
                    loss += share as f32 * self.training.backward(&text, pixels.as_ref(), &labels, weight)?;
                    self.window.tokens += text.keep.iter().filter(|&&keep| keep).count() as u64;
                    self.window.pictures += pictures as u64;
                }
                lost |= !loss.is_finite();
                step.losses.push((stream.name, loss));
                if loss.is_finite() {
                    let sum = self.window.losses.entry(stream.name).or_default();
                    *sum = (sum.0 + f64::from(loss), sum.1 + 1);
                }
            }
            // Upstream clips what is there after each batch (train_utils.py:198).
            if micro + 1 == accumulation || self.recipe.upstream_compat {
                norm = self.training.clip(self.recipe.max_grad_norm)?;
            }
        }
        let rate = self.recipe.rate(self.progress.updates);
        if lost || !norm.is_finite() {
            self.training.discard();
            self.lost += 1;
            tracing::warn!(step = step.step, "the loss is no number: the step is left out");
            if self.lost >= MAX_LOST {
                return Err(RunError::NotANumber(self.lost));
            }
        } else {
            self.training.update(rate)?;
            self.progress.updates += 1;
            self.lost = 0;
            self.window.norms = (self.window.norms.0 + norm, self.window.norms.1 + 1);
        }
        self.progress.step += 1;
        for stream in &self.streams {
            self.progress.streams.insert(stream.name.to_string(), stream.loader.position().clone());
        }
        let seconds = start.elapsed().as_secs_f64();
        self.window.seconds += seconds;
        self.progress.seconds += seconds;
        if self.progress.step.is_multiple_of(self.recipe.logging_steps) || self.progress.step == self.total() {
            let line = self.line(rate);
            self.metrics.add(&line)?;
            step.metrics = Some(line);
        }
        if self.checkpoint_is_due() {
            step.checkpoint = Some(self.save()?);
        }
        Ok(Some(step))
    }

    fn line(&mut self, lr: f64) -> Metrics {
        let window = std::mem::take(&mut self.window);
        self.progress.tokens += window.tokens;
        self.progress.pictures += window.pictures;
        let mean = |name| window.losses.get(name).map(|(sum, count)| sum / *count as f64);
        let delivered = |position: &Position| position.counts.get("delivered").copied().unwrap_or(0);
        Metrics {
            step: self.progress.step,
            loss_laion: mean(PAIRS),
            loss_mmc4: mean(DOCUMENTS),
            grad_norm: window.norms.0 / window.norms.1.max(1) as f64,
            lr,
            samples: self.progress.streams.values().map(delivered).sum(),
            tokens: self.progress.tokens,
            images: self.progress.pictures,
            skipped_steps: self.progress.step - self.progress.updates,
            seconds: self.progress.seconds,
            tokens_per_second: window.tokens as f64 / window.seconds,
            images_per_second: window.pictures as f64 / window.seconds,
        }
    }

    fn checkpoint_is_due(&self) -> bool {
        let recipe = &self.recipe;
        // Sums that are not yet written down would be lost: checkpoints stand at lines of metrics.
        let at_line = self.progress.step.is_multiple_of(recipe.logging_steps);
        let by_time = recipe.checkpoint_minutes > 0.0
            && self.saved.elapsed().as_secs_f64() >= 60.0 * recipe.checkpoint_minutes
            && at_line;
        let every = recipe.checkpoint_steps.next_multiple_of(recipe.logging_steps);
        let by_steps = every > 0 && self.progress.step.is_multiple_of(every);
        by_time || by_steps || self.progress.step == self.total()
    }

    /// Writes a checkpoint.
    fn save(&mut self) -> Result<PathBuf, RunError> {
        let keep = if self.recipe.delete_previous_checkpoint { 1 } else { self.recipe.keep_checkpoints };
        let path = checkpoint::save(&checkpoints(&self.recipe), &self.progress, &self.training.state()?, keep)?;
        self.saved = Instant::now();
        Ok(path)
    }

    /// Writes the model as it is now, as a folder in the run's folder, and under upstream's names where that is what
    /// trained. Returns the folder.
    ///
    /// # Errors
    /// [`RunError::Weights`] if it cannot be written.
    pub fn export(&self, dtype: Dtype) -> Result<PathBuf, RunError> {
        let (out, checkpoint) =
            (self.recipe.run_name.join("model"), self.recipe.run_name.join("checkpoint.safetensors"));
        let upstreams = self.recipe.objective == Objective::NextToken;
        let card = format!(
            "# {}\n\nTrained for {} steps from `{}`. The settings are in `recipe.toml` beside this folder.\n",
            self.folder.config().name,
            self.progress.step,
            file_name(&self.recipe.model)
        );
        let weights = self.training.weights()?;
        let checkpoint = upstreams.then_some(checkpoint.as_path());
        export(&self.folder, &self.recipe.model, weights, dtype, &card, &out, checkpoint)?;
        Ok(out)
    }

    /// Seconds since this process opened the run.
    pub fn elapsed(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn checkpoints(recipe: &Recipe) -> PathBuf {
    recipe.run_name.join("checkpoints")
}

fn open_streams(
    recipe: &Recipe,
    tokenizer: Arc<Tokenizer>,
    tokens: &SpecialTokens,
    side: usize,
    positions: &BTreeMap<String, Position>,
) -> Result<Vec<OpenStream>, RunError> {
    let transform = ImageTransform::clip(side);
    let flip = recipe.horizontal_flip;
    let mut streams = Vec::new();
    if let Some(shards) = &recipe.laion_shards {
        let pairs = Pairs {
            tokenizer: tokenizer.clone(),
            transform: transform.clone(),
            max_tokens: recipe.max_tokens_laion,
            flip,
            upstream_compat: recipe.upstream_compat,
        };
        let decode: Decode<Example> = Arc::new(move |sample, rng| pairs.example(sample, rng));
        let options = loader_options(
            recipe,
            shards,
            recipe.batch_size_laion,
            recipe.shuffle_laion,
            recipe.train_num_samples_laion,
            0,
        )?;
        let loader = Loader::start(options, decode, positions.get(PAIRS).cloned())?;
        let weight = recipe.loss_multiplier_laion;
        streams.push(OpenStream { name: PAIRS, kind: Stream::Pairs, loader, weight });
    }
    if let Some(shards) = &recipe.mmc4_shards {
        let documents = Documents { tokenizer, tokens: *tokens, transform, rules: recipe.document_rules(), flip };
        let decode: Decode<Example> = Arc::new(move |sample, rng| documents.example(sample, rng));
        let options = loader_options(
            recipe,
            shards,
            recipe.batch_size_mmc4,
            recipe.shuffle_mmc4,
            recipe.train_num_samples_mmc4,
            1,
        )?;
        let loader = Loader::start(options, decode, positions.get(DOCUMENTS).cloned())?;
        let weight = recipe.loss_multiplier_mmc4;
        streams.push(OpenStream { name: DOCUMENTS, kind: Stream::Documents, loader, weight });
    }
    Ok(streams)
}

fn loader_options(
    recipe: &Recipe,
    shards: &str,
    batch_size: usize,
    shuffle: usize,
    samples: usize,
    stream: u64,
) -> Result<LoaderOptions, RunError> {
    Ok(LoaderOptions {
        shards: find_shards(shards)?,
        // The streams draw independently.
        seed: recipe.seed.wrapping_mul(2).wrapping_add(stream),
        resampled: recipe.dataset_resampled,
        // Without resampling an epoch of the data is each shard once, whatever the run calls one.
        epoch_samples: recipe.dataset_resampled.then_some(samples),
        shuffle,
        workers: recipe.workers,
        batch_size,
        max_consecutive_failures: recipe.max_consecutive_failures,
        ..LoaderOptions::default()
    })
}
