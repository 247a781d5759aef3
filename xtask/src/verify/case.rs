//! A recorded model: forward passes, cached steps, generations.

use std::path::Path;

use anyhow::{Context, bail};
use flamingo_config::DecoderConfig;
use flamingo_engine::{Array, Device, Engine, Pixels, Precision, SessionOptions, Text};
use flamingo_generate::{EarlyStopping, GenerationConfig, Strategy, generate, padded};
use serde_json::Value;

use super::recording::Recording;
use super::{Values, compare, train};
use crate::golden;

/// Text, images and, where they are recorded, labels.
pub(super) type Batch = (Text, Pixels, Option<Vec<i64>>);

/// Forward passes that a case may record.
const SETS: [&str; 4] = ["right", "left", "extra", "nomask"];

pub(super) fn compute(folder: &Path, device: Device) -> anyhow::Result<Values> {
    let case = golden::Case::open(folder)?;
    let converted = tempfile::tempdir().context("cannot make a temporary folder")?;
    let model = case.convert(&converted.path().join("model"))?;
    let engine = flamingo_engine::open(&model, device, Precision::F32)?;
    let recording = Recording::open(folder)?;
    let run = Run { engine: engine.as_ref(), recording: &recording };

    let mut values = Values::default();
    for set in SETS {
        run.forward(set, &mut values)?;
    }
    run.cached(&mut values)?;
    for (index, generation) in case.generations().iter().enumerate() {
        run.generation(index, generation, &mut values)?;
    }
    if compare::trains(device) {
        train::compute(&run, case.json(), &model, device, &mut values)?;
    }
    Ok(values)
}

pub(super) struct Run<'a> {
    engine: &'a dyn Engine,
    recording: &'a Recording,
}

impl Run<'_> {
    /// Pixels recorded as `[rows, images, frames, 3, side, side]`, or only one of the rows.
    fn pixels(&self, name: &str, row: Option<usize>) -> anyhow::Result<Pixels> {
        let recorded = self.recording.need(name)?;
        let [rows, images, frames, _, side, _] = recorded.shape[..] else {
            bail!("`{name}` has shape {:?}, not six dimensions", recorded.shape);
        };
        let data = recorded.f32();
        Ok(match row {
            None => Pixels { rows, images, frames, side, data },
            Some(row) => {
                let size = data.len() / rows;
                Pixels { rows: 1, images, frames, side, data: data[row * size..(row + 1) * size].to_vec() }
            }
        })
    }

    /// The recorded ids of a set with their padding.
    fn text(&self, set: &str) -> anyhow::Result<Option<Text>> {
        let Some(ids) = self.recording.get(&format!("{set}.input_ids"))? else { return Ok(None) };
        let keep = match self.recording.get(&format!("{set}.attention_mask"))? {
            Some(mask) => mask.data.iter().map(|&x| x != 0.0).collect(),
            None => vec![true; ids.data.len()],
        };
        Ok(Some(Text::new(ids.shape[0], ids.ids(), keep)))
    }

    /// Images of a set. One-row sets reuse the images of the row of `right` that has their text.
    fn images(&self, set: &str, text: &Text) -> anyhow::Result<Pixels> {
        let own = format!("{set}.vision_x");
        if self.recording.get(&own)?.is_some() {
            return self.pixels(&own, None);
        }
        let main = self.recording.need("main.vision_x")?;
        if main.shape[0] == text.rows {
            return self.pixels("main.vision_x", None);
        }
        let right = self.text("right")?.context("the recording has no `right.input_ids`")?;
        let same = |row: &&[u32]| **row == text.ids[..];
        let row = right.ids.chunks(right.width).position(|row| same(&row)).unwrap_or(right.rows - 1);
        self.pixels("main.vision_x", Some(row))
    }

    /// Text, images and labels of a set, as upstream's forward pass reads them; `None` if it is not recorded.
    pub(super) fn batch(&self, set: &str) -> anyhow::Result<Option<Batch>> {
        let Some(text) = self.text(set)? else { return Ok(None) };
        let mut text = text.with_upstream_padding();
        // transformers' plain forward of GPT-Neo counts padding; its `generate` does not.
        if matches!(self.engine.config().decoder, DecoderConfig::GptNeo(_)) {
            text = text.with_padded_positions();
        }
        let labels = self.recording.get(&format!("{set}.labels"))?;
        let pixels = self.images(set, &text)?;
        Ok(Some((text, pixels, labels.map(|l| l.data.iter().map(|&x| x as i64).collect()))))
    }

    fn forward(&self, set: &str, values: &mut Values) -> anyhow::Result<()> {
        let Some((text, pixels, labels)) = self.batch(set)? else { return Ok(()) };
        let out = self.engine.forward(&text, Some(&pixels), labels.as_deref(), true)?;
        for (name, array) in out.trace {
            values.floats(format!("{set}.{name}"), array);
        }
        if let Some(loss) = out.loss {
            values.floats(format!("{set}.loss"), Array { shape: vec![1], data: vec![loss] });
        }
        // Some sets keep the logits of the last positions only; how many is part of the recording's form.
        let form = self.recording.get(&format!("{set}.logits"))?.map(|logits| logits.shape[1]);
        values.floats(format!("{set}.logits"), last_tokens(out.logits, form));
        Ok(())
    }

    /// A prompt, then single forced tokens through the cache.
    fn cached(&self, values: &mut Values) -> anyhow::Result<()> {
        let Some(prompt) = self.recording.get("cached.prompt_ids")? else { return Ok(()) };
        let steps = self.recording.need("cached.step_ids")?;
        let text = Text::new(prompt.shape[0], prompt.ids(), vec![true; prompt.data.len()]);
        let pixels = self.images("cached", &text)?;
        let options = SessionOptions { reserve: 0, upstream_compat: true };
        let (mut session, _) = self.engine.start(&text, Some(&pixels), options)?;
        let (rows, count) = (steps.shape[0], steps.shape[1]);
        let ids = steps.ids();
        let mut by_step = Vec::new();
        for step in 0..count {
            let tokens: Vec<u32> = (0..rows).map(|row| ids[row * count + step]).collect();
            by_step.push(session.step(&tokens)?);
        }
        let vocab = self.engine.config().tokens.vocab_size;
        let mut data = Vec::with_capacity(rows * count * vocab);
        for row in 0..rows {
            for logits in &by_step {
                data.extend_from_slice(&logits[row * vocab..(row + 1) * vocab]);
            }
        }
        values.floats("cached.step_logits", Array { shape: vec![rows, count, vocab], data });
        Ok(())
    }

    fn generation(&self, index: usize, generation: &Value, values: &mut Values) -> anyhow::Result<()> {
        let Some(text) = self.text("gen")? else { return Ok(()) };
        let index = generation["index"].as_u64().map_or(index, |i| i as usize);
        let config = generation_config(self.engine, &generation["kwargs"])?;
        let pixels = self.images("gen", &text)?;
        let options = SessionOptions { reserve: text.width + config.max_new_tokens, upstream_compat: true };
        let (mut session, logits) = self.engine.start(&text, Some(&pixels), options)?;
        let prompts: Vec<Vec<u32>> = text.ids.chunks(text.width).map(<[u32]>::to_vec).collect();
        let out = generate(&mut *session, &prompts, logits, &config, &mut |_, _| std::ops::ControlFlow::Continue(()))?;
        let scores: Option<Vec<f32>> = out.iter().map(|g| g.score.map(|s| s as f32)).collect();
        if let Some(data) = scores {
            values.floats(format!("gen.{index}.sequences_scores"), Array { shape: vec![data.len()], data });
        }
        values.rows(format!("gen.{index}.sequences"), &padded(&prompts, &out, config.pad));
        Ok(())
    }
}

/// The last `count` positions of `[rows, tokens, vocab]`; all where `count` is `None`.
fn last_tokens(logits: Array, count: Option<usize>) -> Array {
    let [rows, tokens, vocab] = logits.shape[..] else { return logits };
    let count = count.unwrap_or(tokens).min(tokens);
    let data = logits.data.chunks(tokens * vocab).flat_map(|row| row[(tokens - count) * vocab..].to_vec()).collect();
    Array { shape: vec![rows, count, vocab], data }
}

/// transformers' `generate` arguments as ours.
fn generation_config(engine: &dyn Engine, kwargs: &Value) -> anyhow::Result<GenerationConfig> {
    let number = |name: &str, default: u64| kwargs[name].as_u64().unwrap_or(default) as usize;
    let known = [
        "num_beams",
        "max_new_tokens",
        "min_new_tokens",
        "length_penalty",
        "early_stopping",
        "no_repeat_ngram_size",
        "num_return_sequences",
    ];
    if let Some(other) = kwargs.as_object().and_then(|k| k.keys().find(|k| !known.contains(&k.as_str()))) {
        bail!("recorded generation uses `{other}`, which this version does not know");
    }
    let num_beams = number("num_beams", 1);
    let tokens = &engine.config().tokens;
    Ok(GenerationConfig {
        max_new_tokens: number("max_new_tokens", 20),
        min_new_tokens: number("min_new_tokens", 0),
        no_repeat_ngram_size: number("no_repeat_ngram_size", 0),
        num_return_sequences: number("num_return_sequences", 1),
        stop: tokens.endofchunk,
        pad: tokens.generation_pad,
        strategy: if num_beams == 1 {
            Strategy::Greedy
        } else {
            Strategy::Beam {
                num_beams,
                length_penalty: kwargs["length_penalty"].as_f64().unwrap_or(1.0),
                early_stopping: match &kwargs["early_stopping"] {
                    Value::Bool(true) => EarlyStopping::True,
                    Value::String(s) if s == "never" => EarlyStopping::Never,
                    _ => EarlyStopping::False,
                },
            }
        },
    })
}
