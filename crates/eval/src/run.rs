//! An evaluation: tasks, numbers of shots, trials. Everything it makes is in one folder, and what is there already is
//! not made again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use flamingo_weights::fingerprint;
use flamingo_zoo::ZooError;
use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::dataset::json_of;
use crate::rices::FeatureCache;
use crate::score::{Score, score};
use crate::submission::submission;
use crate::task::{Metric, Task};
use crate::trial::{self, Benchmark, Evaluator, Prediction, Settings, Setup, Stage};

/// How demonstrations are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// At random for each question, as upstream chooses them.
    Random,
    /// At random, the same for all questions of a trial: they are read once.
    Fixed,
    /// Those whose pictures resemble the question's (RICES).
    Rices,
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Random => "random",
            Self::Fixed => "fixed",
            Self::Rices => "rices",
        })
    }
}

/// What is evaluated.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Numbers of demonstrations.
    pub shots: Vec<usize>,
    /// A trial for each seed.
    pub seeds: Vec<u32>,
    /// How demonstrations are chosen.
    pub choices: Vec<Choice>,
}

/// Results of one task with one number of shots: what upstream's results file says, and more.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Demonstrations.
    pub shots: usize,
    /// The score of each trial, `null` where there is none.
    pub trials: Vec<Option<f64>>,
    /// Their mean.
    pub mean: Option<f64>,
    /// Their standard deviation (of the trials as a whole population, as upstream takes it).
    pub stddev: Option<f64>,
    /// The seeds of the trials.
    pub seeds: Vec<u32>,
    /// How demonstrations were chosen.
    pub demonstrations: Choice,
    /// Questions of a trial.
    pub samples: usize,
    /// Where the score lies with 95 % confidence, the mean over the trials; see [`Score::interval`].
    pub interval: Option<[f64; 2]>,
    /// See [`Score::by_question_type`]; the mean over the trials.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_question_type: BTreeMap<String, f64>,
    /// See [`Score::by_answer_type`]; the mean over the trials.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub by_answer_type: BTreeMap<String, f64>,
}

/// `results.json`: for each task its entries.
pub type Results = BTreeMap<String, Vec<Entry>>;

/// `run.json`: what must be the same for what is in the folder to count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The model's name.
    pub model: String,
    /// See [`fingerprint`].
    pub fingerprint: String,
    /// The format of weights and activations.
    pub precision: String,
    /// What all trials have in common.
    pub settings: Settings,
    /// The tasks.
    pub tasks: BTreeMap<String, Task>,
    /// What tells their samples from others.
    pub samples: BTreeMap<String, String>,
}

/// What [`evaluate`] is doing.
pub struct Progress<'a> {
    /// The task's title.
    pub task: &'a str,
    /// The trial.
    pub setup: Setup,
    /// What it is at.
    pub stage: Stage,
    /// Pictures or questions that are done.
    pub done: usize,
    /// All of them.
    pub total: usize,
}

/// One trial of an [`Evaluation`].
pub struct Trial {
    /// Which one of its task.
    pub setup: Setup,
    /// Every answer.
    pub predictions: Vec<Prediction>,
    /// The score, where there is one.
    pub score: Option<Score>,
}

/// What came of an evaluation.
pub struct Evaluation {
    /// Its folder.
    pub folder: PathBuf,
    /// What was evaluated.
    pub header: Header,
    /// The numbers.
    pub results: Results,
}

impl Evaluation {
    /// What was answered with the most demonstrations, in the first of those trials. It is read when it is wanted:
    /// answers of all trials of a whole benchmark would fill the memory.
    ///
    /// # Errors
    /// [`EvalError::File`] or [`EvalError::Content`] if the answers are not there, or damaged.
    pub fn trial_with_most_shots(&self, task: &Task, choice: Choice) -> Result<Option<Trial>, EvalError> {
        let entries = self.results.get(&task.name).into_iter().flatten();
        let most = entries.filter(|entry| entry.demonstrations == choice).max_by_key(|entry| entry.shots);
        let Some((shots, &seed)) = most.and_then(|entry| Some((entry.shots, entry.seeds.first()?))) else {
            return Ok(None);
        };
        let setup = Setup { shots, choice, seed };
        let predictions = trial::read(&predictions_file(&self.folder, &task.name, setup))?;
        let score = score(task, &predictions);
        Ok(Some(Trial { setup, predictions, score }))
    }
}

/// The model of an evaluation, as [`evaluate`] tells it from others.
pub struct Subject<'a> {
    /// Its folder.
    pub folder: &'a Path,
    /// The format of weights and activations that it runs in.
    pub precision: String,
}

/// Evaluates a model on tasks, and writes `run.json`, `predictions/`, `results.json` and files for the servers of tests
/// into the folder `out`. An evaluation that was broken off goes on there; results of other tasks, numbers of shots and
/// choices stay. Returns the results of this plan.
///
/// # Errors
/// [`EvalError::Settings`] if the folder holds an evaluation of something else, or two tasks have one name; whatever a
/// trial fails with.
pub fn evaluate(
    evaluator: &mut Evaluator,
    subject: &Subject,
    benchmarks: &[Benchmark],
    plan: &Plan,
    out: &Path,
    on_progress: &mut dyn FnMut(&Progress),
) -> Result<Results, EvalError> {
    let header = begin(evaluator, subject, benchmarks, out)?;
    let predictions = out.join("predictions");
    std::fs::create_dir_all(&predictions).map_err(EvalError::file(&predictions))?;
    let named = format!("{}{}", header.precision, header.fingerprint);
    let mut cache = FeatureCache::open(evaluator.model, &named, out);
    let path = out.join("results.json");
    let mut all: Results = if path.is_file() { json_of(&path)? } else { Results::new() };
    let mut results = Results::new();
    for benchmark in benchmarks {
        let task = &benchmark.task;
        for &choice in &plan.choices {
            for &shots in &plan.shots {
                let mut scores = Vec::new();
                let mut samples = 0;
                for &seed in &plan.seeds {
                    let setup = Setup { shots, choice, seed };
                    let file = predictions_file(out, &task.name, setup);
                    let mut progress = |stage, done, total| {
                        on_progress(&Progress { task: &task.title, setup, stage, done, total });
                    };
                    let answers = evaluator.trial(benchmark, setup, &mut cache, &file, &mut progress)?;
                    if let Some(wanted) = &task.submission {
                        let content = submission(wanted, &benchmark.all_questions, &answers)?;
                        let name = format!("submission-{}-{choice}-{shots}-{seed}.json", task.name);
                        write_json(&out.join(name), &content)?;
                    }
                    samples = answers.len();
                    scores.push(score(task, &answers));
                }
                let entry = entry(shots, choice, &plan.seeds, samples, &scores);
                results.entry(task.name.clone()).or_default().push(entry.clone());
                let entries = all.entry(task.name.clone()).or_default();
                entries.retain(|old| (old.shots, old.demonstrations) != (shots, choice));
                entries.push(entry);
                entries.sort_by_key(|entry| (entry.demonstrations, entry.shots));
                // After each line of the table, so that a run that is broken off has told what it knows.
                write_json(&path, &all)?;
            }
        }
    }
    Ok(results)
}

/// Reads an evaluation from its folder.
///
/// # Errors
/// [`EvalError::File`] or [`EvalError::Content`] if the folder holds none.
pub fn open(out: &Path) -> Result<Evaluation, EvalError> {
    let header: Header = json_of(&out.join("run.json"))?;
    let results: Results = json_of(&out.join("results.json"))?;
    if let Some(name) = results.keys().find(|name| !header.tasks.contains_key(*name)) {
        return Err(EvalError::content(out.join("run.json"), format!("there is no task `{name}`")));
    }
    Ok(Evaluation { folder: out.to_path_buf(), header, results })
}

fn predictions_file(out: &Path, task: &str, Setup { shots, choice, seed }: Setup) -> PathBuf {
    out.join("predictions").join(format!("{task}-{choice}-{shots}-{seed}.jsonl"))
}

/// Takes the folder, or finds it to be of this evaluation.
fn begin(evaluator: &Evaluator, subject: &Subject, benchmarks: &[Benchmark], out: &Path) -> Result<Header, EvalError> {
    let name = |benchmark: &Benchmark| benchmark.task.name.clone();
    let mut header = Header {
        model: evaluator.model.config().name.clone(),
        fingerprint: fingerprint(subject.folder, true).map_err(ZooError::from)?,
        precision: subject.precision.clone(),
        settings: evaluator.settings.clone(),
        tasks: benchmarks.iter().map(|benchmark| (name(benchmark), benchmark.task.clone())).collect(),
        samples: benchmarks.iter().map(|benchmark| (name(benchmark), benchmark.digest.clone())).collect(),
    };
    if header.tasks.len() < benchmarks.len() {
        return Err(EvalError::Settings("two tasks have one name: give one of them another in its file".into()));
    }
    let path = out.join("run.json");
    if path.is_file() {
        let before: Header = json_of(&path)?;
        if let Some(what) = header.differs_from(&before) {
            return Err(EvalError::Settings(format!(
                "{} holds an evaluation with {what}: give another --out, or remove it",
                out.display()
            )));
        }
        header.tasks.extend(before.tasks);
        header.samples.extend(before.samples);
    }
    if out.exists() && !out.is_dir() {
        return Err(EvalError::Settings(format!("{} is no folder: give another --out", out.display())));
    }
    std::fs::create_dir_all(out).map_err(EvalError::file(out))?;
    write_json(&path, &header)?;
    Ok(header)
}

impl Header {
    /// What is another than before, in words.
    fn differs_from(&self, before: &Self) -> Option<String> {
        if (&self.model, &self.fingerprint) != (&before.model, &before.fingerprint) {
            return Some("another model".into());
        }
        if self.precision != before.precision {
            return Some(format!("precision {}", before.precision));
        }
        if self.settings != before.settings {
            return Some("other settings".into());
        }
        let other = |name: &&String| {
            let task = before.tasks.get(*name).is_some_and(|task| task != &self.tasks[*name]);
            task || before.samples.get(*name).is_some_and(|samples| samples != &self.samples[*name])
        };
        self.tasks.keys().find(other).map(|name| format!("another task `{name}`, or other data of it"))
    }
}

fn entry(shots: usize, choice: Choice, seeds: &[u32], samples: usize, scores: &[Option<Score>]) -> Entry {
    let trials: Vec<Option<f64>> = scores.iter().map(|score| Some(score.as_ref()?.value)).collect();
    let known: Vec<&Score> = scores.iter().flatten().collect();
    let mean_of = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let values: Vec<f64> = known.iter().map(|score| score.value).collect();
    let mean = mean_of(&values);
    let variance =
        mean.and_then(|mean| mean_of(&values.iter().map(|value| (value - mean).powi(2)).collect::<Vec<_>>()));
    let ends = |end: usize| mean_of(&known.iter().filter_map(|score| Some(score.interval?[end])).collect::<Vec<_>>());
    let means = |kinds: &dyn Fn(&Score) -> BTreeMap<String, f64>| {
        let mut values: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        for (kind, value) in known.iter().flat_map(|score| kinds(score)) {
            values.entry(kind).or_default().push(value);
        }
        values.into_iter().filter_map(|(kind, values)| Some((kind, mean_of(&values)?))).collect::<BTreeMap<_, _>>()
    };
    Entry {
        shots,
        trials,
        mean,
        stddev: variance.map(f64::sqrt),
        seeds: seeds.to_vec(),
        demonstrations: choice,
        samples,
        interval: ends(0).zip(ends(1)).map(|(low, high)| [low, high]),
        by_question_type: means(&|score| score.by_question_type.clone()),
        by_answer_type: means(&|score| score.by_answer_type.clone()),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), EvalError> {
    let text = serde_json::to_string_pretty(value).map_err(|e| EvalError::content(path, e))?;
    flamingo_data::write_whole(path, (text + "\n").as_bytes()).map_err(EvalError::file(path))
}

impl Metric {
    /// Its name in tables, with its unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::Cider => "CIDEr × 100",
            Self::VqaAccuracy => "VQA accuracy, %",
            Self::RocAuc => "ROC AUC",
            Self::Accuracy => "accuracy",
        }
    }
}
