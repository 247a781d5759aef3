//! `flamingo`: few-shot vision-language models at the command line.

mod args;
mod bench;
mod caption;
mod data;
mod eval;
mod experiment;
mod generate;
mod init;
mod inspect;
mod models;
mod plot;
mod prompt;
mod score;
mod train;

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
        Command::Eval(args) => eval::run(args),
        Command::Report(args) => eval::compare(args),
        Command::Experiment(args) => experiment::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Train(args) => train::run(args),
        Command::Init(args) => init::run(args),
        Command::Models(args) => models::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Data(args) => data::run(args),
        Command::Plot(args) => plot::run(args),
    });
    let error = match result {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(error)) if is_broken_pipe(&error) => return ExitCode::SUCCESS,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "something went wrong that should not: run again with -v and report what it says".to_string(),
    };
    eprintln!("error: {}", printable(&error));
    ExitCode::FAILURE
}

/// Logs go to stderr; results alone go to stdout.
fn start_logging(verbose: u8) {
    let level = ["warn", "info", "debug", "trace"][usize::from(verbose.min(3))];
    let own = format!(
        "error,flamingo={level},flamingo_engine={level},flamingo_weights={level},flamingo_run={level},flamingo_data={level},flamingo_eval={level}"
    );
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| own.into()))
        .with_writer(std::io::stderr)
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

/// The reader of our output went away: `flamingo … | head` is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()).any(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}
