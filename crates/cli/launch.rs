//! `flamingo launch`: several processes on this machine, and what becomes of them.

use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::args::LaunchArgs;
use crate::tell;

/// How often it looks whether a process has ended.
const GLANCE: Duration = Duration::from_millis(20);

/// How long the others may take to end by themselves after one has failed: they say why.
const FAREWELL: Duration = Duration::from_secs(30);

pub fn run(args: &LaunchArgs) -> anyhow::Result<()> {
    let stopped = Arc::new(AtomicBool::new(false));
    let stop = stopped.clone();
    // Also when it is asked to end: nobody else ends the processes.
    ctrlc::set_handler(move || stop.store(true, Ordering::Relaxed)).context("cannot listen to signals")?;
    for restart in 0..=args.restarts {
        let failed = match Processes::start(args)?.wait(&stopped)? {
            None => return Ok(()),
            Some(failed) => failed,
        };
        if restart == args.restarts {
            bail!("{failed}");
        }
        tell(&format!("{failed}: starting all again, for the {}. of {} times", restart + 1, args.restarts));
    }
    Ok(())
}

/// Processes that end together.
struct Processes(Vec<Child>);

impl Processes {
    fn start(args: &LaunchArgs) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let port = port.context("there is no free port")?.port().to_string();
        let mut processes = Self(Vec::new());
        for rank in 0..args.processes {
            let child = Command::new(&program)
                .args(&args.command)
                .env("RANK", rank.to_string())
                .env("LOCAL_RANK", rank.to_string())
                .env("WORLD_SIZE", args.processes.to_string())
                .env("MASTER_ADDR", "127.0.0.1")
                .env("MASTER_PORT", &port)
                .spawn();
            processes.0.push(child.with_context(|| format!("cannot start process {rank}"))?);
        }
        Ok(processes)
    }

    /// Waits until all have ended; says which was the first to fail, if one did.
    fn wait(mut self, stopped: &AtomicBool) -> anyhow::Result<Option<String>> {
        let mut failed: Option<(String, Instant)> = None;
        loop {
            let mut running = false;
            for (rank, child) in self.0.iter_mut().enumerate() {
                match child.try_wait().context("cannot wait for a process")? {
                    None => running = true,
                    // Of those that ended since the last look, one that was killed is the cause.
                    Some(status) if !status.success() && (failed.is_none() || status.code().is_none()) => {
                        let at = failed.as_ref().map_or_else(Instant::now, |(_, at)| *at);
                        failed = Some((format!("rank {rank} {}", ended(status)), at));
                    }
                    Some(_) => {}
                }
            }
            if !running || failed.as_ref().is_some_and(|(_, at)| at.elapsed() > FAREWELL) {
                return Ok(failed.map(|(failed, _)| failed));
            }
            if stopped.load(Ordering::Relaxed) {
                bail!("stopped, and the processes with it");
            }
            std::thread::sleep(GLANCE);
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that has ended cannot be killed.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn ended(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("ended with exit code {code}"),
        None => format!("was killed ({status})"),
    }
}
