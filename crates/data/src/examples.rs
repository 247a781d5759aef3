//! Samples of shards as training takes them: token ids and pictures as numbers.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use crate::documents::without_marks;
use crate::{DocumentRules, ImageTransform, Picture, Rejected, Sample, SpecialTokens, Tokenizer, pair_ids};

/// Extensions of pictures, in the order in which upstream looks for them (`train/data.py`, `get_laion_dataset`).
pub(crate) const PICTURES: [&str; 4] = ["jpg", "png", "jpeg", "webp"];

/// One row of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its pictures, `[3, side, side]` each.
    pub pictures: Vec<Vec<f32>>,
}

/// How captioned pictures become examples.
#[derive(Clone)]
pub struct Pairs {
    /// The tokenizer, upstream's tokens added.
    pub tokenizer: Arc<Tokenizer>,
    /// What the vision tower sees.
    pub transform: ImageTransform,
    /// Tokens after which a caption is cut off; upstream's 32.
    pub max_tokens: usize,
    /// Mirror every second picture, as upstream does.
    pub flip: bool,
    /// Marks that a caption itself contains are marks, as upstream has it.
    pub upstream_compat: bool,
}

/// How interleaved documents become examples.
#[derive(Clone)]
pub struct Documents {
    /// The tokenizer, upstream's tokens added.
    pub tokenizer: Arc<Tokenizer>,
    /// Ids of the special tokens.
    pub tokens: SpecialTokens,
    /// What the vision tower sees.
    pub transform: ImageTransform,
    /// Which documents and pictures stay.
    pub rules: DocumentRules,
    /// Mirror all pictures of every second document, as upstream does.
    pub flip: bool,
}

impl Pairs {
    /// Reads a sample with a picture and a `txt`.
    ///
    /// # Errors
    /// [`Rejected`] if either is missing or unusable.
    pub fn example(&self, mut sample: Sample, rng: &mut ChaCha8Rng) -> Result<Example, Rejected> {
        let text = sample.parts.remove("txt").ok_or(Rejected::Missing("txt"))?;
        let picture =
            PICTURES.iter().find_map(|kind| sample.parts.remove(*kind)).ok_or(Rejected::Missing("picture"))?;
        let text = String::from_utf8(text).map_err(|e| Rejected::Form(e.to_string()))?;
        let text = if self.upstream_compat { text } else { without_marks(&text) };
        let ids = pair_ids(&self.tokenizer, &text, self.max_tokens)?;
        let pictures = vec![self.transform.tensor(&Picture::decode(&picture)?)];
        Ok(flipped(Example { ids, pictures }, self.transform.size, self.flip, rng))
    }
}

impl Documents {
    /// Reads a sample with a `json`.
    ///
    /// # Errors
    /// [`Rejected`] if it is missing or the rules leave it out.
    pub fn example(&self, mut sample: Sample, rng: &mut ChaCha8Rng) -> Result<Example, Rejected> {
        let json = sample.parts.remove("json").ok_or(Rejected::Missing("json"))?;
        let draw = f64::from(rng.next_u32()) / 4_294_967_296.0;
        let document = self.rules.apply(&json, &self.tokenizer, &self.tokens, draw)?;
        let pictures = document.pictures.iter().map(|picture| self.transform.tensor(picture)).collect();
        Ok(flipped(Example { ids: document.ids, pictures }, self.transform.size, self.flip, rng))
    }
}

/// Mirrors all pictures of every second example.
fn flipped(mut example: Example, side: usize, flip: bool, rng: &mut ChaCha8Rng) -> Example {
    if flip && rng.next_u32() & 1 == 1 {
        for row in example.pictures.iter_mut().flat_map(|picture| picture.chunks_exact_mut(side)) {
            row.reverse();
        }
    }
    example
}
