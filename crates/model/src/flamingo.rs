//! The composition: vision, resampler, cross-attention and decoder.

use burn::module::Module;
use burn::tensor::{DType, Int, Tensor, backend::Backend};
use flamingo_config::ModelConfig;
use flamingo_kernels::{Kernels, product};

use crate::cache::Cache;
use crate::cross_attention::{GatedCrossAttention, Look};
use crate::decoder::{Context, Decoder, Past, Rotary};
use crate::media::{Looking, Media, Part, Sight, text_time};
use crate::resampler::Resampler;
use crate::text::Text;
use crate::vision::VisionTransformer;
use crate::weight::Init;

/// A place whose output can be observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// The vision tower's tokens before its blocks, `[images, 1 + patches, width]`.
    VisionNormPre,
    /// After a block of the vision tower, same shape.
    VisionBlock(usize),
    /// After the cross-attention block before a decoder layer, `[rows, tokens, d_model]`.
    CrossAttention(usize),
    /// After a decoder layer, same shape.
    DecoderLayer(usize),
}

/// Sees intermediate outputs as they are made.
pub type Observe<'a, B> = &'a mut dyn FnMut(Point, &Tensor<B, 3>);

/// An observer that looks away.
pub fn ignore<B: Backend>(_: Point, _: &Tensor<B, 3>) {}

/// OpenFlamingo (arXiv 2308.01390).
#[derive(Module, Debug)]
pub struct Flamingo<B: Backend> {
    /// CLIP's vision tower, frozen.
    pub vision: VisionTransformer<B>,
    /// The Perceiver resampler.
    pub resampler: Resampler<B>,
    /// For each decoder layer, the gated cross-attention block before it, where there is one.
    pub cross_attention: Vec<Option<GatedCrossAttention<B>>>,
    /// The language model, frozen but for its added embeddings.
    pub decoder: Decoder<B>,
    image_id: usize,
    only_attend_immediate_media: bool,
    /// The dtype that text is computed in, where weights have several: in training, those that train stay f32.
    #[module(skip)]
    pub compute: Option<DType>,
}

/// A text's turn in [`Flamingo::forward_each`].
pub struct Turn<'a, B: Backend> {
    /// The tokens that come next.
    pub ids: &'a [u32],
    /// For each of them, how many `<image>` marks the text has seen, itself counted: where it looks.
    pub times: Vec<usize>,
    /// The text's pictures.
    pub media: Option<&'a Media<B>>,
    /// The text before these tokens, one row.
    pub cache: &'a mut Cache<B>,
}

/// What the cross-attention block before layer `layer` looks at, and who sees which part of it.
fn look<'a, B: Backend>(layer: usize, media: Option<&'a Part<B>>, sight: Option<&'a Sight<B>>) -> Look<'a, B> {
    media.and_then(|media| media.layers[layer].as_ref()).zip(sight)
}

/// Masks and positions of a batch, shared by all layers.
pub struct Conditions<B: Backend> {
    context: Context<B>,
    sight: Option<Sight<B>>,
}

impl<B: Kernels> Flamingo<B> {
    /// A model with random weights, initialised at first use.
    pub fn new(config: &ModelConfig, init: &Init<B>) -> Self {
        let a = config.decoder.architecture();
        let x = &config.cross_attention;
        let block = |layer| {
            x.has_block(layer)
                .then(|| GatedCrossAttention::new(x, a.d_model, config.vision.width, &init.of("cross_attention")))
        };
        Self {
            vision: VisionTransformer::new(&config.vision, &init.of("vision")),
            resampler: Resampler::new(&config.resampler, config.vision.width, &init.of("resampler")),
            cross_attention: (0..a.n_layers).map(block).collect(),
            decoder: Decoder::new(&a, &config.tokens, init),
            image_id: config.tokens.image as usize,
            only_attend_immediate_media: x.only_attend_immediate_media,
            compute: None,
        }
    }

    /// Patch tokens of images: `[batch, images, frames, 3, side, side]` to
    /// `[batch, images, frames, patches, width]`.
    pub fn see(&self, pixels: Tensor<B, 6>, observe: Observe<B>) -> Tensor<B, 5> {
        let [batch, images, frames, channels, height, width] = pixels.dims();
        let tokens = self.vision.forward(pixels.reshape([batch * images * frames, channels, height, width]), observe);
        let [_, patches, dim] = tokens.dims();
        tokens.reshape([batch, images, frames, patches, dim])
    }

    /// What the text may look at: latents `[batch, images, num_latents, width]` as each block's keys and
    /// values.
    pub fn media(&self, latents: Tensor<B, 4>) -> Media<B> {
        let [batch, images, num_latents, width] = latents.dims();
        let latents = latents.reshape([batch, images * num_latents, width]);
        let keys_values =
            |block: &Option<GatedCrossAttention<B>>| block.as_ref().map(|b| b.keys_values(latents.clone()));
        Media::new(self.cross_attention.iter().map(keys_values).collect(), images, num_latents)
    }

    /// Embeddings of a batch of text, `[rows, width, d_model]`, in the dtype that text is computed in.
    pub fn embed(&self, text: &Text) -> Tensor<B, 3> {
        self.decoder.embed(text, self.compute)
    }

    fn sight(&self, text: &Text, marks: &[usize], images: usize, num_latents: usize, like: &Tensor<B, 3>) -> Sight<B> {
        let time = text_time(&text.ids, text.width, self.image_id as u32, marks);
        Sight::new(&time, text.rows, images, num_latents, self.only_attend_immediate_media, like)
    }

    /// Latents of a batch whose pictures may repeat: patch tokens of distinct pictures, `[distinct, 1, 1, patches,
    /// width]`, and which of them stands at each place of `rows * images`. Gives `[rows, images, num_latents, width]`.
    pub fn latents(&self, tokens: Tensor<B, 5>, places: &[i32], images: usize) -> Tensor<B, 4> {
        let latents = self.resampler.forward(tokens, 0);
        let [distinct, _, num_latents, width] = latents.dims();
        let index = Tensor::<B, 1, Int>::from_ints(places, &latents.device());
        let latents = latents.reshape([distinct, num_latents * width]).select(0, index);
        latents.reshape([places.len() / images, images, num_latents, width])
    }

    /// What every layer needs to know about a batch that is read from its start, without a cache; `like` is its
    /// embeddings, `latents` its pictures'.
    pub fn conditions(&self, text: &Text, latents: Option<&Tensor<B, 4>>, like: &Tensor<B, 3>) -> Conditions<B> {
        let keep: Vec<Vec<bool>> = text.keep.chunks(text.width).map(<[bool]>::to_vec).collect();
        let context = Context::new(self.decoder.architecture(), &keep, 0, text.width, text.upstream_padding, like);
        let sight = latents.map(|latents| {
            let [rows, images, num_latents, _] = latents.dims();
            self.sight(text, &vec![0; rows], images, num_latents, like)
        });
        Conditions { context, sight }
    }

    /// One layer: cross-attention to the latents, where there is some, and the decoder's block. All layers in turn are
    /// [`Flamingo::forward`].
    pub fn layer(
        &self,
        layer: usize,
        x: Tensor<B, 3>,
        latents: Option<&Tensor<B, 4>>,
        conditions: &Conditions<B>,
    ) -> Tensor<B, 3> {
        let x = match &self.cross_attention[layer] {
            None => x,
            Some(block) => {
                let keys_values = latents.map(|latents| {
                    let [rows, images, num_latents, width] = latents.dims();
                    block.keys_values(latents.clone().reshape([rows, images * num_latents, width]))
                });
                block.forward(x, keys_values.as_ref().zip(conditions.sight.as_ref()))
            }
        };
        self.decoder.blocks[layer].forward(x, &mut Past::Alike { context: &conditions.context, cache: None })
    }

    /// Hidden states of a batch of text: `[rows, width, d_model]`; [`Decoder::logits`] of
    /// [`Flamingo::decoder`] turns any of them into logits.
    ///
    /// `marks[row]` is the number of `<image>` marks before this text: 0 at the start of a sequence. With a
    /// `cache` the text continues what is cached there.
    ///
    /// # Panics
    /// If `text`, `marks`, `media` and `cache` disagree on the number of rows.
    pub fn forward(
        &self,
        text: &Text,
        marks: &[usize],
        media: Option<&Media<B>>,
        mut cache: Option<&mut Cache<B>>,
        observe: Observe<B>,
    ) -> Tensor<B, 3> {
        assert_eq!(text.rows, marks.len(), "one count of marks a row");
        let mut x = self.embed(text);
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let context = match &mut cache {
            Some(cache) => {
                cache.announce(&text.keep, text.width);
                Context::new(self.decoder.architecture(), cache.keep(), start, text.width, text.upstream_padding, &x)
            }
            None => {
                let keep: Vec<Vec<bool>> = text.keep.chunks(text.width).map(<[bool]>::to_vec).collect();
                Context::new(self.decoder.architecture(), &keep, 0, text.width, text.upstream_padding, &x)
            }
        };
        let sight = media.map(|media| self.sight(text, marks, media.images(), media.num_latents, &x));
        let media = media.map(Media::whole);

        let mut past = Past::Alike { context: &context, cache };
        for (i, block) in self.decoder.blocks.iter().enumerate() {
            if let Some(cross_attention) = &self.cross_attention[i] {
                x = cross_attention.forward(x, look(i, media.as_deref(), sight.as_ref()));
                observe(Point::CrossAttention(i), &x);
            }
            x = block.forward(x, &mut past);
            observe(Point::DecoderLayer(i), &x);
        }
        x
    }

    /// Where text looks: for each of its tokens the share of its attention that each patch of each image gets,
    /// `[rows, tokens, images, patches]`, the mean of all heads and cross-attention blocks. `tokens` is
    /// `[1, images, 1, patches, width]`, as [`Flamingo::see`] gives it; `text` is one row.
    ///
    /// Text looks at latents; what those are made of is [attention rollout](https://arxiv.org/abs/2005.00928) through the
    /// resampler. That the tower's patches have seen each other is not taken into account.
    pub fn attention_maps(&self, text: &Text, tokens: Tensor<B, 5>) -> Tensor<B, 4> {
        let made_of = self.resampler.rollout(tokens.clone());
        let latents = self.resampler.forward(tokens, 0);
        let [rows, images, num_latents, width] = latents.dims();
        let mut x = self.embed(text);
        let conditions = self.conditions(text, Some(&latents), &x);
        let mut looks: Vec<Tensor<B, 3>> = Vec::new();
        for layer in 0..self.decoder.blocks.len() {
            if let (Some(block), Some(sight)) = (&self.cross_attention[layer], &conditions.sight) {
                let latents = latents.clone().reshape([rows, images * num_latents, width]);
                looks.push(block.attention.weights(x.clone(), &block.keys_values(latents), sight));
            }
            x = self.layer(layer, x, Some(&latents), &conditions);
        }
        let count = looks.len() as f64;
        let sum = looks.into_iter().reduce(|sum, more| sum + more).expect("a model with cross-attention");
        // [images, tokens, latents] times what an image's latents are made of.
        let of_latents = (sum / count).reshape([text.width, images, num_latents]).swap_dims(0, 1);
        product(of_latents, made_of.cast(DType::F32)).swap_dims(0, 1).unsqueeze()
    }

    /// A few tokens more in each of several texts, each at its own place: hidden states of all, one text after the other,
    /// `[1, tokens, d_model]`. Linear layers take all tokens together; each text's attention is computed as if it were alone, so
    /// that up to [`Kernels::ROWS_ALIKE`] tokens get the very numbers that they get without the other texts.
    pub fn forward_each(&self, turns: &mut [Turn<B>]) -> Tensor<B, 3> {
        let ids: Vec<u32> = turns.iter().flat_map(|turn| turn.ids).copied().collect();
        let positions = turns.iter().flat_map(|turn| (turn.cache.kept()[0] as u32..).take(turn.ids.len())).collect();
        let places: Vec<usize> = turns.iter().flat_map(|turn| (turn.cache.len()..).take(turn.ids.len())).collect();
        let width = ids.len();
        let text = Text { rows: 1, width, ids, keep: vec![true; width], positions, upstream_padding: false };
        let mut x = self.embed(&text);

        let architecture = self.decoder.architecture();
        let rotary = Rotary::new(architecture, places.into_iter(), &x);
        let mut conditions = Vec::with_capacity(turns.len());
        let mut first = 0;
        for turn in turns.iter_mut() {
            let (start, count) = (turn.cache.len(), turn.ids.len());
            turn.cache.announce(&vec![true; count], count);
            let context = Context::masks(architecture, turn.cache.keep(), start, count, false, &x);
            let only_immediate = self.only_attend_immediate_media;
            let looking = turn.media.map(|media| media.looking(&turn.times, only_immediate, &x)).unwrap_or_default();
            conditions.push((context, first, looking));
            first += count;
        }
        let each = turns.iter_mut().zip(&conditions);
        let texts = each.map(|(turn, (context, ..))| (turn.ids.len(), context, &mut *turn.cache)).collect();
        let mut past = Past::Each { rotary: rotary.as_ref(), texts };
        for (i, block) in self.decoder.blocks.iter().enumerate() {
            if let Some(cross_attention) = &self.cross_attention[i] {
                let looks = conditions.iter().flat_map(|(_, first, looking)| {
                    looking.iter().filter_map(move |Looking { tokens, part, sight }| {
                        Some((first + tokens.start..first + tokens.end, part.layers[i].as_ref()?, sight))
                    })
                });
                x = cross_attention.forward_each(x, &looks.collect::<Vec<_>>());
            }
            x = block.forward(x, &mut past);
        }
        x
    }
}
