//! `flamingo init`: a model with random weights.

use std::io::Write;

use anyhow::{Context, ensure};
use flamingo_config::ModelConfig;
use flamingo_data::Tokenizer;
use flamingo_weights::{Dtype, ModelFolder, NewFolder, initial, layout};

use crate::args::InitArgs;

pub fn run(args: &InitArgs) -> anyhow::Result<()> {
    let text =
        std::fs::read_to_string(&args.config).with_context(|| format!("cannot read {}", args.config.display()))?;
    let config = ModelConfig::from_toml(&text).with_context(|| args.config.display().to_string())?;
    let special = Tokenizer::open(&args.tokenizer)?.add_flamingo_tokens()?;
    let (ours, theirs) = (&config.tokens, (special.endofchunk, special.image, special.pad));
    ensure!(
        (ours.endofchunk, ours.image, ours.pad) == theirs,
        "with this tokenizer {} must say endofchunk = {}, image = {}, pad = {}",
        args.config.display(),
        theirs.0,
        theirs.1,
        theirs.2
    );
    let vision = args.vision.as_ref().map(|folder| ModelFolder::open(folder)).transpose()?;
    if let Some(vision) = &vision {
        ensure!(
            vision.config().vision == config.vision,
            "the vision tower of --vision has other dimensions than --config"
        );
    }
    let card = format!("# {}\n\nRandom weights of seed {}: to be trained.\n", config.name, args.seed);
    let parameters: usize = layout(&config).iter().map(|spec| spec.shape.iter().product::<usize>()).sum();
    let folder =
        NewFolder { config: &config, dtype: Dtype::F32, tokenizer: &args.tokenizer, card: &card, replace: args.force };
    folder.write(&args.out, &mut |spec| {
        let taken = vision.as_ref().filter(|_| spec.name.starts_with("vision."));
        taken
            .and_then(|vision| vision.tensor_f32(&spec.name))
            .or_else(|| Some(initial(&spec.name, &spec.shape, args.seed)))
    })?;
    writeln!(std::io::stdout(), "{}: {parameters} parameters", args.out.display())?;
    Ok(())
}
