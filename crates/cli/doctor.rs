//! `flamingo doctor`: what this program can use here, and how to get what is missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use flamingo_config::ModelConfig;
use flamingo_data::printable;
use flamingo_engine::{
    Device, Engine, Found, Precision, SessionOptions, Weights, compiled, open, open_weights, survey,
};
use flamingo_weights::{ModelFolder, WeightsError};
use flamingo_zoo::{Entry, list, parts};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sysinfo::{CpuRefreshKind, Disks, MemoryRefreshKind, RefreshKind, System};

use crate::args::DoctorArgs;
use crate::bench::{answer, pixels, prompt};
use crate::inspect::bytes;
use crate::models::count;

/// What is run where the zoo holds no model with weights.
const SHAPE: &str = include_str!("../../models/golden-tiny/model.toml");

/// Parameters of a model that every device runs at once.
const SMALL: u64 = 20_000_000;

/// How far a device's numbers may be from the CPU's, as a share of the largest: sums in another order differ by a
/// hundredth of that, and a wrong kernel by all of it.
const TOLERANCE: f32 = 1e-3;

/// How a device did.
#[derive(Serialize, Deserialize)]
struct Trial {
    /// What was run.
    model: String,
    /// Seconds of opening the model.
    open: f64,
    /// Seconds of reading the prompt.
    read: f64,
    /// The largest difference from the CPU's numbers, as a share of the largest; nothing where there is no other.
    difference: Option<f32>,
}

/// A device, or a backend without any.
struct Tried {
    name: String,
    found: Option<Found>,
    trial: Result<Trial, String>,
}

/// What is not there, and what gets it.
#[derive(Serialize)]
struct Missing {
    what: String,
    fix: String,
}

/// All that is known.
struct Report {
    tried: Vec<Tried>,
    zoo: PathBuf,
    models: Result<Vec<Entry>, String>,
    missing: Vec<Missing>,
    machine: Machine,
}

pub fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    if let Some(device) = args.try_device {
        return Ok(writeln!(stdout, "{}", serde_json::to_string(&trial(args, device)?)?)?);
    }
    let (tried, zoo) = (devices(args), args.zoo.folder());
    let models = list(&zoo).map_err(|error| error.to_string());
    let (missing, machine) = (missing(&tried, &models), Machine::new(&zoo));
    let report = Report { tried, zoo, models, missing, machine };
    if args.json {
        writeln!(stdout, "{}", report.to_json())?;
    } else {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        write!(stdout, "{}", report.page(colours)?)?;
    }
    ensure!(report.tried.iter().any(|tried| tried.trial.is_ok()), "no device works: the report says what each lacks");
    Ok(())
}

/// What is not a device's.
struct Machine {
    processor: String,
    memory: u64,
    free_memory: u64,
    /// Of the file system that the zoo is on.
    free_disk: Option<u64>,
}

impl Machine {
    fn new(zoo: &Path) -> Self {
        let kinds = RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram());
        let system = System::new_with_specifics(kinds);
        let disks = Disks::new_with_refreshed_list();
        // The one that is mounted nearest above it.
        let nearest = zoo.canonicalize().ok().and_then(|zoo| {
            let above = disks.list().iter().filter(|disk| zoo.starts_with(disk.mount_point()));
            above.max_by_key(|disk| disk.mount_point().components().count()).map(|disk| disk.available_space())
        });
        Self {
            processor: system.cpus().first().map_or("", |cpu| cpu.brand().trim()).to_string(),
            memory: system.total_memory(),
            free_memory: system.available_memory(),
            free_disk: nearest,
        }
    }
}

/// Tries all devices.
fn devices(args: &DoctorArgs) -> Vec<Tried> {
    let mut all = Vec::new();
    for (backend, found) in survey() {
        match found {
            Ok(found) => all.extend(found.into_iter().map(|found| Tried {
                name: found.device.to_string(),
                trial: trial_apart(args, found.device).map_err(|error| format!("{error:#}")),
                found: Some(found),
            })),
            Err(error) => {
                all.push(Tried { name: backend.into(), found: None, trial: Err(error.to_string()) });
            }
        }
    }
    all
}

/// [`trial`] in a process of its own: a driver may take its process along, or never answer.
fn trial_apart(args: &DoctorArgs, device: Device) -> anyhow::Result<Trial> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["doctor", "--try-device", &device.to_string()]);
    command.arg("--models").arg(args.zoo.folder());
    answer(&mut command, Some(Duration::from_secs(args.time_limit)))
}

/// Opens a small model, shows it a picture and a few tokens, and compares its numbers with the CPU's.
fn trial(args: &DoctorArgs, device: Device) -> anyhow::Result<Trial> {
    let (folder, _) = smallest(&list(&args.zoo.folder()).unwrap_or_default());
    let folder = folder.map(Arc::new);
    let shape = ModelConfig::from_toml(SHAPE)?;
    let opened = |device| -> anyhow::Result<Box<dyn Engine>> {
        Ok(match &folder {
            Some(folder) => open(folder, device, Precision::default())?,
            None => open_weights(Weights::Random(&shape), device, Precision::default())?,
        })
    };
    let read = |engine: &dyn Engine| -> anyhow::Result<Vec<f32>> {
        let config = engine.config();
        let (text, picture) = (prompt(config, 1, 8), pixels(config, 1));
        Ok(engine.start(&text, Some(&picture), SessionOptions::default())?.1)
    };
    let start = Instant::now();
    let engine = opened(device)?;
    let open = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let numbers = read(&*engine)?;
    let seconds = start.elapsed().as_secs_f64();
    ensure!(numbers.iter().all(|x| x.is_finite()), "it computes, and what comes out is not finite");
    // Made-up weights are another model on each device.
    let cpu = [Device::Flex, Device::NdArray].into_iter().find(|cpu| compiled().contains(&cpu.to_string().as_str()));
    let difference = match cpu.filter(|cpu| *cpu != device && folder.is_some()) {
        Some(cpu) => Some(difference(&numbers, &read(&*opened(cpu)?)?)),
        None => None,
    };
    if let Some(difference) = difference {
        ensure!(difference < TOLERANCE, "it computes wrongly: its numbers are {difference:.1e} from the CPU's");
    }
    let model = match &folder {
        Some(folder) => folder.config().name.clone(),
        None => "a small model of random weights".into(),
    };
    Ok(Trial { model, open, read: seconds, difference })
}

fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    let largest = theirs.iter().fold(f32::MIN_POSITIVE, |largest, x| largest.max(x.abs()));
    ours.iter().zip(theirs).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / largest
}

/// The smallest model with weights that can be opened, if it is small, and the smaller ones that cannot, with the reason.
fn smallest(models: &[Entry]) -> (Option<ModelFolder>, Vec<(&Entry, WeightsError)>) {
    let there = models.iter().filter(|entry| entry.weights);
    let sizes = there.filter_map(|entry| Some((parameters(entry)?, entry)));
    let mut small: Vec<_> = sizes.filter(|(size, _)| *size <= SMALL).collect();
    small.sort_by_key(|(size, entry)| (*size, &entry.path));
    let mut broken = Vec::new();
    for (_, entry) in small {
        match ModelFolder::open(&entry.path) {
            Ok(folder) => return (Some(folder), broken),
            Err(error) => broken.push((entry, error)),
        }
    }
    (None, broken)
}

fn parameters(entry: &Entry) -> Option<u64> {
    Some(parts(entry.config.as_ref().ok()?).iter().map(|part| part.parameters).sum())
}

fn missing(tried: &[Tried], models: &Result<Vec<Entry>, String>) -> Vec<Missing> {
    let mut all = Vec::new();
    for Tried { name, found, trial } in tried {
        let Err(error) = trial else { continue };
        let fix = if found.is_some() {
            "update its driver, and report what `flamingo doctor --json` says".into()
        } else if !compiled().contains(&name.as_str()) {
            format!("cargo build --release --features {name}")
        } else if name == "wgpu" {
            "install a Vulkan driver: apt install mesa-vulkan-drivers, or that of the GPU's maker".into()
        } else {
            error.clone()
        };
        all.push(Missing { what: name.clone(), fix });
    }
    match models {
        Ok(models) => {
            let broken = smallest(models).1.into_iter();
            all.extend(broken.map(|(entry, error)| Missing {
                what: format!("a sound {}", entry.name),
                fix: format!("convert it again: {error}"),
            }));
            let absent: Vec<&str> =
                models.iter().filter(|entry| !entry.weights).map(|entry| entry.name.as_str()).collect();
            if let Some(first) = absent.first() {
                all.push(Missing {
                    what: format!("weights of {}", absent.join(", ")),
                    fix: format!(
                        "cargo xtask convert-weights --config {first} --from-hub parts --out {first}-weights (where a \
                         checkpoint was released)"
                    ),
                });
            }
        }
        Err(error) => all.push(Missing { what: "the zoo".into(), fix: error.clone() }),
    }
    all
}

impl Report {
    fn to_json(&self) -> serde_json::Value {
        let Self { tried, zoo, models, missing, machine } = self;
        let device = |Tried { name, found, trial }: &Tried| {
            let found = found.as_ref();
            let formats = found.map(|found| found.formats.iter().map(ToString::to_string).collect::<Vec<_>>());
            let instructions = found.map(|found| found.instructions.iter().copied().collect::<BTreeMap<_, _>>());
            json!({
                "device": name,
                "works": trial.is_ok(),
                "error": trial.as_ref().err(),
                "name": found.map(|found| &found.name),
                "auto": found.is_some_and(|found| found.auto),
                "memory_bytes": found.and_then(|found| found.memory),
                "largest_buffer_bytes": found.and_then(|found| found.largest_buffer),
                "formats": formats,
                "instructions": instructions,
                "trial": trial.as_ref().ok(),
            })
        };
        let model =
            |entry: &Entry| json!({"name": entry.name, "weights": entry.weights, "usable": entry.config.is_ok()});
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "backends": compiled(),
            "processor": machine.processor,
            "memory_bytes": machine.memory,
            "free_memory_bytes": machine.free_memory,
            "devices": tried.iter().map(device).collect::<Vec<_>>(),
            "zoo": {
                "folder": zoo,
                "free_disk_bytes": machine.free_disk,
                "models": models.iter().flatten().map(model).collect::<Vec<_>>(),
                "error": models.as_ref().err(),
            },
            "missing": missing,
        })
    }

    fn page(&self, colours: bool) -> anyhow::Result<String> {
        let Self { tried, zoo, models, missing, machine } = self;
        let mut page = String::new();
        writeln!(page, "flamingo {}, with {}", env!("CARGO_PKG_VERSION"), compiled().join(", "))?;
        let memory = format!("{} of memory, {} free", bytes(machine.memory), bytes(machine.free_memory));
        writeln!(page, "{}; {memory}", printable(&machine.processor))?;

        writeln!(page, "\ndevices")?;
        for device in tried {
            let (colour, state) = if device.trial.is_ok() { (32, "works") } else { (31, "no") };
            let state = format!("{state:<5}");
            let state = if colours { format!("\x1b[{colour}m{state}\x1b[0m") } else { state };
            for (i, line) in device.lines().iter().enumerate() {
                let (name, state) = if i == 0 { (device.name.as_str(), state.as_str()) } else { ("", "     ") };
                writeln!(page, "  {name:<8} {state}  {}", printable(line))?;
            }
        }

        let free = machine.free_disk.map_or(String::new(), |free| format!("; {} of the disk are free", bytes(free)));
        writeln!(page, "\nmodels in {}{free}", printable(&zoo.display().to_string()))?;
        for entry in models.iter().flatten() {
            let size = parameters(entry).map_or("unusable".into(), count);
            let weights = if entry.weights { "with weights" } else { "no weights" };
            writeln!(page, "  {:<26} {size:>8}  {weights}", printable(&entry.name))?;
        }

        if !missing.is_empty() {
            writeln!(page, "\nwhat is missing, and how to get it")?;
        }
        for Missing { what, fix } in missing {
            writeln!(page, "  {}: {}", printable(what), printable(fix))?;
        }
        Ok(page)
    }
}

impl Tried {
    /// What there is to say.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(found) = &self.found {
            lines.push(format!("{}{}", found.name, if found.auto { "; --device auto takes it" } else { "" }));
            let formats = found.formats.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let limits = [
                found.memory.map(|memory| format!("{} of memory", bytes(memory))),
                found.largest_buffer.map(|size| format!("buffers of {} at most", bytes(size))),
                Some(format!("numbers in {formats}")),
            ];
            lines.push(limits.into_iter().flatten().collect::<Vec<_>>().join("; "));
            let instruction = |(name, there): &(&str, bool)| format!("{name} {}", if *there { "yes" } else { "no" });
            lines.extend(
                (!found.instructions.is_empty())
                    .then(|| found.instructions.iter().map(instruction).collect::<Vec<_>>().join(", ")),
            );
        }
        lines.push(match &self.trial {
            Ok(Trial { model, open, read, difference }) => {
                let same = difference.map_or(String::new(), |d| format!(", {d:.0e} from the CPU's numbers"));
                format!("opened {model} in {open:.3} s, read a picture and 7 tokens of text in {read:.3} s{same}")
            }
            Err(error) => error.clone(),
        });
        lines
    }
}
