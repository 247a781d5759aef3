//! Which samples are asked about, and which demonstrations each sees: upstream's rule, so that equal seeds ask equal
//! questions.

use crate::EvalError;
use crate::random::{Numpy, Python, torch_permutation};

/// A question and its demonstrations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Index of the sample that is asked about.
    pub sample: usize,
    /// Indices of its demonstrations, the one next to the question last; several orders for an ensemble of prompts.
    pub orders: Vec<Vec<usize>>,
}

/// What is selected from.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// Samples of the test.
    pub test: usize,
    /// Samples that demonstrations come from; `None` for the test itself, each sample left out of its own prompt.
    pub demonstrations: Option<usize>,
    /// Questions, at most.
    pub num_samples: Option<usize>,
    /// Samples that random demonstrations are drawn from, at most.
    pub query_set_size: usize,
    /// Demonstrations of each question, as they are counted.
    pub shots: usize,
    /// Whether 0 shots are a prompt without any demonstration; see [`effective_shots`].
    pub bare_zero_shot: bool,
    /// Decides every random choice.
    pub seed: u32,
    /// Questions that are asked together: orders of an ensemble are drawn batch by batch.
    pub batch_size: usize,
    /// Whether several orders of the demonstrations are wanted.
    pub ensemble: bool,
}

/// Demonstrations that a prompt has: "zero-shot" means two without their pictures, as in the Flamingo paper.
pub fn effective_shots(shots: usize) -> usize {
    if shots == 0 { 2 } else { shots }
}

/// How demonstrations are chosen.
pub enum Choose<'a> {
    /// At random for each question.
    Random,
    /// At random, the same for all questions; a sample that demonstrates is not asked about.
    Fixed,
    /// Those that are found for a sample of the test: how many, and in the order of the prompt.
    Similar(&'a dyn Fn(usize, usize) -> Vec<usize>),
}

impl Selection {
    /// Indices of the samples that are asked about.
    pub fn samples(&self) -> Vec<usize> {
        self.samples_with(&mut Numpy::new(self.seed))
    }

    /// Demonstrations that a prompt has.
    pub(crate) fn demonstrations_each(&self) -> usize {
        if self.bare_zero_shot { self.shots } else { effective_shots(self.shots) }
    }

    fn samples_with(&self, numpy: &mut Numpy) -> Vec<usize> {
        numpy.choice(self.test, self.num_samples.unwrap_or(self.test))
    }

    /// Selects questions and their demonstrations.
    ///
    /// # Errors
    /// [`EvalError::Settings`] if there are too few demonstrations.
    pub fn select(&self, choose: &Choose) -> Result<Vec<Query>, EvalError> {
        let shots = self.demonstrations_each();
        // Where demonstrations are other samples of the test, the sample itself is none of them.
        let itself = usize::from(self.demonstrations.is_none());
        let pool = self.demonstrations.unwrap_or(self.test);
        let similar = matches!(choose, Choose::Similar(_));
        let pool = if similar { pool } else { pool.min(self.query_set_size) };
        let available = pool.saturating_sub(itself);
        if shots > available {
            return Err(EvalError::Settings(format!(
                "{} shots want {shots} demonstrations, and there are {available} to choose from",
                self.shots
            )));
        }
        let mut numpy = Numpy::new(self.seed);
        let samples = self.samples_with(&mut numpy);
        let query_set = match choose {
            Choose::Similar(_) => Vec::new(),
            _ => numpy.choice(self.demonstrations.unwrap_or(self.test), self.query_set_size),
        };
        let mut python = Python::new(self.seed);
        let fixed: Vec<usize> = match choose {
            Choose::Fixed => python.sample(query_set.len(), shots).into_iter().map(|i| query_set[i]).collect(),
            _ => Vec::new(),
        };
        let mut queries = Vec::with_capacity(samples.len());
        for batch in torch_permutation(samples.len(), 0).chunks(self.batch_size.max(1)) {
            let first = queries.len();
            for &place in batch {
                let sample = samples[place];
                let order = match choose {
                    Choose::Similar(similar) => similar(sample, shots),
                    Choose::Random => self.draw(&query_set, sample, shots, &mut python),
                    Choose::Fixed if self.demonstrations.is_none() && fixed.contains(&sample) => continue,
                    Choose::Fixed => fixed.clone(),
                };
                queries.push(Query { sample, orders: vec![order] });
            }
            if self.ensemble {
                ensemble(&mut queries[first..], shots, &mut python);
            }
        }
        Ok(queries)
    }

    fn draw(&self, query_set: &[usize], sample: usize, shots: usize, python: &mut Python) -> Vec<usize> {
        if self.demonstrations.is_some() {
            return python.sample(query_set.len(), shots).into_iter().map(|i| query_set[i]).collect();
        }
        // One more, in case that the sample itself is among them.
        let drawn = python.sample(query_set.len(), shots + 1).into_iter().map(|i| query_set[i]);
        let mut others: Vec<usize> = drawn.filter(|&other| other != sample).collect();
        others.truncate(shots);
        others
    }
}

/// Upstream shuffles the demonstrations of a batch in place before each of up to six passes.
fn ensemble(queries: &mut [Query], shots: usize, python: &mut Python) {
    let orders = (1..=shots).take(3).product::<usize>().min(6);
    for pass in 0..orders {
        for query in queries.iter_mut() {
            let mut order = query.orders.last().cloned().unwrap_or_default();
            python.shuffle(&mut order);
            if pass == 0 {
                query.orders.clear();
            }
            query.orders.push(order);
        }
    }
}
