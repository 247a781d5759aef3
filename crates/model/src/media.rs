//! What the text may look at, as values: the images' keys and values, and who sees which image.
//!
//! Upstream stores this inside every layer (`condition_vis_x`) and guesses from the absence of an image
//! token that decoding is going on. Here it is an argument.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{Bool, Tensor, TensorData, backend::Backend};

use crate::cache::{bytes, select_rows};

/// Keys and values, `[rows, heads, images * num_latents, dim_head]` each.
pub type KeysValues<B> = [Tensor<B, 4>; 2];

/// Keys and values of a batch's images, for each cross-attention block. They do not change while text
/// grows, so they are computed once (upstream recomputes them at each token).
#[derive(Clone, Debug)]
pub struct Media<B: Backend> {
    /// Images that were shown together, in their order.
    parts: Vec<Part<B>>,
    /// Latents an image.
    pub(crate) num_latents: usize,
}

/// Images that lie together.
#[derive(Clone, Debug)]
pub(crate) struct Part<B: Backend> {
    /// For each decoder layer, where it has a block.
    pub(crate) layers: Vec<Option<KeysValues<B>>>,
    /// Images in each row.
    images: usize,
}

/// Tokens that look at images which lie together.
pub(crate) struct Looking<'a, B: Backend> {
    /// Which of those that were asked for.
    pub(crate) tokens: Range<usize>,
    pub(crate) part: Cow<'a, Part<B>>,
    pub(crate) sight: Sight<B>,
}

impl<B: Backend> Media<B> {
    /// Keys and values of `images` images in each row, for each decoder layer with a block.
    pub(crate) fn new(layers: Vec<Option<KeysValues<B>>>, images: usize, num_latents: usize) -> Self {
        Self { parts: vec![Part { layers, images }], num_latents }
    }

    /// Images in each row.
    pub fn images(&self) -> usize {
        self.parts.iter().map(|part| part.images).sum()
    }

    fn rows(&self) -> Option<usize> {
        self.parts.iter().flat_map(|part| part.layers.iter().flatten()).map(|[k, _]| k.dims()[0]).next()
    }

    /// Memory that they take.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| bytes(&part.layers)).sum()
    }

    /// The same with further images behind them: nothing is copied.
    ///
    /// # Panics
    /// If `more` is of another model or has other rows.
    pub fn followed_by(mut self, more: Self) -> Self {
        assert_eq!(self.num_latents, more.num_latents, "images of one model");
        assert_eq!(self.rows(), more.rows(), "images of as many rows");
        self.parts.extend(more.parts);
        self
    }

    /// Row `i` becomes a copy of what was row `rows[i]`; the number of rows may change.
    pub fn select(&mut self, rows: &[usize]) {
        self.parts.iter_mut().for_each(|part| select_rows(part.layers.iter_mut(), rows));
    }

    /// The same, all images lying together, as [`crate::Flamingo::forward`] and models whose text looks at several need them.
    pub fn together(self) -> Self {
        let part = self.whole().into_owned();
        Self { parts: vec![part], ..self }
    }

    /// All images; they are put together where they do not lie so.
    pub(crate) fn whole(&self) -> Cow<'_, Part<B>> {
        if let [part] = &self.parts[..] {
            return Cow::Borrowed(part);
        }
        let join = |layer: usize| {
            let [keys, values] = [0, 1].map(|i| -> Option<Vec<Tensor<B, 4>>> {
                self.parts.iter().map(|part| Some(part.layers[layer].as_ref()?[i].clone())).collect()
            });
            Some([Tensor::cat(keys?, 2), Tensor::cat(values?, 2)])
        };
        let layers = (0..self.parts[0].layers.len()).map(join).collect();
        Cow::Owned(Part { layers, images: self.images() })
    }

    /// What tokens of a text of one row look at. Those that see one image only look at the part that it is in; those before the
    /// first mark look at nothing.
    pub(crate) fn looking(
        &self,
        text_time: &[usize],
        only_immediate: bool,
        like: &Tensor<B, 3>,
    ) -> Vec<Looking<'_, B>> {
        // Marks come in order.
        let first = text_time.iter().take_while(|&&time| time == 0).count();
        let images = self.images();
        if !only_immediate || text_time.last().is_some_and(|&time| time > images) {
            let tokens = first..text_time.len();
            let sight = Sight::new(&text_time[first..], 1, images, self.num_latents, only_immediate, like);
            return if tokens.is_empty() { Vec::new() } else { vec![Looking { tokens, part: self.whole(), sight }] };
        }
        let (mut looking, mut start, mut before) = (Vec::new(), first, 0);
        for part in &self.parts {
            let times = &text_time[start..];
            let own: Vec<usize> =
                times.iter().take_while(|&&time| time <= before + part.images).map(|time| time - before).collect();
            let tokens = start..start + own.len();
            start = tokens.end;
            before += part.images;
            if !tokens.is_empty() {
                let sight = Sight::new(&own, 1, part.images, self.num_latents, only_immediate, like);
                looking.push(Looking { tokens, part: Cow::Borrowed(part), sight });
            }
        }
        looking
    }
}

/// For each token, how many `<image>` marks stand at it or before it.
///
/// ```text
/// ids   Look <image> A cat <eoc> <image> A dog <eoc>
/// time    0     1    1  1    1      2    2  2    2
/// ```
///
/// `seen[row]` marks came before this text (0 at the start of a sequence).
///
/// # Panics
/// If `width` is 0.
pub fn text_time(ids: &[u32], width: usize, image: u32, seen: &[usize]) -> Vec<usize> {
    let mut time = Vec::with_capacity(ids.len());
    for (row, &before) in ids.chunks(width).zip(seen) {
        let mut now = before;
        for &id in row {
            now += usize::from(id == image);
            time.push(now);
        }
    }
    time
}

/// Who sees which image: the masks of one forward pass, shared by all cross-attention blocks.
#[derive(Clone, Debug)]
pub struct Sight<B: Backend> {
    /// `[rows, 1, tokens, images * num_latents]`, true = not seen. `None` where everything is seen.
    pub(crate) hidden: Option<Tensor<B, 4, Bool>>,
    /// `[rows, 1, tokens, 1]`: 0 where attention is uniform over all latents, 1 elsewhere. `None` for all 1.
    pub(crate) sharp: Option<Tensor<B, 4>>,
    /// `[rows, tokens, 1]`: 0 for text before the first image, 1 elsewhere. `None` for all 1.
    pub(crate) sees: Option<Tensor<B, 3>>,
}

impl<B: Backend> Sight<B> {
    /// Masks for tokens with the given `text_time` (row-major), beside `images` images a row.
    ///
    /// A token sees the image of the latest mark (`only_immediate`) or all images up to it. Text before the
    /// first mark sees nothing: its attention is exactly zero. A token past more marks than there are images
    /// sees them all alike: upstream masks every score there to the same finite number, and the softmax of
    /// equal numbers is uniform.
    pub fn new(
        text_time: &[usize],
        rows: usize,
        images: usize,
        num_latents: usize,
        only_immediate: bool,
        like: &Tensor<B, 3>,
    ) -> Self {
        let device = like.device();
        let tokens = text_time.len() / rows;
        let keys = images * num_latents;
        let beyond = |time: usize| only_immediate && time > images;

        let mut hidden = Vec::with_capacity(text_time.len() * keys);
        for &time in text_time {
            for image in 1..=images {
                let sees = match time {
                    0 => true, // zeroed below; hiding every key would divide zero by zero
                    _ if beyond(time) => true,
                    _ if only_immediate => image == time,
                    _ => image <= time,
                };
                hidden.extend(std::iter::repeat_n(!sees, num_latents));
            }
        }
        let factors = |is_zero: &dyn Fn(usize) -> bool| {
            let factors: Vec<f32> = text_time.iter().map(|&time| if is_zero(time) { 0.0 } else { 1.0 }).collect();
            factors.contains(&0.0).then(|| {
                Tensor::<B, 3>::from_data(TensorData::new(factors, [rows, tokens, 1]), (&device, like.dtype()))
            })
        };
        Self {
            sharp: factors(&beyond).map(|x| x.unsqueeze_dim(1)),
            sees: factors(&|time| time == 0),
            hidden: hidden
                .contains(&true)
                .then(|| Tensor::<B, 4, Bool>::from_bool(TensorData::new(hidden, [rows, 1, tokens, keys]), &device)),
        }
    }
}
