//! `flamingo experiment`: one question, answered by training and evaluating models that differ in one thing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, ensure};
use flamingo_config::ModelConfig;
use flamingo_eval::{Benchmark, Choice, Entry, Evaluator, Gallery, Plan, Results, Settings, Subject, Task, evaluate};
use flamingo_plot::{Content, Curve, Panel, draw};
use flamingo_run::{Recipe, Run};
use flamingo_weights::Dtype;
use flamingo_zoo::Model;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use crate::args::ExperimentArgs;
use crate::init::{Parts, make};
use crate::plot::{check_place, write_whole};
use crate::tell;

/// An experiment, as its TOML file describes it. Paths are as seen from where the command runs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Experiment {
    /// What it is called.
    title: String,
    /// What it asks, in a sentence or two.
    question: String,
    /// What its results show, once they are known: the end of the report.
    #[serde(default)]
    reading: String,
    /// What all models are made of: a model.toml.
    config: PathBuf,
    /// Folder with the tokenizer, without upstream's tokens.
    tokenizer: PathBuf,
    /// A model folder that parts are taken over from.
    from: PathBuf,
    /// Which: tensors whose names begin with one of these. The rest is random.
    take: Vec<String>,
    /// How all models are trained; `run_name` and `model` are set here.
    recipe: PathBuf,
    /// Tasks that all models are asked.
    tasks: Vec<String>,
    /// The folder of their data.
    data: PathBuf,
    /// Numbers of demonstrations.
    shots: Vec<usize>,
    /// Questions of a task.
    num_samples: usize,
    /// Each variant is trained and asked once for each seed.
    seeds: Vec<u32>,
    /// What differs.
    variants: Vec<Variant>,
}

/// One of the models that are compared.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    /// Its name in the report.
    name: String,
    /// Other values for the config: `"cross_attention.every_n_layers" = 1`.
    #[serde(default)]
    config: toml::Table,
    /// Other values for the recipe.
    #[serde(default)]
    recipe: toml::Table,
}

/// What training learns from: its loss in the metrics of a run, and in words.
const STREAMS: [(&str, &str); 2] = [("loss_mmc4", "sequences or documents"), ("loss_laion", "pairs")];

/// What came of a variant, by seed.
struct Outcome<'a> {
    variant: &'a Variant,
    parameters: usize,
    /// For each of [`STREAMS`], where the recipe has it.
    losses: Vec<[Option<f64>; 2]>,
    results: Vec<Results>,
}

pub fn run(args: &ExperimentArgs) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let experiment: Experiment =
        toml::from_str(&text).map_err(|e| one_line(&text, &e)).with_context(|| args.file.display().to_string())?;
    let stem = args.file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let out = args.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("experiment-{stem}")));
    ensure!(!experiment.variants.is_empty() && !experiment.seeds.is_empty(), "an experiment needs variants and seeds");
    // Everything that can be wrong is found before hours are spent.
    let page = args.report.clone().unwrap_or_else(|| args.file.with_extension("md"));
    let figure = page.with_extension("svg");
    [&page, &figure].into_iter().try_for_each(|file| check_place(file))?;
    for variant in &experiment.variants {
        experiment.config(variant)?;
        experiment.recipe(variant, &out, 0)?;
    }
    let benchmarks = experiment.benchmarks()?;
    let mut outcomes = Vec::new();
    for variant in &experiment.variants {
        outcomes.push(experiment.outcome(variant, &benchmarks, &out, args)?);
    }
    write_whole(&figure, &experiment.figure(&outcomes, &benchmarks)?)?;
    let command = format!("flamingo experiment {}", args.file.display());
    write_whole(&page, &experiment.report(&outcomes, &benchmarks, &figure, &command)?)?;
    tell(&format!("the report is {}", page.display()));
    Ok(())
}

/// What is wrong with a TOML file, without the picture of it that the crate draws.
fn one_line(text: &str, error: &toml::de::Error) -> anyhow::Error {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
    anyhow!("line {}: {}", before.matches('\n').count() + 1, error.message())
}

impl Experiment {
    fn config(&self, variant: &Variant) -> anyhow::Result<ModelConfig> {
        let shown = self.config.display();
        let text = std::fs::read_to_string(&self.config).with_context(|| format!("cannot read {shown}"))?;
        let table = text.parse::<toml::Table>().map_err(|e| one_line(&text, &e));
        let mut table = table.with_context(|| shown.to_string())?;
        for (path, value) in &variant.config {
            let mut at = &mut table;
            let mut keys = path.split('.').peekable();
            while let Some(key) = keys.next() {
                if keys.peek().is_none() {
                    at.insert(key.to_string(), value.clone());
                    break;
                }
                at = at.get_mut(key).and_then(toml::Value::as_table_mut).with_context(|| {
                    format!("the variant `{}` changes `{path}`, which {shown} does not have", variant.name)
                })?;
            }
        }
        let config = ModelConfig::from_toml(&toml::to_string(&table)?);
        config.with_context(|| format!("the config of the variant `{}`", variant.name))
    }

    fn recipe(&self, variant: &Variant, folder: &Path, seed: u32) -> anyhow::Result<Recipe> {
        let shown = self.recipe.display();
        let text = std::fs::read_to_string(&self.recipe).with_context(|| format!("cannot read {shown}"))?;
        let mut overrides: Vec<String> = variant.recipe.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let text_of = |path: PathBuf| toml::Value::String(path.display().to_string());
        overrides.push(format!("run_name={}", text_of(folder.join("run"))));
        overrides.push(format!("model={}", text_of(folder.join("start"))));
        overrides.push(format!("seed={seed}"));
        Recipe::from_toml(&text, &overrides).with_context(|| format!("{shown}, for the variant `{}`", variant.name))
    }

    fn benchmarks(&self) -> anyhow::Result<Vec<Benchmark>> {
        let open = |name: &String| Ok(Benchmark::open(Task::open(name)?, &self.data)?);
        self.tasks.iter().map(open).collect()
    }

    /// Trains and evaluates a variant, as far as its folder does not hold that already.
    fn outcome<'a>(
        &self,
        variant: &'a Variant,
        benchmarks: &[Benchmark],
        out: &Path,
        args: &ExperimentArgs,
    ) -> anyhow::Result<Outcome<'a>> {
        let config = self.config(variant)?;
        let (mut losses, mut results) = (Vec::new(), Vec::new());
        let mut parameters = 0;
        for &seed in &self.seeds {
            let folder = out.join(folder_name(&variant.name)).join(format!("seed-{seed}"));
            let start = folder.join("start");
            let parts = Parts { folder: &self.from, take: &self.take };
            if !start.join("model.safetensors").is_file() {
                make(&config, &self.tokenizer, Some(&parts), u64::from(seed), &start, true)?;
            }
            let mut run = Run::open(self.recipe(variant, &folder, seed)?, args.device)?;
            let what = format!("{}, seed {seed}", variant.name);
            train(&mut run, &what)?;
            let model = run.export(Dtype::F32)?;
            losses.push(last_losses(&folder.join("run"))?);
            drop(run);
            let (asked, count) = self.ask(&model, benchmarks, &folder.join("eval"), &what, args)?;
            results.push(asked);
            parameters = count;
        }
        Ok(Outcome { variant, parameters, losses, results })
    }

    fn ask(
        &self,
        folder: &Path,
        benchmarks: &[Benchmark],
        out: &Path,
        what: &str,
        args: &ExperimentArgs,
    ) -> anyhow::Result<(Results, usize)> {
        let precision = flamingo_engine::Precision::F32;
        let model = Model::open(folder, args.device, precision)?;
        let parameters = flamingo_zoo::parts(model.config()).iter().map(|part| part.parameters as usize).sum();
        let settings = Settings {
            num_samples: Some(self.num_samples),
            query_set_size: 2048,
            bare_zero_shot: true,
            batch_size: 16,
            upstream_compat: false,
        };
        let plan = Plan { shots: self.shots.clone(), seeds: vec![42], choices: vec![Choice::Random] };
        let mut evaluator = Evaluator { model: &model, settings, gallery: Gallery::new(1 << 31) };
        let subject = Subject { folder, precision: precision.to_string() };
        let bar = bar(what)?;
        let results = evaluate(&mut evaluator, &subject, benchmarks, &plan, out, &mut |progress| {
            bar.set_length(progress.total as u64);
            bar.set_position(progress.done as u64);
        })?;
        bar.finish_and_clear();
        Ok((results, parameters))
    }

    /// A panel for each task: score over shots, a curve for each variant.
    fn figure(&self, outcomes: &[Outcome], benchmarks: &[Benchmark]) -> anyhow::Result<String> {
        let mut panels = Vec::new();
        for benchmark in benchmarks {
            let curve = |(colour, outcome): (usize, &Outcome)| {
                let cells: Vec<(usize, Cell)> =
                    self.shots.iter().filter_map(|&n| Some((n, outcome.cell(&benchmark.task.name, n)?))).collect();
                Curve {
                    name: Some(outcome.variant.name.clone()),
                    colour,
                    faint: false,
                    points: cells.iter().map(|(shots, cell)| (*shots as f64, cell.mean)).collect(),
                    intervals: cells.iter().map(|(shots, cell)| (*shots as f64, cell.interval)).collect(),
                }
            };
            panels.push(Panel {
                title: benchmark.task.title.clone(),
                x: "demonstrations".into(),
                y: benchmark.task.metric.title().into(),
                content: Content::Curves { curves: outcomes.iter().enumerate().map(curve).collect(), log: false },
            });
        }
        Ok(draw(&panels)?)
    }

    fn report(
        &self,
        outcomes: &[Outcome],
        benchmarks: &[Benchmark],
        figure: &Path,
        command: &str,
    ) -> anyhow::Result<String> {
        let mut page = format!("# {}\n\n{}\n\n```sh\n{command}\n```\n\n", self.title, self.question.trim());
        let seeds = self.seeds.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        writeln!(
            page,
            "Each variant was trained once for each seed of {seeds} (random weights and order of the data), then \
             asked {} questions of each task. Numbers are means over the seeds; behind each stands the interval that \
             holds it with 95 % confidence, by the bootstrap over questions (means over the seeds), and, of several \
             seeds, the standard deviation between them.\n",
            self.num_samples
        )?;
        let streams: Vec<usize> = (0..STREAMS.len())
            .filter(|&stream| outcomes.iter().any(|outcome| outcome.loss(stream).is_some()))
            .collect();
        let titles: String = streams.iter().map(|&stream| format!(" loss of {} |", STREAMS[stream].1)).collect();
        writeln!(page, "| variant | parameters |{titles}\n|---|---|{}", "---|".repeat(streams.len()))?;
        for outcome in outcomes {
            let millions = outcome.parameters as f64 / 1e6;
            let losses = streams.iter().map(|&stream| match outcome.loss(stream) {
                Some(loss) => format!(" {loss:.4} |"),
                None => " – |".to_string(),
            });
            writeln!(page, "| {} | {millions:.2} M |{}", outcome.variant.name, losses.collect::<String>())?;
        }
        for benchmark in benchmarks {
            let task = &benchmark.task;
            writeln!(page, "\n## {} ({})\n", task.title, task.metric.title())?;
            let shots: String = self.shots.iter().map(|shots| format!(" {shots} shots |")).collect();
            writeln!(page, "| variant |{shots}\n|---|{}", "---|".repeat(self.shots.len()))?;
            for outcome in outcomes {
                write!(page, "| {} |", outcome.variant.name)?;
                for &shots in &self.shots {
                    match outcome.cell(&task.name, shots) {
                        Some(cell) => write!(page, " {cell} |")?,
                        None => write!(page, " – |")?,
                    }
                }
                writeln!(page)?;
            }
        }
        let name = figure.file_name().unwrap_or_default().to_string_lossy();
        writeln!(page, "\n![Scores over demonstrations]({name})")?;
        if !self.reading.trim().is_empty() {
            writeln!(page, "\n## What it shows\n\n{}", self.reading.trim())?;
        }
        Ok(page)
    }
}

/// A score over seeds.
struct Cell {
    mean: f64,
    interval: [f64; 2],
    /// Between seeds, where there are several.
    deviation: Option<f64>,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{:.3} [{:.3}, {:.3}]", self.mean, self.interval[0], self.interval[1])?;
        self.deviation.map_or(Ok(()), |deviation| write!(f, " ± {deviation:.3}"))
    }
}

impl Outcome<'_> {
    /// The mean over the seeds of the loss of one of [`STREAMS`].
    fn loss(&self, stream: usize) -> Option<f64> {
        let losses: Vec<f64> = self.losses.iter().filter_map(|losses| losses[stream]).collect();
        (!losses.is_empty()).then(|| mean(&losses))
    }

    fn cell(&self, task: &str, shots: usize) -> Option<Cell> {
        let entries: Vec<&Entry> = self.results.iter().filter_map(|results| results.get(task)).flatten().collect();
        let entries = entries.into_iter().filter(|entry| entry.shots == shots);
        let known: Vec<(f64, [f64; 2])> = entries.filter_map(|entry| Some((entry.mean?, entry.interval?))).collect();
        let means: Vec<f64> = known.iter().map(|(mean, _)| *mean).collect();
        if means.is_empty() {
            return None;
        }
        let middle = mean(&means);
        let variance = mean(&means.iter().map(|x| (x - middle).powi(2)).collect::<Vec<_>>());
        let end = |end: usize| mean(&known.iter().map(|(_, interval)| interval[end]).collect::<Vec<_>>());
        let deviation = (means.len() > 1).then(|| variance.sqrt());
        Some(Cell { mean: middle, interval: [end(0), end(1)], deviation })
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The mean loss of each of [`STREAMS`] in the last tenth of a run.
fn last_losses(run: &Path) -> anyhow::Result<[Option<f64>; 2]> {
    let run = flamingo_plot::Run::open(run)?;
    let last = STREAMS.map(|(key, _)| {
        let losses: Vec<f64> = run.points("step", key).into_iter().map(|(_, loss)| loss).collect();
        (!losses.is_empty()).then(|| mean(&losses[losses.len() - losses.len().div_ceil(10)..]))
    });
    ensure!(
        last.iter().any(Option::is_some),
        "a run has told no loss: set logging_steps of the recipe below its number of steps"
    );
    Ok(last)
}

fn train(run: &mut Run, what: &str) -> anyhow::Result<()> {
    let bar = bar(what)?;
    bar.set_length(run.total() as u64);
    while let Some(step) = run.step()? {
        bar.set_position(step.step as u64);
    }
    bar.finish_and_clear();
    Ok(())
}

fn bar(what: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {eta} left")?);
    bar.set_message(what.to_string());
    if bar.is_hidden() {
        tracing::info!("{what}");
    }
    Ok(bar)
}

/// A name as a folder can have it.
fn folder_name(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() { c } else { '-' }).collect()
}
