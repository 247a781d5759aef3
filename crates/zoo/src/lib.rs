//! Opens a model folder and answers prompts: pictures and text in, text out.
//!
//! [`Model`] ties together what the other crates keep apart: the tokenizer and the preprocessing of
//! `flamingo-data`, the model on its device of `flamingo-engine`, the search of `flamingo-generate`.

mod folders;
mod memory;
mod scoring;
mod seen;
mod writing;

pub use folders::{Entry, find, list};
pub use memory::{Part, parts};
pub use scoring::Scoring;
pub use seen::{Latents, Prefix, View};
pub use writing::{Finish, Writing};

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use flamingo_config::ModelConfig;
use flamingo_data::{ImageTransform, Interleaved, PaddingSide, Picture, TextStream, Tokenizer, pad_batch};
use flamingo_engine::{Device, Engine, EngineError, Pixels, Precision, Session, SessionOptions, Text};
use flamingo_generate::{GenerateError, GenerationConfig, SequenceScore, generate};
use flamingo_weights::{ModelFolder, WeightsError};

/// Why a model cannot be opened or asked.
#[derive(Debug, thiserror::Error)]
pub enum ZooError {
    /// No folder of this name.
    #[error("{0}")]
    NotFound(String),
    /// The folder's config or weights are unusable.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device or the model failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A picture or a text is unusable.
    #[error(transparent)]
    Data(#[from] flamingo_data::DataError),
    /// The generation settings are unusable, or generating failed.
    #[error(transparent)]
    Generate(#[from] GenerateError<EngineError>),
    /// Pictures and `<image>` marks do not fit together.
    #[error("{0}")]
    Prompt(String),
}

/// An interleaved prompt: text with one `<image>` mark for each picture, in order.
pub type Prompt = Interleaved<Arc<Picture>>;

/// One generated continuation.
#[derive(Clone, Debug)]
pub struct Output {
    /// The text, special tokens left out.
    pub text: String,
    /// The token ids, the stop token included where it was produced.
    pub ids: Vec<u32>,
    /// The sequence's score, where beams were searched.
    pub score: Option<f64>,
    /// Whether the model ended the text itself.
    pub finished: bool,
}

/// A model ready to answer.
pub struct Model {
    engine: Box<dyn Engine>,
    tokenizer: Tokenizer,
    transform: ImageTransform,
}

impl Model {
    /// Opens a model folder on a device, without a precision in what [`flamingo_engine::open`] takes for best.
    ///
    /// # Errors
    /// [`ZooError::Weights`] for an unusable folder, [`ZooError::Engine`] for an unusable device,
    /// [`ZooError::Data`] for an unusable tokenizer.
    pub fn open(folder: &Path, device: Device, precision: impl Into<Option<Precision>>) -> Result<Self, ZooError> {
        Self::new(Tokenizer::open(folder)?, ModelFolder::open(folder)?, device, precision)
    }

    /// Opens a model on a device, as [`Model::open`] does, from the parts of its folder.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn new(
        mut tokenizer: Tokenizer,
        weights: ModelFolder,
        device: Device,
        precision: impl Into<Option<Precision>>,
    ) -> Result<Self, ZooError> {
        let weights = Arc::new(weights);
        let special = tokenizer.add_flamingo_tokens()?;
        let tokens = &weights.config().tokens;
        if (special.endofchunk, special.image) != (tokens.endofchunk, tokens.image) {
            return Err(ZooError::Prompt(format!(
                "the tokenizer gives <|endofchunk|> {} and <image> {}, model.toml says {} and {}: they belong to \
                 different models",
                special.endofchunk, special.image, tokens.endofchunk, tokens.image
            )));
        }
        let transform = ImageTransform::clip(weights.config().vision.image_size);
        let engine = flamingo_engine::open(&weights, device, precision)?;
        Ok(Self { engine, tokenizer, transform })
    }

    /// What the model is made of.
    pub fn config(&self) -> &ModelConfig {
        self.engine.config()
    }

    /// The model on its device.
    pub fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    /// The tokenizer, upstream's tokens added.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How pictures are prepared.
    pub fn transform(&self) -> &ImageTransform {
        &self.transform
    }

    /// Settings that end at `<|endofchunk|>`, greedy, as many new tokens as given.
    pub fn settings(&self, max_new_tokens: usize) -> GenerationConfig {
        let tokens = &self.config().tokens;
        GenerationConfig::greedy(max_new_tokens, tokens.endofchunk, tokens.generation_pad)
    }

    /// Continues prompts. `on_text` sees the number of a continuation and its text as it grows (greedy and
    /// sampling; beams arrive whole) and may break off. Returns, for each prompt, its `num_return_sequences` continuations, best
    /// first.
    ///
    /// # Errors
    /// [`ZooError::Prompt`] where marks and pictures disagree, and whatever device or settings do.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        settings: &GenerationConfig,
        upstream_compat: bool,
        on_text: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<Output>>, ZooError> {
        let (text, pixels) = self.batch(prompts)?;
        let options = SessionOptions { reserve: text.width.saturating_add(settings.max_new_tokens), upstream_compat };
        let (mut session, logits) = self.engine.start(&text, pixels.as_ref(), options)?;
        self.continue_prompts(&mut *session, &text, logits, settings, on_text)
    }

    /// The continuations of a batch that a session has read.
    fn continue_prompts(
        &self,
        session: &mut dyn Session,
        text: &Text,
        logits: Vec<f32>,
        settings: &GenerationConfig,
        on_text: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<Output>>, ZooError> {
        let ids: Vec<Vec<u32>> = text.ids.chunks(text.width).map(<[u32]>::to_vec).collect();
        let each = settings.num_return_sequences.max(1);
        let mut streams: Vec<TextStream> = (0..text.rows * each).map(|_| self.tokenizer.stream()).collect();
        let out = generate(session, &ids, logits, settings, &mut |row, token| match streams
            .get_mut(row)
            .and_then(|stream| stream.push(token))
        {
            Some(piece) => on_text(row, &piece),
            None => ControlFlow::Continue(()),
        })?;
        for (row, stream) in streams.iter_mut().enumerate() {
            if let Some(rest) = stream.finish()
                && on_text(row, &rest).is_break()
            {
                break;
            }
        }
        let mut outputs = out.into_iter().map(|g| Output {
            text: self.tokenizer.decode(&g.ids, true),
            ids: g.ids,
            score: g.score,
            finished: g.finished,
        });
        Ok((0..text.rows).map(|_| outputs.by_ref().take(each).collect()).collect())
    }

    /// Log-likelihood of each candidate after a prompt. The prompt is read once and the candidates together.
    ///
    /// # Errors
    /// As [`Model::generate`]; [`ZooError::Prompt`] for a candidate without a token.
    pub fn score(&self, prompt: &Prompt, candidates: &[String]) -> Result<Vec<SequenceScore>, ZooError> {
        let ids: Vec<Vec<u32>> =
            candidates.iter().map(|text| self.tokenizer.encode_plain(text)).collect::<Result<_, _>>()?;
        self.check_candidates(&ids)?;
        let (text, pixels) = self.batch(std::slice::from_ref(prompt))?;
        let longest = ids.iter().map(Vec::len).max().unwrap_or(0);
        let options = SessionOptions { reserve: text.width + longest, ..SessionOptions::default() };
        let (session, first) = self.engine.start(&text, pixels.as_ref(), options)?;
        Ok(self.scores(&*session, first, 1, text.width, &ids)?.swap_remove(0))
    }

    /// Token ids (left-padded) and pixels of a batch of prompts. Rows with fewer pictures than others are
    /// filled with blank ones, which no text looks at.
    fn batch(&self, prompts: &[Prompt]) -> Result<(Text, Option<Pixels>), ZooError> {
        let text = self.text(prompts)?;
        let images = prompts.iter().map(|p| p.images.len()).max().unwrap_or(0);
        if images == 0 {
            return Ok((text, None));
        }
        let side = self.transform.size;
        let mut data = Vec::with_capacity(prompts.len() * images * 3 * side * side);
        for prompt in prompts {
            for picture in &prompt.images {
                data.extend(self.transform.tensor(picture));
            }
            data.resize(data.len() + (images - prompt.images.len()) * 3 * side * side, 0.0);
        }
        Ok((text, Some(Pixels { rows: prompts.len(), images, frames: 1, side, data })))
    }

    /// Token ids of a batch of prompts, left-padded.
    fn text<I>(&self, prompts: &[Interleaved<I>]) -> Result<Text, ZooError> {
        let image = self.config().tokens.image;
        if prompts.is_empty() {
            return Err(ZooError::Prompt("there is no prompt: give at least one".into()));
        }
        let mut ids = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let row = self.tokenizer.encode(&prompt.text)?;
            let marks = row.iter().filter(|&&id| id == image).count();
            let pictures = prompt.images.len();
            if marks != pictures {
                return Err(flamingo_data::DataError::Marks { marks, pictures }.into());
            }
            if row.is_empty() {
                return Err(ZooError::Prompt("the prompt is empty: give an image or a text".into()));
            }
            ids.push(row);
        }
        let batch = pad_batch(&ids, self.config().tokens.pad, PaddingSide::Left);
        Ok(Text::new(ids.len(), batch.ids, batch.mask))
    }
}
