//! `flamingo data pack`.

use std::io::Write;

use flamingo_data::{PackOptions, pack};

use super::args::PackArgs;
use super::{report, with_progress};
use crate::inspect::bytes;

pub fn run(args: &PackArgs) -> anyhow::Result<()> {
    let options =
        PackOptions { output: args.output.clone(), samples_per_shard: args.samples_per_shard, resize: args.resize };
    let done = with_progress(|on_progress| pack(&args.input, &options, on_progress))??;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string(&done)?)?;
        return Ok(());
    }
    report("pairs", &done.left_out);
    let (folder, size) = (args.output.display(), bytes(done.bytes));
    writeln!(stdout, "{folder}: {} pairs in {} shard(s), {size}", done.pairs, done.shards)?;
    Ok(())
}
