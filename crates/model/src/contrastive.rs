//! Contrastive image-text pre-training of the vision tower (CLIP, arXiv 2103.00020, section 2.3).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};
use flamingo_config::{ModelConfig, TextTowerConfig};
use flamingo_kernels::{Kernels, cross_entropy, product};

use crate::decoder::{Context, Decoder, Past};
use crate::flamingo::ignore;
use crate::linear::Linear;
use crate::text::Text;
use crate::vision::VisionTransformer;
use crate::weight::Init;

/// Largest factor of the similarities, as in CLIP.
const MAX_SCALE: f64 = 100.0;

/// A vision tower and a text tower that learn to tell which caption belongs to which picture.
#[derive(Module, Debug)]
pub struct Contrastive<B: Backend> {
    /// The tower that is kept.
    pub vision: VisionTransformer<B>,
    /// A causal transformer whose last token stands for the text.
    pub text: Decoder<B>,
    /// `[output_dim, d_model]`.
    pub text_projection: Linear<B>,
    /// `[1]`: the logarithm of the similarities' factor.
    pub logit_scale: Param<Tensor<B, 1>>,
}

impl<B: Kernels> Contrastive<B> {
    /// Towers with random weights; the vision tower is that of `config`.
    pub fn new(config: &ModelConfig, text: &TextTowerConfig, device: &B::Device) -> Self {
        let init = &Init::plain(device);
        let a = text.decoder.architecture();
        Self {
            vision: VisionTransformer::new(&config.vision, init),
            text_projection: Linear::new(a.embed_dim, config.vision.output_dim, false, init),
            text: Decoder::new(&a, &config.tokens, init),
            logit_scale: Initializer::Constant { value: (1.0f64 / 0.07).ln() }.init([1], device),
        }
    }

    /// How far captions are from their pictures: row `i` of the text belongs to picture `i` of `[rows, 3, side, side]`,
    /// of which only the patches `kept` are looked at (see the tower's `tokens`).
    ///
    /// CLIP compares texts with the class token alone and so teaches nothing to the patch tokens of the last block, which
    /// are all that Flamingo reads. `patch_loss` is the share of the loss that compares with the patch tokens' mean.
    pub fn loss(&self, pixels: Tensor<B, 4>, kept: Option<&[i32]>, text: &Text, patch_loss: f64) -> Tensor<B, 1> {
        let tokens = self.vision.tokens(pixels, kept, &mut ignore);
        let texts = unit(self.text_features(text));
        let compare = |token: Tensor<B, 3>| self.both_ways(unit(self.vision.project(token)), texts.clone());
        let patches = tokens.dims()[1] - 1;
        let class = || compare(tokens.clone().narrow(1, 0, 1));
        let mean = || compare(tokens.clone().narrow(1, 1, patches).mean_dim(1));
        if patch_loss == 0.0 { class() } else { class() * (1.0 - patch_loss) + mean() * patch_loss }
    }

    /// The mean of both directions' cross-entropies of pictures and texts, both `[rows, output_dim]`.
    fn both_ways(&self, pictures: Tensor<B, 2>, texts: Tensor<B, 2>) -> Tensor<B, 1> {
        let own: Vec<i32> = (0..pictures.dims()[0] as i32).collect();
        let scale = self.logit_scale.val().exp().clamp_max(MAX_SCALE);
        let similarities = product(pictures, texts.transpose()) * scale.unsqueeze();
        let of_texts = cross_entropy(similarities.clone().transpose(), &own);
        (cross_entropy(similarities, &own) + of_texts) * 0.5
    }

    /// `[rows, output_dim]`.
    fn text_features(&self, text: &Text) -> Tensor<B, 2> {
        let mut x = self.text.embed(text, None);
        let keep: Vec<Vec<bool>> = text.keep.chunks(text.width).map(<[bool]>::to_vec).collect();
        let context = Context::new(self.text.architecture(), &keep, 0, text.width, false, &x);
        for block in &self.text.blocks {
            x = block.forward(x, &mut Past::Alike { context: &context, cache: None });
        }
        let [rows, width, dim] = x.dims();
        let last = |(row, keep): (usize, &Vec<bool>)| {
            (row * width + keep.iter().rposition(|&keep| keep).unwrap_or(width - 1)) as i32
        };
        let last: Vec<i32> = keep.iter().enumerate().map(last).collect();
        let last = Tensor::<B, 1, Int>::from_ints(last.as_slice(), &x.device());
        let x = x.reshape([rows * width, dim]).select(0, last);
        self.text_projection.forward(self.text.finish(x.unsqueeze())).squeeze_dim(0)
    }
}

/// Rows of length 1.
fn unit<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2> {
    let length = (x.clone() * x.clone()).sum_dim(1).sqrt().clamp_min(1e-8);
    x / length
}
