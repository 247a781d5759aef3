//! `flamingo eval` and `flamingo report`: a model's scores, and a page about them.

use std::collections::BTreeSet;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use flamingo_data::printable;
use flamingo_eval::{
    Answer, Benchmark, Evaluator, Gallery, Plan, Progress, Results, Settings, Stage, Subject, Task, evaluate, open,
    report,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{EvalArgs, ReportArgs};
use crate::generate;
use crate::plot::write_whole;
use crate::tell;

/// Name of the page in an evaluation's folder.
const PAGE: &str = "report.html";

pub fn run(args: &EvalArgs) -> anyhow::Result<()> {
    let trials = args.num_trials.map_or(args.trial_seeds.len(), NonZeroUsize::get);
    ensure!(
        trials <= args.trial_seeds.len(),
        "{trials} trials want as many seeds, and there are {}: give more --trial-seeds",
        args.trial_seeds.len()
    );
    let mut benchmarks = Vec::with_capacity(args.task.len());
    for name in &args.task {
        let mut task = Task::open(name)?;
        if let Answer::Classify(classify) = &mut task.answer {
            classify.prompt_ensembling |= args.classification_prompt_ensembling;
        }
        let root = folder_of(name, &task, args.data.as_deref());
        let benchmark = Benchmark::open(task, &root);
        benchmarks.push(benchmark.with_context(|| {
            format!("cannot use the data of {} in {}; --data says where they are", printable(name), root.display())
        })?);
    }
    let model = generate::open(&args.model)?;
    let folder = args.model.zoo.find(&args.model.model)?;
    let settings = Settings {
        num_samples: args.num_samples.map(NonZeroUsize::get),
        query_set_size: args.query_set_size,
        bare_zero_shot: args.bare_zero_shot,
        batch_size: args.batch_size.get(),
        upstream_compat: args.upstream_compat,
    };
    let plan = Plan {
        shots: args.shots.iter().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        seeds: args.trial_seeds[..trials].to_vec(),
        choices: args.demonstrations.iter().map(|&choice| choice.into()).collect(),
    };
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("runs/eval-{}", model.config().name)));
    let mut evaluator =
        Evaluator { model: &model, settings, gallery: Gallery::new(args.cache_mib.saturating_mul(1 << 20)) };
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}  {per_sec}  {eta} left")?);
    let mut last = String::new();
    let subject = Subject { folder: &folder, precision: model.engine().precision().to_string() };
    let results = evaluate(&mut evaluator, &subject, &benchmarks, &plan, &out, &mut |progress| {
        show(&bar, progress, &mut last);
    })?;
    bar.finish_and_clear();
    let page = out.join(PAGE);
    write_whole(&page, &report(&[open(&out)?])?)?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string(&results)?)?;
    } else {
        table(&mut stdout, &results, &benchmarks)?;
        tell(&format!("everything is in {}, the page about it in {}", out.display(), page.display()));
    }
    Ok(())
}

pub fn compare(args: &ReportArgs) -> anyhow::Result<()> {
    let evaluation = |run: &PathBuf| {
        let evaluation = open(run);
        evaluation.with_context(|| format!("{} is no folder that `flamingo eval --out` has filled", run.display()))
    };
    let evaluations = args.runs.iter().map(evaluation).collect::<anyhow::Result<Vec<_>>>()?;
    let page = report(&evaluations)?;
    match &args.output {
        Some(file) => write_whole(file, &page),
        None => Ok(writeln!(std::io::stdout().lock(), "{page}")?),
    }
}

/// Where a task's data are: a shipped task's under its name, another's beside its file.
fn folder_of(name: &str, task: &Task, data: Option<&Path>) -> PathBuf {
    match data {
        _ if !Task::shipped().any(|shipped| shipped == name) => {
            data.or(Path::new(name).parent()).unwrap_or(Path::new("")).to_path_buf()
        }
        Some(data) => data.join(&task.name),
        None => Path::new("data/benchmarks").join(&task.name),
    }
}

/// One bar a trial; without a terminal, a line when it begins to ask.
fn show(bar: &ProgressBar, progress: &Progress, last: &mut String) {
    let setup = progress.setup;
    let (what, things) = match progress.stage {
        Stage::Looking => ("looking at pictures", "pictures"),
        Stage::Asking => ("asking", "questions"),
    };
    let trial = format!(
        "{}, {} shots, {} demonstrations, seed {}: {what}",
        printable(progress.task),
        setup.shots,
        setup.choice,
        setup.seed
    );
    if trial != *last {
        bar.reset();
        bar.set_message(trial.clone());
        if bar.is_hidden() {
            tracing::info!("{trial}, {} {things}", progress.total);
        }
        *last = trial;
    }
    bar.set_length(progress.total as u64);
    bar.set_position(progress.done as u64);
}

fn table(stdout: &mut impl Write, results: &Results, benchmarks: &[Benchmark]) -> anyhow::Result<()> {
    let (task, demos, interval) = ("task", "demos", "95 % interval");
    writeln!(stdout, "{task:<16} {demos:<7} {:>5} {:>9} {:>9} {interval:>18}  metric", "shots", "questions", "score")?;
    for benchmark in benchmarks {
        let name = &benchmark.task.name;
        for entry in results.get(name).into_iter().flatten() {
            let score = entry.mean.map_or_else(|| "-".to_string(), |mean| format!("{mean:.3}"));
            let interval = entry.interval.map_or_else(String::new, |[low, high]| format!("{low:.3} to {high:.3}"));
            let demos = entry.demonstrations.to_string();
            let (shots, questions, metric) = (entry.shots, entry.samples, benchmark.task.metric.title());
            writeln!(stdout, "{name:<16} {demos:<7} {shots:>5} {questions:>9} {score:>9} {interval:>18}  {metric}")?;
        }
    }
    Ok(())
}
