//! `flamingo train`: a run with its progress on stderr.

use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use flamingo_distributed::{Group, Patience, Place, Said, Watch};
use flamingo_engine::{Device, probe};
use flamingo_run::{Metrics, Recipe, Run, RunError};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{GroupArgs, TrainArgs};
use crate::tell;

/// How long memory that a step has freed stays ours. The next step wants it again, and pages that went back to the system
/// come back cleared: with the allocator's own delay of one second, a step of two seconds took 9 to 24 % longer.
const KEEP_FREED_MILLISECONDS: std::ffi::c_long = 30_000;

/// `mi_option_purge_delay` of mimalloc, which its crate gives no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// How long a process may take to end after a worker was lost.
const GRACE: Duration = Duration::from_secs(30);

pub fn run(args: &TrainArgs) -> anyhow::Result<()> {
    // SAFETY: the option exists in this version of mimalloc, takes a number, and may change at any time. A value from
    // the environment (MIMALLOC_PURGE_DELAY) stays.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY, KEEP_FREED_MILLISECONDS) };
    let path = &args.config;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let recipe = Recipe::from_toml(&text, &args.overrides).with_context(|| path.display().to_string())?;
    let place = Place::find(&said(&args.group), |name| std::env::var(name).ok())?;
    let devices = match (args.devices.is_empty(), args.device, place.as_ref().and_then(|place| place.local)) {
        (false, ..) => args.devices.clone(),
        // Each of a machine's processes has a device of its own.
        (true, Device::Auto, Some(local)) if probe(Device::Cuda(Some(local))).is_ok() => {
            vec![Device::Cuda(Some(local))]
        }
        (true, device, _) => vec![device],
    };
    let patience = Patience {
        rendezvous: Duration::from_secs(args.group.rendezvous_timeout),
        worker: Duration::from_secs(args.group.worker_timeout),
        ..Patience::default()
    };
    if let Some(place) = &place {
        tracing::info!(node = place.node, nodes = place.nodes, rendezvous = place.rendezvous, "waiting for the others");
    }
    let mut groups = Group::join(place.as_ref(), devices.len(), &recipe.purpose(), patience)?.into_iter();
    let mut workers = groups.by_ref().zip(&devices);
    let Some((group, &device)) = workers.next() else { anyhow::bail!("there is no device to train on") };
    end_with(group.watch());
    std::thread::scope(|threads| {
        let others: Vec<_> = workers
            .map(|(group, &device)| {
                let (recipe, rank) = (recipe.clone(), group.rank());
                threads.spawn(move || follow(recipe, device, group).map_err(|error| (rank, error)))
            })
            .collect();
        let rank = group.rank();
        let result = match rank {
            0 => lead(args, recipe.clone(), device, group),
            _ => follow(recipe.clone(), device, group).map_err(|error| named(rank, error)),
        };
        let failed: Vec<_> = others.into_iter().filter_map(|other| other.join().unwrap_or(Ok(())).err()).collect();
        // When one fails all do. Its own error says most.
        match failed.into_iter().find(|(_, error)| !matches!(error, RunError::Group(_))) {
            Some((rank, cause)) => Err(named(rank, cause)),
            None => result,
        }
    })
}

/// An error of a worker, with its name. That another is lost is everybody's.
fn named(rank: usize, error: RunError) -> anyhow::Error {
    match error {
        RunError::Group(_) => error.into(),
        _ => anyhow::Error::from(error).context(format!("rank {rank}")),
    }
}

/// Ends this process if it does not end by itself after a worker was lost: one of its own may hang for ever.
fn end_with(watch: Watch) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Some(why) = watch.lost() {
                std::thread::sleep(GRACE);
                tell(&format!("error: {why}"));
                std::process::exit(1);
            }
        }
    });
}

fn said(args: &GroupArgs) -> Said {
    Said { node: args.node_rank, nodes: args.nodes, rendezvous: args.rendezvous.clone() }
}

/// A worker that does its share and says nothing.
fn follow(recipe: Recipe, device: Device, group: Group) -> Result<(), RunError> {
    let mut run = Run::join(recipe, device, group)?;
    while run.step()?.is_some() {}
    Ok(())
}

/// The worker of rank 0, which shows what happens and leaves the model.
fn lead(args: &TrainArgs, recipe: Recipe, device: Device, group: Group) -> anyhow::Result<()> {
    let workers = group.world();
    let mut run = Run::join(recipe, device, group)?;
    let (begun_at, total) = (run.done(), run.total());
    if workers > 1 {
        tell(&format!("{}: {workers} workers", run.recipe().run_name.display()));
    }
    if begun_at > 0 {
        tell(&format!("{}: going on after step {begun_at} of {total}", run.recipe().run_name.display()));
    }

    let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}  {msg}").context("a progress style")?;
    bar.set_style(style);
    bar.set_position(begun_at as u64);
    let mut json = args.json;
    while let Some(step) = run.step()? {
        bar.set_position(step.step as u64);
        if let Some(metrics) = &step.metrics {
            let left = run.elapsed() / (step.step - begun_at) as f64 * (total - step.step) as f64;
            let line = line(metrics, left);
            if bar.is_hidden() {
                tell(&format!("{}/{total}  {line}", step.step));
            }
            bar.set_message(line);
            // If whoever reads them goes, the training goes on.
            json = json && writeln!(std::io::stdout(), "{}", serde_json::to_string(metrics)?).is_ok();
        }
        if let Some(checkpoint) = &step.checkpoint {
            tracing::info!(checkpoint = %checkpoint.display(), "saved");
        }
    }
    bar.finish_and_clear();
    for (reason, count) in run.left_out() {
        tell(&format!("left out, {reason}: {count}"));
    }
    let (lost, in_the_end) = run.lost();
    if lost > 0 {
        let last = if in_the_end > 0 { format!(", the last {in_the_end} in a row") } else { String::new() };
        tell(&format!("left out, the loss was no number: {lost} of {total} steps{last}"));
    }
    let model = run.export(args.dtype)?;
    tell(&format!("the model is in {}", model.display()));
    Ok(())
}

/// What a line of metrics says, in words that fit on a terminal.
fn line(metrics: &Metrics, seconds_left: f64) -> String {
    let loss = |name: &str, loss: Option<f64>| loss.map(|loss| format!("{name} {loss:.3}  ")).unwrap_or_default();
    let left = HumanDuration(std::time::Duration::from_secs_f64(seconds_left.max(0.0)));
    format!(
        "{}{}norm {:.2}  lr {:.1e}  {:.0} tokens/s  {:.0} images/s  {left:#} left",
        loss("pairs", metrics.loss_laion),
        loss("documents", metrics.loss_mmc4),
        metrics.grad_norm,
        metrics.lr,
        metrics.tokens_per_second,
        metrics.images_per_second,
    )
}
