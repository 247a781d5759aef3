//! `cargo xtask scale`: the same training on one worker, on several in a process, and on processes that are machines to
//! each other, each in a network namespace of its own.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use flamingo_engine::Device;
use serde_json::Value;

/// How much losses may differ from those of one worker.
const TOLERANCE: f64 = 1e-4;

/// What is trained, and with what.
pub struct Scale<'a> {
    /// The program.
    pub binary: &'a Path,
    /// The model.
    pub model: &'a Path,
    /// Folder of the pairs' and documents' shards.
    pub shards: &'a Path,
    /// Updates.
    pub steps: usize,
    /// Rows of each stream in an update, over all workers.
    pub rows: usize,
    /// What each worker computes on: all on the same.
    pub device: Device,
    /// Megabits a second of each machine's network, both ways; without it as fast as the kernel passes packets on.
    pub megabits: Option<u32>,
}

/// What came of one way to train.
struct Row {
    name: String,
    /// Largest difference of a loss from one worker's.
    difference: f64,
    tokens_per_second: f64,
    /// Bytes an update, as the run counts them and as the network interfaces do.
    wire: Option<(f64, f64)>,
}

impl Scale<'_> {
    /// Trains in each way; a table of Markdown, and whether all losses agree.
    ///
    /// # Errors
    /// If a run fails.
    pub fn measure(&self) -> anyhow::Result<(String, bool)> {
        let work = tempfile::tempdir().context("a temporary folder")?;
        let device = self.device.to_string();
        let alone = self.train(work.path(), "one", 1, &["--device", &device])?;
        let mut rows =
            vec![Row { name: "1 worker".into(), difference: 0.0, tokens_per_second: speed(&alone), wire: None }];
        for workers in [2, 4] {
            let devices = vec![device.as_str(); workers].join(",");
            let lines = self.train(work.path(), &format!("devices-{workers}"), workers, &["--devices", &devices])?;
            rows.push(Row {
                name: format!("{workers} devices of a process"),
                difference: difference(&alone, &lines),
                tokens_per_second: speed(&lines),
                wire: None,
            });
        }
        let mut note = "";
        for nodes in [2, 4] {
            let Some(network) = Network::new(nodes, self.megabits) else {
                note = "\nskipped: processes in network namespaces, which need Linux, iproute2 (with tc and its tbf for --megabits) and root\n";
                break;
            };
            let (lines, bytes) = self.train_in(&network, work.path(), nodes)?;
            let counted: f64 = lines.iter().filter_map(|line| line["wire_bytes"].as_f64()).sum();
            let updates = self.steps as f64;
            rows.push(Row {
                name: format!("{nodes} processes, each in a network namespace"),
                difference: difference(&alone, &lines),
                tokens_per_second: speed(&lines),
                wire: Some((counted / updates, bytes as f64 / nodes as f64 / updates)),
            });
        }
        let agree = rows.iter().all(|row| row.difference <= TOLERANCE);
        Ok((table(&rows) + note, agree))
    }

    fn command(&self, work: &Path, name: &str, workers: usize) -> anyhow::Result<(PathBuf, Vec<String>)> {
        let run = work.join(name);
        let recipe = work.join(format!("{name}.toml"));
        let samples = self.steps * self.rows;
        let (shards, rows) = (self.shards.display(), self.rows / workers);
        let text = format!(
            "run_name = {:?}\nmodel = {:?}\nlaion_shards = \"{shards}/pairs-*.tar\"\nmmc4_shards = \"{shards}/tasks-*.tar\"\n\
             batch_size_laion = {rows}\nbatch_size_mmc4 = {rows}\ntrain_num_samples_laion = {samples}\n\
             train_num_samples_mmc4 = {samples}\nloss_multiplier_laion = 0.2\nworkers = 4\nshuffle_laion = 20\n\
             shuffle_mmc4 = 10\nlearning_rate = 1e-3\nlr_scheduler = \"cosine\"\nwarmup_steps = 3\nlogging_steps = 1\n\
             checkpoint_steps = 0\n",
            run.display().to_string(),
            self.model.display().to_string(),
        );
        fs::write(&recipe, text).with_context(|| format!("cannot write {}", recipe.display()))?;
        Ok((run, ["train", "--config", &recipe.display().to_string()].map(String::from).to_vec()))
    }

    fn train(&self, work: &Path, name: &str, workers: usize, device: &[&str]) -> anyhow::Result<Vec<Value>> {
        let (run, args) = self.command(work, name, workers)?;
        let child = quiet(Command::new(self.binary).args(args).args(device)).spawn();
        let child =
            child.with_context(|| format!("cannot start {}: name a program with --binary", self.binary.display()))?;
        ends_well(child, name)?;
        lines(&run)
    }

    /// Lines of metrics, and bytes that went over all interfaces.
    fn train_in(&self, network: &Network, work: &Path, nodes: usize) -> anyhow::Result<(Vec<Value>, u64)> {
        let (run, args) = self.command(work, &format!("processes-{nodes}"), nodes)?;
        let before = network.bytes()?;
        let start = |node: usize| {
            let mut command = network.command(node);
            let device = self.device.to_string();
            command.arg(self.binary).args(&args).args(["--device", &device, "--rendezvous-timeout", "60"]);
            command.args(["--nodes", &nodes.to_string(), "--node-rank", &node.to_string()]);
            quiet(command.args(["--rendezvous", &format!("{}:29500", address(0))])).spawn().context("cannot start")
        };
        let children = (0..nodes).map(start).collect::<Result<Vec<Child>, _>>()?;
        for (node, child) in children.into_iter().enumerate() {
            ends_well(child, &format!("process {node} of {nodes}"))?;
        }
        Ok((lines(&run)?, network.bytes()? - before))
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped())
}

fn ends_well(child: Child, name: &str) -> anyhow::Result<()> {
    let output = child.wait_with_output().context("cannot wait")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", said.trim().trim_start_matches("error: "));
    Ok(())
}

fn lines(run: &Path) -> anyhow::Result<Vec<Value>> {
    let path = run.join("metrics.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).context("a line of metrics")).collect()
}

/// Largest difference of a loss.
fn difference(ours: &[Value], theirs: &[Value]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    let of = |key: &'static str| {
        let loss = move |line: &Value| line[key].as_f64().unwrap_or(f64::NAN);
        ours.iter().zip(theirs).map(move |(a, b)| (loss(a) - loss(b)).abs())
    };
    // No number is no agreement.
    of("loss_laion").chain(of("loss_mmc4")).fold(0.0, |most, x| if x <= most { most } else { x })
}

/// Tokens a second after the first updates, in which the pictures' features are computed.
fn speed(lines: &[Value]) -> f64 {
    let rest = &lines[lines.len() / 2..];
    let (tokens, first) = (|line: &Value| line["tokens"].as_f64().unwrap_or(0.0), &lines[lines.len() / 2 - 1]);
    let seconds: f64 = rest
        .iter()
        .zip(std::iter::once(first).chain(rest))
        .map(|(line, before)| (tokens(line) - tokens(before)) / line["tokens_per_second"].as_f64().unwrap_or(f64::NAN))
        .sum();
    rest.last().map_or(0.0, |last| (tokens(last) - tokens(first)) / seconds)
}

fn table(rows: &[Row]) -> String {
    let mut out = String::from(
        "| workers | largest difference of a loss | tokens/s | ratio | MB sent and fetched by a process, an update | MB on its \
         interface |\n|---|---|---|---|---|---|\n",
    );
    let alone = rows[0].tokens_per_second;
    for Row { name, difference, tokens_per_second: speed, wire } in rows {
        let wire =
            wire.map_or("– | –".to_string(), |(counted, real)| format!("{:.2} | {:.2}", counted / 1e6, real / 1e6));
        writeln!(out, "| {name} | {difference:.1e} | {speed:.0} | {:.2} | {wire} |", speed / alone).ok();
    }
    out
}

/// Machines on one switch, as the kernel can pretend.
struct Network {
    nodes: usize,
    name: String,
}

fn address(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

impl Network {
    /// `None` where that is not allowed.
    fn new(nodes: usize, megabits: Option<u32>) -> Option<Self> {
        // Interface names have 15 letters at most. Those of a network before may yet be on their way out.
        let network = Self { nodes, name: format!("fl{}x{nodes}", std::process::id() % 100_000) };
        let switch = format!("{}br", network.name);
        if !ip(&["link", "add", &switch, "type", "bridge"]) {
            return None;
        }
        let mut ready = ip(&["link", "set", &switch, "up"]);
        for node in 0..nodes {
            let (space, cable) = (network.space(node), network.cable(node));
            let address = format!("{}/24", address(node));
            ready = ready
                && ip(&["netns", "add", &space])
                && ip(&["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &space])
                && ip(&["link", "set", &cable, "master", &switch, "up"])
                && ip(&["-n", &space, "addr", "add", &address, "dev", "eth0"])
                && ip(&["-n", &space, "link", "set", "eth0", "up"])
                && ip(&["-n", &space, "link", "set", "lo", "up"])
                && megabits.is_none_or(|rate| {
                    let rate = format!("{rate}mbit");
                    let limit = ["root", "tbf", "rate", &rate, "burst", "256kb", "latency", "200ms"];
                    let of = |place: &[&str]| tc(&[place, &limit].concat());
                    // What it sends, and what the switch sends it.
                    of(&["-n", &space, "qdisc", "add", "dev", "eth0"]) && of(&["qdisc", "add", "dev", &cable])
                });
        }
        // What there is of it is taken down.
        ready.then_some(network)
    }

    fn space(&self, node: usize) -> String {
        format!("{}n{node}", self.name)
    }

    fn cable(&self, node: usize) -> String {
        format!("{}v{node}", self.name)
    }

    fn command(&self, node: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(node)]);
        command
    }

    /// Bytes that all machines have sent and received so far.
    fn bytes(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for node in 0..self.nodes {
            for direction in ["rx_bytes", "tx_bytes"] {
                let path = format!("/sys/class/net/{}/statistics/{direction}", self.cable(node));
                let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
                sum += text.trim().parse::<u64>().context("a number of bytes")?;
            }
        }
        Ok(sum)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            ip(&["netns", "del", &self.space(node)]);
        }
        ip(&["link", "del", &format!("{}br", self.name)]);
    }
}

fn ip(args: &[&str]) -> bool {
    succeeds("ip", args)
}

fn tc(args: &[&str]) -> bool {
    succeeds("tc", args)
}

fn succeeds(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}
