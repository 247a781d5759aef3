//! From what was typed to a prompt.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use flamingo_data::{ENDOFCHUNK, IMAGE, Picture};
use flamingo_zoo::Prompt;
use serde::Deserialize;

use crate::args::PromptArgs;

/// One part of an interleaved file.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Part {
    Plain(String),
    Text { text: String },
    Image { image: PathBuf },
}

/// Reads the pictures and assembles the text: `<image>demonstration<|endofchunk|>…<image>prompt`.
pub fn build(args: &PromptArgs) -> anyhow::Result<Prompt> {
    if let Some(file) = &args.interleaved {
        return interleaved(file);
    }
    let mut text = String::new();
    let mut pictures = Vec::new();
    for shot in args.shot.chunks_exact(2) {
        pictures.push(open(Path::new(&shot[0]))?);
        text += &format!("{IMAGE}{}{ENDOFCHUNK}", shot[1]);
    }
    if let Some(image) = &args.image {
        pictures.push(open(image)?);
        text += IMAGE;
    }
    text += &args.prompt;
    if text.is_empty() {
        bail!("nothing to continue: give --image, --prompt or --interleaved");
    }
    Ok(Prompt { text, pictures })
}

/// A file of text and image parts; image paths are relative to the file.
fn interleaved(file: &Path) -> anyhow::Result<Prompt> {
    let json = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parts: Vec<Part> = serde_json::from_str(&json).with_context(|| {
        format!("{} is not a JSON list of strings, {{\"text\": …}} and {{\"image\": …}}", file.display())
    })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let (mut text, mut pictures) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Plain(part) | Part::Text { text: part } => text += &part,
            Part::Image { image } => {
                pictures.push(open(&folder.join(image))?);
                text += IMAGE;
            }
        }
    }
    Ok(Prompt { text, pictures })
}

fn open(path: &Path) -> anyhow::Result<Arc<Picture>> {
    Ok(Arc::new(Picture::open(path).with_context(|| format!("cannot use the picture {}", path.display()))?))
}
