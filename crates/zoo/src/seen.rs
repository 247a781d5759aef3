//! Prompts of pictures that the model has seen before: what it keeps of a picture is computed once, however often the
//! picture is shown.

use std::ops::ControlFlow;
use std::sync::Arc;

use flamingo_config::DecoderConfig;
use flamingo_data::{ImageTransform, Interleaved, Picture};
use flamingo_engine::{Array, Pixels, Session, SessionOptions, Text};
use flamingo_generate::{GenerationConfig, SequenceScore, sequence_log_prob};

use crate::{Model, Output, Scoring, ZooError};

/// What a model keeps of a picture, `[num_latents, width]`: what its text looks at.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents(Arc<[f32]>);

impl Latents {
    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        self.0.len() * size_of::<f32>()
    }
}

/// A picture as the vision tower takes it, `[3, side, side]`.
#[derive(Clone, Debug)]
pub struct View(Arc<[f32]>);

impl View {
    /// Prepares a picture with a model's [`Model::transform`].
    pub fn new(transform: &ImageTransform, picture: &Picture) -> Self {
        Self(transform.tensor(picture).into())
    }
}

/// The beginning that several prompts share, read once.
pub struct Prefix<'a> {
    session: Box<dyn Session + 'a>,
    ids: Vec<u32>,
    images: usize,
}

/// Prompts that were read.
struct Read<'a> {
    session: Box<dyn Session + 'a>,
    text: Text,
    /// What follows their last tokens.
    logits: Vec<f32>,
}

impl Model {
    /// Whether what is kept of a picture depends on its place among a prompt's pictures.
    pub fn tells_places(&self) -> bool {
        self.config().resampler.max_num_media.is_some()
    }

    /// Looks at pictures, each of which is number `place` of its prompt, from 0 on.
    ///
    /// # Errors
    /// [`ZooError::Engine`] if the device fails, or for a place that a model which tells places has no embedding for.
    pub fn latents(&self, pictures: &[&Picture], place: usize) -> Result<Vec<Latents>, ZooError> {
        self.latents_of(&self.views(pictures), place)
    }

    /// [`Model::latents`] of pictures that are prepared.
    ///
    /// # Errors
    /// As [`Model::latents`].
    pub fn latents_of(&self, views: &[View], place: usize) -> Result<Vec<Latents>, ZooError> {
        if views.is_empty() {
            return Ok(Vec::new());
        }
        let latents = self.engine.latents(&self.pixels(views.len(), views), place)?;
        let each = latents.data.len() / views.len();
        Ok(latents.data.chunks(each).map(|latents| Latents(latents.into())).collect())
    }

    /// CLIP's features of pictures, of length 1: what retrieval compares.
    ///
    /// # Errors
    /// [`ZooError::Engine`] if the device fails.
    pub fn features(&self, pictures: &[&Picture]) -> Result<Vec<Vec<f32>>, ZooError> {
        self.features_of(&self.views(pictures))
    }

    /// [`Model::features`] of pictures that are prepared.
    ///
    /// # Errors
    /// As [`Model::features`].
    pub fn features_of(&self, views: &[View]) -> Result<Vec<Vec<f32>>, ZooError> {
        if views.is_empty() {
            return Ok(Vec::new());
        }
        let features = self.engine.image_features(&self.pixels(views.len(), views))?;
        let each = features.data.len() / views.len();
        let normalised = |features: &[f32]| {
            let length = features.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            features.iter().map(|&x| (f64::from(x) / length) as f32).collect()
        };
        Ok(features.data.chunks(each).map(normalised).collect())
    }

    /// [`Model::generate`] for pictures that have been seen.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn generate_seen(
        &self,
        prompts: &[Interleaved<Latents>],
        settings: &GenerationConfig,
        upstream_compat: bool,
        on_text: &mut dyn FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<Output>>, ZooError> {
        let text = self.text(prompts)?;
        let options = SessionOptions { reserve: text.width.saturating_add(settings.max_new_tokens), upstream_compat };
        let (mut session, logits) = self.engine.start_seen(&text, self.media(prompts).as_ref(), options)?;
        self.continue_prompts(&mut *session, &text, logits, settings, on_text)
    }

    /// Where a text looks that sees these pictures: for each token the share of its attention that each patch of each picture
    /// gets, `[tokens, images, patches]`.
    ///
    /// # Errors
    /// [`ZooError::Prompt`] without tokens or pictures, [`ZooError::Engine`] for ids outside the vocabulary or if the device fails.
    pub fn attention_maps(&self, ids: &[u32], views: &[View]) -> Result<Array, ZooError> {
        if ids.is_empty() || views.is_empty() {
            return Err(ZooError::Prompt("there is no text, or no picture to look at: give both".into()));
        }
        let text = Text::new(1, ids.to_vec(), vec![true; ids.len()]);
        Ok(self.engine.attention_maps(&text, &self.pixels(1, views))?)
    }

    /// What the engine takes of a prompt: its tokens in one row, and its pictures.
    ///
    /// # Errors
    /// [`ZooError::Prompt`] where marks and pictures disagree, [`ZooError::Data`] if the tokenizer fails.
    pub fn inputs(&self, prompt: &Interleaved<Latents>) -> Result<(Text, Option<Array>), ZooError> {
        let prompt = std::slice::from_ref(prompt);
        Ok((self.text(prompt)?, self.media(prompt)))
    }

    /// Reads what prompts begin with.
    ///
    /// # Errors
    /// As [`Model::generate`].
    pub fn prefix(&self, shared: &Interleaved<Latents>) -> Result<Prefix<'_>, ZooError> {
        let shared = std::slice::from_ref(shared);
        let text = self.text(shared)?;
        let options = SessionOptions { reserve: text.width, ..SessionOptions::default() };
        let (session, _) = self.engine.start_seen(&text, self.media(shared).as_ref(), options)?;
        Ok(Prefix { session, ids: text.ids, images: shared[0].images.len() })
    }

    /// [`Model::generate_seen`] for prompts that begin with `prefix`, with no text on the way; all must have as many tokens.
    ///
    /// # Errors
    /// As [`Model::generate`]; [`ZooError::Prompt`] for prompts of different lengths or that begin otherwise.
    pub fn generate_after(
        &self,
        prefix: &Prefix,
        prompts: &[Interleaved<Latents>],
        settings: &GenerationConfig,
    ) -> Result<Vec<Vec<Output>>, ZooError> {
        let Read { mut session, text, logits } = self.read_after(prefix, prompts)?;
        self.continue_prompts(&mut *session, &text, logits, settings, &mut |_, _| ControlFlow::Continue(()))
    }

    /// [`Model::score_seen`] for prompts that begin with `prefix`; all must have as many tokens.
    ///
    /// # Errors
    /// As [`Model::generate_after`].
    pub fn score_after(
        &self,
        prefix: &Prefix,
        prompts: &[Interleaved<Latents>],
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<SequenceScore>>, ZooError> {
        self.check_candidates(candidates)?;
        let Read { session, text, logits } = self.read_after(prefix, prompts)?;
        self.scores(&*session, logits, prompts.len(), text.width, candidates)
    }

    /// Reads prompts behind their prefix.
    fn read_after<'p>(&self, prefix: &'p Prefix, prompts: &[Interleaved<Latents>]) -> Result<Read<'p>, ZooError> {
        let text = self.text(prompts)?;
        let rows = prompts.len();
        let begins = |row: &[u32]| row.len() > prefix.ids.len() && row.starts_with(&prefix.ids);
        if !text.keep.iter().all(|&keep| keep) || !text.ids.chunks(text.width).all(begins) {
            return Err(ZooError::Prompt("prompts that do not continue their prefix with as many tokens".into()));
        }
        let rest: Vec<Interleaved<Latents>> = prompts
            .iter()
            .map(|prompt| Interleaved {
                text: String::new(),
                images: prompt.images.get(prefix.images..).unwrap_or_default().to_vec(),
            })
            .collect();
        let mut session = prefix.session.fork();
        session.reorder(&vec![0; rows])?;
        if let Some(media) = self.media(&rest) {
            session.show(&media)?;
        }
        let ids: Vec<u32> = text.ids.chunks(text.width).flat_map(|row| &row[prefix.ids.len()..]).copied().collect();
        let keep = vec![true; ids.len()];
        let logits = session.feed(ids, keep)?;
        let vocab = self.config().tokens.vocab_size;
        let last = logits.data.chunks(logits.data.len() / rows).flat_map(|row| &row[row.len() - vocab..]);
        let logits = last.copied().collect();
        Ok(Read { session, text, logits })
    }

    /// Log-likelihood of each candidate (ids of at least one token) after each prompt. A prompt is read once.
    ///
    /// # Errors
    /// As [`Model::score`].
    pub fn score_seen(
        &self,
        prompts: &[Interleaved<Latents>],
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<SequenceScore>>, ZooError> {
        self.check_candidates(candidates)?;
        let text = self.text(prompts)?;
        let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
        let options = SessionOptions { reserve: text.width + longest, ..SessionOptions::default() };
        let (session, first) = self.engine.start_seen(&text, self.media(prompts).as_ref(), options)?;
        self.scores(&*session, first, prompts.len(), text.width, candidates)
    }

    /// [`Model::score_seen`] as upstream's cached classification computes it: candidates see the padding before
    /// prompts, and, where the model's cache is a list that upstream changes in place (MPT-1B), all candidates before
    /// them.
    ///
    /// # Errors
    /// As [`Model::score`].
    pub fn score_seen_as_upstream(
        &self,
        prompts: &[Interleaved<Latents>],
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<SequenceScore>>, ZooError> {
        self.check_candidates(candidates)?;
        let text = self.text(prompts)?.with_upstream_padding();
        let options = SessionOptions { reserve: text.width, ..SessionOptions::default() };
        let (mut session, first) = self.engine.start_seen(&text, self.media(prompts).as_ref(), options)?;
        session.reveal_padding();
        let vocab = self.config().tokens.vocab_size;
        let mut scores = vec![Vec::with_capacity(candidates.len()); prompts.len()];
        for candidate in candidates {
            let ids = candidate.repeat(prompts.len());
            let keep = vec![true; ids.len()];
            let logits = if matches!(self.config().decoder, DecoderConfig::MosaicGpt(_)) {
                session.feed(ids, keep)?
            } else {
                session.fork().feed(ids, keep)?
            };
            for (row, after) in logits.data.chunks(candidate.len() * vocab).enumerate() {
                scores[row].push(score(&first[row * vocab..][..vocab], after, vocab, candidate));
            }
        }
        Ok(scores)
    }

    /// Refuses candidates of no token, and of tokens that the model does not know.
    pub(crate) fn check_candidates(&self, candidates: &[Vec<u32>]) -> Result<(), ZooError> {
        let vocab = self.config().tokens.vocab_size;
        for (i, candidate) in candidates.iter().enumerate() {
            if candidate.is_empty() {
                return Err(ZooError::Prompt(format!("candidate {} is empty: there is nothing to score", i + 1)));
            }
            if let Some(id) = candidate.iter().find(|&&id| id as usize >= vocab) {
                return Err(ZooError::Prompt(format!("candidate {} has the token {id}, which the model lacks", i + 1)));
            }
        }
        Ok(())
    }

    /// Log-likelihood of each candidate after each of the `prompts` that a session has read; `first` are their last
    /// logits, `tokens` how many a prompt has.
    ///
    /// # Errors
    /// As [`Scoring::new`] and [`Scoring::go_on`].
    pub fn scores(
        &self,
        session: &dyn Session,
        first: Vec<f32>,
        prompts: usize,
        tokens: usize,
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<SequenceScore>>, ZooError> {
        let mut scoring = Scoring::new(self, first, prompts, tokens, candidates)?;
        while scoring.go_on(session)? {}
        Ok(scoring.scores())
    }

    /// About what a row of a session holds: keys and values of its text and its pictures, in f32.
    pub(crate) fn bytes_a_row(&self, tokens: usize) -> usize {
        let config = self.config();
        let architecture = config.decoder.architecture();
        let cross = &config.cross_attention;
        let blocks = (0..architecture.n_layers).filter(|&layer| cross.has_block(layer)).count();
        // A picture has a mark at least, and seldom fewer than eight tokens behind it.
        let latents = tokens.div_ceil(8) * config.resampler.num_latents;
        let text = architecture.n_layers * tokens * architecture.d_model;
        2 * size_of::<f32>() * (text + blocks * latents * cross.heads * cross.dim_head)
    }

    fn views(&self, pictures: &[&Picture]) -> Vec<View> {
        pictures.iter().map(|picture| View::new(&self.transform, picture)).collect()
    }

    /// Prepared pictures in rows of equal length.
    fn pixels(&self, rows: usize, views: &[View]) -> Pixels {
        let data = views.iter().flat_map(|view| view.0.iter().copied()).collect();
        Pixels { rows, images: views.len() / rows, frames: 1, side: self.transform.size, data }
    }

    /// The pictures of a batch; rows with fewer than others are filled with blank ones, which no text looks at.
    pub fn media(&self, prompts: &[Interleaved<Latents>]) -> Option<Array> {
        let images = prompts.iter().map(|prompt| prompt.images.len()).max().unwrap_or(0);
        if images == 0 {
            return None;
        }
        let config = self.config();
        let shape = vec![prompts.len(), images, config.resampler.num_latents, config.vision.width];
        let row = shape[1..].iter().product::<usize>();
        let mut data = Vec::with_capacity(prompts.len() * row);
        for (i, prompt) in prompts.iter().enumerate() {
            for latents in &prompt.images {
                data.extend_from_slice(&latents.0);
            }
            data.resize((i + 1) * row, 0.0);
        }
        Some(Array { shape, data })
    }
}

/// The prompt's last logits predict a candidate's first token, each of its tokens the next.
fn score(first: &[f32], after: &[f32], vocab: usize, candidate: &[u32]) -> SequenceScore {
    let mut steps = first.to_vec();
    steps.extend_from_slice(&after[..(candidate.len() - 1) * vocab]);
    SequenceScore::new(&sequence_log_prob(&steps, vocab, candidate))
}
