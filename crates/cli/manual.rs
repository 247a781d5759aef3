//! `flamingo completions` and `flamingo man`: what shells and manuals know of the command line.

use std::io::Write;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::args::{Cli, CompletionsArgs, ManArgs};

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    // Into memory first: the crate takes it for impossible that a file cannot be written.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "flamingo", &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}

pub fn pages(args: &ManArgs) -> anyhow::Result<()> {
    let mut program = Cli::command();
    program.build();
    let Some(folder) = &args.out else {
        let (_, page) = page(&program)?;
        return Ok(std::io::stdout().lock().write_all(&page)?);
    };
    let mut pages = Vec::new();
    collect(&program, &mut pages)?;
    let failed = || format!("cannot write manual pages to {}", folder.display());
    std::fs::create_dir_all(folder).with_context(failed)?;
    for (name, page) in pages {
        flamingo_data::write_whole(&folder.join(name), &page).with_context(failed)?;
    }
    Ok(())
}

/// The pages of a command and of all commands in it.
fn collect(command: &Command, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    pages.push(page(command)?);
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    commands.into_iter().try_for_each(|command| collect(command, pages))
}

/// A page, and the name of its file.
fn page(command: &Command) -> anyhow::Result<(String, Vec<u8>)> {
    // The crate would fill the lines of examples as if they were prose.
    let man = Man::new(command.clone().after_help(None::<&str>));
    let mut page = Vec::new();
    man.render(&mut page)?;
    if let Some(notes) = command.get_after_help() {
        let mut roff = Roff::new();
        roff.control("SH", ["NOTES"]).control("nf", []);
        for line in notes.to_string().lines() {
            roff.text([roman(line)]);
        }
        roff.control("fi", []).to_writer(&mut page)?;
    }
    Ok((man.get_filename(), page))
}
