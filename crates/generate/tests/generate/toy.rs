//! The toy models of `fixtures/make.py`: logits are the sum of a row by the last token and one by that before.

use std::convert::Infallible;
use std::ops::ControlFlow;

use flamingo_generate::{Decoder, GenerateError, Generated, GenerationConfig, generate};
use serde_json::Value;

pub struct Toy {
    pub vocab: usize,
    pub stop: u32,
    pub pad: u32,
    last: Vec<f32>,
    before: Vec<f32>,
    rows: Vec<[u32; 2]>,
    /// Calls of `step`.
    pub steps: usize,
}

impl Toy {
    /// Reads prompts.
    pub fn read(&mut self, prompts: &[Vec<u32>]) -> Vec<f32> {
        let pad = self.pad;
        let state = |p: &Vec<u32>| match p[..] {
            [.., before, last] => [before, last],
            [last] => [pad, last],
            [] => [pad, pad],
        };
        self.rows = prompts.iter().map(state).collect();
        self.logits()
    }

    fn logits(&self) -> Vec<f32> {
        let row = |table: &[f32], token: u32| table[token as usize * self.vocab..][..self.vocab].to_vec();
        let sum = |&[before, last]: &[u32; 2]| {
            row(&self.last, last).into_iter().zip(row(&self.before, before)).map(|(a, b)| a + b).collect::<Vec<f32>>()
        };
        self.rows.iter().flat_map(sum).collect()
    }

    /// Reads prompts and continues them.
    pub fn run(&mut self, prompts: &[Vec<u32>], config: &GenerationConfig) -> Vec<Generated> {
        let first = self.read(prompts);
        generate(self, prompts, first, config, &mut |_, _| ControlFlow::Continue(())).expect("continuations")
    }

    pub fn greedy(&self, max_new_tokens: usize) -> GenerationConfig {
        GenerationConfig::greedy(max_new_tokens, self.stop, self.pad)
    }
}

impl Decoder for Toy {
    type Error = Infallible;

    fn step(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Infallible> {
        assert_eq!(tokens.len(), self.rows.len());
        self.steps += 1;
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

/// Logits that are the same whatever is fed, or that go wrong.
pub struct Constant {
    pub row: Vec<f32>,
    pub rows: usize,
    /// What `step` fails with.
    pub failure: Option<String>,
}

impl Constant {
    pub fn new(row: &[f32]) -> Self {
        Self { row: row.to_vec(), rows: 0, failure: None }
    }

    pub fn run(
        &mut self,
        prompts: &[Vec<u32>],
        config: &GenerationConfig,
    ) -> Result<Vec<Generated>, GenerateError<String>> {
        self.rows = prompts.len();
        let first = self.row.repeat(prompts.len());
        generate(self, prompts, first, config, &mut |_, _| ControlFlow::Continue(()))
    }
}

impl Decoder for Constant {
    type Error = String;

    fn step(&mut self, _: &[u32]) -> Result<Vec<f32>, String> {
        self.failure.clone().map_or_else(|| Ok(self.row.repeat(self.rows)), Err)
    }

    fn reorder(&mut self, rows: &[usize]) -> Result<(), String> {
        self.rows = rows.len();
        Ok(())
    }
}

pub fn fixture() -> Value {
    serde_json::from_str(include_str!("../fixtures/transformers.json")).expect("a fixture")
}

pub fn list(value: &Value) -> &[Value] {
    value.as_array().expect("a list")
}

pub fn ids(value: &Value) -> Vec<u32> {
    list(value).iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

pub fn toys(fixture: &Value) -> Vec<Toy> {
    let unit = fixture["unit"].as_f64().expect("a unit") as f32;
    let table = |v: &Value| list(v).iter().map(|x| x.as_f64().expect("a number") as f32 / unit).collect();
    let token = |v: &Value| v.as_u64().expect("a token") as u32;
    let toy = |toy: &Value| Toy {
        vocab: token(&toy["vocab"]) as usize,
        stop: token(&toy["stop"]),
        pad: token(&toy["pad"]),
        last: table(&toy["last"]),
        before: table(&toy["before"]),
        rows: Vec::new(),
        steps: 0,
    };
    list(&fixture["toys"]).iter().map(toy).collect()
}
