//! CLIP's vision transformer, up to the patch tokens that Flamingo reads.
//!
//! Source: open_clip 2.20 `transformer.py`, `VisionTransformer`. Upstream's releases were trained with a
//! version whose `output_tokens` are taken *before* `ln_post`; so are these. `ln_post` and the projection
//! serve only [`VisionTransformer::encode`] (image features for retrieval).

use burn::module::{Initializer, Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};
use flamingo_config::{Activation, VisionConfig};
use flamingo_kernels::{Kernels, attend};

use crate::attention::{merge_heads, split_heads, split_last};
use crate::flamingo::{Observe, Point};
use crate::linear::Linear;
use crate::norm::Norm;
use crate::weight::Init;

/// The vision tower.
#[derive(Module, Debug)]
pub struct VisionTransformer<B: Backend> {
    /// `[width]`.
    pub class_embedding: Param<Tensor<B, 1>>,
    /// `[1 + patches, width]`, the class token first.
    pub position_embedding: Param<Tensor<B, 2>>,
    /// `[width, 3 * patch * patch]`: the patch convolution as a matrix.
    pub patch_embedding: Linear<B>,
    /// Norm before the blocks.
    pub norm_pre: Norm<B>,
    /// The transformer blocks.
    pub blocks: Vec<VisionBlock<B>>,
    /// Norm after the blocks, of the class token only.
    pub norm_post: Norm<B>,
    /// `[output_dim, width]`.
    pub proj: Linear<B>,
    patch_size: usize,
}

/// One pre-norm block.
#[derive(Module, Debug)]
pub struct VisionBlock<B: Backend> {
    /// Norm before the attention.
    pub norm_1: Norm<B>,
    /// Self-attention.
    pub attention: VisionAttention<B>,
    /// Norm before the feed-forward network.
    pub norm_2: Norm<B>,
    /// Feed-forward network.
    pub mlp: VisionMlp<B>,
}

/// Self-attention over all tokens.
#[derive(Module, Debug)]
pub struct VisionAttention<B: Backend> {
    /// `[3 * width, width]`: queries, keys, values.
    pub qkv: Linear<B>,
    /// `[width, width]`.
    pub out: Linear<B>,
    heads: usize,
}

/// Linear, activation, linear.
#[derive(Module, Debug)]
pub struct VisionMlp<B: Backend> {
    /// `[mlp_width, width]`.
    pub up: Linear<B>,
    /// `[width, mlp_width]`.
    pub down: Linear<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Kernels> VisionTransformer<B> {
    /// A tower with random weights.
    pub fn new(config: &VisionConfig, init: &Init<B>) -> Self {
        let width = config.width;
        let normal = Initializer::Normal { mean: 0.0, std: (width as f64).powf(-0.5) };
        Self {
            class_embedding: normal.init([width], &init.device),
            position_embedding: normal.init([config.patches() + 1, width], &init.device),
            patch_embedding: Linear::new(3 * config.patch_size * config.patch_size, width, false, init),
            norm_pre: Norm::layer(width, true, 1e-5, &init.device),
            blocks: (0..config.layers).map(|_| VisionBlock::new(config, init)).collect(),
            norm_post: Norm::layer(width, true, 1e-5, &init.device),
            proj: Linear::new(width, config.output_dim, false, init),
            patch_size: config.patch_size,
        }
    }

    /// Patch tokens before `ln_post`: `[images, 3, side, side]` to `[images, patches, width]`.
    pub fn forward(&self, pixels: Tensor<B, 4>, observe: Observe<B>) -> Tensor<B, 3> {
        let x = self.tokens(pixels, None, observe);
        let tokens = x.dims()[1];
        x.narrow(1, 1, tokens - 1)
    }

    /// Features in the joint image-text space (`encode_image`, not normalised): `[images, output_dim]`.
    pub fn encode(&self, pixels: Tensor<B, 4>, observe: Observe<B>) -> Tensor<B, 2> {
        self.project(self.tokens(pixels, None, observe).narrow(1, 0, 1))
    }

    /// Takes one token of each picture, `[images, 1, width]`, into the joint space: `[images, output_dim]`.
    pub(crate) fn project(&self, token: Tensor<B, 3>) -> Tensor<B, 2> {
        self.proj.forward(self.norm_post.forward(token.squeeze_dim(1)))
    }

    /// All tokens after the blocks, the class token first: `[images, 1 + patches, width]`. Of some patches only where
    /// `kept` says so (open_clip's patch dropout, arXiv 2212.00794): it numbers the patches of all pictures through,
    /// equally many of each picture, in order.
    pub(crate) fn tokens(&self, pixels: Tensor<B, 4>, kept: Option<&[i32]>, observe: Observe<B>) -> Tensor<B, 3> {
        let mut patches = self.patches(pixels);
        let [images, count, values] = patches.dims();
        let mut positions: Tensor<B, 3> = self.position_embedding.val().unsqueeze();
        if let Some(kept) = kept {
            let device = patches.device();
            let each = kept.len() / images;
            let rows = Tensor::<B, 1, Int>::from_ints(kept, &device);
            patches = patches.reshape([images * count, values]).select(0, rows).reshape([images, each, values]);
            // Row 0 is the class token's.
            let of_image = |kept: &[i32]| [0].into_iter().chain(kept.iter().map(|k| 1 + k % count as i32)).collect();
            let rows: Vec<i32> = kept.chunks(each).flat_map(|kept| -> Vec<i32> { of_image(kept) }).collect();
            let rows = Tensor::<B, 1, Int>::from_ints(rows.as_slice(), &device);
            positions = self.position_embedding.val().select(0, rows).reshape([images as i32, each as i32 + 1, -1]);
        }
        let patches = self.patch_embedding.forward(patches);
        let width = patches.dims()[2];
        let class = self.class_embedding.val().cast(patches.dtype()).reshape([1, 1, width]).expand([images, 1, width]);
        let x = Tensor::cat(vec![class, patches], 1);
        let x = x.clone() + positions.cast(x.dtype());
        let mut x = self.norm_pre.forward(x);
        observe(Point::VisionNormPre, &x);
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(x);
            observe(Point::VisionBlock(i), &x);
        }
        x
    }

    /// Cuts pictures into rows of pixels: `[images, 3, side, side]` to `[images, patches, 3 * patch * patch]`.
    fn patches(&self, pixels: Tensor<B, 4>) -> Tensor<B, 3> {
        let [images, channels, height, width] = pixels.dims();
        let p = self.patch_size;
        let (rows, columns) = (height / p, width / p);
        pixels.reshape([images, channels, rows, p, columns, p]).permute([0, 2, 4, 1, 3, 5]).reshape([
            images,
            rows * columns,
            channels * p * p,
        ])
    }
}

impl<B: Kernels> VisionBlock<B> {
    fn new(config: &VisionConfig, init: &Init<B>) -> Self {
        let width = config.width;
        Self {
            norm_1: Norm::layer(width, true, 1e-5, &init.device),
            attention: VisionAttention {
                qkv: Linear::new(width, 3 * width, true, init),
                out: Linear::new(width, width, true, init),
                heads: config.heads,
            },
            norm_2: Norm::layer(width, true, 1e-5, &init.device),
            mlp: VisionMlp {
                up: Linear::new(width, config.mlp_width, true, init),
                down: Linear::new(config.mlp_width, width, true, init),
                activation: config.activation,
            },
        }
    }

    fn forward(&self, x: Tensor<B, 3>) -> Tensor<B, 3> {
        let x = self.attention.added(self.norm_1.forward(x.clone()), x);
        let hidden = self.mlp.up.activated(self.norm_2.forward(x.clone()), self.mlp.activation);
        self.mlp.down.added(hidden, x)
    }
}

impl<B: Kernels> VisionAttention<B> {
    /// Attention within `x`, added to `to`.
    fn added(&self, x: Tensor<B, 3>, to: Tensor<B, 3>) -> Tensor<B, 3> {
        let [q, k, v] = split_last(self.qkv.forward(x)).map(|part| split_heads(part, self.heads));
        let scale = 1.0 / (q.dims()[3] as f64).sqrt();
        self.out.added(merge_heads(attend(q, k, v, scale, None, None)), to)
    }
}
