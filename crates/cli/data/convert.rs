//! `flamingo data convert-mmc4`.

use std::io::Write;
use std::path::PathBuf;

use flamingo_data::{ConvertOptions, convert_mmc4, find_shards};

use super::args::ConvertArgs;
use super::{report, with_progress};
use crate::inspect::bytes;

pub fn run(args: &ConvertArgs) -> anyhow::Result<()> {
    let mut inputs: Vec<PathBuf> = Vec::new();
    for pattern in &args.inputs {
        inputs.extend(find_shards(pattern)?.into_iter().map(PathBuf::from));
    }
    let options = ConvertOptions {
        image_dir: args.image_dir.clone(),
        output: args.output.clone(),
        samples_per_shard: args.samples_per_shard,
        reencode: args.reencode,
    };
    let done = with_progress(|on_progress| convert_mmc4(&inputs, &options, on_progress))??;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string(&done)?)?;
        return Ok(());
    }
    report("documents", &done.documents_left_out);
    report("pictures", &done.pictures_left_out);
    let (folder, size) = (args.output.display(), bytes(done.bytes));
    let (documents, pictures, shards) = (done.documents, done.pictures, done.shards);
    writeln!(stdout, "{folder}: {documents} documents with {pictures} pictures in {shards} shard(s), {size}")?;
    Ok(())
}
