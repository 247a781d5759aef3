//! `flamingo bench`: how long what a user waits for takes, and how near to the machine's limits that is.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use flamingo_config::ModelConfig;
use flamingo_engine::{Device, Engine, Machine, Pixels, Precision, SessionOptions, Text, Weights, open_weights};
use flamingo_generate::{EarlyStopping, GenerationConfig, Strategy, generate};
use flamingo_weights::{Format, ModelFolder, layout};
use indicatif::ProgressBar;
use process_control::{ChildExt, Control};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::args::BenchArgs;
use crate::plot::{check_place, write_whole};

/// Upstream's PyTorch on the same shapes; needs what benches/compare/README.md installs.
const TORCH: &str = include_str!("../../benches/compare/torch_bench.py");

/// Tokens of a demonstration, its picture's mark included.
const SHOT_TOKENS: usize = 12;

/// What was measured of a model in one precision, in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Measured {
    /// Of opening the folder, where there is one.
    load: Option<f64>,
    /// Of one picture.
    vision: f64,
    /// Of one picture.
    resampler: f64,
    /// Of the prompt, its pictures seen.
    prefill: f64,
    /// Of one token.
    decode: f64,
    /// Of upstream's README: pictures, prompt, tokens by beams.
    generate: f64,
    /// To the first token of another question after the same demonstrations, its picture included.
    second_query: f64,
    /// Most memory that the process had; on an NVIDIA GPU, most of the GPU's: as its driver counts it, or PyTorch itself.
    peak_bytes: Option<f64>,
    /// What the weights were and where.
    precision: String,
    device: String,
}

pub fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let source = Source::open(args)?;
    if args.measure {
        let precision = args.precision.first().copied();
        let measured = measure(&source, args, precision)?;
        return Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&measured)?)?);
    }
    args.out.as_deref().map_or(Ok(()), check_place)?;
    let precisions: Vec<Option<Precision>> = match args.precision[..] {
        [] => vec![None],
        ref given => given.iter().copied().map(Some).collect(),
    };
    let mut ours = Vec::new();
    for precision in precisions {
        let name = precision.map_or("as stored".into(), |precision| precision.to_string());
        ours.push(waiting(&format!("measuring {name}"), || measure_apart(args, precision))?);
    }
    let on_gpu = ours.iter().any(|measured| measured.device.contains("cuda"));
    let torch = match &args.compare_torch {
        Some(python) => Some(waiting("measuring PyTorch", || torch(python, source.config(), args, on_gpu))?),
        None => None,
    };
    let (torch, of_gpu) = torch.map_or((None, None), |(torch, of_gpu)| (Some(torch), of_gpu));
    // What a GPU can do is measured by PyTorch, whose products are NVIDIA's own.
    let machine = if on_gpu { of_gpu } else { Some(Machine::measure()) };
    let page = page(source.config(), args, machine, &ours, torch.as_ref())?;
    let result = json!({
        "model": source.config().name,
        "machine": machine.map(|m| json!({"read_bytes_per_second": m.read, "product_flops_per_second": m.product})),
        "images": args.images, "tokens": args.tokens, "new_tokens": args.new_tokens, "beams": args.beams,
        "shots": args.shots, "runs": args.runs, "measured": ours, "torch": torch,
    });
    if let Some(out) = &args.out {
        let text = if out.extension().is_some_and(|e| e == "md") { page.clone() } else { format!("{result:#}\n") };
        write_whole(out, &text)?;
    }
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{result}")?
    } else {
        write!(stdout, "{page}")?
    }
    Ok(())
}

fn waiting<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let spinner = ProgressBar::new_spinner().with_message(what.to_string());
    spinner.enable_steady_tick(Duration::from_millis(120));
    let result = work();
    spinner.finish_and_clear();
    result
}

/// A model with weights of its own, or a shape, whose weights are made up.
enum Source {
    Folder(Arc<ModelFolder>),
    Shape(Box<ModelConfig>),
}

impl Source {
    fn open(args: &BenchArgs) -> anyhow::Result<Self> {
        let zoo = args.zoo.folder();
        let missing = match args.zoo.find(&args.model) {
            Ok(folder) => return Ok(Self::Folder(Arc::new(ModelFolder::open(&folder)?))),
            Err(missing) => missing,
        };
        let file = Path::new(&args.model);
        let shapes = [file.to_path_buf(), file.join("model.toml"), zoo.join(&args.model).join("model.toml")];
        let Some(shape) = shapes.iter().find(|path| path.is_file()) else { bail!(missing) };
        let text = std::fs::read_to_string(shape).with_context(|| format!("cannot read {}", shape.display()))?;
        let config = ModelConfig::from_toml(&text).with_context(|| format!("cannot use {}", shape.display()))?;
        Ok(Self::Shape(Box::new(config)))
    }

    fn config(&self) -> &ModelConfig {
        match self {
            Self::Folder(folder) => folder.config(),
            Self::Shape(config) => config,
        }
    }

    fn engine(&self, args: &BenchArgs, precision: Option<Precision>) -> anyhow::Result<Box<dyn Engine>> {
        Ok(match self {
            Self::Folder(folder) => flamingo_engine::open(folder, args.device, precision)?,
            Self::Shape(config) => open_weights(Weights::Random(config), args.device, precision.unwrap_or_default())?,
        })
    }
}

/// [`measure`] in a process of its own, so that its memory is one precision's.
fn measure_apart(args: &BenchArgs, precision: Option<Precision>) -> anyhow::Result<Measured> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(["bench", "--measure", "--model", &args.model, "--device", &args.device.to_string()]);
    command.arg("--models").arg(args.zoo.folder());
    for (name, number) in numbers(args) {
        command.args([format!("--{name}"), number.to_string()]);
    }
    if let Some(precision) = precision {
        command.args(["--precision", &precision.to_string()]);
    }
    answer(&mut command, None)
}

fn numbers(args: &BenchArgs) -> [(&'static str, usize); 6] {
    [
        ("images", args.images),
        ("tokens", args.tokens),
        ("new-tokens", args.new_tokens),
        ("beams", args.beams),
        ("shots", args.shots),
        ("runs", args.runs),
    ]
}

/// What a process prints, as JSON. One that takes longer than `limit` is killed.
pub fn answer<T: for<'de> Deserialize<'de>>(command: &mut Command, limit: Option<Duration>) -> anyhow::Result<T> {
    let program = command.get_program().to_string_lossy().into_owned();
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().with_context(|| format!("cannot run {program}"))?;
    let mut waiting = child.controlled_with_output();
    if let Some(limit) = limit {
        waiting = waiting.time_limit(limit).terminate_for_timeout();
    }
    let ended = waiting.wait().with_context(|| format!("cannot wait for {program}"))?;
    let output = ended.with_context(|| format!("no answer within {} seconds", limit.unwrap_or_default().as_secs()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    // What a driver kills says nothing; its signal does.
    let silent = format!("it said nothing and ended with {}", output.status);
    let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or(&silent);
    ensure!(output.status.success(), "{}", last.trim_start_matches("error: "));
    serde_json::from_slice(&output.stdout).with_context(|| format!("{program} printed something else than JSON"))
}

/// Token ids with marks of pictures at the start of equal parts.
pub fn prompt(config: &ModelConfig, images: usize, tokens: usize) -> Text {
    let mut ids: Vec<u32> = (0..tokens).map(|i| (i * 31 % config.tokens.base_rows()) as u32).collect();
    for image in 0..images {
        ids[image * tokens / images] = config.tokens.image;
    }
    Text::new(1, ids, vec![true; tokens])
}

/// Pictures that are made up.
pub fn pixels(config: &ModelConfig, images: usize) -> Pixels {
    let side = config.vision.image_size;
    let data = (0..images * 3 * side * side).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    Pixels { rows: 1, images, frames: 1, side, data }
}

fn measure(source: &Source, args: &BenchArgs, precision: Option<Precision>) -> anyhow::Result<Measured> {
    let config = source.config();
    ensure!(args.tokens >= args.images, "--tokens must leave room for the mark of each of --images");
    let before = device_bytes(args.device);
    let start = Instant::now();
    let engine = source.engine(args, precision)?;
    let on_host = !["cuda", "wgpu"].iter().any(|gpu| engine.device().contains(gpu));
    let load = matches!(source, Source::Folder(_)).then(|| start.elapsed().as_secs_f64());

    let (text, pictures) = (prompt(config, args.images, args.tokens), pixels(config, args.images));
    engine.time(&text, &pictures, 1)?;
    let timings =
        (0..args.runs).map(|_| engine.time(&text, &pictures, args.new_tokens)).collect::<Result<Vec<_>, _>>()?;
    let stage = |stage: fn(&flamingo_engine::Timings) -> Duration| {
        median(timings.iter().map(|timings| stage(timings).as_secs_f64()).collect())
    };
    let images = args.images as f64;

    let tokens = &config.tokens;
    let settings = GenerationConfig {
        min_new_tokens: args.new_tokens,
        strategy: Strategy::Beam { num_beams: args.beams, length_penalty: 1.0, early_stopping: EarlyStopping::False },
        ..GenerationConfig::greedy(args.new_tokens, tokens.endofchunk, tokens.generation_pad)
    };
    let options = SessionOptions { reserve: args.tokens + args.new_tokens, ..SessionOptions::default() };
    let generated = repeated(args.runs, || {
        let (mut session, logits) = engine.start(&text, Some(&pictures), options)?;
        let go_on = &mut |_, _| ControlFlow::Continue(());
        generate(&mut *session, std::slice::from_ref(&text.ids), logits, &settings, go_on)?;
        Ok(())
    })?;

    let shots = prompt(config, args.shots, args.shots * SHOT_TOKENS);
    let (prefix, _) = engine.start(&shots, Some(&pixels(config, args.shots)), SessionOptions::default())?;
    let (question, picture) = (prompt(config, 1, SHOT_TOKENS), pixels(config, 1));
    let second_query = repeated(args.runs, || {
        let latents = engine.latents(&picture, args.shots)?;
        let mut session = prefix.fork();
        session.show(&latents)?;
        session.feed(question.ids.clone(), question.keep.clone())?;
        Ok(())
    })?;
    Ok(Measured {
        load,
        vision: stage(|t| t.vision) / images,
        resampler: stage(|t| t.resampler) / images,
        prefill: stage(|t| t.prefill),
        decode: stage(|t| t.decode),
        generate: generated,
        second_query,
        // Burn keeps what it once took: what is held at the end is the most that was.
        peak_bytes: match before {
            Some(before) if engine.device().contains("cuda") => device_bytes(args.device).map(|now| now - before),
            _ => peak_bytes().filter(|_| on_host),
        },
        precision: engine.precision().to_string(),
        device: engine.device().to_string(),
    })
}

/// Memory in use on the NVIDIA GPU, where there is one alone: the driver counts them through otherwise than CUDA.
fn device_bytes(device: Device) -> Option<f64> {
    if matches!(device, Device::Flex | Device::NdArray | Device::Wgpu(_)) {
        return None;
    }
    let query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"];
    let output = Command::new("nvidia-smi").args(query).output().ok()?;
    let listed = String::from_utf8_lossy(&output.stdout);
    let mut gpus = listed.lines();
    let (Some(only), None) = (gpus.next(), gpus.next()) else { return None };
    Some(only.trim().parse::<f64>().ok()? * 1024.0 * 1024.0)
}

/// The median time of so many times, after one that does not count.
fn repeated(runs: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    work()?;
    let times = (0..runs).map(|_| {
        let start = Instant::now();
        work().map(|()| start.elapsed().as_secs_f64())
    });
    Ok(median(times.collect::<anyhow::Result<_>>()?))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The most memory that this process has had, where the system says.
fn peak_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<f64>().ok()? * 1024.0)
}

/// The same of upstream's PyTorch: in f32 on the processor, one run after one that does not count, as a run takes minutes; in
/// bf16 on a GPU, whose own rates it measures, too. It keeps nothing of a prompt: a second query costs what the first did.
fn torch(
    python: &Path,
    config: &ModelConfig,
    args: &BenchArgs,
    on_gpu: bool,
) -> anyhow::Result<(Measured, Option<Machine>)> {
    let device = match args.device {
        Device::Cuda(index) => format!("cuda:{}", index.unwrap_or(0)),
        _ if on_gpu => "cuda:0".into(),
        _ => "cpu".into(),
    };
    let (precision, runs) = if on_gpu { ("bf16", args.runs) } else { ("f32", 1) };
    let work = std::env::temp_dir().join(format!("flamingo-bench-{}", std::process::id()));
    std::fs::create_dir_all(&work).with_context(|| format!("cannot write {}", work.display()))?;
    let _gone = Removed(work.clone());
    let (script, shape) = (work.join("torch_bench.py"), work.join("model.toml"));
    std::fs::write(&script, TORCH).with_context(|| format!("cannot write {}", script.display()))?;
    std::fs::write(&shape, config.to_toml()).with_context(|| format!("cannot write {}", shape.display()))?;
    let timed = |images: usize, tokens: usize, decode: usize, more: &[&str]| -> anyhow::Result<BTreeMap<String, f64>> {
        let mut command = Command::new(python);
        command.arg(&script).arg("--shape").arg(&shape);
        for (name, number) in [("images", images), ("tokens", tokens), ("decode", decode), ("runs", runs)] {
            command.args([format!("--{name}"), number.to_string()]);
        }
        command.args(["--device", &device, "--dtype", precision]);
        let all: BTreeMap<String, serde_json::Value> = answer(command.args(more), None)?;
        Ok(all.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect())
    };
    let beams = args.beams.to_string();
    let first = timed(args.images, args.tokens, args.new_tokens, &["--generate", "--beams", &beams, "--machine"])?;
    let shots = args.shots + 1;
    let again = timed(shots, shots * SHOT_TOKENS, 1, &[])?;
    let seconds = |of: &BTreeMap<String, f64>, name: &str| of.get(name).map_or(f64::NAN, |ms| ms / 1e3);
    let images = args.images as f64;
    let rate = |name| first.get(name).copied();
    let machine = rate("copy_bytes_per_second").map(|read| Machine { read, product: rate("product_flops_per_second") });
    let peak = first.get("peak_device_mib").or(first.get("peak_rss_mib"));
    let measured = Measured {
        load: None,
        vision: seconds(&first, "vision_ms") / images,
        resampler: seconds(&first, "resampler_ms") / images,
        prefill: seconds(&first, "prefill_ms"),
        decode: seconds(&first, "decode_ms_per_token"),
        generate: seconds(&first, "generate_ms"),
        second_query: ["vision_ms", "resampler_ms", "prefill_ms"].map(|name| seconds(&again, name)).iter().sum(),
        peak_bytes: peak.map(|mib| mib * 1024.0 * 1024.0),
        precision: precision.into(),
        device: if on_gpu { format!("PyTorch, {device}") } else { "PyTorch, CPU".into() },
    };
    Ok((measured, machine))
}

/// A folder that is gone with this.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// Whether a tensor's numbers are read for every token of text.
fn for_each_token(config: &ModelConfig, name: &str) -> bool {
    let tied = config.decoder.architecture().tied_head;
    name.starts_with("decoder.blocks")
        || name.starts_with("cross_attention") && !name.contains("to_kv")
        || name.starts_with("decoder.head")
        || tied && name == "decoder.embedding.base"
}

/// Bytes of weights that a token reads.
fn bytes_a_token(config: &ModelConfig, precision: &str) -> Option<f64> {
    let format = Format::from(precision.parse::<Precision>().ok()?);
    let read = layout(config).into_iter().filter(|spec| for_each_token(config, &spec.name));
    Some(read.map(|spec| spec.bytes(format) as f64).sum())
}

/// Multiplications and additions of a prompt's tokens: two a weight, the head for the last token alone.
fn flops_of_prefill(config: &ModelConfig, tokens: usize) -> f64 {
    let matrices =
        layout(config).into_iter().filter(|spec| spec.shape.len() == 2 && for_each_token(config, &spec.name));
    let flops = |name: &str, numbers: usize| {
        let rows = if name.starts_with("decoder.head") || name.starts_with("decoder.embedding") { 1 } else { tokens };
        2.0 * numbers as f64 * rows as f64
    };
    matrices.map(|spec| flops(&spec.name, spec.shape.iter().product())).sum()
}

/// Seconds to as many digits as were measured.
fn brief(seconds: f64) -> String {
    if seconds < 0.1 { format!("{seconds:.5}") } else { format!("{seconds:.3}") }
}

fn page(
    config: &ModelConfig,
    args: &BenchArgs,
    machine: Option<Machine>,
    ours: &[Measured],
    torch: Option<&Measured>,
) -> anyhow::Result<String> {
    let mut page = format!(
        "{}: {} pictures, {} tokens, {} new ones; medians of {} runs",
        config.name, args.images, args.tokens, args.new_tokens, args.runs,
    );
    let on_gpu = ours.iter().any(|measured| measured.device.contains("cuda"));
    page.push_str(if on_gpu { "." } else { " (PyTorch: one)." });
    match machine {
        Some(Machine { read, product: Some(product) }) if !on_gpu => write!(
            page,
            " This machine reads {:.1} GB/s and multiplies {:.0} GFLOP/s in f32.",
            read / 1e9,
            product / 1e9
        )?,
        Some(Machine { read, product: Some(product) }) => {
            write!(page, " The GPU copies {:.0} GB/s (read and written) and", read / 1e9)?;
            write!(page, " multiplies {:.0} TFLOP/s in bf16, by PyTorch.", product / 1e12)?
        }
        Some(machine) => write!(page, " This machine reads {:.1} GB/s.", machine.read / 1e9)?,
        None => {}
    }
    page.push_str("\n\n");
    let all: Vec<&Measured> = ours.iter().chain(torch).collect();
    let mut line = |name: &str, cell: &dyn Fn(&Measured) -> String| {
        let cells: Vec<String> = all.iter().map(|measured| cell(measured)).collect();
        writeln!(page, "| {name} | {} |", cells.join(" | "))
    };
    line("", &|m| format!("{}, {}", m.device, m.precision))?;
    line("---", &|_| "---".into())?;
    let ratio = |of: fn(&Measured) -> f64, own: &Measured| match torch {
        Some(torch) if !std::ptr::eq(torch, own) => format!(" ({:.1} ×)", of(torch) / of(own)),
        _ => String::new(),
    };
    let seconds = |of: fn(&Measured) -> f64| move |m: &Measured| format!("{}{}", brief(of(m)), ratio(of, m));
    // What was measured of the machine is flex's and PyTorch's, or CUDA's and PyTorch's.
    let of_machine = |m: &Measured, share: String| {
        let known = [if on_gpu { "cuda" } else { "flex" }, "PyTorch"].iter().any(|device| m.device.contains(device));
        if known { share } else { "-".into() }
    };
    line("load, s", &|m| m.load.map_or("-".into(), |load| format!("{load:.3}")))?;
    line("image encode, s a picture", &seconds(|m| m.vision))?;
    line("resampler, s a picture", &seconds(|m| m.resampler))?;
    line("prefill, s", &seconds(|m| m.prefill))?;
    line("prefill, tokens/s", &|m| format!("{:.1}", args.tokens as f64 / m.prefill))?;
    if let Some(rate) = machine.and_then(|machine| machine.product) {
        let flops = flops_of_prefill(config, args.tokens);
        let name = if on_gpu { "bf16" } else { "f32" };
        line(&format!("prefill, share of the {name} product rate"), &|m| {
            of_machine(m, format!("{:.0} %", flops / m.prefill / rate * 100.0))
        })?;
    }
    line("decode, tokens/s", &|m| format!("{:.2}{}", 1.0 / m.decode, ratio(|m| m.decode, m)))?;
    if let Some(machine) = machine {
        let name = if on_gpu { "copy" } else { "read" };
        line(&format!("decode, share of the {name} rate"), &|m| match bytes_a_token(config, &m.precision) {
            Some(bytes) => of_machine(m, format!("{:.0} %", bytes / m.decode / machine.read * 100.0)),
            None => "-".into(),
        })?;
    }
    line(&format!("pictures, prompt, tokens by {} beams, s", args.beams), &seconds(|m| m.generate))?;
    line(&format!("second query after {} shots, s to its first token", args.shots), &seconds(|m| m.second_query))?;
    // The driver's count has CUDA's own in it, PyTorch's of itself has not.
    line(if on_gpu { "memory, GB (ours with CUDA's own)" } else { "peak memory, GB" }, &|m| {
        let share = torch.and_then(|torch| Some(m.peak_bytes? / torch.peak_bytes?));
        let share = share.filter(|share| *share != 1.0).map_or(String::new(), |share| format!(" ({share:.2} ×)"));
        m.peak_bytes.map_or("-".into(), |bytes| format!("{:.2}{share}", bytes / 1e9))
    })?;
    Ok(page)
}
