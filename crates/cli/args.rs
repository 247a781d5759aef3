//! What can be typed.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use flamingo_engine::{Device, Dtype, Precision};

use crate::data::DataArgs;

const HELP: &str = "\
Results go to stdout, everything else to stderr. Exit status:
  0  done, or whoever read the output went away
  1  it could not be done: the last line on stderr says why
  2  the command line is wrong

Environment: FLAMINGO_MODELS is the folder of the zoo, NO_COLOR takes colours away.

Examples:
  flamingo doctor
  flamingo models
  flamingo caption tests/fixtures/emoji/*.png
  flamingo generate --help";

/// Few-shot vision-language models: OpenFlamingo in Rust.
#[derive(Parser)]
#[command(name = "flamingo", version, about, max_term_width = 100, after_help = HELP)]
pub struct Cli {
    /// Say more on stderr (-v, -vv, -vvv).
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Say what pictures show.
    #[command(after_help = CAPTION_HELP)]
    Caption(CaptionArgs),
    /// Continue a prompt of pictures and text.
    #[command(after_help = GENERATE_HELP)]
    Generate(GenerateArgs),
    /// Compare candidate answers by their log-likelihood.
    #[command(after_help = SCORE_HELP)]
    Score(ScoreArgs),
    /// Answer over HTTP: OpenAI's API, and a page to try prompts.
    #[command(after_help = SERVE_HELP)]
    Serve(ServeArgs),
    /// Score a model on few-shot tasks, as upstream's evaluation does.
    #[command(after_help = EVAL_HELP)]
    Eval(EvalArgs),
    /// Make one page of evaluations, to compare them.
    #[command(after_help = REPORT_HELP)]
    Report(ReportArgs),
    /// Train and evaluate models that differ in one thing, and report what it changes.
    #[command(after_help = EXPERIMENT_HELP)]
    Experiment(ExperimentArgs),
    /// Measure how long what a user waits for takes, and how near to the machine's limits that is.
    #[command(after_help = BENCH_HELP)]
    Bench(BenchArgs),
    /// Say what a training run will take before it is begun: memory of a device, days, cost.
    #[command(after_help = PLAN_HELP)]
    Plan(PlanArgs),
    /// Start several processes on this machine that train together.
    #[command(after_help = LAUNCH_HELP)]
    Launch(LaunchArgs),
    /// Train a model as a recipe says, or go on with a run that was begun.
    #[command(after_help = TRAIN_HELP)]
    Train(TrainArgs),
    /// Make a model with random weights, to be trained from nothing.
    #[command(after_help = INIT_HELP)]
    Init(InitArgs),
    /// List the models of the zoo.
    #[command(after_help = MODELS_HELP)]
    Models(ModelsArgs),
    /// Show what a model is made of and what memory it needs.
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
    /// Make training data, and look at it.
    Data(DataArgs),
    /// Draw the metrics of training runs as an SVG.
    #[command(after_help = PLOT_HELP)]
    Plot(PlotArgs),
    /// Say what this program can use here, and how to get what is missing.
    #[command(after_help = DOCTOR_HELP)]
    Doctor(DoctorArgs),
    /// Write what a shell needs to complete commands.
    #[command(after_help = COMPLETIONS_HELP)]
    Completions(CompletionsArgs),
    /// Write manual pages.
    #[command(after_help = MAN_HELP)]
    Man(ManArgs),
}

/// Which model, where.
#[derive(Args)]
pub struct ModelArgs {
    /// A model folder, or the name of one in the zoo.
    #[arg(long, default_value = "flamingo-tiny-neox")]
    pub model: String,
    #[command(flatten)]
    pub zoo: ZooArgs,
    #[arg(long, default_value = "auto", help = "auto, flex, ndarray, wgpu[:N] or cuda[:N]")]
    pub device: Device,
    /// f32, f16, bf16, q8 or q4: the type of weights on the device, and of activations but on flex, which computes in
    /// f32. Without it: as the folder stores them on flex and where they are quantised, else f32.
    #[arg(long)]
    pub precision: Option<Precision>,
}

/// Where the zoo is.
#[derive(Args)]
pub struct ZooArgs {
    /// Folder of the zoo: where models are found by name. Without it: `models` here, or beside the program.
    #[arg(long = "models", value_name = "DIR", env = "FLAMINGO_MODELS")]
    folder: Option<PathBuf>,
}

impl ZooArgs {
    /// The folder of the zoo.
    pub fn folder(&self) -> PathBuf {
        let beside = || {
            let program = std::env::current_exe().ok()?.canonicalize().ok()?;
            // Beside it, or above the folder that cargo builds into.
            let mut folders = program.ancestors().skip(1).take(3).map(|folder| folder.join("models"));
            folders.find(|folder| folder.is_dir())
        };
        let here = PathBuf::from("models");
        match &self.folder {
            Some(folder) => folder.clone(),
            None if here.is_dir() => here,
            None => beside().unwrap_or(here),
        }
    }

    /// The folder of a model with weights, given by path or by name; a name that is nearly right is an error with the
    /// right one in it.
    pub fn find(&self, model: &str) -> anyhow::Result<PathBuf> {
        let folder = self.folder();
        flamingo_zoo::find(model, &folder).map_err(|error| {
            let known = flamingo_zoo::list(&folder).unwrap_or_default();
            let near = known.iter().filter(|entry| entry.name != model && !Path::new(model).is_dir());
            let near = near.map(|entry| (strsim::jaro_winkler(&entry.name, model), &entry.name));
            match near.filter(|(likeness, _)| *likeness > NEAR).max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((_, name)) => anyhow::anyhow!("{error}; did you mean {name}?"),
                None => error.into(),
            }
        })
    }
}

/// How much alike names are that are taken for each other: clap's measure for commands, but stricter, as all models of a
/// zoo have much in common.
const NEAR: f64 = 0.85;

/// Pictures and text.
#[derive(Args)]
pub struct PromptArgs {
    /// A demonstration: a picture and the text that belongs to it. May be given many times.
    #[arg(long, num_args = 2, value_names = ["IMAGE", "TEXT"], action = clap::ArgAction::Append)]
    pub shot: Vec<String>,
    /// The picture in question.
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<PathBuf>,
    /// Text after the picture in question, to be continued.
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// Free interleaving instead: a JSON list of strings, {"text": "…"} and {"image": "path"}. Paths are relative to
    /// the file; a demonstration's text ends with <|endofchunk|>, which --shot adds and this does not.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shot", "image", "prompt"])]
    pub interleaved: Option<PathBuf>,
}

const CAPTION_HELP: &str = "Examples:
  flamingo caption tests/fixtures/emoji/*.png
  flamingo caption --model DIR --shot a.jpg \"A cat.\" --shot b.jpg \"A dog.\" c.jpg";

#[derive(Args)]
pub struct CaptionArgs {
    /// The pictures.
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// A demonstration: a picture and its caption. May be given many times; all pictures are captioned after the same ones.
    #[arg(long, num_args = 2, value_names = ["IMAGE", "TEXT"], action = clap::ArgAction::Append)]
    pub shot: Vec<String>,
    /// Text between a picture and its caption, instead of the one that the model was trained with.
    #[arg(long)]
    pub prompt: Option<String>,
    /// Most tokens of a caption.
    #[arg(long, default_value_t = 20)]
    pub max_new_tokens: usize,
    /// A line of JSON for each picture.
    #[arg(long)]
    pub json: bool,
}

const GENERATE_HELP: &str = "\
--interactive reads lines: text is added to the prompt and continued, and lines that begin with / are commands (/help
lists them). An answer ends with <|endofchunk|>, so it is a demonstration for what follows. From a pipe nothing but answers
is written, and the exit status is 1 if a line could not be done.

Examples:
  flamingo generate --image tests/fixtures/emoji/pizza.png --prompt 'A picture of'
  flamingo generate --image tests/fixtures/emoji/crab.png --prompt 'A picture of' --num-beams 3 --json
  flamingo generate --prompt 'A picture of' --sample --temperature 0.8 --seed 1
  flamingo generate --interactive --image tests/fixtures/emoji/pizza.png
  printf '/image tests/fixtures/emoji/crab.png\\nA picture of\\n' | flamingo generate --interactive --json
  flamingo generate --model DIR --shot a.jpg 'A cat.' --image b.jpg --prompt 'A'
  flamingo generate --model DIR --interleaved prompt.json";

#[derive(Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// Read pictures and text line by line, and answer each time; the model stays loaded.
    #[arg(short, long, conflicts_with = "num_return_sequences")]
    pub interactive: bool,
    #[command(flatten)]
    pub search: SearchArgs,
    /// One JSON object on stdout instead of text; with --interactive one a line, for each answer.
    #[arg(long)]
    pub json: bool,
}

/// When a beam search may end.
pub const EARLY_STOPPING: [&str; 3] = ["false", "true", "never"];

/// How a prompt is continued.
#[derive(Args, Clone)]
pub struct SearchArgs {
    /// Most tokens to write.
    #[arg(long, default_value_t = 20)]
    pub max_new_tokens: usize,
    /// Fewest tokens before the text may end.
    #[arg(long, default_value_t = 0)]
    pub min_new_tokens: usize,
    /// Beams to search; 1 is greedy.
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub num_beams: usize,
    /// Beam scores are divided by length to this power.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub length_penalty: f64,
    /// When a beam search ends: false, true or never (as in transformers).
    #[arg(long, default_value = "false", value_parser = EARLY_STOPPING)]
    pub early_stopping: String,
    /// Beams to return, best first.
    #[arg(long, default_value_t = 1, value_parser = at_least_one)]
    pub num_return_sequences: usize,
    /// No run of this many tokens appears twice; 0 allows all.
    #[arg(long, default_value_t = 0)]
    pub no_repeat_ngram_size: usize,
    /// Draw tokens at random instead of taking the likeliest.
    #[arg(long, conflicts_with = "num_beams")]
    pub sample: bool,
    /// Sharper below 1, flatter above.
    #[arg(long, default_value_t = 1.0, requires = "sample", allow_negative_numbers = true)]
    pub temperature: f64,
    /// Draw from this many likeliest tokens.
    #[arg(long, requires = "sample")]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability.
    #[arg(long, requires = "sample", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Seed of the random draws.
    #[arg(long, default_value_t = 0, requires = "sample")]
    pub seed: u64,
    /// Reproduce upstream's handling of an `<image>` mark that the model itself writes.
    #[arg(long)]
    pub upstream_compat: bool,
}

const SCORE_HELP: &str = "Examples:
  flamingo score --image tests/fixtures/emoji/pizza.png --prompt 'A picture of' --candidate ' a pizza' --candidate ' a crab'
  flamingo score --prompt 'A picture of' --candidate ' a pizza' --candidate ' a crab' --json";

#[derive(Args)]
pub struct ScoreArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// A candidate answer, appended to the prompt as it is: begin it with a space where one belongs. Give two or more.
    #[arg(long = "candidate", value_name = "TEXT", required = true)]
    pub candidates: Vec<String>,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    pub json: bool,
}

const EVAL_HELP: &str =
    "Tasks: coco, flickr30, vqav2, vqav2_testdev, ok_vqa, vizwiz, vizwiz_test, textvqa, hateful_memes, imagenet, or one's own
TOML file.
A shipped task's data are in DIR/NAME, as the comment at the top of its file says (crates/eval/tasks).

Examples:
  flamingo eval --model openflamingo-3b --task coco,vqav2 --data benchmarks --shots 0,4,8,16,32
  flamingo eval --task mine.toml --shots 0,4 --demonstrations random,rices --out runs/mine";

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Names of tasks, or their TOML files.
    #[arg(long, required = true, value_delimiter = ',', value_name = "TASK,…")]
    pub task: Vec<String>,
    /// The folder of the tasks' data. Without it: data/benchmarks, or the folder of a task's own file.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Numbers of demonstrations. 0 stands for two without their pictures.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 4, 8, 16, 32])]
    pub shots: Vec<usize>,
    /// Let 0 shots be a prompt without any demonstration: for tasks that the prompt does not name, even the texts
    /// of demonstrations give away what is asked.
    #[arg(long)]
    pub bare_zero_shot: bool,
    /// A trial for each seed.
    #[arg(long, value_delimiter = ',', default_values_t = [42])]
    pub trial_seeds: Vec<u32>,
    /// Trials, of the first seeds. Without it: one for each seed.
    #[arg(long)]
    pub num_trials: Option<NonZeroUsize>,
    /// Questions of a trial, at most. Without it: all.
    #[arg(long)]
    pub num_samples: Option<NonZeroUsize>,
    /// Samples that random demonstrations are drawn from, at most.
    #[arg(long, default_value_t = 2048)]
    pub query_set_size: usize,
    /// How demonstrations are chosen: at random for each question (as upstream does), at random but the same for
    /// all questions of a trial (fast: they are read once), or by the likeness of their pictures.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "random")]
    pub demonstrations: Vec<Demonstrations>,
    /// Prompts that are read together.
    #[arg(long, default_value = "8")]
    pub batch_size: NonZeroUsize,
    /// Memory for what the model keeps of pictures, in MiB.
    #[arg(long, default_value_t = 2048)]
    pub cache_mib: usize,
    /// Ask each question of a classification with up to six orders of its demonstrations.
    #[arg(long)]
    pub classification_prompt_ensembling: bool,
    /// Compute what upstream computes, its defects included: classification sees padding and other classes, and a
    /// model that writes `<image>` makes its batch forget pictures.
    #[arg(long)]
    pub upstream_compat: bool,
    /// The folder for answers, results and the page. Without it: runs/eval-MODEL. An evaluation that was
    /// broken off goes on there.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The results as JSON on stdout instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// How demonstrations are chosen.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Demonstrations {
    Random,
    Fixed,
    Rices,
}

impl From<Demonstrations> for flamingo_eval::Choice {
    fn from(choice: Demonstrations) -> Self {
        match choice {
            Demonstrations::Random => Self::Random,
            Demonstrations::Fixed => Self::Fixed,
            Demonstrations::Rices => Self::Rices,
        }
    }
}

const REPORT_HELP: &str = "Examples:
  flamingo report runs/eval-a runs/eval-b --output both.html";

#[derive(Args)]
pub struct ReportArgs {
    /// Folders of evaluations.
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// The file to write; stdout without it.
    #[arg(long, value_name = "FILE.html")]
    pub output: Option<PathBuf>,
}

const EXPERIMENT_HELP: &str = "Examples:
  flamingo experiment experiments/new-embeddings.toml --out runs/new-embeddings --report new-embeddings.md";

#[derive(Args)]
pub struct ExperimentArgs {
    /// What is compared: a TOML file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[arg(long, default_value = "auto", help = "auto, flex, ndarray or cuda[:N]")]
    pub device: Device,
    /// The folder for models and answers. Without it: runs/experiment-NAME. An experiment that was broken off goes on
    /// there.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The report; its figure goes beside it. Without it: beside the experiment's own file.
    #[arg(long, value_name = "FILE.md")]
    pub report: Option<PathBuf>,
}

const PLAN_HELP: &str = "\
Without options the run is the paper's (arXiv 2308.01390): 60 million documents and 120 million pairs on 64 GPUs, in the format and
on the kind of GPU that made the model. What the numbers stand on is written below them.

Examples:
  flamingo plan --model openflamingo-9b
  flamingo plan --model openflamingo-3b --precision amp_bf16 --devices 8 --device-flops h100-80gb --price 2.5
  flamingo plan --model openflamingo-4b --devices 2 --interconnect ethernet-10g --batch-size-laion 8 --batch-size-mmc4 4 --json";

#[derive(Args)]
pub struct PlanArgs {
    /// A model folder, the name of one in the zoo (weights are not needed), or a model.toml.
    #[arg(long, default_value = "openflamingo-9b")]
    pub model: String,
    #[command(flatten)]
    pub zoo: ZooArgs,
    /// Devices, each with a whole model.
    #[arg(long, default_value_t = 64)]
    pub devices: u64,
    /// Devices of a node, which NVLink joins.
    #[arg(long, default_value_t = 8)]
    pub devices_per_node: u64,
    /// Memory of a device, such as 80GB. Without it: that of --device-flops.
    #[arg(long, value_name = "SIZE")]
    pub device_memory: Option<flamingo_plan::Bytes>,
    /// How fast a device computes: a100-40gb, a100-80gb, h100-80gb, or its TFLOP/s. Without it: the paper's, or a100-80gb.
    #[arg(long, value_name = "NAME|TFLOP/S")]
    pub device_flops: Option<flamingo_plan::Device>,
    /// The share of that which is reached, from 0 to 1. Without it: what was measured.
    #[arg(long, value_name = "SHARE")]
    pub efficiency: Option<f64>,
    /// What joins the nodes: nvlink, infiniband-200g, ethernet-100g, ethernet-10g, or GB/s of a device in each direction.
    /// Without it: infiniband-200g.
    #[arg(long, value_name = "NAME|GB/S")]
    pub interconnect: Option<flamingo_plan::Interconnect>,
    /// fp32 or amp_bf16. Without it: the paper's, or amp_bf16.
    #[arg(long)]
    pub precision: Option<flamingo_plan::Precision>,
    /// Keep the embeddings of `<image>` and `<|endofchunk|>` as they are, as the paper's 4B models do.
    #[arg(long)]
    pub freeze_lm_embeddings: bool,
    /// Pairs in a device's batch; 0 for none.
    #[arg(long, default_value_t = flamingo_plan::PAIRS.rows)]
    pub batch_size_laion: u64,
    /// Documents in a device's batch; 0 for none.
    #[arg(long, default_value_t = flamingo_plan::DOCUMENTS.rows)]
    pub batch_size_mmc4: u64,
    /// Tokens of a pair.
    #[arg(long, default_value_t = flamingo_plan::PAIRS.tokens)]
    pub max_tokens_laion: u64,
    /// Tokens of a document.
    #[arg(long, default_value_t = flamingo_plan::DOCUMENTS.tokens)]
    pub max_tokens_mmc4: u64,
    /// Most pictures of a document, to which batches are padded.
    #[arg(long, default_value_t = flamingo_plan::DOCUMENTS.most_images)]
    pub mmc4_max_num_images: u64,
    /// Pictures of a document on average.
    #[arg(long, default_value_t = flamingo_plan::DOCUMENTS.images)]
    pub images_mmc4: f64,
    /// Pairs of the whole run.
    #[arg(long, default_value_t = flamingo_plan::PAIRS.samples)]
    pub samples_laion: u64,
    /// Documents of the whole run.
    #[arg(long, default_value_t = flamingo_plan::DOCUMENTS.samples)]
    pub samples_mmc4: u64,
    /// Mebibytes of a frozen vision tower's output that are kept by picture.
    #[arg(long, default_value_t = 1024)]
    pub vision_cache_mib: u64,
    /// Round gradients to bf16 on their way to other devices.
    #[arg(long)]
    pub bf16_gradients: bool,
    /// Dollars that a device costs an hour.
    #[arg(long, default_value_t = 2.0)]
    pub price: f64,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const TRAIN_HELP: &str = "Examples:
  flamingo train --config models/flamingo-tiny-neox/train.toml
  flamingo train --config train.toml --set learning_rate=3e-4 --set run_name=runs/b
  flamingo train --config train.toml --devices cuda:0,cuda:1
  flamingo train --config train.toml --nodes 2 --node-rank 1 --rendezvous 10.0.0.1:29500";

#[derive(Args)]
pub struct TrainArgs {
    /// The recipe, a TOML file: upstream's options under upstream's names.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Another value for a setting of the recipe. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    #[arg(long, default_value = "auto", help = "auto, flex, ndarray or cuda[:N]")]
    pub device: Device,
    /// Devices of this process that train together, each with a copy of the model and a batch of its own. A CPU may
    /// be there more than once.
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',', conflicts_with = "device")]
    pub devices: Vec<Device>,
    /// f32, f16 or bf16: the type of the weights in the model folder that the run leaves.
    #[arg(long, default_value = "f32")]
    pub dtype: Dtype,
    /// A line of JSON on stdout for each line of metrics.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub group: GroupArgs,
}

/// Processes that train together. Without these options they find each other as torchrun, srun or a Kubernetes indexed
/// job say.
#[derive(Args)]
#[command(next_help_heading = "Several processes")]
pub struct GroupArgs {
    /// How many processes train together, on one machine or several.
    #[arg(long, value_name = "COUNT")]
    pub nodes: Option<usize>,
    /// Which of them this is, from 0.
    #[arg(long, value_name = "INDEX")]
    pub node_rank: Option<usize>,
    /// Where process 0 waits for the others.
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<String>,
    /// How long the processes wait for each other to begin.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub rendezvous_timeout: u64,
    /// How long a worker may keep the others waiting before the run ends: longer than the longest step.
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub worker_timeout: u64,
}

const LAUNCH_HELP: &str = "Examples:
  flamingo launch --processes 2 -- train --config train.toml --device flex
  flamingo launch --processes 8 --restarts 3 -- train --config train.toml";

#[derive(Args)]
pub struct LaunchArgs {
    /// How many processes, each of which knows its number as torchrun would say it.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub processes: u16,
    /// How often all processes are started again after one has failed; a run goes on after its last checkpoint.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub restarts: u32,
    /// What each process is to do: a command of this program.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

const INIT_HELP: &str = "Examples:
  flamingo init --config models/golden-tiny/model.toml --tokenizer models/golden-tiny --out models/mine
  flamingo init --config mine.toml --tokenizer DIR --vision DIR --out models/mine --seed 7";

#[derive(Args)]
pub struct InitArgs {
    /// What the model is made of: a model.toml.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Folder with the tokenizer, without upstream's tokens.
    #[arg(long, value_name = "DIR")]
    pub tokenizer: PathBuf,
    /// A model folder whose vision tower is taken over.
    #[arg(long, value_name = "DIR")]
    pub vision: Option<PathBuf>,
    /// Seed of the random weights.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Replace a model folder that this program wrote.
    #[arg(long)]
    pub force: bool,
}

const MODELS_HELP: &str = "Examples:
  flamingo models
  flamingo models --models models --json";

#[derive(Args)]
pub struct ModelsArgs {
    #[command(flatten)]
    pub zoo: ZooArgs,
    /// A JSON list instead of a table.
    #[arg(long)]
    pub json: bool,
}

const INSPECT_HELP: &str = "Examples:
  flamingo inspect flamingo-tiny-neox
  flamingo inspect openflamingo-9b --json";

#[derive(Args)]
pub struct InspectArgs {
    /// A model folder, or the name of one in the zoo (weights are not needed).
    pub model: String,
    #[command(flatten)]
    pub zoo: ZooArgs,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
}

const PLOT_HELP: &str = "Examples:
  flamingo plot runs/a --output a.svg
  flamingo plot runs/a runs/b --keys loss_mmc4,grad_norm --smooth 0.9 --x time --log --output both.svg";

#[derive(Args)]
pub struct PlotArgs {
    /// Folders of runs, or their metrics.jsonl.
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// The file to write; stdout without it.
    #[arg(long, value_name = "FILE.svg")]
    pub output: Option<PathBuf>,
    /// What to draw, each in a panel of its own. Without it: loss_laion, loss_mmc4 and lr, where there are any.
    #[arg(long, value_delimiter = ',', value_name = "KEY,…")]
    pub keys: Vec<String>,
    /// Weight of what came before, from 0 (as it is) to just below 1 (very smooth). Learning rates stay
    /// as they are.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0.0, value_parser = weight, allow_negative_numbers = true)]
    pub smooth: f64,
    /// What the curves run over.
    #[arg(long, value_enum, default_value_t = Over::Step)]
    pub x: Over,
    /// A logarithmic vertical axis.
    #[arg(long)]
    pub log: bool,
}

/// What curves run over.
#[derive(Clone, Copy, ValueEnum)]
pub enum Over {
    /// Steps of training.
    Step,
    /// Seconds of training.
    Time,
    /// Samples that were seen.
    Samples,
}

fn weight(text: &str) -> Result<f64, String> {
    let weight = text.parse().ok().filter(|weight| (0.0..1.0).contains(weight));
    weight.ok_or_else(|| "it must be a number from 0 to below 1".to_string())
}

const BENCH_HELP: &str = "\
Without weights (a model.toml, or a folder of the zoo that has no more) they are made up: work does not depend on them.
Each precision is measured in a process of its own.

Examples:
  flamingo bench --device flex --images 1 --tokens 16 --new-tokens 4 --runs 1
  flamingo bench --model openflamingo-3b --device flex --precision f32 --precision q4";

#[derive(Args)]
pub struct BenchArgs {
    /// A model folder, the name of one in the zoo, or a model.toml.
    #[arg(long, default_value = "flamingo-tiny-neox")]
    pub model: String,
    #[command(flatten)]
    pub zoo: ZooArgs,
    #[arg(long, default_value = "auto", help = "auto, flex, ndarray, wgpu[:N] or cuda[:N]")]
    pub device: Device,
    /// f32, f16, bf16, q8 or q4; may be given many times. Without it: as the folder stores them.
    #[arg(long)]
    pub precision: Vec<Precision>,
    /// Pictures of the prompt.
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    pub images: usize,
    /// Tokens of the prompt, a mark for each picture among them.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    pub tokens: usize,
    /// Tokens that are written.
    #[arg(long, default_value_t = 20, value_parser = at_least_one)]
    pub new_tokens: usize,
    /// Beams that they are searched with.
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    pub beams: usize,
    /// Demonstrations that a second query shares with the first.
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    pub shots: usize,
    /// The median of so many runs is shown.
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    pub runs: usize,
    /// Also measure upstream's PyTorch in f32 on the same shapes, and show how many times faster we are. The interpreter
    /// has what benches/compare/README.md lists.
    #[arg(long, value_name = "PYTHON")]
    pub compare_torch: Option<PathBuf>,
    /// A file for the result: Markdown if it ends in .md, else JSON.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Measure one precision here and print JSON.
    #[arg(long, hide = true)]
    pub measure: bool,
}

/// A number of things that there must be.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=4096) => Ok(number),
        _ => Err("not a number from 1 to 4096".into()),
    }
}

const SERVE_HELP: &str = "\
Examples:
  flamingo serve                                       the small model, at http://127.0.0.1:8080
  flamingo serve --model DIR --device cuda --host 0.0.0.0 --port 80
  flamingo serve --allow-host upload.wikimedia.org     pictures may be fetched from there

  curl http://127.0.0.1:8080/v1/completions -H 'content-type: application/json' \\
      -d '{\"prompt\": [{\"type\": \"image_url\", \"image_url\": {\"url\": \"data:image/png;base64,…\"}},
                      {\"type\": \"text\", \"text\": \"A picture of\"}]}'

How the messages of a chat become a prompt: `flamingo serve --print-chat-template` writes the template down;
--chat-template takes another, as does chat_template.jinja in the model's folder.";

#[derive(Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address to listen at. Anyone who can reach it can ask: there are no accounts.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen at; 0 for any that is free.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// The model's name in requests and answers; without it that of the folder.
    #[arg(long)]
    pub name: Option<String>,
    /// A Jinja template that makes a prompt of a chat's messages.
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
    /// Write the default template to stdout and end.
    #[arg(long)]
    pub print_chat_template: bool,
    /// Write the API's description (OpenAPI) to stdout and end.
    #[arg(long)]
    pub print_openapi: bool,
    /// Texts that are written at the same time.
    #[arg(long, default_value_t = 16, value_parser = at_least_one)]
    pub max_batch: usize,
    /// Requests that may wait; more are refused with status 429.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    pub max_queue: usize,
    /// Tokens of a prompt and its continuation together; without it, as many as the model was trained with.
    #[arg(long)]
    pub max_context: Option<usize>,
    /// Pictures of a request.
    #[arg(long, default_value_t = 64, value_parser = at_least_one)]
    pub max_images: usize,
    /// Megapixels of a picture.
    #[arg(long, default_value_t = 36)]
    pub max_megapixels: u64,
    /// Megabytes of a request.
    #[arg(long, default_value_t = 32, value_parser = at_least_one)]
    pub max_body: usize,
    /// Connections at the same time.
    #[arg(long, default_value_t = 256, value_parser = at_least_one)]
    pub max_connections: usize,
    /// Megabytes for pictures that were seen, and as many for beginnings of prompts that were read.
    #[arg(long, default_value_t = 256)]
    pub cache: usize,
    /// Seconds that a request may take.
    #[arg(long, default_value_t = 300, value_parser = at_least_one)]
    pub timeout: usize,
    /// Seconds that a client may take to send a request's head, and again its body.
    #[arg(long, default_value_t = 30, value_parser = at_least_one)]
    pub read_timeout: usize,
    /// A host that pictures may be fetched from. May be given many times; without it none are fetched.
    #[arg(long, value_name = "HOST")]
    pub allow_host: Vec<String>,
    /// Let these hosts have addresses that are not public: this machine, this network.
    #[arg(long, requires = "allow_host")]
    pub allow_private_addresses: bool,
    /// Seconds that such a host may take to send a picture.
    #[arg(long, default_value_t = 10, value_parser = at_least_one, requires = "allow_host")]
    pub fetch_timeout: usize,
}

const DOCTOR_HELP: &str = "\
A device works if a small model, run on it in a process of its own, says the same as on the CPU. The exit status is 0 if
one does.

Examples:
  flamingo doctor
  flamingo doctor --json";

#[derive(Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    pub zoo: ZooArgs,
    /// Seconds that a device may take to answer. Finding devices has no limit.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub time_limit: u64,
    /// One JSON object on stdout instead of text.
    #[arg(long)]
    pub json: bool,
    /// Try one device here and print JSON.
    #[arg(long, hide = true, value_name = "DEVICE")]
    pub try_device: Option<Device>,
}

const COMPLETIONS_HELP: &str = "\
Where each shell looks:
  bash        ~/.local/share/bash-completion/completions/flamingo
  zsh         a folder of $fpath, as _flamingo
  fish        ~/.config/fish/completions/flamingo.fish
  elvish, powershell: read by their rc.elv and $PROFILE

Examples:
  flamingo completions bash > flamingo.bash
  flamingo completions zsh > _flamingo
  flamingo completions fish > flamingo.fish";

#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: Shell,
}

const MAN_HELP: &str = "Examples:
  flamingo man > flamingo.1
  flamingo man --out man/man1";

#[derive(Args)]
pub struct ManArgs {
    /// Write a page for the program and one for each command into this folder, instead of the program's to stdout.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}
