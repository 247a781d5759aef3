//! A prompt being continued: its caches, its images, and how many image marks each row has seen.

use burn::tensor::Tensor;
use flamingo_generate::Decoder;
use flamingo_kernels::Kernels;
use flamingo_model::{Cache, Media, Text, Turn, ignore, text_time};

use crate::EngineError;
use crate::array::Array;
use crate::batch::sides;
use crate::engine::{BurnEngine, compute};

/// How to continue a prompt.
#[derive(Clone, Copy, Debug, Default)]
pub struct SessionOptions {
    /// Tokens, prompt included, that the cache should hold without growing; beyond a few thousand it grows as needed.
    pub reserve: usize,
    /// Reproduce what upstream does when the model itself writes `<image>`: the count of image marks of every
    /// row of the batch is replaced by whether that row's newest token is one, so rows forget their images
    /// because a neighbour wrote a mark. Without it a written mark changes nothing: no image came with it.
    pub upstream_compat: bool,
}

/// Most tokens that a cache is made for at once: a limit of a million new tokens is no reason to allocate them.
const RESERVE: usize = 4096;

/// A prompt being continued.
pub trait Session: Decoder<Error = EngineError> + Send {
    /// Feeds several tokens a row (right-padded) and returns the logits after each, `[rows, width,
    /// vocab_size]`. `keep` tells text from padding.
    ///
    /// # Errors
    /// [`EngineError::Input`] for ids outside the vocabulary, [`EngineError::Device`] if the device fails.
    fn feed(&mut self, ids: Vec<u32>, keep: Vec<bool>) -> Result<Array, EngineError>;

    /// Shows further pictures, `[rows, images, num_latents, width]`: what marks in the text to come stand for. Where texts are
    /// read side by side, their keys and values are found when that text is read.
    ///
    /// # Errors
    /// [`EngineError::Input`] for latents of another shape, or where a row has other pictures than marks so far.
    fn show(&mut self, latents: &Array) -> Result<(), EngineError>;

    /// A second session that goes on from here; what is cached is shared until one of them writes.
    fn fork(&self) -> Box<dyn Session + '_>;

    /// Lets what comes see the padding before it, as upstream's cached classification does by passing no mask.
    fn reveal_padding(&mut self);
}

/// What comes next in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'a> {
    /// More of the prompt, whose marks stand for pictures.
    Prompt(&'a [u32]),
    /// A token that the model wrote. A mark changes nothing: no picture came with it.
    Written(u32),
}

impl Next<'_> {
    /// The token ids.
    pub fn ids(&self) -> &[u32] {
        match self {
            Self::Prompt(ids) => ids,
            Self::Written(id) => std::slice::from_ref(id),
        }
    }
}

#[derive(Clone)]
pub(crate) struct BurnSession<'a, B: Kernels> {
    engine: &'a BurnEngine<B>,
    cache: Cache<B>,
    media: Option<Media<B>>,
    /// Latents of pictures that were shown since.
    shown: Option<Array>,
    /// Image marks that each row has seen.
    marks: Vec<usize>,
    /// Which row of the prompt each row continues.
    origin: Vec<usize>,
    upstream_compat: bool,
}

impl<'a, B: Kernels> BurnSession<'a, B> {
    pub(crate) fn new(
        engine: &'a BurnEngine<B>,
        rows: usize,
        media: Option<Media<B>>,
        options: SessionOptions,
    ) -> Self {
        let layers = engine.model.decoder.blocks.len();
        Self {
            engine,
            cache: Cache::new(layers, rows, options.reserve.min(RESERVE)),
            media,
            shown: None,
            marks: vec![0; rows],
            origin: (0..rows).collect(),
            upstream_compat: options.upstream_compat,
        }
    }

    /// Reads the prompt; returns the logits after its last tokens.
    pub(crate) fn read(&mut self, prompt: &Text) -> Result<Vec<f32>, EngineError> {
        let hidden = self.hidden(prompt)?;
        self.engine.last_logits(hidden)
    }

    /// Hidden states of further text of any width.
    fn forward(&mut self, ids: Vec<u32>, keep: Vec<bool>) -> Result<Tensor<B, 3>, EngineError> {
        let rows = self.cache.rows();
        if ids.len() != keep.len() || ids.is_empty() || !ids.len().is_multiple_of(rows) {
            return Err(EngineError::Input(format!("{} tokens for {rows} rows", ids.len())));
        }
        let text = Text::after(&self.cache.kept(), ids, keep);
        self.engine.check_text(&text, self.cache.len())?;
        self.hidden(&text)
    }

    /// Hidden states of text that was checked; its marks are counted.
    pub(crate) fn hidden(&mut self, text: &Text) -> Result<Tensor<B, 3>, EngineError> {
        // A few tokens go the way that they go in a batch, and get the numbers that they get there.
        if text.rows == 1 && text.width <= B::ROWS_ALIKE && !text.keep.contains(&false) && !text.upstream_padding {
            return Ok(self.engine.model.forward_each(&mut [self.turn(&Next::Prompt(&text.ids))?]));
        }
        let before = self.marks.clone();
        let hidden = self.rows(text, &before)?;
        let image = self.engine.config.tokens.image;
        for (marks, row) in self.marks.iter_mut().zip(text.ids.chunks(text.width)) {
            *marks += row.iter().filter(|&&id| id == image).count();
        }
        Ok(hidden)
    }

    /// Hidden states of further text in all rows, which have seen so many marks.
    fn rows(&mut self, text: &Text, marks: &[usize]) -> Result<Tensor<B, 3>, EngineError> {
        self.take_in()?;
        self.media = self.media.take().map(Media::together);
        Ok(self.engine.model.forward(text, marks, self.media.as_ref(), Some(&mut self.cache), &mut ignore))
    }

    /// Finds keys and values of pictures that were shown.
    fn take_in(&mut self) -> Result<(), EngineError> {
        let Some(more) = self.engine.media_of_latents(self.shown.as_ref(), self.cache.rows())? else { return Ok(()) };
        self.media = Some(match self.media.take() {
            Some(media) => media.followed_by(more),
            None => more,
        });
        self.shown = None;
        if !self.engine.config.cross_attention.only_attend_immediate_media {
            self.media = self.media.take().map(Media::together);
        }
        Ok(())
    }

    /// What comes next in a session of one row, as text; an error where it may not.
    pub(crate) fn check_next(&self, next: &Next) -> Result<Text, EngineError> {
        let ids = next.ids().to_vec();
        let keep = vec![true; ids.len()];
        let text = Text::after(&self.cache.kept(), ids, keep);
        self.engine.check_text(&text, self.cache.len())?;
        Ok(text)
    }

    /// The turn of a session of one row in [`flamingo_model::Flamingo::forward_each`]; marks of its prompt are counted.
    pub(crate) fn turn<'s>(&'s mut self, next: &'s Next) -> Result<Turn<'s, B>, EngineError> {
        self.take_in()?;
        let ids = next.ids();
        let times = match next {
            Next::Written(_) => self.marks.clone(),
            Next::Prompt(_) => text_time(ids, ids.len(), self.engine.config.tokens.image, &self.marks),
        };
        if let Some(&time) = times.last() {
            self.marks = vec![time];
        }
        Ok(Turn { ids, times, media: self.media.as_ref(), cache: &mut self.cache })
    }

    /// Bytes of its keys and values.
    pub(crate) fn bytes(&self) -> usize {
        let shown = self.shown.as_ref().map_or(0, |latents| size_of_val(&latents.data[..]));
        self.cache.bytes() + self.media.as_ref().map_or(0, Media::bytes) + shown
    }

    /// One token more in each row.
    pub(crate) fn next(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        let text = Text::after(&self.cache.kept(), tokens.to_vec(), vec![true; tokens.len()]);
        self.engine.check_text(&text, self.cache.len())?;
        let image = self.engine.config.tokens.image;
        let written: Vec<usize> = tokens.iter().map(|&id| usize::from(id == image)).collect();
        if self.upstream_compat && written.contains(&1) {
            self.marks = written.clone();
        }
        // `forward` counts the mark itself; what it should count to is `marks`.
        let before: Vec<usize> = self.marks.iter().zip(&written).map(|(&m, &w)| m.saturating_sub(w)).collect();
        let hidden = self.rows(&text, &before)?;
        self.engine.last_logits(hidden)
    }
}

impl<B: Kernels> Decoder for BurnSession<'_, B> {
    type Error = EngineError;

    fn step(&mut self, tokens: &[u32]) -> Result<Vec<f32>, EngineError> {
        compute::<B, _>(|| {
            if tokens.len() != self.cache.rows() {
                return Err(EngineError::Input(format!("{} tokens for {} rows", tokens.len(), self.cache.rows())));
            }
            self.next(tokens)
        })
    }

    fn reorder(&mut self, rows: &[usize]) -> Result<(), EngineError> {
        compute::<B, _>(|| {
            if let Some(row) = rows.iter().find(|&&row| row >= self.cache.rows()) {
                return Err(EngineError::Input(format!("row {row} of {}", self.cache.rows())));
            }
            self.take_in()?;
            self.cache.select(rows);
            let origin: Vec<usize> = rows.iter().map(|&row| self.origin[row]).collect();
            // Beams of one prompt share its images: nothing moves while they change places.
            if origin != self.origin
                && let Some(media) = &mut self.media
            {
                media.select(rows);
            }
            // Upstream reorders its caches and not its count of marks.
            if !self.upstream_compat || rows.len() != self.marks.len() {
                self.marks = rows.iter().map(|&row| self.marks[row]).collect();
            }
            self.origin = origin;
            Ok(())
        })
    }
}

impl<B: Kernels> Session for BurnSession<'_, B> {
    fn feed(&mut self, ids: Vec<u32>, keep: Vec<bool>) -> Result<Array, EngineError> {
        compute::<B, _>(|| {
            let hidden = self.forward(ids, keep)?;
            Array::from_tensor(&self.engine.model.decoder.logits(hidden))
        })
    }

    fn show(&mut self, latents: &Array) -> Result<(), EngineError> {
        let [_, images, ..] = self.engine.check_latents(latents, self.cache.rows())?;
        let shown = self.media.as_ref().map_or(0, Media::images);
        if self.shown.is_some() || self.marks.iter().any(|&marks| marks != shown) {
            return Err(EngineError::Input("a row has other pictures than marks: no more can be shown".into()));
        }
        if images > 0 {
            self.shown = Some(latents.clone());
        }
        // One after the other they would keep texts waiting that go on.
        match sides::<B>(self.engine.model.decoder.architecture()) {
            1 => compute::<B, _>(|| self.take_in()),
            _ => Ok(()),
        }
    }

    fn fork(&self) -> Box<dyn Session + '_> {
        Box::new(self.clone())
    }

    fn reveal_padding(&mut self) {
        self.cache.reveal_padding();
    }
}
