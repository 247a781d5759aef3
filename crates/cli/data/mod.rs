//! `flamingo data`: training data made and looked at.

mod args;
mod convert;
mod inspect;
mod pack;

use std::collections::BTreeMap;

use anyhow::Context;
use flamingo_data::printable;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

pub use args::DataArgs;
use args::DataCommand;

use crate::tell;

pub fn run(args: &DataArgs) -> anyhow::Result<()> {
    match &args.command {
        DataCommand::ConvertMmc4(args) => convert::run(args),
        DataCommand::Pack(args) => pack::run(args),
        DataCommand::Inspect(args) => inspect::run(args),
    }
}

/// A bar on stderr, where that is a terminal.
fn progress(total: u64) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{wide_bar} {percent}%  {eta} left").context("a progress style")?);
    Ok(bar)
}

/// Does work that says how much of how much is done, with a bar.
fn with_progress<T>(work: impl FnOnce(&mut dyn FnMut(u64, u64)) -> T) -> anyhow::Result<T> {
    let bar = progress(0)?;
    let done = work(&mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    Ok(done)
}

/// What was left out, a line for each reason, on stderr.
fn report(what: &str, left_out: &BTreeMap<String, u64>) {
    for (reason, count) in left_out {
        tell(&format!("{what} left out, {}: {count}", printable(reason)));
    }
}
