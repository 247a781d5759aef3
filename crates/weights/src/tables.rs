//! Which source tensors become which of ours: one table a layout.
//!
//! `{}` stands for a layer number, a trailing `*` for `weight` or `bias`; both are carried over from our name to
//! the sources. Names are matched whole, so the order of rows never matters. A bias that a model does not
//! have is not asked for: [`crate::layout()`] says what is.

use flamingo_config::DecoderConfig;

/// One row of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Our tensor.
    pub(crate) target: &'static str,
    /// What it is made of.
    pub(crate) sources: &'static [&'static str],
    /// How.
    pub(crate) how: How,
}

/// What happens to the sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Rows one source after the other.
    Copy,
    /// The same numbers under another shape.
    Reshape,
    /// A matrix, transposed.
    Transpose,
    /// Rows that alternate between q, k and v of each head, sorted into all q, all k, all v.
    PerHead,
}

/// The names of one source layout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) rows: &'static [&'static [Row]],
    /// Known tensors that no part of the model uses. A trailing `**` stands for anything.
    pub(crate) drop: &'static [&'static str],
}

const fn copy(target: &'static str, sources: &'static [&'static str]) -> Row {
    Row { target, sources, how: How::Copy }
}

const fn row(how: How, target: &'static str, sources: &'static [&'static str]) -> Row {
    Row { target, sources, how }
}

/// OpenAI's and open_clip's names.
pub(crate) const CLIP: Table = Table {
    rows: &[&[
        copy("vision.class_embedding", &["visual.class_embedding"]),
        copy("vision.position_embedding", &["visual.positional_embedding"]),
        row(How::Reshape, "vision.patch_embedding.weight", &["visual.conv1.weight"]),
        copy("vision.norm_pre.*", &["visual.ln_pre.*"]),
        copy("vision.blocks.{}.norm_1.*", &["visual.transformer.resblocks.{}.ln_1.*"]),
        copy("vision.blocks.{}.attention.qkv.*", &["visual.transformer.resblocks.{}.attn.in_proj_*"]),
        copy("vision.blocks.{}.attention.out.*", &["visual.transformer.resblocks.{}.attn.out_proj.*"]),
        copy("vision.blocks.{}.norm_2.*", &["visual.transformer.resblocks.{}.ln_2.*"]),
        copy("vision.blocks.{}.mlp.up.*", &["visual.transformer.resblocks.{}.mlp.c_fc.*"]),
        copy("vision.blocks.{}.mlp.down.*", &["visual.transformer.resblocks.{}.mlp.c_proj.*"]),
        copy("vision.norm_post.*", &["visual.ln_post.*"]),
        row(How::Transpose, "vision.proj.weight", &["visual.proj"]),
    ]],
    drop: &[
        "transformer.**",
        "text.**",
        "token_embedding.weight",
        "positional_embedding",
        "ln_final.*",
        "text_projection",
        "text_projection.*",
        "logit_scale",
        "logit_bias",
        "attn_mask",
        "input_resolution",
        "context_length",
        "vocab_size",
    ],
};

/// Hugging Face's `CLIPModel` and `CLIPVisionModelWithProjection`.
pub(crate) const CLIP_HF: Table = Table {
    rows: &[&[
        copy("vision.class_embedding", &["vision_model.embeddings.class_embedding"]),
        copy("vision.position_embedding", &["vision_model.embeddings.position_embedding.weight"]),
        row(How::Reshape, "vision.patch_embedding.weight", &["vision_model.embeddings.patch_embedding.weight"]),
        // The misspelling is theirs.
        copy("vision.norm_pre.*", &["vision_model.pre_layrnorm.*"]),
        copy("vision.blocks.{}.norm_1.*", &["vision_model.encoder.layers.{}.layer_norm1.*"]),
        copy(
            "vision.blocks.{}.attention.qkv.*",
            &[
                "vision_model.encoder.layers.{}.self_attn.q_proj.*",
                "vision_model.encoder.layers.{}.self_attn.k_proj.*",
                "vision_model.encoder.layers.{}.self_attn.v_proj.*",
            ],
        ),
        copy("vision.blocks.{}.attention.out.*", &["vision_model.encoder.layers.{}.self_attn.out_proj.*"]),
        copy("vision.blocks.{}.norm_2.*", &["vision_model.encoder.layers.{}.layer_norm2.*"]),
        copy("vision.blocks.{}.mlp.up.*", &["vision_model.encoder.layers.{}.mlp.fc1.*"]),
        copy("vision.blocks.{}.mlp.down.*", &["vision_model.encoder.layers.{}.mlp.fc2.*"]),
        copy("vision.norm_post.*", &["vision_model.post_layernorm.*"]),
        copy("vision.proj.weight", &["visual_projection.weight"]),
    ]],
    drop: &["text_model.**", "text_projection.weight", "logit_scale", "vision_model.embeddings.position_ids"],
};

/// OpenFlamingo's own modules. Gated blocks stand under the decoder's path in the released files and under
/// `gated_cross_attn_layers` in the first ones; both are renamed to `gated.{}` before this table is read.
pub(crate) const FLAMINGO: Table = Table {
    rows: &[&[
        copy("resampler.latents", &["perceiver.latents"]),
        copy("resampler.frame_embeddings", &["perceiver.frame_embs"]),
        row(How::Reshape, "resampler.media_time_embeddings", &["perceiver.media_time_embs"]),
        copy("resampler.layers.{}.attention.norm_media.*", &["perceiver.layers.{}.0.norm_media.*"]),
        copy("resampler.layers.{}.attention.norm_latents.*", &["perceiver.layers.{}.0.norm_latents.*"]),
        copy("resampler.layers.{}.attention.to_q.*", &["perceiver.layers.{}.0.to_q.*"]),
        copy("resampler.layers.{}.attention.to_kv.*", &["perceiver.layers.{}.0.to_kv.*"]),
        copy("resampler.layers.{}.attention.to_out.*", &["perceiver.layers.{}.0.to_out.*"]),
        copy("resampler.layers.{}.feed_forward.norm.*", &["perceiver.layers.{}.1.0.*"]),
        copy("resampler.layers.{}.feed_forward.up.*", &["perceiver.layers.{}.1.1.*"]),
        copy("resampler.layers.{}.feed_forward.down.*", &["perceiver.layers.{}.1.3.*"]),
        copy("resampler.norm.*", &["perceiver.norm.*"]),
        copy("cross_attention.{}.attention.norm.*", &["gated.{}.attn.norm.*"]),
        copy("cross_attention.{}.attention.to_q.*", &["gated.{}.attn.to_q.*"]),
        copy("cross_attention.{}.attention.to_kv.*", &["gated.{}.attn.to_kv.*"]),
        copy("cross_attention.{}.attention.to_out.*", &["gated.{}.attn.to_out.*"]),
        copy("cross_attention.{}.attention_gate", &["gated.{}.attn_gate"]),
        copy("cross_attention.{}.feed_forward.norm.*", &["gated.{}.ff.0.*"]),
        copy("cross_attention.{}.feed_forward.up.*", &["gated.{}.ff.1.*"]),
        copy("cross_attention.{}.feed_forward.down.*", &["gated.{}.ff.3.*"]),
        copy("cross_attention.{}.feed_forward_gate", &["gated.{}.ff_gate"]),
    ]],
    // CLIP comes from its own file.
    drop: &["vision_encoder.**"],
};

/// A language model's names beside its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecoderTable {
    pub(crate) table: Table,
    /// Path of the blocks, as upstream's checkpoint spells it.
    pub(crate) blocks: &'static str,
    /// Prefixes that some files leave out, longest first.
    pub(crate) prefixes: &'static [&'static str],
    /// The embedding table, cut into base and added rows.
    pub(crate) embedding: &'static str,
    /// The output head; for tied models a duplicate of the embedding, dropped.
    pub(crate) head: &'static str,
}

const GPT_BUFFERS: [&str; 2] = ["transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias"];

/// MPT-1B, April 2023.
const MOSAIC_GPT: DecoderTable = DecoderTable {
    table: Table {
        rows: &[&[
            copy("decoder.blocks.{}.norm_1.*", &["transformer.blocks.{}.ln_1.*"]),
            copy("decoder.blocks.{}.attention.qkv.*", &["transformer.blocks.{}.attn.Wqkv.*"]),
            copy("decoder.blocks.{}.attention.q_norm.*", &["transformer.blocks.{}.attn.q_ln.*"]),
            copy("decoder.blocks.{}.attention.k_norm.*", &["transformer.blocks.{}.attn.k_ln.*"]),
            copy("decoder.blocks.{}.attention.out.*", &["transformer.blocks.{}.attn.out_proj.*"]),
            copy("decoder.blocks.{}.norm_2.*", &["transformer.blocks.{}.ln_2.*"]),
            copy("decoder.blocks.{}.mlp.up.*", &["transformer.blocks.{}.mlp.mlp_up.*"]),
            copy("decoder.blocks.{}.mlp.down.*", &["transformer.blocks.{}.mlp.mlp_down.*"]),
            copy("decoder.norm.*", &["transformer.ln_f.*"]),
        ]],
        drop: &["transformer.attn_bias"],
    },
    blocks: "transformer.blocks",
    prefixes: &["transformer."],
    embedding: "transformer.wte.weight",
    head: "lm_head.weight",
};

const MPT: DecoderTable = DecoderTable {
    table: Table {
        rows: &[&[
            copy("decoder.blocks.{}.norm_1.*", &["transformer.blocks.{}.norm_1.*"]),
            copy("decoder.blocks.{}.attention.qkv.*", &["transformer.blocks.{}.attn.Wqkv.*"]),
            copy("decoder.blocks.{}.attention.q_norm.*", &["transformer.blocks.{}.attn.q_ln.*"]),
            copy("decoder.blocks.{}.attention.k_norm.*", &["transformer.blocks.{}.attn.k_ln.*"]),
            copy("decoder.blocks.{}.attention.out.*", &["transformer.blocks.{}.attn.out_proj.*"]),
            copy("decoder.blocks.{}.norm_2.*", &["transformer.blocks.{}.norm_2.*"]),
            copy("decoder.blocks.{}.mlp.up.*", &["transformer.blocks.{}.ffn.up_proj.*"]),
            copy("decoder.blocks.{}.mlp.down.*", &["transformer.blocks.{}.ffn.down_proj.*"]),
            copy("decoder.norm.*", &["transformer.norm_f.*"]),
        ]],
        drop: &["transformer.attn_bias"],
    },
    ..MOSAIC_GPT
};

const GPT_NEOX: DecoderTable = DecoderTable {
    table: Table {
        rows: &[&[
            copy("decoder.blocks.{}.norm_1.*", &["gpt_neox.layers.{}.input_layernorm.*"]),
            row(How::PerHead, "decoder.blocks.{}.attention.qkv.*", &["gpt_neox.layers.{}.attention.query_key_value.*"]),
            copy("decoder.blocks.{}.attention.out.*", &["gpt_neox.layers.{}.attention.dense.*"]),
            copy("decoder.blocks.{}.norm_2.*", &["gpt_neox.layers.{}.post_attention_layernorm.*"]),
            copy("decoder.blocks.{}.mlp.up.*", &["gpt_neox.layers.{}.mlp.dense_h_to_4h.*"]),
            copy("decoder.blocks.{}.mlp.down.*", &["gpt_neox.layers.{}.mlp.dense_4h_to_h.*"]),
            copy("decoder.norm.*", &["gpt_neox.final_layer_norm.*"]),
        ]],
        // Buffers: rotary frequencies, causal masks.
        drop: &[
            "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
            "gpt_neox.layers.{}.attention.bias",
            "gpt_neox.layers.{}.attention.masked_bias",
        ],
    },
    blocks: "gpt_neox.layers",
    prefixes: &["gpt_neox."],
    embedding: "gpt_neox.embed_in.weight",
    head: "embed_out.weight",
};

const OPT: DecoderTable = DecoderTable {
    table: Table {
        rows: &[&[
            copy("decoder.position_embedding", &["model.decoder.embed_positions.weight"]),
            copy("decoder.project_in.*", &["model.decoder.project_in.*"]),
            copy("decoder.project_out.*", &["model.decoder.project_out.*"]),
            copy("decoder.blocks.{}.norm_1.*", &["model.decoder.layers.{}.self_attn_layer_norm.*"]),
            copy(
                "decoder.blocks.{}.attention.qkv.*",
                &[
                    "model.decoder.layers.{}.self_attn.q_proj.*",
                    "model.decoder.layers.{}.self_attn.k_proj.*",
                    "model.decoder.layers.{}.self_attn.v_proj.*",
                ],
            ),
            copy("decoder.blocks.{}.attention.out.*", &["model.decoder.layers.{}.self_attn.out_proj.*"]),
            copy("decoder.blocks.{}.norm_2.*", &["model.decoder.layers.{}.final_layer_norm.*"]),
            copy("decoder.blocks.{}.mlp.up.*", &["model.decoder.layers.{}.fc1.*"]),
            copy("decoder.blocks.{}.mlp.down.*", &["model.decoder.layers.{}.fc2.*"]),
            copy("decoder.norm.*", &["model.decoder.final_layer_norm.*"]),
        ]],
        drop: &["model.decoder.version"],
    },
    blocks: "model.decoder.layers",
    prefixes: &["model.decoder.", "model."],
    embedding: "model.decoder.embed_tokens.weight",
    head: "lm_head.weight",
};

const LLAMA: DecoderTable = DecoderTable {
    table: Table {
        rows: &[&[
            copy("decoder.blocks.{}.norm_1.*", &["model.layers.{}.input_layernorm.*"]),
            copy(
                "decoder.blocks.{}.attention.qkv.*",
                &[
                    "model.layers.{}.self_attn.q_proj.*",
                    "model.layers.{}.self_attn.k_proj.*",
                    "model.layers.{}.self_attn.v_proj.*",
                ],
            ),
            copy("decoder.blocks.{}.attention.out.*", &["model.layers.{}.self_attn.o_proj.*"]),
            copy("decoder.blocks.{}.norm_2.*", &["model.layers.{}.post_attention_layernorm.*"]),
            copy("decoder.blocks.{}.mlp.up.*", &["model.layers.{}.mlp.up_proj.*"]),
            copy("decoder.blocks.{}.mlp.gate.*", &["model.layers.{}.mlp.gate_proj.*"]),
            copy("decoder.blocks.{}.mlp.down.*", &["model.layers.{}.mlp.down_proj.*"]),
            copy("decoder.norm.*", &["model.norm.*"]),
        ]],
        drop: &["model.layers.{}.self_attn.rotary_emb.inv_freq"],
    },
    blocks: "model.layers",
    prefixes: &["model."],
    embedding: "model.embed_tokens.weight",
    head: "lm_head.weight",
};

const GPT_J: DecoderTable = DecoderTable {
    table: Table {
        rows: &[&[
            copy("decoder.blocks.{}.norm_1.*", &["transformer.h.{}.ln_1.*"]),
            copy(
                "decoder.blocks.{}.attention.qkv.*",
                &["transformer.h.{}.attn.q_proj.*", "transformer.h.{}.attn.k_proj.*", "transformer.h.{}.attn.v_proj.*"],
            ),
            copy("decoder.blocks.{}.attention.out.*", &["transformer.h.{}.attn.out_proj.*"]),
            copy("decoder.blocks.{}.mlp.up.*", &["transformer.h.{}.mlp.fc_in.*"]),
            copy("decoder.blocks.{}.mlp.down.*", &["transformer.h.{}.mlp.fc_out.*"]),
            copy("decoder.norm.*", &["transformer.ln_f.*"]),
        ]],
        drop: &[GPT_BUFFERS[0], GPT_BUFFERS[1], "transformer.h.{}.attn.embed_positions"],
    },
    blocks: "transformer.h",
    prefixes: &["transformer."],
    embedding: "transformer.wte.weight",
    head: "lm_head.weight",
};

const GPT_NEO: DecoderTable = DecoderTable {
    table: Table {
        rows: &[&[
            copy("decoder.position_embedding", &["transformer.wpe.weight"]),
            copy("decoder.blocks.{}.norm_1.*", &["transformer.h.{}.ln_1.*"]),
            copy(
                "decoder.blocks.{}.attention.qkv.*",
                &[
                    "transformer.h.{}.attn.attention.q_proj.*",
                    "transformer.h.{}.attn.attention.k_proj.*",
                    "transformer.h.{}.attn.attention.v_proj.*",
                ],
            ),
            copy("decoder.blocks.{}.attention.out.*", &["transformer.h.{}.attn.attention.out_proj.*"]),
            copy("decoder.blocks.{}.norm_2.*", &["transformer.h.{}.ln_2.*"]),
            copy("decoder.blocks.{}.mlp.up.*", &["transformer.h.{}.mlp.c_fc.*"]),
            copy("decoder.blocks.{}.mlp.down.*", &["transformer.h.{}.mlp.c_proj.*"]),
            copy("decoder.norm.*", &["transformer.ln_f.*"]),
        ]],
        drop: &["transformer.h.{}.attn.attention.bias", "transformer.h.{}.attn.attention.masked_bias"],
    },
    blocks: "transformer.h",
    prefixes: &["transformer."],
    embedding: "transformer.wte.weight",
    head: "lm_head.weight",
};

/// The names of a decoder's family.
pub(crate) fn decoder(config: &DecoderConfig) -> &'static DecoderTable {
    match config {
        DecoderConfig::MosaicGpt(_) => &MOSAIC_GPT,
        DecoderConfig::Mpt(_) => &MPT,
        DecoderConfig::GptNeox(_) => &GPT_NEOX,
        DecoderConfig::Opt(_) => &OPT,
        DecoderConfig::Llama(_) => &LLAMA,
        DecoderConfig::GptJ(_) => &GPT_J,
        DecoderConfig::GptNeo(_) => &GPT_NEO,
    }
}

impl Table {
    /// The row for one of our tensors, and the names of its sources.
    pub(crate) fn sources(&self, target: &str) -> Option<(How, Vec<String>)> {
        self.rows.iter().copied().flatten().find_map(|row| {
            let captured = capture(row.target, target)?;
            Some((row.how, row.sources.iter().map(|source| fill(source, &captured)).collect()))
        })
    }

    /// Whether a source tensor is known and unused.
    pub(crate) fn drops(&self, name: &str) -> bool {
        self.drop.iter().any(|pattern| capture(pattern, name).is_some())
    }
}

/// What stood for `{}` and `*`.
struct Captured<'a> {
    layer: &'a str,
    leaf: &'a str,
}

/// Matches a whole name.
fn capture<'a>(pattern: &str, name: &'a str) -> Option<Captured<'a>> {
    let (rest, layer, pattern) = match pattern.split_once("{}") {
        None => (name, "", pattern),
        Some((before, after)) => {
            let rest = name.strip_prefix(before)?;
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 {
                return None;
            }
            (&rest[digits..], &rest[..digits], after)
        }
    };
    if let Some(before) = pattern.strip_suffix("**") {
        return rest.starts_with(before).then_some(Captured { layer, leaf: "" });
    }
    match pattern.strip_suffix('*') {
        None => (rest == pattern).then_some(Captured { layer, leaf: "" }),
        Some(before) => {
            let leaf = rest.strip_prefix(before)?;
            matches!(leaf, "weight" | "bias").then_some(Captured { layer, leaf })
        }
    }
}

fn fill(source: &str, captured: &Captured) -> String {
    source.replace("{}", captured.layer).replace('*', captured.leaf)
}
