//! Greedy and beam search against transformers 4.33.3 on a toy model (`fixtures/make.py`).

use std::convert::Infallible;
use std::ops::ControlFlow;

use flamingo_generate::{Decoder, EarlyStopping, GenerateError, GenerationConfig, Strategy, generate, padded};
use serde_json::Value;

/// Logits are a table by the last two tokens.
struct Toy {
    table: Vec<f32>,
    vocab: usize,
    rows: Vec<[u32; 2]>,
}

impl Toy {
    fn logits(&self) -> Vec<f32> {
        let row = |&[before, last]: &[u32; 2]| {
            let at = (before as usize * self.vocab + last as usize) * self.vocab;
            self.table[at..at + self.vocab].to_vec()
        };
        self.rows.iter().flat_map(row).collect()
    }
}

impl Decoder for Toy {
    type Error = Infallible;

    fn step(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Infallible> {
        for (row, &token) in self.rows.iter_mut().zip(tokens) {
            *row = [row[1], token];
        }
        Ok(self.logits())
    }

    fn reorder(&mut self, rows: &[usize]) -> Result<(), Infallible> {
        self.rows = rows.iter().map(|&row| self.rows[row]).collect();
        Ok(())
    }
}

fn fixture() -> Value {
    serde_json::from_str(include_str!("fixtures/transformers.json")).expect("a fixture")
}

fn toy(fixture: &Value) -> (Toy, Vec<Vec<u32>>) {
    let ids = |v: &Value| v.as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id") as u32).collect();
    let prompts: Vec<Vec<u32>> = fixture["prompts"].as_array().expect("prompts").iter().map(ids).collect();
    let table = fixture["table"].as_array().expect("a table").iter().map(|x| x.as_f64().expect("a number") as f32);
    let rows = prompts.iter().map(|p: &Vec<u32>| [p[p.len() - 2], p[p.len() - 1]]).collect();
    let vocab = fixture["vocab"].as_u64().expect("a size") as usize;
    (Toy { table: table.collect(), vocab, rows }, prompts)
}

fn config(fixture: &Value, kwargs: &Value) -> GenerationConfig {
    let size = |name: &str, default: u64| kwargs[name].as_u64().unwrap_or(default) as usize;
    let (stop, pad) = (fixture["stop"].as_u64(), fixture["pad"].as_u64());
    GenerationConfig {
        min_new_tokens: size("min_new_tokens", 0),
        no_repeat_ngram_size: size("no_repeat_ngram_size", 0),
        num_return_sequences: size("num_return_sequences", 1),
        strategy: match size("num_beams", 1) {
            1 => Strategy::Greedy,
            num_beams => Strategy::Beam {
                num_beams,
                length_penalty: kwargs["length_penalty"].as_f64().expect("a penalty"),
                early_stopping: match &kwargs["early_stopping"] {
                    Value::Bool(true) => EarlyStopping::True,
                    Value::String(_) => EarlyStopping::Never,
                    _ => EarlyStopping::False,
                },
            },
        },
        ..GenerationConfig::greedy(
            size("max_new_tokens", 8),
            stop.expect("a token") as u32,
            pad.expect("a token") as u32,
        )
    }
}

#[test]
fn every_setting_gives_the_same_sequences_and_scores() {
    let fixture = fixture();
    let cases = fixture["cases"].as_array().expect("cases");
    assert!(cases.len() > 200);
    for case in cases {
        let (mut toy, prompts) = toy(&fixture);
        let config = config(&fixture, &case["kwargs"]);
        let first = toy.logits();
        let out = generate(&mut toy, &prompts, first, &config, &mut |_, _| ControlFlow::Continue(()));
        let out = out.expect("continuations");
        let sequences = serde_json::json!(padded(&prompts, &out, config.pad));
        assert_eq!(sequences, case["sequences"], "{}", case["kwargs"]);
        for (generated, expected) in out.iter().zip(case["scores"].as_array().into_iter().flatten()) {
            let (ours, theirs) = (generated.score.expect("a score"), expected.as_f64().expect("a score"));
            assert!((ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0), "{ours} {theirs} {}", case["kwargs"]);
        }
    }
}

fn sample(seed: u64, prompts: Option<usize>) -> Vec<Vec<u32>> {
    let fixture = fixture();
    let (mut toy, mut all) = toy(&fixture);
    if let Some(count) = prompts {
        all.truncate(count);
        toy.rows.truncate(count);
    }
    let strategy = Strategy::Sample { temperature: 0.9, top_k: Some(8), top_p: Some(0.95), seed };
    let config = GenerationConfig { strategy, min_new_tokens: 10, ..GenerationConfig::greedy(20, 15, 16) };
    let first = toy.logits();
    let out = generate(&mut toy, &all, first, &config, &mut |_, _| ControlFlow::Continue(())).expect("continuations");
    out.into_iter().map(|g| g.ids).collect()
}

#[test]
fn sampling_repeats_with_its_seed_and_rows_are_independent() {
    assert_eq!(sample(7, None), sample(7, None));
    assert_ne!(sample(7, None), sample(8, None));
    assert_eq!(sample(7, None)[0], sample(7, Some(1))[0]);
}

#[test]
fn several_samples_of_one_prompt_differ() {
    let fixture = fixture();
    let (mut toy, prompts) = toy(&fixture);
    let strategy = Strategy::Sample { temperature: 2.0, top_k: None, top_p: None, seed: 3 };
    let config = GenerationConfig {
        strategy,
        num_return_sequences: 3,
        min_new_tokens: 12,
        ..GenerationConfig::greedy(12, 15, 16)
    };
    let first = toy.logits();
    let out =
        generate(&mut toy, &prompts, first, &config, &mut |_, _| ControlFlow::Continue(())).expect("continuations");
    assert_eq!(out.len(), 6);
    assert!(out[0].ids != out[1].ids && out[1].ids != out[2].ids);
}

#[test]
fn breaking_off_returns_what_there_is() {
    let fixture = fixture();
    let (mut toy, prompts) = toy(&fixture);
    let config = GenerationConfig { min_new_tokens: 8, ..GenerationConfig::greedy(8, 15, 16) };
    let first = toy.logits();
    let mut seen = Vec::new();
    let out = generate(&mut toy, &prompts, first, &config, &mut |row, token| {
        seen.push((row, token));
        if seen.len() < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let out = out.expect("continuations");
    assert_eq!((out[0].ids.len(), out[1].ids.len()), (2, 1));
    assert_eq!(seen, [(0, out[0].ids[0]), (1, out[1].ids[0]), (0, out[0].ids[1])]);
}

#[test]
fn senseless_settings_and_inputs_are_errors() {
    let fixture = fixture();
    let greedy = GenerationConfig::greedy(4, 15, 16);
    let beam =
        |num_beams, length_penalty| Strategy::Beam { num_beams, length_penalty, early_stopping: EarlyStopping::False };
    let sample = |temperature, top_k, top_p| Strategy::Sample { temperature, top_k, top_p, seed: 0 };
    let with = |strategy| GenerationConfig { strategy, ..greedy.clone() };
    for config in [
        GenerationConfig::greedy(0, 15, 16),
        GenerationConfig { min_new_tokens: 5, ..greedy.clone() },
        GenerationConfig { num_return_sequences: 0, ..greedy.clone() },
        GenerationConfig { num_return_sequences: 2, ..greedy.clone() },
        with(beam(1, 1.0)),
        with(beam(3, f64::NAN)),
        GenerationConfig { num_return_sequences: 4, ..with(beam(3, 1.0)) },
        with(sample(0.0, None, None)),
        with(sample(f32::NAN, None, None)),
        with(sample(1.0, Some(0), None)),
        with(sample(1.0, None, Some(0.0))),
        with(sample(1.0, None, Some(1.5))),
    ] {
        assert!(config.validate().is_err(), "{config:?}");
    }
    let run = |prompts: &[Vec<u32>], first: Vec<f32>, config: &GenerationConfig| {
        let (mut toy, _) = toy(&fixture);
        generate(&mut toy, prompts, first, config, &mut |_, _| ControlFlow::Continue(()))
    };
    let (model, prompts) = toy(&fixture);
    for (prompts, first) in [
        (Vec::new(), model.logits()),
        (vec![Vec::new(), Vec::new()], model.logits()),
        (vec![vec![1], vec![1, 2]], model.logits()),
        (prompts.clone(), Vec::new()),
        (prompts.clone(), vec![0.0; 33]),
        (prompts.clone(), vec![f32::NAN; 34]),
    ] {
        assert!(matches!(run(&prompts, first.clone(), &greedy), Err(GenerateError::Input(_))));
        assert!(matches!(run(&prompts, first, &with(beam(3, 1.0))), Err(GenerateError::Input(_))));
    }
}
