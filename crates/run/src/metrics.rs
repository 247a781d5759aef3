//! `metrics.jsonl`: a line of numbers every few steps.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use flamingo_data::write_whole;
use serde::{Deserialize, Serialize};

use crate::RunError;

/// The numbers of some steps, the last of which is `step`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Steps so far.
    pub step: usize,
    /// Mean loss of the pairs; of contrastive training, its loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_laion: Option<f64>,
    /// Mean loss of the documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_mmc4: Option<f64>,
    /// Mean norm of the gradients before clipping.
    pub grad_norm: f64,
    /// The last learning rate.
    pub lr: f64,
    /// Samples so far, of both streams.
    pub samples: u64,
    /// Tokens so far, padding left out.
    pub tokens: u64,
    /// Pictures so far.
    pub images: u64,
    /// Steps left out so far because their loss was no number.
    pub skipped_steps: usize,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Tokens a second since the line before.
    pub tokens_per_second: f64,
    /// Pictures a second since the line before.
    pub images_per_second: f64,
    /// What several workers did.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub together: Option<Together>,
}

/// The numbers of several workers since the line before.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Together {
    /// Workers.
    pub workers: usize,
    /// The worker that computed longest, by its rank: the others waited for it. CPU devices of a process compute in turns, and
    /// each counts the others' turns as its own.
    pub slowest_rank: usize,
    /// How long it read data and computed gradients.
    pub slowest_seconds: f64,
    /// How long a worker did on average.
    pub mean_seconds: f64,
    /// Bytes of tensors that the process of rank 0 sent to and fetched from other processes, since it began if that is later.
    pub wire_bytes: u64,
}

/// The file of a run.
pub(crate) struct MetricsFile {
    path: PathBuf,
}

impl MetricsFile {
    /// Opens the file and drops lines after `step`, which a run that goes on writes again, and what is no line of metrics.
    pub(crate) fn open(path: PathBuf, step: usize) -> Result<Self, RunError> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(RunError::io("read", &path)(e)),
        };
        let text = String::from_utf8_lossy(&bytes);
        let stays = |line: &&str| serde_json::from_str::<Metrics>(line).is_ok_and(|metrics| metrics.step <= step);
        let kept: String = text.lines().filter(stays).map(|line| format!("{line}\n")).collect();
        if kept != text {
            write_whole(&path, kept.as_bytes()).map_err(RunError::io("write", &path))?;
        }
        Ok(Self { path })
    }

    pub(crate) fn add(&self, metrics: &Metrics) -> Result<(), RunError> {
        let line = serde_json::to_string(metrics).unwrap_or_default() + "\n";
        let file = OpenOptions::new().create(true).append(true).open(&self.path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).map_err(RunError::io("write", &self.path))
    }
}
