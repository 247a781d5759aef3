//! The run: opened, stepped, saved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use flamingo_data::{
    Decode, Documents, Example, ImageTransform, Loader, LoaderOptions, Pairs, Position, SpecialTokens, Stream,
    Tokenizer, find_shards,
};
use flamingo_distributed::Group;
use flamingo_engine::{ContrastiveOptions, Device, Ready, Training, open_contrastive, open_training};
use flamingo_weights::{Dtype, ModelFolder, fingerprint, replaceable};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::batch::{Parts, TrainingBatch, parts};
use crate::checkpoint::{self, Progress, Window};
use crate::lock::Lock;
use crate::metrics::{MetricsFile, Together};
use crate::shards::Shards;
use crate::{Metrics, Objective, Recipe, RunError, export};

mod together;

use together::{check_alike, checkpoint_of_first};

/// Steps in a row without a usable loss that end a run.
const MAX_LOST: usize = 100;

/// Names of the streams, as they are in metrics and checkpoints.
const PAIRS: &str = "laion";
const DOCUMENTS: &str = "mmc4";

/// A run between two steps.
pub struct Run {
    /// What one worker would do that does all of it.
    recipe: Recipe,
    group: Group,
    shards: Arc<Shards>,
    /// The thread that exchanges gradients, always the same: a GPU has a stream, and memory to copy to, for each thread that reads.
    exchanging: Arc<ThreadPool>,
    folder: Arc<ModelFolder>,
    training: Box<dyn Training>,
    streams: Vec<OpenStream>,
    /// Rank 0's alone.
    metrics: Option<MetricsFile>,
    _lock: Option<Lock>,
    tokens: SpecialTokens,
    progress: Progress,
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

/// The gradients of a step, before the update.
struct Computed {
    /// The loss of each batch, in the order of micro-steps and streams.
    losses: Vec<f32>,
    norm: f64,
    save: bool,
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
        Self::join(recipe, device, Group::alone())
    }

    /// [`Run::open`] as one of several workers, each of which calls this with the same recipe. Rank 0 writes the run's
    /// folder, and knows its last checkpoint.
    ///
    /// # Errors
    /// As [`Run::open`]; [`RunError::Group`] if another worker is lost.
    pub fn join(recipe: Recipe, device: Device, mut group: Group) -> Result<Self, RunError> {
        match Self::begin(recipe, device, &mut group) {
            Ok(begun) => Ok(Self { group, ..begun }),
            Err(error) => {
                group.fail(&in_full(&error));
                Err(error)
            }
        }
    }

    fn begin(recipe: Recipe, device: Device, group: &mut Group) -> Result<Self, RunError> {
        let given = toml::to_string(&recipe).map_err(|e| RunError::Recipe(e.to_string()))?;
        let recipe = recipe.for_one(group.world())?;
        let first = group.rank() == 0;
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
        let fingerprint = fingerprint(&recipe.model, false)?;
        check_alike(group, &recipe, &folder, &fingerprint)?;
        let shards = Arc::new(Shards::new(&training.parameters(), training.stages(), group.world()));
        training.own(shards.ranges(group.rank()).to_vec());
        let exchanging = ThreadPoolBuilder::new().num_threads(1).thread_name(|_| "exchange".into()).build();
        let exchanging = Arc::new(exchanging.map_err(|e| RunError::Thread(e.to_string()))?);
        let (lock, last) = if first {
            std::fs::create_dir_all(&recipe.run_name).map_err(RunError::io("write", &recipe.run_name))?;
            let lock = Lock::of(&recipe.run_name)?;
            // What would keep the model from being written in the end.
            replaceable(&model_of(&recipe))?;
            (Some(lock), checkpoint::latest(&checkpoints(&recipe))?)
        } else {
            (None, None)
        };
        let progress = match checkpoint_of_first(group, last)? {
            None => Progress {
                step: 0,
                updates: 0,
                lost: 0,
                window: Window::default(),
                streams: BTreeMap::new(),
                seconds: 0.0,
                tokens: 0,
                pictures: 0,
                recipe: recipe.clone(),
                model: fingerprint.clone(),
            },
            Some((mut progress, state)) => {
                let differs = recipe.differs_from(&progress.recipe);
                if first && !differs.is_empty() {
                    return Err(RunError::Recipe(format!(
                        "{} was begun with other settings ({}): set them back, or give another run_name",
                        recipe.run_name.display(),
                        differs.join(", ")
                    )));
                }
                if progress.model != fingerprint {
                    return Err(RunError::Recipe(format!(
                        "{} is another model than {} was begun with: put that back, or give another run_name",
                        recipe.model.display(),
                        recipe.run_name.display()
                    )));
                }
                training.restore(state)?;
                if progress.window.computing.len() != group.world() {
                    // Those were other workers.
                    progress.window.computing.clear();
                }
                tracing::info!(step = progress.step, "going on after the last checkpoint");
                progress
            }
        };
        let metrics = if first {
            let path = recipe.run_name.join("recipe.toml");
            flamingo_data::write_whole(&path, given.as_bytes()).map_err(RunError::io("write", &path))?;
            Some(MetricsFile::open(recipe.run_name.join("metrics.jsonl"), progress.step)?)
        } else {
            None
        };
        let side = folder.config().vision.image_size;
        let workers = (group.rank(), group.world());
        let streams = open_streams(&recipe, workers, Arc::new(tokenizer), &tokens, side, &progress.streams)?;
        let now = Instant::now();
        Ok(Self {
            recipe,
            group: Group::alone(),
            shards,
            exchanging,
            folder,
            training,
            streams,
            metrics,
            _lock: lock,
            tokens,
            progress,
            begun: now,
            saved: now,
        })
    }

    /// The settings, with batches of all workers together.
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

    /// Steps that were left out because their loss was no number, and how many of them are the last ones in a row.
    pub fn lost(&self) -> (usize, usize) {
        (self.progress.step - self.progress.updates, self.progress.lost)
    }

    /// Samples that were left out up to the last checkpoint, by stream and reason.
    pub fn left_out(&self) -> BTreeMap<String, u64> {
        let of = |(name, position): (&String, &Position)| {
            let left_out = position.counts.clone().into_iter().filter(|(kind, _)| kind != "delivered");
            left_out.map(|(kind, count)| (format!("{name}: {kind}"), count)).collect::<Vec<_>>()
        };
        self.progress.streams.iter().flat_map(of).collect()
    }

    /// One update; `None` when the run is complete.
    ///
    /// # Errors
    /// [`RunError`] if data or device fail, too many losses in a row or all are no numbers, or another worker is lost.
    pub fn step(&mut self) -> Result<Option<Step>, RunError> {
        if self.progress.step >= self.total() {
            // Weights that never changed are no result.
            return if self.progress.updates == 0 { Err(RunError::NotANumber(self.progress.step)) } else { Ok(None) };
        }
        self.advance().map(Some).inspect_err(|error| self.group.fail(&in_full(error)))
    }

    fn advance(&mut self) -> Result<Step, RunError> {
        let start = Instant::now();
        let Computed { losses, norm, save } =
            if self.group.world() == 1 { self.compute_alone()? } else { self.compute_together()? };
        let names: Vec<&'static str> = self.streams.iter().map(|stream| stream.name).collect();
        for (&name, &loss) in names.iter().cycle().zip(&losses).filter(|(_, loss)| loss.is_finite()) {
            let sum = self.progress.window.losses.entry(name.to_string()).or_default();
            *sum = (sum.0 + f64::from(loss), sum.1 + 1);
        }
        let latest = losses[losses.len() - names.len()..].iter().copied();
        let mut step = Step { losses: names.iter().copied().zip(latest).collect(), ..Step::default() };

        let rate = self.recipe.rate(self.progress.updates);
        if losses.iter().any(|loss| !loss.is_finite()) || !norm.is_finite() {
            self.training.discard();
            self.progress.lost += 1;
            tracing::warn!(step = self.progress.step + 1, "the loss is no number: the step is left out");
            if self.progress.lost >= MAX_LOST {
                return Err(RunError::NotANumber(self.progress.lost));
            }
        } else {
            self.training.update(rate)?;
            self.share_weights()?;
            self.progress.updates += 1;
            self.progress.lost = 0;
            self.progress.window.norms = (self.progress.window.norms.0 + norm, self.progress.window.norms.1 + 1);
        }
        self.progress.step += 1;
        step.step = self.progress.step;
        let seconds = start.elapsed().as_secs_f64();
        self.progress.window.seconds += seconds;
        self.progress.seconds += seconds;
        if self.progress.step.is_multiple_of(self.recipe.logging_steps) || self.progress.step == self.total() {
            let line = self.line(rate);
            if let Some(metrics) = &self.metrics {
                metrics.add(&line)?;
            }
            step.metrics = Some(line);
        }
        if self.checkpoint_is_due(save) {
            step.checkpoint = self.save()?;
        }
        Ok(step)
    }

    /// The next batch of each stream, in parts with their shares of its loss, and how many tokens it predicts.
    fn next_batches(&mut self) -> Result<Vec<(Parts, usize)>, RunError> {
        let side = self.folder.config().vision.image_size;
        let rows = if self.recipe.objective == Objective::Contrastive { 0 } else { self.recipe.rows_at_once };
        let tokens = self.tokens;
        let next = |stream: &mut OpenStream| {
            let examples = stream.loader.next_batch()?;
            Ok(parts(examples, rows, stream.kind, &tokens, side))
        };
        self.streams.iter_mut().map(next).collect()
    }

    fn count(&mut self, parts: &Parts) {
        for (batch, _) in parts {
            self.progress.window.tokens += batch.text.keep.iter().filter(|&&keep| keep).count() as u64;
            self.progress.window.pictures += batch.pictures as u64;
        }
    }

    /// Adds the gradients of a stream's batch times `weight`; returns its loss. Those that are whole with the last part are
    /// handed to `ready`, if that is given.
    fn backward(&mut self, parts: Parts, weight: f64, mut ready: Option<Ready>) -> Result<f32, RunError> {
        let (mut loss, last) = (0.0, parts.len().saturating_sub(1));
        for (part, (batch, share)) in parts.into_iter().enumerate() {
            let TrainingBatch { text, pixels, labels, .. } = batch;
            let (pixels, weight) = (pixels.as_ref(), weight * share);
            loss += share as f32
                * match ready.take_if(|_| part == last) {
                    Some(ready) => self.training.backward_in_stages(&text, pixels, &labels, weight, ready)?,
                    None => self.training.backward(&text, pixels, &labels, weight)?,
                };
        }
        Ok(loss)
    }

    fn compute_alone(&mut self) -> Result<Computed, RunError> {
        let accumulation = self.recipe.gradient_accumulation_steps;
        let batches = self.recipe.batches_until(self.progress.step + 1) - self.recipe.batches_until(self.progress.step);
        let (mut losses, mut norm) = (Vec::new(), 0.0);
        for micro in 0..batches {
            for (index, (parts, _)) in self.next_batches()?.into_iter().enumerate() {
                self.count(&parts);
                losses.push(self.backward(parts, self.streams[index].weight / accumulation as f64, None)?);
            }
            // Upstream clips what is there after each batch (train_utils.py:198).
            if micro + 1 == batches || self.recipe.upstream_compat {
                norm = self.training.clip(self.recipe.max_grad_norm)?;
            }
        }
        Ok(Computed { losses, norm, save: self.time_is_up() })
    }

    fn line(&mut self, lr: f64) -> Metrics {
        let window = std::mem::take(&mut self.progress.window);
        self.progress.tokens += window.tokens;
        self.progress.pictures += window.pictures;
        let mean = |name| window.losses.get(name).map(|(sum, count)| sum / *count as f64);
        let recipe = &self.recipe;
        let streams = [
            recipe.laion_shards.as_ref().map(|_| recipe.batch_size_laion),
            recipe.mmc4_shards.as_ref().map(|_| recipe.batch_size_mmc4),
        ];
        let samples: usize = streams.into_iter().flatten().sum();
        let wire_bytes = self.group.wire_bytes();
        let slowest = (0..window.computing.len()).max_by(|&a, &b| window.computing[a].total_cmp(&window.computing[b]));
        let together = slowest.map(|slowest_rank| Together {
            workers: self.group.world(),
            slowest_rank,
            slowest_seconds: window.computing[slowest_rank],
            mean_seconds: window.computing.iter().sum::<f64>() / window.computing.len() as f64,
            wire_bytes: wire_bytes - window.wire_bytes,
        });
        self.progress.window.wire_bytes = wire_bytes;
        Metrics {
            step: self.progress.step,
            loss_laion: mean(PAIRS),
            loss_mmc4: mean(DOCUMENTS),
            grad_norm: window.norms.0 / window.norms.1.max(1) as f64,
            lr,
            samples: (samples * recipe.batches_until(self.progress.step)) as u64,
            tokens: self.progress.tokens,
            images: self.progress.pictures,
            skipped_steps: self.progress.step - self.progress.updates,
            seconds: self.progress.seconds,
            tokens_per_second: window.tokens as f64 / window.seconds,
            images_per_second: window.pictures as f64 / window.seconds,
            together,
        }
    }

    /// Whether a checkpoint is due by time.
    fn time_is_up(&self) -> bool {
        let minutes = self.recipe.checkpoint_minutes;
        minutes > 0.0 && self.saved.elapsed().as_secs_f64() >= 60.0 * minutes
    }

    fn checkpoint_is_due(&self, by_time: bool) -> bool {
        let recipe = &self.recipe;
        let by_steps = recipe.checkpoint_steps > 0 && self.progress.step.is_multiple_of(recipe.checkpoint_steps);
        by_time || by_steps || self.progress.step == self.total()
    }

    /// Writes a checkpoint. Only rank 0 does, and has what it takes from the others.
    fn save(&mut self) -> Result<Option<PathBuf>, RunError> {
        for stream in &self.streams {
            let position = Position::merge(self.group.gather(stream.loader.position())?);
            self.progress.streams.insert(stream.name.to_string(), position);
        }
        let state = self.state_of_all()?;
        self.saved = Instant::now();
        if self.group.rank() > 0 {
            return Ok(None);
        }
        let keep = if self.recipe.delete_previous_checkpoint { 1 } else { self.recipe.keep_checkpoints };
        checkpoint::save(&checkpoints(&self.recipe), &self.progress, &state, keep).map(Some)
    }

    /// Writes the model as it is now, as a folder in the run's folder, and under upstream's names where that is what
    /// trained. Returns the folder.
    ///
    /// # Errors
    /// [`RunError::Weights`] if it cannot be written.
    pub fn export(&self, dtype: Dtype) -> Result<PathBuf, RunError> {
        let (out, checkpoint) = (model_of(&self.recipe), self.recipe.run_name.join("checkpoint.safetensors"));
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

/// An error with what led to it.
fn in_full(error: &RunError) -> String {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        said += &format!(": {error}");
        source = error.source();
    }
    said
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn model_of(recipe: &Recipe) -> PathBuf {
    recipe.run_name.join("model")
}

fn checkpoints(recipe: &Recipe) -> PathBuf {
    recipe.run_name.join("checkpoints")
}

fn open_streams(
    recipe: &Recipe,
    workers: (usize, usize),
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
            workers,
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
            workers,
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
    (rank, world_size): (usize, usize),
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
        rank,
        world_size,
        workers: recipe.workers,
        batch_size: batch_size / world_size,
        max_consecutive_failures: recipe.max_consecutive_failures,
        ..LoaderOptions::default()
    })
}
