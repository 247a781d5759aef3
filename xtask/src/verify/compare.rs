//! Comparing computed values with recorded ones.

use std::path::Path;

use flamingo_engine::{Array, Device};
use serde::Serialize;
use serde_json::Value as Json;

use super::dump::{Value, Values};
use super::recording::{Recorded, Recording};

/// How one quantity came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Within the tolerance, or equal where equality is asked.
    Pass,
    /// Not.
    Fail,
    /// Recorded, and not to be computed on this device or without what lies beside the recording.
    NotYetComputed,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The quantity's name in the recording.
    pub name: String,
    /// Pass, fail or not yet computed.
    pub outcome: Outcome,
    /// Largest absolute difference; absent where nothing was compared.
    pub max_abs_diff: Option<f64>,
    /// Largest difference that passes; 0 for quantities that must be equal.
    pub tolerance: Option<f64>,
    /// What is wrong, where a number does not tell.
    pub note: Option<String>,
}

impl Row {
    /// A difference that passes up to a tolerance.
    pub(super) fn compared(name: String, difference: f64, tolerance: f64) -> Self {
        let outcome = if difference <= tolerance { Outcome::Pass } else { Outcome::Fail };
        Self { name, outcome, max_abs_diff: Some(difference), tolerance: Some(tolerance), note: None }
    }

    /// What cannot even be compared.
    pub(super) fn failed(name: String, note: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, max_abs_diff: None, tolerance: None, note: Some(note.into()) }
    }

    /// A recorded quantity that we should have computed.
    pub(super) fn missing(name: String) -> Self {
        Self::failed(name, "recorded, and we computed no such value")
    }

    /// A recorded quantity that cannot be computed here.
    pub(super) fn left_out(name: String, note: impl Into<String>) -> Self {
        Self { outcome: Outcome::NotYetComputed, ..Self::failed(name, note) }
    }
}

/// All lines.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// One a quantity.
    pub rows: Vec<Row>,
}

impl Summary {
    /// How many rows had this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome).count()
    }

    /// Whether nothing failed and something was compared.
    pub fn passed(&self) -> bool {
        self.count(Outcome::Fail) == 0 && self.count(Outcome::Pass) > 0
    }
}

/// Whether gradients and training steps are computed on this device.
pub(super) fn trains(device: Device) -> bool {
    !matches!(device, Device::Wgpu(_))
}

/// Largest relative difference that passes in f32.
fn relative_tolerance(device: Device) -> f64 {
    match device {
        Device::Wgpu(_) => 1e-3,
        _ => 1e-4,
    }
}

/// Beam scores are sums of log-probabilities, which may be divided by a length to a negative power: their
/// tolerance is absolute up to 1 and relative beyond.
const SCORE_TOLERANCE: f64 = 1e-3;

/// Learning rates are computed in f64 and kept in f32 at worst: they differ in the last digits only.
const RATE_TOLERANCE: f64 = 1e-6;

/// Whether a name of the recording is something that is given to the model.
fn is_input(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    matches!(last, "input_ids" | "attention_mask" | "labels" | "vision_x" | "prompt_ids" | "step_ids" | "pixels")
}

fn is_training(name: &str) -> bool {
    name.starts_with("grad.") || name.starts_with("train.")
}

/// Compares `values` with the folder's recording: everything that is recorded has a row.
pub(super) fn check(folder: &Path, values: &Values, device: Device) -> anyhow::Result<Summary> {
    let recording = Recording::open(folder)?;
    let relative = relative_tolerance(device);
    let absent = |name: &str, title: String| match is_training(name) && !trains(device) {
        true => Row::left_out(title, format!("{device} does not train")),
        false => Row::missing(title),
    };
    let mut summary = Summary::default();
    for (name, expected) in series(folder)? {
        summary.rows.push(match values.arrays.get(&name) {
            Some(Value::Floats(ours)) if name == "train.lrs" => {
                let ours: Vec<f64> = ours.data.iter().map(|&x| f64::from(x)).collect();
                rates(name, &ours, &expected.data)
            }
            Some(value) => row(name, value, &expected, None, relative),
            None => absent(&name, name.clone()),
        });
    }
    for (name, expected) in norms(folder)? {
        let title = format!("norm of {name}");
        summary.rows.push(match values.arrays.get(&name) {
            Some(Value::Floats(array)) => {
                let norm = array.data.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                Row::compared(title, (norm - expected).abs(), TRAINING * expected.max(SMALL))
            }
            _ => absent(&name, title),
        });
    }
    for name in recording.names()?.into_iter().filter(|name| !is_input(name)) {
        let expected = recording.need(&name)?;
        summary.rows.push(match values.arrays.get(&name) {
            Some(Value::Floats(array)) if is_training(&name) => training_row(name, array, &expected),
            Some(value) => {
                let keep = padding(&recording, &name)?;
                row(name, value, &expected, keep.as_ref(), relative)
            }
            None => absent(&name, name.clone()),
        });
    }
    Ok(summary)
}

/// Learning rates, each relative to itself; the worst of them is reported.
pub(super) fn rates(name: String, ours: &[f64], theirs: &[f64]) -> Row {
    if ours.len() != theirs.len() {
        return Row::failed(name, format!("{} values, recorded {}", ours.len(), theirs.len()));
    }
    let pairs = ours.iter().zip(theirs).map(|(a, b)| ((a - b).abs(), RATE_TOLERANCE * b.abs()));
    // A recorded zero has no tolerance.
    let share = |&(difference, tolerance): &(f64, f64)| difference / tolerance.max(f64::MIN_POSITIVE);
    let worst = pairs.max_by(|a, b| share(a).total_cmp(&share(b)));
    let (difference, tolerance) = worst.unwrap_or_default();
    Row::compared(name, difference, tolerance)
}

/// Losses, norms and learning rates of the recorded steps, which `case.json` holds.
fn series(folder: &Path) -> anyhow::Result<Vec<(String, Recorded)>> {
    let train = &case(folder)?["train"];
    let names = ["losses_laion", "losses_mmc4", "grad_norms", "lrs"];
    let numbers = |name: &str| {
        let numbers = train[name].as_array()?.iter().map(Json::as_f64).collect::<Option<Vec<f64>>>()?;
        Some((format!("train.{name}"), Recorded { shape: vec![numbers.len()], data: numbers }))
    };
    Ok(names.into_iter().filter_map(numbers).collect())
}

/// Norms that `case.json` holds for tensors, in place of the tensors or beside them.
fn norms(folder: &Path) -> anyhow::Result<Vec<(String, f64)>> {
    let case = case(folder)?;
    let groups = [
        ("grad", &case["grad_norms"]),
        ("train.grad0", &case["train"]["grad0_norms"]),
        ("train.final", &case["train"]["final_param_norms"]),
    ];
    let all = groups.into_iter().flat_map(|(prefix, norms)| {
        let norms = norms.as_object().into_iter().flatten();
        norms.filter_map(move |(name, norm)| Some((format!("{prefix}.{name}"), norm.as_f64()?)))
    });
    Ok(all.collect())
}

fn case(folder: &Path) -> anyhow::Result<Json> {
    let path = folder.join("case.json");
    if path.is_file() { crate::golden::read_json(&path) } else { Ok(Json::Null) }
}

/// Relative difference of gradients and trained weights that passes: the norm of the difference, in norms of what is
/// recorded. Adam divides by the root of the squared gradient, so single weights whose gradient is nearly nothing may go
/// either way.
const TRAINING: f64 = 1e-3;

/// Norms below this are rounding errors of sums that cancel.
const SMALL: f64 = 1e-4;

fn training_row(name: String, ours: &Array, theirs: &Recorded) -> Row {
    if ours.shape != theirs.shape {
        return Row::failed(name, format!("shape {:?}, recorded {:?}", ours.shape, theirs.shape));
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let diff = norm(&mut ours.data.iter().zip(&theirs.data).map(|(&a, &b)| f64::from(a) - b));
    let tolerance = TRAINING * norm(&mut theirs.data.iter().copied()).max(SMALL);
    Row::compared(name, diff, tolerance)
}

/// The attention mask of the set (`right.…`, `left.…`) that a per-token quantity belongs to.
fn padding(recording: &Recording, name: &str) -> anyhow::Result<Option<Recorded>> {
    let Some((set, what)) = name.split_once('.') else { return Ok(None) };
    if what == "logits" || what.starts_with("layer.") || what.starts_with("xattn.") {
        return recording.get(&format!("{set}.attention_mask"));
    }
    Ok(None)
}

fn row(name: String, value: &Value, expected: &Recorded, keep: Option<&Recorded>, relative: f64) -> Row {
    let (shape, data): (&[usize], Vec<f64>) = match value {
        Value::Floats(array) => (&array.shape, array.data.iter().map(|&x| f64::from(x)).collect()),
        Value::Integers { shape, data } => (shape, data.iter().map(|&x| f64::from(x)).collect()),
    };
    if shape != expected.shape {
        return Row::failed(name, format!("shape {shape:?}, recorded {:?}", expected.shape));
    }
    // Padded positions are garbage in both: finite numbers that nothing reads.
    let kept = |i: usize| match keep {
        Some(keep) if shape.len() >= 2 && shape[..2] == keep.shape[..] => {
            let per_token: usize = shape[2..].iter().product();
            keep.data[i / per_token.max(1)] != 0.0
        }
        _ => true,
    };
    let (mut diff, mut magnitude) = (0f64, 0f64);
    for (i, (&ours, &theirs)) in data.iter().zip(&expected.data).enumerate() {
        if !kept(i) || (ours.is_nan() && theirs.is_nan()) {
            continue;
        }
        let d = (ours - theirs).abs();
        diff = if d.is_nan() { f64::INFINITY } else { diff.max(d) };
        magnitude = magnitude.max(theirs.abs());
    }
    let tolerance = match value {
        Value::Integers { .. } => 0.0,
        Value::Floats(_) if name.ends_with("sequences_scores") => SCORE_TOLERANCE * magnitude.max(1.0),
        Value::Floats(_) => relative * magnitude.max(1.0),
    };
    Row::compared(name, diff, tolerance)
}
