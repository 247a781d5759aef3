//! From what was typed to a prompt.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use flamingo_data::{Part, Picture, assemble, few_shot};
use flamingo_zoo::Prompt;
use serde::Deserialize;

use crate::args::PromptArgs;

/// One part of an interleaved file.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum FilePart {
    Plain(String),
    Text { text: String },
    Image { image: PathBuf },
}

/// [`read`] of a prompt that there must be.
pub fn build(args: &PromptArgs) -> anyhow::Result<Prompt> {
    let prompt = read(args)?;
    if prompt.text.is_empty() {
        bail!("nothing to continue: give --image, --prompt or --interleaved");
    }
    Ok(prompt)
}

/// Reads the pictures and assembles the text: `<image>demonstration<|endofchunk|>…<image>prompt`.
pub fn read(args: &PromptArgs) -> anyhow::Result<Prompt> {
    if let Some(file) = &args.interleaved {
        return interleaved(file);
    }
    let mut pictures = Pictures::default();
    let shots = args.shot.chunks_exact(2).map(|shot| Ok((pictures.open(Path::new(&shot[0]))?, shot[1].as_str())));
    let shots = shots.collect::<anyhow::Result<Vec<_>>>()?;
    let query = args.image.as_deref().map(|path| pictures.open(path)).transpose()?;
    Ok(few_shot(shots, query, args.prompt.as_str())?)
}

/// Demonstrations of captions, and what stands between a picture and its caption.
pub struct Captions {
    shots: Vec<(Arc<Picture>, String)>,
    between: String,
}

impl Captions {
    /// Reads the demonstrations.
    pub fn new(shots: &[String], between: &str) -> anyhow::Result<Self> {
        let mut pictures = Pictures::default();
        let spaced = |text: &str| if text.starts_with(char::is_whitespace) { text.into() } else { format!(" {text}") };
        // "A picture of a cat", but "Output:a cat": as upstream's prompts are made.
        let caption = |text: &str| if between.ends_with(':') { text.to_string() } else { spaced(text) };
        let shots = shots
            .chunks_exact(2)
            .map(|shot| Ok((pictures.open(Path::new(&shot[0]))?, format!("{between}{}", caption(&shot[1])))))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self { shots, between: between.into() })
    }

    /// The prompt for a picture.
    pub fn of(&self, image: &Path) -> anyhow::Result<Prompt> {
        let shots = self.shots.iter().map(|(picture, text)| (picture.clone(), text.as_str()));
        Ok(few_shot(shots, Some(Arc::new(open(image)?)), &self.between)?)
    }
}

/// A file of text and image parts; image paths are relative to the file.
fn interleaved(file: &Path) -> anyhow::Result<Prompt> {
    let json = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parts: Vec<FilePart> = serde_json::from_str(&json).with_context(|| {
        format!("{} is not a JSON list of strings, {{\"text\": …}} and {{\"image\": …}}", file.display())
    })?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut pictures = Pictures::default();
    let parts = parts.into_iter().map(|part| match part {
        FilePart::Plain(text) | FilePart::Text { text } => Ok(Part::Text(text)),
        FilePart::Image { image } => Ok(Part::Image(pictures.open(&folder.join(image))?)),
    });
    Ok(assemble(parts.collect::<anyhow::Result<Vec<_>>>()?)?)
}

/// Reads a picture.
pub fn open(path: &Path) -> anyhow::Result<Picture> {
    Picture::open(path).with_context(|| format!("cannot use the picture {}", path.display()))
}

/// Most pixels of one prompt's pictures together: 3 GiB of them, decoded.
const MAX_PIXELS: u64 = 1 << 30;

/// The pictures of a prompt, each decoded once however often it is named.
#[derive(Default)]
struct Pictures {
    opened: HashMap<PathBuf, Arc<Picture>>,
    pixels: u64,
}

impl Pictures {
    fn open(&mut self, path: &Path) -> anyhow::Result<Arc<Picture>> {
        if let Some(picture) = self.opened.get(path) {
            return Ok(picture.clone());
        }
        let picture = open(path)?;
        self.pixels += u64::from(picture.width()) * u64::from(picture.height());
        if self.pixels > MAX_PIXELS {
            bail!("the prompt's pictures have more than {MAX_PIXELS} pixels together: make them smaller first");
        }
        let picture = Arc::new(picture);
        self.opened.insert(path.to_path_buf(), picture.clone());
        Ok(picture)
    }
}
