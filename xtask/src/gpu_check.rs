//! `cargo xtask gpu-check`: what a GPU computes and how fast, as one table.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Context;
use flamingo_config::ModelConfig;
use flamingo_engine::{
    Device, Dtype, Pixels, Precision, Text, TrainingOptions, Weights, open_training_weights, open_weights,
};
use flamingo_weights::layout;
use flamingo_zoo::parts;

use crate::verify::{self, Outcome};

/// What is measured.
pub struct GpuCheck {
    /// On what.
    pub device: Device,
    /// Folders of recordings.
    pub golden: Vec<PathBuf>,
    /// Models whose shapes are run with random weights.
    pub configs: Vec<ModelConfig>,
    /// Rows of a training batch.
    pub rows: usize,
    /// Tokens of a row.
    pub tokens: usize,
    /// The device's bf16 product rate, in TFLOP/s, for the utilisation.
    pub peak: Option<f64>,
    /// A Python with PyTorch and open-flamingo, to run beside.
    pub python: Option<String>,
    /// The program whose `gpu-measure` takes each measurement in a process of its own, so that what one allocates or breaks
    /// is gone before the next.
    pub apart: Option<PathBuf>,
}

impl GpuCheck {
    /// Runs everything and hands out a page of Markdown, piece by piece as it is found. What fails is a line of the page,
    /// not the end of it.
    ///
    /// # Errors
    /// If nothing at all can run on the device.
    pub fn run(&self, on_progress: &mut dyn FnMut(&str), on_text: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        flamingo_engine::probe(self.device)?;
        let hardware = self.nvidia_smi("--query-gpu=name,memory.total,driver_version");
        let hardware = hardware.unwrap_or_else(|| "no NVIDIA driver".into());
        on_text(&format!("# GPU check\n\nDevice: {} ({hardware}).\n\n## The same numbers\n\n", self.device));
        on_text(
            "| recording | passed | failed | not computed | largest difference of its tolerance |\n|---|---|---|---|---|\n",
        );
        for folder in &self.golden {
            on_progress(&folder.display().to_string());
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            match self.golden(folder) {
                Ok(row) => on_text(&format!("| {name} | {row} |\n")),
                Err(error) => on_text(&format!("| {name} | {} | | | |\n", failure(&error))),
            }
        }
        on_text("\n## Speed, random weights, bf16\n\n");
        on_text("| model | | ours | PyTorch | ratio |\n|---|---|---|---|---|\n");
        for config in &self.configs {
            for (measure, what) in [
                (Measure::Training, "training"),
                (Measure::CheckpointedTraining, "training, checkpointed"),
                (Measure::Decode, "decode"),
            ] {
                on_progress(&format!("{}, {what}", config.name));
                match self.found(config, measure) {
                    Ok(found) => {
                        on_progress(&format!("{}, {what}, PyTorch", config.name));
                        on_text(&self.rows(config, measure, what, &found, self.torch(config, measure)));
                    }
                    Err(error) => on_text(&format!("| {} | {what} | {} | | |\n", config.name, failure(&error))),
                }
            }
        }
        on_text(&format!(
            "\nTraining: {} rows of {} tokens and one picture, what upstream trains in f32, the rest in bf16; median of 3 \
             steps after 2. Utilisation counts 2 operations a parameter and token forwards and for what gradients pass \
             through, 2 more for what trains. Decoding: one row after a prompt of {} tokens. \
             Memory: ours as the driver counts it, CUDA's own included; PyTorch's as it reserved.\n",
            self.rows, self.tokens, self.tokens
        ));
        Ok(())
    }

    fn golden(&self, folder: &Path) -> anyhow::Result<String> {
        let values = verify::compute(folder, self.device)?;
        let summary = verify::check(folder, &values, self.device)?;
        let share = |row: &verify::Row| Some(row.max_abs_diff? / row.tolerance.filter(|&t| t > 0.0)?);
        let worst = summary.rows.iter().filter_map(share).fold(0.0, f64::max);
        let count = |outcome| summary.count(outcome);
        Ok(format!(
            "{} | {} | {} | {worst:.3}",
            count(Outcome::Pass),
            count(Outcome::Fail),
            count(Outcome::NotYetComputed)
        ))
    }

    /// Which CUDA device it is.
    fn index(&self) -> usize {
        if let Device::Cuda(Some(index)) = self.device { index } else { 0 }
    }

    /// What the driver says of the device.
    fn nvidia_smi(&self, query: &str) -> Option<String> {
        let device = format!("--id={}", self.index());
        let output =
            Command::new("nvidia-smi").args([query, "--format=csv,noheader,nounits", &device]).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_string())
    }

    /// Memory in use on the device. Burn keeps what it once allocated, so this is the most that was.
    fn memory_mib(&self) -> Option<f64> {
        self.nvidia_smi("--query-gpu=memory.used")?.parse().ok()
    }

    fn batch(&self, config: &ModelConfig, rows: usize) -> (Text, Pixels, Vec<i64>) {
        let side = config.vision.image_size;
        let data = (0..rows * 3 * side * side).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
        let mut ids: Vec<u32> = (0..rows * self.tokens).map(|i| (i * 31 % config.tokens.base_rows()) as u32).collect();
        (0..rows).for_each(|row| ids[row * self.tokens] = config.tokens.image);
        let label = |&id: &u32| if id == config.tokens.image { -100 } else { i64::from(id) };
        let labels = ids.iter().map(label).collect();
        let keep = vec![true; ids.len()];
        (Text::new(rows, ids, keep), Pixels { rows, images: 1, frames: 1, side, data }, labels)
    }

    fn found(&self, config: &ModelConfig, what: Measure) -> anyhow::Result<Found> {
        match &self.apart {
            Some(program) => self.measure_apart(program, config, what),
            None => self.measure(config, what),
        }
    }

    fn measure_apart(&self, program: &Path, config: &ModelConfig, what: Measure) -> anyhow::Result<Found> {
        let work = tempfile::tempdir()?;
        let shape = work.path().join("model.toml");
        std::fs::write(&shape, config.to_toml())?;
        let mut command = Command::new(program);
        command.args(["gpu-measure", "--device", &self.device.to_string(), "--what", what.name()]);
        command.args(["--rows", &self.rows.to_string(), "--tokens", &self.tokens.to_string()]);
        // What this process holds itself does not count.
        let held = self.memory_mib().unwrap_or_default();
        let output = command.arg("--config").arg(&shape).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        eprint!("{said}");
        let why = said.rfind("error: ").map_or_else(|| output.status.to_string(), |at| said[at + 7..].to_string());
        anyhow::ensure!(output.status.success(), "{why}");
        let mut found: Found = serde_json::from_slice(&output.stdout).context("gpu-measure printed no measurement")?;
        found.memory_mib = found.memory_mib.map(|memory| memory - held);
        Ok(found)
    }

    /// Time and memory of one thing.
    ///
    /// # Errors
    /// If the device cannot do it.
    pub fn measure(&self, config: &ModelConfig, what: Measure) -> anyhow::Result<Found> {
        match what {
            Measure::Training => self.training(config, false),
            Measure::CheckpointedTraining => self.training(config, true),
            Measure::Decode => self.decode(config),
        }
    }

    /// Seconds a step, and memory in use after it.
    fn training(&self, config: &ModelConfig, gradient_checkpointing: bool) -> anyhow::Result<Found> {
        let options = TrainingOptions { precision: Dtype::Bf16, gradient_checkpointing, ..TrainingOptions::default() };
        let mut training = open_training_weights(Weights::Random(config), self.device, &options)?;
        let (text, pixels, labels) = self.batch(config, self.rows);
        let mut seconds = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            training.backward(&text, Some(&pixels), &labels, 1.0)?;
            // Reading the norm waits for all of it.
            training.clip(1.0)?;
            training.update(1e-5)?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        let mut last = seconds.split_off(2);
        last.sort_by(f64::total_cmp);
        Ok(Found { seconds: last[1], memory_mib: self.memory_mib() })
    }

    /// Rows of the table.
    fn rows(
        &self,
        config: &ModelConfig,
        measure: Measure,
        what: &str,
        ours: &Found,
        torch: anyhow::Result<Option<Found>>,
    ) -> String {
        let (torch, mut rows) = match torch {
            Ok(torch) => (torch, String::new()),
            Err(error) => (None, format!("| {} | {what} | | {} | |\n", config.name, failure(&error))),
        };
        let mut row = |what: String, ours: f64, theirs: Option<f64>, more_is_better: bool| {
            let ratio = theirs.map(|theirs| if more_is_better { ours / theirs } else { theirs / ours });
            let theirs = theirs.map_or(String::new(), |x| format!("{x:.1}"));
            let ratio = ratio.map_or(String::new(), |x| format!("{x:.2}"));
            // Writing to a String does not fail.
            let _ = writeln!(rows, "| {} | {what} | {ours:.1} | {theirs} | {ratio} |", config.name);
        };
        let tokens = if measure == Measure::Decode { 1 } else { self.rows * self.tokens };
        let rate = |found: &Found| tokens as f64 / found.seconds;
        row(format!("{what}, tokens/s"), rate(ours), torch.as_ref().map(rate), true);
        if let (Some(peak), true) = (self.peak, measure != Measure::Decode) {
            let share = |found: &Found| 100.0 * self.operations(config) / found.seconds / (peak * 1e12);
            row(format!("{what}, utilisation in %"), share(ours), torch.as_ref().map(share), true);
        }
        if let Some(memory) = ours.memory_mib {
            row(format!("{what}, memory in MiB"), memory, torch.and_then(|t| t.memory_mib), false);
        }
        rows
    }

    /// Operations of a training step.
    fn operations(&self, config: &ModelConfig) -> f64 {
        let size = |name: &str| parts(config).iter().find(|p| p.name == name).map_or(0.0, |p| p.parameters as f64);
        let table: f64 = layout(config)
            .iter()
            .filter(|spec| spec.name.starts_with("decoder.embedding."))
            .map(|spec| spec.shape.iter().product::<usize>() as f64)
            .sum();
        // The table is looked up; as a tied head it is multiplied with.
        let decoder = size("decoder") - if config.decoder.architecture().tied_head { 0.0 } else { table };
        let tokens = (self.rows * self.tokens) as f64;
        let patches = (self.rows * config.vision.patches()) as f64;
        let seen = (self.rows * (config.vision.patches() + config.resampler.num_latents)) as f64;
        2.0 * size("vision") * patches
            + 4.0 * decoder * tokens
            + 6.0 * size("cross_attention") * tokens
            + 6.0 * size("resampler") * seen
    }

    /// The same in PyTorch, by one of benches/compare's programs; nothing where no Python is given.
    fn torch(&self, config: &ModelConfig, what: Measure) -> anyhow::Result<Option<Found>> {
        let Some(python) = &self.python else { return Ok(None) };
        let (rows, tokens) = (self.rows.to_string(), self.tokens.to_string());
        let (program, args, time) = match what {
            Measure::Training => ("torch_train.py", vec!["--rows", &rows], "step_ms"),
            Measure::CheckpointedTraining => ("torch_train.py", vec!["--rows", &rows, "--checkpointing"], "step_ms"),
            Measure::Decode => ("torch_bench.py", vec!["--decode", "32"], "decode_ms_per_token"),
        };
        let work = tempfile::tempdir()?;
        let shape = work.path().join("model.toml");
        std::fs::write(&shape, config.to_toml())?;
        let mut command = Command::new(python);
        command.arg(Path::new("benches/compare").join(program)).arg("--shape").arg(shape);
        command.args([
            "--device",
            &format!("cuda:{}", self.index()),
            "--dtype",
            "bf16",
            "--images",
            "1",
            "--runs",
            "3",
        ]);
        command.args(["--tokens", &tokens]).args(args);
        let output = command.output().with_context(|| format!("cannot run {python}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        eprint!("{said}");
        anyhow::ensure!(output.status.success(), "{}", said.lines().last().unwrap_or("it said nothing"));
        let found: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("{program} printed no JSON"))?;
        let milliseconds = found[time].as_f64().with_context(|| format!("{program} printed no {time}"))?;
        Ok(Some(Found { seconds: milliseconds / 1e3, memory_mib: found["peak_device_mib"].as_f64() }))
    }

    /// Seconds a token after a prompt.
    fn decode(&self, config: &ModelConfig) -> anyhow::Result<Found> {
        let engine = open_weights(Weights::Random(config), self.device, Precision::BF16)?;
        let (text, pixels, _) = self.batch(config, 1);
        engine.time(&text, &pixels, 4)?;
        let timings = engine.time(&text, &pixels, 32)?;
        Ok(Found { seconds: timings.decode.as_secs_f64(), memory_mib: self.memory_mib() })
    }
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Measure {
    /// A training step.
    Training,
    /// The same with gradient checkpointing.
    CheckpointedTraining,
    /// A token of one row.
    Decode,
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::CheckpointedTraining => "checkpointed-training",
            Self::Decode => "decode",
        }
    }
}

/// What was measured.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub struct Found {
    /// Time of a step or token.
    pub seconds: f64,
    /// Memory of the device in use after it.
    pub memory_mib: Option<f64>,
}

/// A cell of the table that says why something is not there.
fn failure(error: &anyhow::Error) -> String {
    let line = format!("could not be run: {error:#}").replace('|', "/");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The recordings of some folders: each that is one, or their sub-folders that are.
///
/// # Errors
/// If there are none.
pub fn recordings(folders: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let is_one = |folder: &Path| ["case.json", "clip.json"].iter().any(|file| folder.join(file).is_file());
    let mut found = Vec::new();
    for folder in folders {
        if is_one(folder) {
            found.push(folder.clone());
        }
        let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        found.extend(entries.flatten().map(|entry| entry.path()).filter(|path| is_one(path)));
    }
    found.sort();
    anyhow::ensure!(!found.is_empty(), "there are no recordings in the folders given");
    Ok(found)
}
