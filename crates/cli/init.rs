//! `flamingo init`: a model with random weights.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, ensure};
use flamingo_config::ModelConfig;
use flamingo_data::Tokenizer;
use flamingo_weights::{Dtype, ModelFolder, NewFolder, initial, layout};

use crate::args::InitArgs;

/// Parts of a model that another one begins with.
pub struct Parts<'a> {
    /// Where they are.
    pub folder: &'a Path,
    /// What the names of their tensors begin with.
    pub take: &'a [String],
}

pub fn run(args: &InitArgs) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(&args.config).with_context(|| format!("cannot read {}", args.config.display()))?;
    let config = ModelConfig::from_toml(&text).with_context(|| args.config.display().to_string())?;
    let take = ["vision.".to_string()];
    let vision = args.vision.as_ref().map(|folder| Parts { folder, take: &take });
    let parameters = make(&config, &args.tokenizer, vision.as_ref(), args.seed, &args.out, args.force)?;
    writeln!(std::io::stdout(), "{}: {parameters} parameters", args.out.display())?;
    Ok(())
}

/// Writes a model folder with random weights, but for what is taken from another; returns how many parameters it has.
pub fn make(
    config: &ModelConfig,
    tokenizer: &Path,
    parts: Option<&Parts>,
    seed: u64,
    out: &Path,
    replace: bool,
) -> anyhow::Result<usize> {
    let special = Tokenizer::open(tokenizer)?.add_flamingo_tokens()?;
    let (ours, theirs) = (&config.tokens, (special.endofchunk, special.image, special.pad));
    ensure!(
        (ours.endofchunk, ours.image, ours.pad) == theirs,
        "with this tokenizer the config of {} must say endofchunk = {}, image = {}, pad = {}",
        config.name,
        theirs.0,
        theirs.1,
        theirs.2
    );
    let specs = layout(config);
    let taken =
        parts.map(|parts| Ok::<_, anyhow::Error>((ModelFolder::open(parts.folder)?, parts.take))).transpose()?;
    let source = |name: &str| {
        let (folder, take) = taken.as_ref()?;
        take.iter().any(|begin| name.starts_with(begin.as_str())).then_some(folder)
    };
    for spec in &specs {
        if let Some(folder) = source(&spec.name) {
            let quantised = folder.quantised(&spec.name).is_some_and(|matrix| matrix.shape[..] == spec.shape[..]);
            let fits = quantised || folder.tensor(&spec.name).is_some_and(|tensor| tensor.shape == spec.shape);
            ensure!(fits, "`{}` of {} has another shape than the config says", spec.name, folder.config().name);
        }
    }
    let parameters = specs.iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let card = format!("# {}\n\nRandom weights of seed {seed}: to be trained.\n", config.name);
    let folder = NewFolder { config, dtype: Dtype::F32, tokenizer, card: &card, replace };
    folder.write(out, &mut |spec| {
        let taken = source(&spec.name).and_then(|folder| folder.tensor_f32(&spec.name));
        taken.or_else(|| Some(initial(&spec.name, &spec.shape, seed)))
    })?;
    Ok(parameters)
}
