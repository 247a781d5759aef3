//! The metrics of a training run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use crate::PlotError;

/// Longest line that is read, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// The numbers of a run, by step.
#[derive(Clone, Debug)]
pub struct Run {
    /// What the legend calls it.
    pub name: String,
    steps: BTreeMap<u64, BTreeMap<String, f64>>,
}

impl Run {
    /// Reads a file of metrics, or `metrics.jsonl` of a folder: a JSON object a line with numbers, `step` among them.
    /// Lines that are something else, like one that a killed process left, are passed over. A run that was resumed
    /// goes back in steps: its later lines count.
    ///
    /// # Errors
    /// [`PlotError::Io`], and [`PlotError::NoMetrics`] where no line is usable.
    pub fn open(path: &Path) -> Result<Self, PlotError> {
        let file = if path.is_dir() { path.join("metrics.jsonl") } else { path.to_path_buf() };
        let io = |source| PlotError::Io { path: file.clone(), source };
        // Devices and pipes have no end, or none that comes.
        if !std::fs::metadata(&file).map_err(io)?.is_file() {
            return Err(io(std::io::Error::other("it is not a regular file")));
        }
        let named = if path.is_dir() { path } else { path.parent().unwrap_or(path) };
        let name = named.file_name().map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy());
        let mut run = Self { name: name.into_owned(), steps: BTreeMap::new() };
        let mut reader = BufReader::new(File::open(&file).map_err(io)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).map_err(io)? == 0 {
                break;
            }
            run.add(&line);
        }
        if run.steps.is_empty() { Err(PlotError::NoMetrics(file)) } else { Ok(run) }
    }

    fn add(&mut self, line: &[u8]) {
        // Python writes numbers that JSON does not have.
        let text = String::from_utf8_lossy(line).replace("-Infinity", "null").replace("Infinity", "null");
        let Ok(Value::Object(fields)) = serde_json::from_str(&text.replace("NaN", "null")) else { return };
        let Some(step) = fields.get("step").and_then(Value::as_u64) else { return };
        let number = |(key, value): (String, Value)| match value {
            Value::Number(number) => Some((key, number.as_f64().unwrap_or(f64::NAN))),
            Value::Null => Some((key, f64::NAN)),
            _ => None,
        };
        // What was done after this step was undone.
        self.steps.split_off(&step.saturating_add(1));
        self.steps.entry(step).or_default().extend(fields.into_iter().filter_map(number));
    }

    /// What its lines tell of.
    pub fn keys(&self) -> BTreeSet<&str> {
        self.steps.values().flat_map(BTreeMap::keys).map(String::as_str).collect()
    }

    /// One number over another, of the steps that have both.
    pub fn points(&self, x: &str, y: &str) -> Vec<(f64, f64)> {
        self.steps.values().filter_map(|step| Some((*step.get(x)?, *step.get(y)?))).collect()
    }
}
