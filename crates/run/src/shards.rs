//! Which worker updates what.

use flamingo_engine::Array;

/// The parameters, each of which one worker owns: it adds up their gradients, keeps what the optimizer remembers of them and
/// sends their weights to the others (ZeRO's first stage, arXiv 1910.02054, by whole parameters).
pub(crate) struct Shards {
    parameters: Vec<Parameter>,
    /// Numbers of each worker's parameters.
    lengths: Vec<usize>,
}

struct Parameter {
    name: String,
    count: usize,
    owner: usize,
}

impl Shards {
    /// Shares parameters out so that workers have about the same: the largest first, each to whoever has least.
    pub(crate) fn new(parameters: Vec<(String, usize)>, workers: usize) -> Self {
        let mut lengths = vec![0; workers];
        let mut order: Vec<usize> = (0..parameters.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(parameters[i].1));
        let mut owners = vec![0; parameters.len()];
        for i in order {
            let owner = (0..workers).min_by_key(|&worker| lengths[worker]).unwrap_or(0);
            owners[i] = owner;
            lengths[owner] += parameters[i].1;
        }
        let parameter = |((name, count), owner)| Parameter { name, count, owner };
        Self { parameters: parameters.into_iter().zip(owners).map(parameter).collect(), lengths }
    }

    pub(crate) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Whether a worker owns a parameter.
    pub(crate) fn owns(&self, worker: usize, name: &str) -> bool {
        self.parameters.iter().any(|parameter| parameter.owner == worker && parameter.name == name)
    }

    /// Values of all parameters as a row for each owner, 0 where there are none.
    pub(crate) fn split(&self, values: Vec<Option<Vec<f32>>>) -> Vec<Vec<f32>> {
        let mut rows: Vec<Vec<f32>> = self.lengths.iter().map(|&length| Vec::with_capacity(length)).collect();
        for (parameter, values) in self.parameters.iter().zip(values) {
            let row = &mut rows[parameter.owner];
            match values {
                Some(values) => row.extend(values),
                None => row.resize(row.len() + parameter.count, 0.0),
            }
        }
        rows
    }

    /// A worker's row as values of all parameters: `None` for those of others, and where `there` says no.
    pub(crate) fn owned(&self, worker: usize, row: &[f32], there: &[bool]) -> Vec<Option<Vec<f32>>> {
        let mut at = 0;
        let one = |(parameter, &there): (&Parameter, &bool)| {
            if parameter.owner != worker {
                return None;
            }
            at += parameter.count;
            there.then(|| row[at - parameter.count..at].to_vec())
        };
        self.parameters.iter().zip(there).map(one).collect()
    }

    /// A worker's row of values by name, such as [`Shards::owned`] takes apart.
    pub(crate) fn row(&self, worker: usize, values: Vec<(String, Array)>) -> Vec<f32> {
        let mut row = vec![0.0; self.lengths[worker]];
        let mut at = 0;
        for parameter in self.parameters.iter().filter(|parameter| parameter.owner == worker) {
            if let Some((_, array)) = values.iter().find(|(name, _)| *name == parameter.name) {
                row[at..at + parameter.count].copy_from_slice(&array.data);
            }
            at += parameter.count;
        }
        row
    }

    /// The values of a worker's row by name.
    pub(crate) fn named(&self, worker: usize, row: &[f32]) -> Vec<(String, Vec<f32>)> {
        let owned = self.owned(worker, row, &vec![true; self.parameters.len()]);
        let names = self.parameters.iter().map(|parameter| parameter.name.clone());
        names.zip(owned).filter_map(|(name, values)| Some((name, values?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_has_one_owner_and_comes_back() {
        let counts = [5, 1, 7, 3, 3, 2];
        let parameters: Vec<(String, usize)> = counts.iter().map(|count| (format!("p{count}"), *count)).collect();
        for workers in [1, 2, 3, 9] {
            let shards = Shards::new(parameters.clone(), workers);
            assert_eq!(shards.lengths().iter().sum::<usize>(), 21);
            assert!(shards.lengths().iter().all(|&length| length <= 21usize.div_ceil(workers).max(7) + 2));
            let mut next = 0.0;
            let mut values =
                |count: usize| -> Vec<f32> { (0..count).map(|_| std::mem::replace(&mut next, next + 1.0)).collect() };
            let given: Vec<Option<Vec<f32>>> = counts.iter().map(|&count| Some(values(count))).collect();
            let rows = shards.split(given.clone());
            for (i, (name, _)) in parameters.iter().enumerate() {
                let owners: Vec<usize> = (0..workers).filter(|&worker| shards.owns(worker, name)).collect();
                assert_eq!(owners.len(), 1);
                let owned = shards.owned(owners[0], &rows[owners[0]], &[true; 6]);
                assert_eq!(owned[i], given[i]);
            }
        }
        let shards = Shards::new(parameters, 2);
        let rows = shards.split(vec![None, Some(vec![4.0]), None, None, None, None]);
        let there = [false, true, false, false, false, false];
        let owned = [0, 1].map(|worker| shards.owned(worker, &rows[worker], &there));
        assert_eq!(owned.iter().flatten().flatten().collect::<Vec<_>>(), [&vec![4.0]]);
    }
}
