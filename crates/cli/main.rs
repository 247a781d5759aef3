//! `flamingo`: few-shot vision-language models at the command line.

mod args;
mod bench;
mod caption;
mod data;
mod doctor;
mod eval;
mod experiment;
mod generate;
mod init;
mod inspect;
mod launch;
mod manual;
mod models;
mod plan;
mod plot;
mod prompt;
mod score;
mod serve;
mod talk;
mod train;

use std::io::{ErrorKind, Write};
use std::panic::catch_unwind;
use std::process::ExitCode;

use clap::Parser;
use flamingo_data::printable;

use args::{Cli, Command};

/// Tensors come and go by the megabyte: the system's allocator gives such pieces back each time and has them cleared
/// again, page by page.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_logging(cli.verbose);
    let result = catch_unwind(|| match &cli.command {
        Command::Caption(args) => caption::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Score(args) => score::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Report(args) => eval::compare(args),
        Command::Experiment(args) => experiment::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Train(args) => train::run(args),
        Command::Launch(args) => launch::run(args),
        Command::Init(args) => init::run(args),
        Command::Models(args) => models::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Data(args) => data::run(args),
        Command::Plot(args) => plot::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => manual::completions(args),
        Command::Man(args) => manual::pages(args),
    });
    // What does not end a line is still in a buffer, whose failure nobody would see.
    let result = result.map(|done| done.and_then(|()| Ok(std::io::stdout().flush()?)));
    let error = match result {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "something went wrong that should not: run again with -v and report what it says".to_string(),
    };
    tell(&format!("error: {}", printable(&error)));
    ExitCode::FAILURE
}

/// Says a line on stderr. Whoever reads it may be gone: that is no reason to leave work undone.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Logs go to stderr; results alone go to stdout.
fn start_logging(verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let own = format!(
        "error,flamingo={level},flamingo_engine={level},flamingo_weights={level},flamingo_run={level},flamingo_data={level},flamingo_distributed={level},flamingo_eval={level},flamingo_serve={level}"
    );
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| own.into()))
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .with_ansi(std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    // A backend's panic becomes an error of ours; its own message would only say the same less clearly.
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if verbose > 0 {
            default(panic);
        }
    }));
}

/// The reader of our output went away: `flamingo … | head` is no error. Only writing to stdout gives an error of this kind
/// that stands alone; others say what they belong to.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let alone = error.chain().next().and_then(|error| error.downcast_ref::<std::io::Error>());
    alone.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
