//! Which worker updates what.

use std::ops::Range;

use flamingo_engine::Parameter;

/// All numbers that train, one after the other, in as many rows as there are workers. Each worker adds up the gradients of
/// its row, keeps what the optimizer remembers of it and sends its weights to the others (ZeRO's first stage,
/// arXiv 1910.02054).
pub(crate) struct Shards {
    parameters: Vec<Parameter>,
    /// Where each worker's row begins, and where the last one ends.
    bounds: Vec<usize>,
}

impl Shards {
    /// Rows of about the same length: only a parameter that must stay whole makes them differ.
    pub(crate) fn new(parameters: Vec<Parameter>, workers: usize) -> Self {
        let total: usize = parameters.iter().map(|parameter| parameter.count).sum();
        let even = |worker: usize| (total as u128 * worker as u128 / workers as u128) as usize;
        let whole = |bound: usize| {
            let mut end = 0;
            for parameter in &parameters {
                let begin = end;
                end += parameter.count;
                if bound < end {
                    return if parameter.divisible { bound } else { begin };
                }
            }
            bound
        };
        let bounds = (0..=workers).map(|worker| whole(even(worker))).collect();
        Self { parameters, bounds }
    }

    /// Numbers of each worker's row.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.bounds.windows(2).map(|bounds| bounds[1] - bounds[0]).collect()
    }

    /// Which numbers of each parameter are in a worker's row.
    pub(crate) fn ranges(&self, worker: usize) -> Vec<Range<usize>> {
        let (first, last) = (self.bounds[worker], self.bounds[worker + 1]);
        let mut begin = 0;
        let range = |parameter: &Parameter| {
            let within = |bound: usize| bound.clamp(begin, begin + parameter.count) - begin;
            let range = within(first)..within(last);
            begin += parameter.count;
            range
        };
        self.parameters.iter().map(range).collect()
    }

    /// Values of all parameters as a row for each worker, 0 where there are none.
    pub(crate) fn split(&self, values: Vec<Option<Vec<f32>>>) -> Vec<Vec<f32>> {
        let mut rows: Vec<Vec<f32>> = self.lengths().into_iter().map(Vec::with_capacity).collect();
        let (mut at, mut worker) = (0, 0);
        for (parameter, values) in self.parameters.iter().zip(values) {
            let mut left = 0..parameter.count;
            while !left.is_empty() {
                while at == self.bounds[worker + 1] {
                    worker += 1;
                }
                let count = left.len().min(self.bounds[worker + 1] - at);
                match &values {
                    Some(values) => rows[worker].extend(&values[left.start..left.start + count]),
                    None => rows[worker].extend(std::iter::repeat_n(0.0, count)),
                }
                left.start += count;
                at += count;
            }
        }
        rows
    }

    /// A worker's row as a piece of each parameter: `None` where it has no part, and where `there` says no.
    pub(crate) fn pieces(&self, worker: usize, mut row: &[f32], there: &[bool]) -> Vec<Option<Vec<f32>>> {
        let piece = |(range, &there): (Range<usize>, &bool)| {
            let (piece, rest) = row.split_at(range.len());
            row = rest;
            (there && !piece.is_empty()).then(|| piece.to_vec())
        };
        self.ranges(worker).into_iter().zip(there).map(piece).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_in_one_row_and_comes_back() {
        let counts = [5, 1, 7, 3, 3, 2];
        for whole in [None, Some(2)] {
            let parameter = |(i, &count)| Parameter { count, divisible: whole != Some(i) };
            let parameters: Vec<Parameter> = counts.iter().enumerate().map(parameter).collect();
            let mut numbers = (0..).map(|n| n as f32);
            let given: Vec<Option<Vec<f32>>> =
                counts.iter().map(|&count| Some(numbers.by_ref().take(count).collect())).collect();
            for workers in [1, 2, 3, 9, 40] {
                let shards = Shards::new(parameters.clone(), workers);
                let lengths = shards.lengths();
                let rows = shards.split(given.clone());
                assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
                assert_eq!(rows.concat(), (0..21).map(|n| n as f32).collect::<Vec<_>>());
                let longest = lengths.into_iter().max().expect("a worker");
                assert!(longest <= 21usize.div_ceil(workers) + whole.map_or(0, |_| 6), "{workers}: {longest}");
                let mut back: Vec<Vec<f32>> = vec![Vec::new(); counts.len()];
                for (worker, row) in rows.iter().enumerate() {
                    for (i, piece) in shards.pieces(worker, row, &[true; 6]).into_iter().enumerate() {
                        let range = shards.ranges(worker)[i].clone();
                        assert_eq!(piece.as_ref().map_or(0, Vec::len), range.len());
                        assert!(range.is_empty() || range.start == back[i].len());
                        assert!(whole != Some(i) || [0, counts[i]].contains(&range.len()));
                        back[i].extend(piece.unwrap_or_default());
                    }
                }
                assert_eq!(back.into_iter().map(Some).collect::<Vec<_>>(), given);
            }
        }
        let shards = Shards::new(counts.map(|count| Parameter { count, divisible: true }).to_vec(), 2);
        let rows = shards.split(vec![None, Some(vec![4.0]), None, None, None, None]);
        assert_eq!(rows.concat().iter().sum::<f32>(), 4.0);
        let there = [false, true, false, false, false, false];
        let pieces = [0, 1].map(|worker| shards.pieces(worker, &rows[worker], &there));
        assert_eq!(pieces.iter().flatten().flatten().collect::<Vec<_>>(), [&vec![4.0]]);
    }
}
