//! What can be typed behind `flamingo data`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Args)]
pub struct DataArgs {
    #[command(subcommand)]
    pub command: DataCommand,
}

#[derive(Subcommand)]
pub enum DataCommand {
    /// Make shards of Multimodal C4: its documents and the pictures that were downloaded for them.
    #[command(after_help = CONVERT_HELP)]
    ConvertMmc4(ConvertArgs),
    /// Make shards of pictures and captions.
    #[command(after_help = PACK_HELP)]
    Pack(PackArgs),
    /// Show what shards hold: samples, sizes, lengths, and what thresholds of similarity would keep.
    #[command(after_help = INSPECT_HELP)]
    Inspect(InspectArgs),
}

const CONVERT_HELP: &str = "Examples:
  flamingo data convert-mmc4 --image-dir images --output shards mmc4/docs_shard_{0..99}.jsonl.zip
  flamingo data convert-mmc4 --image-dir images --output shards documents.jsonl";

const PACK_HELP: &str = "Examples:
  flamingo data pack photos --output shards
  flamingo data pack pairs.jsonl --output shards --resize 256 --samples-per-shard 5000

A line of pairs.jsonl: {\"image\": \"path from the file's folder\", \"text\": \"A cat.\"}";

const INSPECT_HELP: &str = "Examples:
  flamingo data inspect tests/fixtures/shards/*.tar
  flamingo data inspect shards/{0000..0009}.tar
  flamingo data inspect shards --tokenizer models/golden-tiny --plot shards.svg
  flamingo data inspect documents.jsonl --json";

#[derive(Args)]
pub struct ConvertArgs {
    /// MMC4's files, zip archives or JSON lines; {0..99} counts.
    #[arg(value_name = "ZIP_OR_JSONL", required = true)]
    pub inputs: Vec<String>,
    /// The pictures: those of docs_shard_7 in DIR/7, of the third of other files in DIR/2, or all in DIR.
    #[arg(long, alias = "image_dir", value_name = "DIR")]
    pub image_dir: PathBuf,
    /// Folder to write the shards to: not there yet, or empty.
    #[arg(long, alias = "output_dir", value_name = "DIR")]
    pub output: PathBuf,
    /// Documents in each shard.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = positive)]
    pub samples_per_shard: usize,
    /// Write pictures anew as JPEGs of quality 75, as upstream does; files stay as they are without it.
    #[arg(long)]
    pub reencode: bool,
    /// One JSON object on stdout instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct PackArgs {
    /// A folder whose pictures have a .txt of the same name beside them, or a .jsonl of pairs.
    pub input: PathBuf,
    /// Folder to write the shards to: not there yet, or empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Pairs in each shard.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = positive)]
    pub samples_per_shard: usize,
    /// Make pictures smaller whose shorter side has more pixels, as JPEGs; files stay as they are without it.
    #[arg(long, value_name = "SIDE", value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub resize: Option<u32>,
    /// One JSON object on stdout instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args)]
pub struct InspectArgs {
    /// Shards on this machine, folders of them, or MMC4's .jsonl and .zip files; {0000..0999}, * and @LIST work.
    #[arg(required = true)]
    pub shards: Vec<String>,
    /// Count texts in tokens, too: a folder with a tokenizer, or a tokenizer.json.
    #[arg(long, value_name = "PATH")]
    pub tokenizer: Option<PathBuf>,
    /// Fewest pictures of a document that is kept.
    #[arg(long, alias = "mmc4_min_num_images", value_name = "N", default_value_t = 1)]
    pub min_num_images: usize,
    /// Fewest bytes of a document's picture; smaller ones are left out.
    #[arg(long, alias = "mmc4_min_bytes", value_name = "BYTES", default_value_t = 11_000)]
    pub min_bytes: usize,
    /// Most pictures of a document.
    #[arg(long, alias = "mmc4_max_num_images", value_name = "N", default_value_t = 6)]
    pub max_num_images: usize,
    /// Draw similarities, and what thresholds keep.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// One JSON object on stdout instead of tables.
    #[arg(long)]
    pub json: bool,
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&number| number > 0).ok_or_else(|| "it must be a whole number, 1 or more".to_string())
}
