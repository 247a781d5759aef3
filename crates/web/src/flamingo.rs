//! A model that answers requests.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::sync::Arc;

use flamingo_data::{Interleaved, Picture, Tokenizer};
use flamingo_engine::{Device, SessionOptions};
use flamingo_weights::ModelFolder;
use flamingo_zoo::{Latents, Model, View, parts};
use lru::LruCache;
use web_time::Instant;

use crate::answer::{
    About, Attention, Details, Images, Look, LookingToken, ModelCard, Models, Score, Scores, Timings, Tokens, Usage,
    milliseconds,
};
use crate::request::{AttentionRequest, CompletionRequest, ScoreRequest};
use crate::{Completion, Pictures, WebError};

/// Pictures whose latents are kept: demonstrations that somebody tries questions with.
const KEPT: NonZeroUsize = NonZeroUsize::new(64).expect("more than none");

/// What the files of a model folder hold.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// `model.toml`.
    pub config: String,
    /// `model.safetensors`.
    pub tensors: Vec<u8>,
    /// `tokenizer.json`.
    pub tokenizer: Vec<u8>,
    /// `special_tokens_map.json`, if it is there.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `tokenizer_config.json`, if it is there.
    pub tokenizer_config: Option<Vec<u8>>,
}

/// A model that answers requests, one at a time.
pub struct Flamingo {
    model: Model,
    /// Latents of pictures by what the model sees of them, and by their place where it tells places.
    seen: RefCell<LruCache<(usize, Vec<u8>), Latents>>,
    /// Requests so far.
    asked: Cell<u64>,
}

/// A prompt whose pictures were looked at.
pub(crate) struct Looked {
    pub(crate) prompt: Interleaved<Latents>,
    images: Images,
    images_ms: f64,
}

impl Looked {
    pub(crate) fn details(&self, tokens: usize) -> Details {
        Details {
            prompt: self.prompt.text.clone(),
            timings: Timings { images_ms: self.images_ms, ..Timings::default() },
            images: self.images,
            tokens: Tokens { prompt: tokens, cached: 0 },
        }
    }
}

impl Flamingo {
    /// Makes a model of its files.
    ///
    /// # Errors
    /// [`WebError::Weights`], [`WebError::Data`] and [`WebError::Zoo`] for files that are damaged or do not fit together.
    pub fn new(files: Files) -> Result<Self, WebError> {
        let Files { config, tensors, tokenizer, special_tokens_map, tokenizer_config } = files;
        let tokenizer = Tokenizer::from_memory(&tokenizer, special_tokens_map.as_deref(), tokenizer_config.as_deref())?;
        let model = Model::new(tokenizer, ModelFolder::from_memory(&config, tensors)?, Device::Flex, None)?;
        Ok(Self { model, seen: RefCell::new(LruCache::new(KEPT)), asked: Cell::new(0) })
    }

    /// The model itself.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What `GET /v1/models` answers.
    ///
    /// # Errors
    /// [`WebError::Json`] if the answer cannot be written down.
    pub fn models(&self) -> Result<String, WebError> {
        let (engine, config) = (self.model.engine(), self.model.config());
        let max_tokens = config.decoder.architecture().max_positions;
        let flamingo = About {
            device: engine.device().to_string(),
            precision: engine.precision().to_string(),
            image_size: config.vision.image_size,
            grid: self.grid(),
            caption_prompt: config.caption_prompt.clone(),
            max_tokens,
            // Each has its mark.
            max_images: config.resampler.max_num_media.unwrap_or(max_tokens).min(max_tokens),
            parameters: parts(config).iter().map(|part| part.parameters).sum(),
        };
        let card =
            ModelCard { id: config.name.clone(), object: "model", created: 0, owned_by: "openflamingo", flamingo };
        Ok(serde_json::to_string(&Models { object: "list", data: [card] })?)
    }

    /// Begins what `POST /v1/completions` asks for.
    ///
    /// # Errors
    /// [`WebError`] for a request that makes no sense, or if the model fails.
    pub fn complete(&self, request: &str, pictures: Pictures) -> Result<Completion<'_>, WebError> {
        let request: CompletionRequest = serde_json::from_str(request)?;
        self.check_model(request.model.as_deref())?;
        Completion::new(self, request, pictures)
    }

    /// What `POST /v1/score` answers.
    ///
    /// # Errors
    /// As [`Flamingo::complete`].
    pub fn score(&self, request: &str, pictures: Pictures) -> Result<String, WebError> {
        let ScoreRequest { model, prompt, candidates } = serde_json::from_str(request)?;
        self.check_model(model.as_deref())?;
        let looked = self.look(prompt.with(pictures.into_vec())?)?;
        let tokenizer = self.model.tokenizer();
        let ids: Vec<Vec<u32>> =
            candidates.iter().map(|text| tokenizer.encode_plain(text)).collect::<Result<_, _>>()?;
        let (text, latents) = self.model.inputs(&looked.prompt)?;
        let mut flamingo = looked.details(text.width);
        let start = Instant::now();
        let (session, logits) = self.model.engine().start_seen(&text, latents.as_ref(), SessionOptions::default())?;
        flamingo.timings.prefill_ms = milliseconds(start.elapsed());
        let start = Instant::now();
        let scores = self.model.scores(&*session, logits, 1, text.width, &ids)?.swap_remove(0);
        flamingo.timings.decode_ms = milliseconds(start.elapsed());

        let best = scores.iter().map(|score| score.total).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|score| (score.total - best).exp()).sum();
        let data = candidates.into_iter().zip(&scores).enumerate().map(|(index, (candidate, score))| Score {
            index,
            candidate,
            log_prob: score.total,
            mean_log_prob: score.mean,
            tokens: score.tokens,
            probability: (score.total - best).exp() / total,
        });
        Ok(serde_json::to_string(&Scores {
            object: "list",
            model: self.model.config().name.clone(),
            data: data.collect(),
            usage: Usage::new(text.width, 0),
            flamingo,
        })?)
    }

    /// What `POST /v1/attention` answers.
    ///
    /// # Errors
    /// As [`Flamingo::complete`].
    pub fn attention(&self, request: &str, pictures: Pictures) -> Result<String, WebError> {
        let AttentionRequest { model, prompt, completion } = serde_json::from_str(request)?;
        self.check_model(model.as_deref())?;
        let prompt = prompt.with(pictures.into_vec())?;
        let tokenizer = self.model.tokenizer();
        let mut ids = tokenizer.encode(&prompt.text)?;
        let prompt_tokens = ids.len();
        ids.extend(tokenizer.encode_plain(&completion)?);
        let views: Vec<View> = prompt.images.iter().map(|picture| View::new(self.model.transform(), picture)).collect();
        let maps = self.model.attention_maps(&ids, &views)?;
        let grid = self.grid();
        let patches = grid[0] * grid[1];
        let mut marks = 0..;
        let tokens = ids.iter().zip(maps.data.chunks(patches * views.len())).enumerate().map(|(i, (&id, maps))| {
            // What a token does not see gets nothing at all.
            let seen = maps.chunks(patches).enumerate().filter(|(_, map)| map.iter().any(|&share| share > 0.0));
            LookingToken {
                text: tokenizer.decode(&[id], false),
                image: if id == self.model.config().tokens.image { marks.next() } else { None },
                completion: i >= prompt_tokens,
                looks: seen.map(|(image, map)| Look { image, map: map.to_vec() }).collect(),
            }
        });
        let model = self.model.config().name.clone();
        Ok(serde_json::to_string(&Attention { object: "attention", model, grid, tokens: tokens.collect() })?)
    }

    /// Rows and columns of a picture's patches.
    fn grid(&self) -> [usize; 2] {
        let vision = &self.model.config().vision;
        [vision.image_size / vision.patch_size; 2]
    }

    /// The number of a request.
    pub(crate) fn number(&self) -> u64 {
        self.asked.set(self.asked.get() + 1);
        self.asked.get()
    }

    /// Looks at the pictures of a prompt, but for those that were looked at before.
    pub(crate) fn look(&self, prompt: Interleaved<Arc<Picture>>) -> Result<Looked, WebError> {
        let start = Instant::now();
        let mut seen = self.seen.borrow_mut();
        let mut images = Images { seen: prompt.images.len(), cached: 0 };
        let mut latents = Vec::with_capacity(prompt.images.len());
        for (i, picture) in prompt.images.iter().enumerate() {
            let place = if self.model.tells_places() { i } else { 0 };
            let key = (place, self.model.transform().pixels(picture));
            if let Some(kept) = seen.get(&key) {
                images.cached += 1;
                latents.push(kept.clone());
                continue;
            }
            for new in self.model.latents(&[&**picture], place)? {
                seen.put(key.clone(), new.clone());
                latents.push(new);
            }
        }
        let prompt = Interleaved { text: prompt.text, images: latents };
        Ok(Looked { prompt, images, images_ms: milliseconds(start.elapsed()) })
    }

    fn check_model(&self, name: Option<&str>) -> Result<(), WebError> {
        let own = &self.model.config().name;
        match name {
            Some(name) if name != own => Err(WebError::Request(format!("there is no model {name} here, only {own}"))),
            _ => Ok(()),
        }
    }
}
