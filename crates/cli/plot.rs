//! `flamingo plot`: the metrics of runs, as curves.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use flamingo_plot::{Content, Curve, Panel, Run, draw, smoothed};

use crate::args::{Over, PlotArgs};

/// What is drawn of a run that tells of it.
const KEYS: [&str; 3] = ["loss_laion", "loss_mmc4", "lr"];

pub fn run(args: &PlotArgs) -> anyhow::Result<()> {
    let mut runs = args.runs.iter().map(|path| Run::open(path)).collect::<Result<Vec<_>, _>>()?;
    // Runs of one name in different folders are told apart by their paths.
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for (run, path) in runs.iter_mut().zip(&args.runs) {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            run.name = path.display().to_string();
        }
    }
    let known: BTreeSet<&str> = runs.iter().flat_map(Run::keys).collect();
    let listed = || known.iter().copied().collect::<Vec<_>>().join(", ");
    let keys: Vec<&str> = if args.keys.is_empty() {
        KEYS.into_iter().filter(|key| known.contains(key)).collect()
    } else {
        args.keys.iter().map(String::as_str).collect()
    };
    if keys.is_empty() {
        bail!("no run tells of {}: say with --keys what to draw, of {}", KEYS.join(", "), listed());
    }
    let (x, label) = match args.x {
        Over::Step => ("step", "steps"),
        Over::Time => ("seconds", "seconds of training"),
        Over::Samples => ("samples", "samples"),
    };
    if let Some(key) = keys.iter().chain([&x]).find(|key| !known.contains(*key)) {
        bail!("no run tells of `{key}`: there are {}", listed());
    }
    let panels: Vec<Panel> = keys.iter().map(|key| panel(key, &runs, x, label, args)).collect();
    let svg = draw(&panels)?;
    match &args.output {
        Some(file) => write_whole(file, &svg),
        None => Ok(writeln!(std::io::stdout().lock(), "{svg}")?),
    }
}

/// One number of all runs. A smoothed curve has the numbers themselves behind it; learning rates are set, not measured,
/// and stay as they are.
fn panel(key: &str, runs: &[Run], x: &str, label: &str, args: &PlotArgs) -> Panel {
    let mut curves = Vec::new();
    for (colour, run) in runs.iter().enumerate() {
        let mut points = run.points(x, key);
        if args.smooth > 0.0 && key != "lr" {
            curves.push(Curve { name: None, colour, faint: true, points: points.clone(), intervals: Vec::new() });
            points = smoothed(&points, args.smooth);
        }
        curves.push(Curve { name: Some(run.name.clone()), colour, faint: false, points, intervals: Vec::new() });
    }
    // What is faint goes behind everything else.
    curves.sort_by_key(|curve| !curve.faint);
    let content = Content::Curves { curves, log: args.log };
    Panel { title: key.to_string(), x: label.to_string(), y: key.to_string(), content }
}

/// Finds out that a file cannot be written before the work for it is done.
pub fn check_place(path: &Path) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    ensure!(folder.is_dir(), "cannot write {}: there is no folder {}", path.display(), folder.display());
    ensure!(!path.is_dir(), "cannot write {}: it is a folder, and the name of a file is wanted", path.display());
    Ok(())
}

/// Writes a file that is there whole or not at all.
pub fn write_whole(path: &Path, content: &str) -> anyhow::Result<()> {
    // A file that cannot be put into its place is left behind under another name.
    check_place(path)?;
    flamingo_data::write_whole(path, content.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
