//! `flamingo caption`.

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;

use anyhow::Context;
use serde_json::json;

use crate::args::CaptionArgs;
use crate::generate::{open, shown};
use crate::prompt::Captions;

/// Pictures that are captioned together.
const BATCH: usize = 8;

pub fn run(args: &CaptionArgs) -> anyhow::Result<()> {
    // A name that is wrong is told before anything is written.
    for image in &args.images {
        std::fs::metadata(image).with_context(|| format!("cannot use the picture {}", image.display()))?;
    }
    let model = open(&args.model)?;
    let between = args.prompt.as_deref().unwrap_or(&model.config().caption_prompt);
    let captions = Captions::new(&args.shot, between)?;
    let settings = model.settings(args.max_new_tokens);
    settings.validate()?;
    let mut stdout = std::io::stdout().lock();
    let terminal = std::io::stdout().is_terminal();
    for images in args.images.chunks(BATCH) {
        let prompts = images.iter().map(|image| captions.of(image)).collect::<anyhow::Result<Vec<_>>>()?;
        let outputs = model.generate(&prompts, &settings, false, &mut |_, _| ControlFlow::Continue(()))?;
        for (image, outputs) in images.iter().zip(outputs) {
            let image = image.display().to_string();
            let caption = outputs.first().map_or("", |output| output.text.trim());
            if args.json {
                writeln!(stdout, "{}", json!({"image": image, "caption": caption}))?;
            } else {
                writeln!(stdout, "{}: {}", shown(&image, terminal), shown(caption, terminal))?;
            }
        }
        stdout.flush()?;
    }
    Ok(())
}
