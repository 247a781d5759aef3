//! A model on a device.

use std::any::TypeId;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use flamingo_config::ModelConfig;
use flamingo_kernels::Kernels;
use flamingo_model::{Flamingo, Media, Point, Text, ignore, next_token_loss, next_token_loss_of_hidden};

use crate::array::{Array, Pixels};
use crate::batch::{Batch, BurnBatch};
use crate::features::{Features, distinct};
use crate::load::burn_dtype;
use crate::session::{BurnSession, Session, SessionOptions};
use crate::{Dtype, EngineError, Precision};

/// Images that go through the vision tower together: enough to keep any device busy, few enough that a
/// 32-shot prompt does not hold the activations of all of them at once.
const IMAGES_AT_ONCE: usize = 16;

/// A model on a device, whatever the backend.
pub trait Engine: Send + Sync {
    /// What the model is made of.
    fn config(&self) -> &ModelConfig;

    /// The device in words.
    fn device(&self) -> &str;

    /// What the weights are on the device.
    fn precision(&self) -> Precision;

    /// Names and shapes of the model's parameters, as the modules declare them.
    fn parameters(&self) -> Vec<(String, Vec<usize>)>;

    /// Image features for retrieval, not normalised: `[rows * images * frames, output_dim]`.
    ///
    /// # Errors
    /// [`EngineError::Input`] for pixels of the wrong size, [`EngineError::Device`] if the device fails.
    fn image_features(&self, pixels: &Pixels) -> Result<Array, EngineError>;

    /// Every recorded output of the vision tower: `hidden.ln_pre`, `hidden.block.N`, `tokens`, `encode_image`.
    ///
    /// # Errors
    /// As [`Engine::image_features`].
    fn trace_vision(&self, pixels: &Pixels) -> Result<Vec<(String, Array)>, EngineError>;

    /// A whole forward pass without a cache, with every intermediate output where `trace` is set.
    ///
    /// # Errors
    /// [`EngineError::Input`] if text, pixels and labels do not fit together.
    fn forward(
        &self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: Option<&[i64]>,
        trace: bool,
    ) -> Result<Forward, EngineError>;

    /// What the model keeps of each picture, `[rows, images, num_latents, width]`: [`Engine::start_seen`] takes it in
    /// place of pixels, as often as the picture is shown. `first` is the place of each row's first picture in the rows
    /// that will be read; it matters to models with embeddings of places alone.
    ///
    /// # Errors
    /// As [`Engine::image_features`]; [`EngineError::Input`] for a place that such a model has no embedding for.
    fn latents(&self, pixels: &Pixels, first: usize) -> Result<Array, EngineError>;

    /// Reads a prompt and gets ready to continue it. Returns the session and the logits that follow the
    /// last token of each row, `rows * vocab_size`.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    fn start(
        &self,
        prompt: &Text,
        pixels: Option<&Pixels>,
        options: SessionOptions,
    ) -> Result<(Box<dyn Session + '_>, Vec<f32>), EngineError>;

    /// [`Engine::start`] with pictures as [`Engine::latents`] gives them, `[rows, images, num_latents, width]`.
    ///
    /// # Errors
    /// As [`Engine::start`].
    fn start_seen(
        &self,
        prompt: &Text,
        latents: Option<&Array>,
        options: SessionOptions,
    ) -> Result<(Box<dyn Session + '_>, Vec<f32>), EngineError>;

    /// Where a text of one row looks: the share of each token's attention that each patch of each picture gets,
    /// `[tokens, images, patches]`, in f32.
    ///
    /// # Errors
    /// As [`Engine::forward`]; [`EngineError::Input`] for several rows or frames, or a model without cross-attention.
    fn attention_maps(&self, text: &Text, pixels: &Pixels) -> Result<Array, EngineError>;

    /// Texts to be continued together; none yet.
    fn batch(&self) -> Box<dyn Batch + '_>;

    /// Does work that asks something of the engine again and again, a token at a time, say. On a CPU it runs as one of the threads
    /// that compute, so that none has to be woken each time; other threads' calls wait until it is done.
    fn uninterrupted(&self, work: &mut (dyn FnMut() + Send));

    /// Times each stage on the given input: `decode` tokens are fed after the prompt.
    ///
    /// # Errors
    /// As [`Engine::forward`].
    fn time(&self, prompt: &Text, pixels: &Pixels, decode: usize) -> Result<Timings, EngineError>;
}

/// What a forward pass gives.
pub struct Forward {
    /// `[rows, width, vocab_size]`.
    pub logits: Array,
    /// The mean next-token loss, where labels were given.
    pub loss: Option<f32>,
    /// Intermediate outputs by name: `vision_tokens`, `perceiver`, `xattn.N`, `layer.N`.
    pub trace: Vec<(String, Array)>,
}

/// Wall time of the stages of one generation.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// Pixels to patch tokens.
    pub vision: Duration,
    /// Patch tokens to latents, and the latents' keys and values for every cross-attention block.
    pub resampler: Duration,
    /// The prompt, to the logits of the next token.
    pub prefill: Duration,
    /// One token more.
    pub decode: Duration,
}

/// [`Engine`] over a Burn backend.
pub(crate) struct BurnEngine<B: Kernels> {
    pub(crate) model: Flamingo<B>,
    pub(crate) config: ModelConfig,
    pub(crate) device: B::Device,
    pub(crate) precision: Precision,
    /// The format that it computes in.
    pub(crate) compute: Dtype,
    pub(crate) name: String,
}

/// Turns a backend's panic into an error: device failures have no other way out of Burn.
pub(crate) fn guard<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, EngineError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let why = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
            .unwrap_or_else(|| "no reason given".to_string());
        Err(EngineError::Device(format!("the device failed: {why}")))
    })
}

/// Held by whoever computes on the CPU.
static COMPUTING: Mutex<()> = Mutex::new(());

/// [`guard`] of work that computes.
pub(crate) fn compute<B: Backend, T: Send>(
    work: impl FnOnce() -> Result<T, EngineError> + Send,
) -> Result<T, EngineError> {
    computing::<B, _>(|| guard(work))
}

/// Does work that computes. On the CPU it runs as one of the threads that kernels share their work with: from any other, each
/// parallel loop, of which a token has hundreds, would wake one up and go to sleep.
///
/// One call at a time: a thread of the pool that waits takes up whatever else there is to do. That would be another call within
/// this one, further down the same stack and under the locks that Burn holds in a backward pass. Calls from threads of a pool
/// go on where they are: they may be within a call already.
fn computing<B: Backend, T: Send>(work: impl FnOnce() -> T + Send) -> T {
    if !on_cpu::<B>() || rayon::current_thread_index().is_some() {
        return work();
    }
    let _computing = COMPUTING.lock().unwrap_or_else(PoisonError::into_inner);
    rayon::scope(|_| work())
}

pub(crate) fn on_cpu<B: Backend>() -> bool {
    let device = TypeId::of::<B::Device>();
    #[cfg(feature = "flex")]
    if device == TypeId::of::<burn_flex::FlexDevice>() {
        return true;
    }
    #[cfg(feature = "ndarray")]
    if device == TypeId::of::<burn_ndarray::NdArrayDevice>() {
        return true;
    }
    let _ = device;
    false
}

impl<B: Kernels> BurnEngine<B> {
    fn pixels(&self, pixels: &Pixels) -> Result<Tensor<B, 6>, EngineError> {
        pixels.check(self.config.vision.image_size)?;
        let shape = [pixels.rows, pixels.images, pixels.frames, 3, pixels.side, pixels.side];
        let data = TensorData::new(pixels.data.clone(), shape);
        Ok(Tensor::from_data(data, (&self.device, burn_dtype(self.compute))))
    }

    /// Patch tokens, `[rows, images, frames, patches, width]`.
    fn see(&self, pixels: Tensor<B, 6>) -> Tensor<B, 5> {
        let [rows, images, frames, channels, height, width] = pixels.dims();
        let count = rows * images * frames;
        let pixels = pixels.reshape([count, channels, height, width]);
        let chunks: Vec<_> = (0..count)
            .step_by(IMAGES_AT_ONCE)
            .map(|first| {
                let chunk = pixels.clone().narrow(0, first, IMAGES_AT_ONCE.min(count - first));
                self.model.vision.forward(chunk, &mut ignore)
            })
            .collect();
        let tokens = Tensor::cat(chunks, 0);
        let [_, patches, dim] = tokens.dims();
        tokens.reshape([rows, images, frames, patches, dim])
    }

    fn media(&self, pixels: Option<&Pixels>) -> Result<Option<Media<B>>, EngineError> {
        let Some(pixels) = pixels else { return Ok(None) };
        self.check_media(pixels, 0)?;
        let tokens = self.see(self.pixels(pixels)?);
        Ok(Some(self.model.media(self.model.resampler.forward(tokens, 0))))
    }

    /// Patch tokens of distinct pictures, `[distinct, 1, 1, patches, width]`; `features` remembers those of a frozen
    /// tower.
    pub(crate) fn tokens_of_distinct(
        &self,
        side: usize,
        distinct: &[(u128, &[f32])],
        features: Option<&mut Features<B>>,
    ) -> Tensor<B, 5> {
        let encode = |pictures: &[&[f32]]| {
            let data = TensorData::new(pictures.concat(), [pictures.len(), 3, side, side]);
            let pictures = Tensor::<B, 4>::from_data(data, (&self.device, burn_dtype(self.compute)));
            self.model.vision.forward(pictures, &mut ignore)
        };
        let tokens = match features {
            Some(features) => features.of(distinct, IMAGES_AT_ONCE, encode),
            None => {
                let pictures: Vec<&[f32]> = distinct.iter().map(|(_, picture)| *picture).collect();
                Tensor::cat(pictures.chunks(IMAGES_AT_ONCE).map(encode).collect(), 0)
            }
        };
        let [count, patches, width] = tokens.dims();
        tokens.reshape([count, 1, 1, patches, width])
    }

    /// Whether pictures that are the same may go through tower and resampler once: not where they know their place in
    /// the row or have several frames.
    pub(crate) fn pictures_may_repeat(&self, pixels: &Pixels) -> bool {
        pixels.frames == 1 && self.model.resampler.media_time_embeddings.is_none()
    }

    /// [`BurnEngine::media`] of pictures whose latents are known.
    pub(crate) fn media_of_latents(
        &self,
        latents: Option<&Array>,
        rows: usize,
    ) -> Result<Option<Media<B>>, EngineError> {
        let Some(latents) = latents else { return Ok(None) };
        let shape = self.check_latents(latents, rows)?;
        let data = TensorData::new(latents.data.clone(), shape);
        let latents = Tensor::<B, 4>::from_data(data, (&self.device, burn_dtype(self.compute)));
        Ok(Some(self.model.media(latents)))
    }

    /// The shape of pictures' latents, `[rows, images, num_latents, width]`; an error if it is another.
    pub(crate) fn check_latents(&self, latents: &Array, rows: usize) -> Result<[usize; 4], EngineError> {
        let expected = [self.config.resampler.num_latents, self.config.vision.width];
        match latents.shape[..] {
            [r, images, n, width]
                if r == rows && [n, width] == expected && r * images * n * width == latents.data.len() =>
            {
                Ok([r, images, n, width])
            }
            _ => Err(EngineError::Input(format!(
                "latents of {:?} where [{rows}, images, {}, {}] belong",
                latents.shape, expected[0], expected[1]
            ))),
        }
    }

    /// [`Engine::start`] with pictures that were looked at.
    fn read(
        &self,
        prompt: &Text,
        media: Option<Media<B>>,
        options: SessionOptions,
    ) -> Result<(BurnSession<'_, B>, Vec<f32>), EngineError> {
        let mut session = BurnSession::new(self, prompt.rows, media, options);
        let logits = session.read(prompt)?;
        Ok((session, logits))
    }

    /// [`Engine::start_seen`].
    pub(crate) fn read_seen(
        &self,
        prompt: &Text,
        latents: Option<&Array>,
        options: SessionOptions,
    ) -> Result<(BurnSession<'_, B>, Vec<f32>), EngineError> {
        self.check_text(prompt, 0)?;
        self.read(prompt, self.media_of_latents(latents, prompt.rows)?, options)
    }

    /// [`BurnEngine::media`] of a batch in training, where many pictures are the same: blank ones fill up rows.
    fn media_in_training(&self, pixels: &Pixels, features: Option<&mut Features<B>>) -> Result<Media<B>, EngineError> {
        if !self.pictures_may_repeat(pixels) {
            return Ok(self.media(Some(pixels))?.expect("pictures were given"));
        }
        self.check_pixels(pixels)?;
        let (distinct, places) = distinct(pixels);
        let tokens = self.tokens_of_distinct(pixels.side, &distinct, features);
        Ok(self.model.media(self.model.latents(tokens, &places, pixels.images)))
    }

    pub(crate) fn check_pixels(&self, pixels: &Pixels) -> Result<(), EngineError> {
        self.check_media(pixels, 0)?;
        pixels.check(self.config.vision.image_size)
    }

    /// Everything that must hold of a batch before its loss is computed.
    pub(crate) fn check_batch(&self, text: &Text, pixels: Option<&Pixels>, labels: &[i64]) -> Result<(), EngineError> {
        self.check_text(text, 0)?;
        self.check_rows(text, pixels)?;
        self.check_labels(text, labels)
    }

    fn check_media(&self, pixels: &Pixels, first: usize) -> Result<(), EngineError> {
        let r = &self.config.resampler;
        let limits = [("frames", pixels.frames, r.max_num_frames), ("images", first + pixels.images, r.max_num_media)];
        for (what, count, limit) in limits {
            if let Some(limit) = limit
                && count > limit
            {
                return Err(EngineError::Input(format!("{count} {what} for a model with embeddings for {limit}")));
            }
        }
        Ok(())
    }

    pub(crate) fn check_text(&self, text: &Text, cached: usize) -> Result<(), EngineError> {
        let vocab = self.config.tokens.vocab_size;
        if text.ids.is_empty() {
            return Err(EngineError::Input("the text has no token".into()));
        }
        if let Some(id) = text.ids.iter().find(|&&id| id as usize >= vocab) {
            return Err(EngineError::Input(format!("token id {id} is outside the vocabulary of {vocab}")));
        }
        let a = self.model.decoder.architecture();
        if let flamingo_config::Position::Learned { offset, rows } = a.position {
            let longest = text.positions.iter().max().map_or(0, |&p| p as usize + 1);
            if longest + offset > rows {
                return Err(EngineError::Input(format!(
                    "{longest} tokens for a model with {} positions",
                    rows - offset
                )));
            }
        } else if cached + text.width > a.max_positions {
            tracing::debug!(tokens = cached + text.width, trained = a.max_positions, "text longer than trained for");
        }
        Ok(())
    }

    pub(crate) fn check_rows(&self, text: &Text, pixels: Option<&Pixels>) -> Result<(), EngineError> {
        match pixels {
            Some(pixels) if pixels.rows != text.rows => {
                Err(EngineError::Input(format!("images for {} texts and {} texts", pixels.rows, text.rows)))
            }
            _ => Ok(()),
        }
    }

    fn check_labels(&self, text: &Text, labels: &[i64]) -> Result<(), EngineError> {
        let vocab = self.config.tokens.vocab_size as i64;
        let known = |&label: &i64| label == crate::IGNORE || (0..vocab).contains(&label);
        if labels.len() != text.ids.len() || !labels.iter().all(known) {
            return Err(EngineError::Input("labels that are not one token id (or -100) a token".into()));
        }
        Ok(())
    }

    /// The mean next-token loss of a batch, still on the device.
    pub(crate) fn loss(
        &self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: &[i64],
        features: Option<&mut Features<B>>,
    ) -> Result<Tensor<B, 1>, EngineError> {
        self.check_batch(text, pixels, labels)?;
        let media = pixels.map(|pixels| self.media_in_training(pixels, features)).transpose()?;
        let hidden = self.model.forward(text, &vec![0; text.rows], media.as_ref(), None, &mut ignore);
        Ok(next_token_loss_of_hidden(&self.model.decoder, hidden, labels))
    }

    /// Logits after the last token of each row.
    pub(crate) fn last_logits(&self, hidden: Tensor<B, 3>) -> Result<Vec<f32>, EngineError> {
        let [_, width, _] = hidden.dims();
        Ok(Array::from_tensor(&self.model.decoder.logits(hidden.narrow(1, width - 1, 1)))?.data)
    }

    fn sync(&self) -> Result<(), EngineError> {
        B::sync(&self.device).map_err(|e| EngineError::Device(format!("the device failed: {e:?}")))
    }
}

impl<B: Kernels> Engine for BurnEngine<B> {
    fn config(&self) -> &ModelConfig {
        &self.config
    }

    fn device(&self) -> &str {
        &self.name
    }

    fn precision(&self) -> Precision {
        self.precision
    }

    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        crate::load::parameters(&self.model)
    }

    fn image_features(&self, pixels: &Pixels) -> Result<Array, EngineError> {
        compute::<B, _>(|| {
            let [rows, images, frames, channels, height, width] = self.pixels(pixels)?.dims();
            let x = self.pixels(pixels)?.reshape([rows * images * frames, channels, height, width]);
            Array::from_tensor(&self.model.vision.encode(x, &mut ignore))
        })
    }

    fn trace_vision(&self, pixels: &Pixels) -> Result<Vec<(String, Array)>, EngineError> {
        compute::<B, _>(|| {
            let x = self.pixels(pixels)?;
            let [rows, images, frames, channels, height, width] = x.dims();
            let x = x.reshape([rows * images * frames, channels, height, width]);
            let mut seen: Vec<(String, Tensor<B, 3>)> = Vec::new();
            let tokens = self.model.vision.forward(x.clone(), &mut |point, x| match point {
                Point::VisionNormPre => seen.push(("hidden.ln_pre".into(), x.clone())),
                Point::VisionBlock(i) => seen.push((format!("hidden.block.{i}"), x.clone())),
                _ => {}
            });
            seen.push(("tokens".into(), tokens));
            let mut trace = Vec::new();
            for (name, x) in &seen {
                trace.push((name.clone(), Array::from_tensor(x)?));
            }
            let features = self.model.vision.encode(x, &mut ignore);
            trace.push(("encode_image".into(), Array::from_tensor(&features)?));
            Ok(trace)
        })
    }

    fn forward(
        &self,
        text: &Text,
        pixels: Option<&Pixels>,
        labels: Option<&[i64]>,
        trace: bool,
    ) -> Result<Forward, EngineError> {
        compute::<B, _>(|| {
            self.check_text(text, 0)?;
            self.check_rows(text, pixels)?;
            if let Some(labels) = labels {
                self.check_labels(text, labels)?;
            }
            let mut named = Vec::new();
            let media = match pixels {
                None => None,
                Some(pixels) => {
                    self.check_media(pixels, 0)?;
                    let tokens = self.see(self.pixels(pixels)?);
                    let latents = self.model.resampler.forward(tokens.clone(), 0);
                    if trace {
                        let [rows, images, frames, patches, dim] = tokens.dims();
                        let tokens = tokens.reshape([rows * images * frames, patches, dim]);
                        named.push(("vision_tokens".to_string(), Array::from_tensor(&tokens)?));
                        named.push(("perceiver".to_string(), Array::from_tensor(&latents)?));
                    }
                    Some(self.model.media(latents))
                }
            };
            let mut seen = Vec::new();
            let hidden = self.model.forward(text, &vec![0; text.rows], media.as_ref(), None, &mut |point, x| {
                let name = match point {
                    Point::CrossAttention(i) => format!("xattn.{i}"),
                    Point::DecoderLayer(i) => format!("layer.{i}"),
                    _ => return,
                };
                if trace {
                    seen.push((name, x.clone()));
                }
            });
            for (name, x) in &seen {
                named.push((name.clone(), Array::from_tensor(x)?));
            }
            let logits = self.model.decoder.logits(hidden);
            let loss = match labels {
                Some(labels) => Some(Array::from_tensor(&next_token_loss(logits.clone(), labels))?.data[0]),
                None => None,
            };
            Ok(Forward { logits: Array::from_tensor(&logits)?, loss, trace: named })
        })
    }

    fn start(
        &self,
        prompt: &Text,
        pixels: Option<&Pixels>,
        options: SessionOptions,
    ) -> Result<(Box<dyn Session + '_>, Vec<f32>), EngineError> {
        compute::<B, _>(|| {
            self.check_text(prompt, 0)?;
            self.check_rows(prompt, pixels)?;
            let (session, logits) = self.read(prompt, self.media(pixels)?, options)?;
            Ok((Box::new(session) as Box<dyn Session>, logits))
        })
    }

    fn latents(&self, pixels: &Pixels, first: usize) -> Result<Array, EngineError> {
        compute::<B, _>(|| {
            self.check_media(pixels, first)?;
            Array::from_tensor(&self.model.resampler.forward(self.see(self.pixels(pixels)?), first))
        })
    }

    fn start_seen(
        &self,
        prompt: &Text,
        latents: Option<&Array>,
        options: SessionOptions,
    ) -> Result<(Box<dyn Session + '_>, Vec<f32>), EngineError> {
        compute::<B, _>(|| {
            let (session, logits) = self.read_seen(prompt, latents, options)?;
            Ok((Box::new(session) as Box<dyn Session>, logits))
        })
    }

    fn attention_maps(&self, text: &Text, pixels: &Pixels) -> Result<Array, EngineError> {
        compute::<B, _>(|| {
            self.check_text(text, 0)?;
            self.check_rows(text, Some(pixels))?;
            self.check_media(pixels, 0)?;
            if text.rows != 1 || pixels.frames != 1 || pixels.images == 0 {
                return Err(EngineError::Input("attention is shown of one text with pictures of one frame".into()));
            }
            if self.model.cross_attention.iter().all(Option::is_none) {
                return Err(EngineError::Input("a model without cross-attention looks at nothing".into()));
            }
            let maps = self.model.attention_maps(text, self.see(self.pixels(pixels)?));
            let [_, tokens, images, patches] = maps.dims();
            Array::from_tensor(&maps.reshape([tokens, images, patches]))
        })
    }

    fn batch(&self) -> Box<dyn Batch + '_> {
        Box::new(BurnBatch::new(self))
    }

    fn uninterrupted(&self, work: &mut (dyn FnMut() + Send)) {
        computing::<B, _>(work);
    }

    fn time(&self, prompt: &Text, pixels: &Pixels, decode: usize) -> Result<Timings, EngineError> {
        compute::<B, _>(|| {
            self.check_text(prompt, 0)?;
            self.check_rows(prompt, Some(pixels))?;
            self.check_media(pixels, 0)?;
            let x = self.pixels(pixels)?;
            self.sync()?;
            let timed = |since: std::time::Instant| since.elapsed();

            let start = std::time::Instant::now();
            let tokens = self.see(x);
            self.sync()?;
            let vision = timed(start);

            let start = std::time::Instant::now();
            let media = self.model.media(self.model.resampler.forward(tokens, 0));
            self.sync()?;
            let resampler = timed(start);

            let options = SessionOptions { reserve: prompt.width + decode, ..SessionOptions::default() };
            let mut session = BurnSession::new(self, prompt.rows, Some(media), options);
            let start = std::time::Instant::now();
            session.read(prompt)?;
            let prefill = timed(start);

            let tokens = vec![prompt.ids[prompt.ids.len() - 1]; prompt.rows];
            let start = std::time::Instant::now();
            for _ in 0..decode {
                session.next(&tokens)?;
            }
            let decode = timed(start) / decode.max(1) as u32;
            Ok(Timings { vision, resampler, prefill, decode })
        })
    }
}
