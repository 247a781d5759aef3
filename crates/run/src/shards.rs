//! Which worker updates what, and what goes between them together.

use std::ops::Range;

use flamingo_engine::Parameter;

/// Numbers of a bucket at least, if there are more: 64 KiB of f32. A layer of a large model is a bucket by itself.
const BUCKET: usize = 1 << 14;

/// What trains, in buckets that are exchanged one after the other, each as soon as its gradients are whole. Each worker adds up the
/// gradients of its part of every bucket, keeps what the optimizer remembers of it and sends its weights to the others
/// (ZeRO's first stage, arXiv 1910.02054).
pub(crate) struct Shards {
    groups: Vec<Vec<usize>>,
    buckets: Vec<Bucket>,
    /// The numbers of each parameter that belong to each worker: of all workers, of all parameters.
    ranges: Vec<Vec<Range<usize>>>,
}

struct Bucket {
    /// Parameters by their places.
    places: Vec<usize>,
    /// The group of parameters with which it is complete.
    last: usize,
}

impl Shards {
    /// Parts of about the same length: only parameters that must stay whole make them differ. `groups` holds the places of
    /// parameters in the order in which their gradients come ([`flamingo_engine::Training::stages`]).
    pub(crate) fn new(parameters: &[Parameter], groups: Vec<Vec<usize>>, workers: usize) -> Self {
        Self::with_buckets(parameters, groups, workers, BUCKET)
    }

    /// [`Shards::new`] with buckets of at least so many numbers.
    fn with_buckets(parameters: &[Parameter], groups: Vec<Vec<usize>>, workers: usize, at_least: usize) -> Self {
        let buckets = buckets(parameters, &groups, at_least);
        let mut ranges = vec![vec![0..0; parameters.len()]; workers];
        // Numbers in the buckets so far, and how many of them belong to workers before each.
        let (mut total, mut before) = (0, vec![0; workers + 1]);
        for bucket in &buckets {
            let count: usize = bucket.places.iter().map(|&place| parameters[place].count).sum();
            total += count;
            let mut first = 0;
            for worker in 0..workers {
                // What one bucket could not share out evenly, the next ones make good.
                let even = (total as u128 * (worker as u128 + 1) / workers as u128) as usize;
                let bound = even.saturating_sub(before[worker + 1]).clamp(first, count);
                let end = if worker + 1 == workers { count } else { whole(parameters, bucket, bound).max(first) };
                let mut begin = 0;
                for &place in &bucket.places {
                    let within = |bound: usize| bound.clamp(begin, begin + parameters[place].count) - begin;
                    ranges[worker][place] = within(first)..within(end);
                    begin += parameters[place].count;
                }
                before[worker + 1] += end;
                first = end;
            }
        }
        Self { groups, buckets, ranges }
    }

    /// Parameters of a group, by their places.
    pub(crate) fn group(&self, group: usize) -> &[usize] {
        &self.groups[group]
    }

    /// How many groups there are.
    pub(crate) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Parameters of a bucket, by their places.
    pub(crate) fn places(&self, bucket: usize) -> &[usize] {
        &self.buckets[bucket].places
    }

    /// For each bucket the group with which it is complete.
    pub(crate) fn complete_with(&self) -> impl Iterator<Item = usize> {
        self.buckets.iter().map(|bucket| bucket.last)
    }

    /// Which numbers of each parameter are a worker's.
    pub(crate) fn ranges(&self, worker: usize) -> &[Range<usize>] {
        &self.ranges[worker]
    }

    /// How many numbers are each worker's.
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.ranges.iter().map(|ranges| ranges.iter().map(Range::len).sum()).collect()
    }

    /// A bucket's numbers for each worker, 0 where there are none; `values` are of all parameters.
    pub(crate) fn split(&self, bucket: usize, values: &[Option<Vec<f32>>]) -> Vec<Vec<f32>> {
        let part = |ranges: &Vec<Range<usize>>| {
            let mut part = Vec::new();
            for &place in &self.buckets[bucket].places {
                match &values[place] {
                    Some(values) => part.extend(&values[ranges[place].clone()]),
                    None => part.extend(std::iter::repeat_n(0.0, ranges[place].len())),
                }
            }
            part
        };
        self.ranges.iter().map(part).collect()
    }

    /// A worker's part of each bucket as a piece of each parameter: `None` where it has no part, and where `there` says no.
    pub(crate) fn pieces(&self, worker: usize, parts: &[Vec<f32>], there: &[bool]) -> Vec<Option<Vec<f32>>> {
        let mut pieces = vec![None; there.len()];
        for (bucket, mut part) in self.buckets.iter().zip(parts.iter().map(Vec::as_slice)) {
            for &place in &bucket.places {
                let (piece, rest) = part.split_at(self.ranges[worker][place].len());
                part = rest;
                pieces[place] = (there[place] && !piece.is_empty()).then(|| piece.to_vec());
            }
        }
        pieces
    }

    /// All numbers in the order of parameters, of each worker's in that order.
    pub(crate) fn join(&self, rows: &[Vec<f32>]) -> Vec<f32> {
        let mut rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let mut all = Vec::with_capacity(rows.iter().map(|row| row.len()).sum());
        for place in 0..self.ranges[0].len() {
            for (row, ranges) in rows.iter_mut().zip(&self.ranges) {
                let (piece, rest) = row.split_at(ranges[place].len());
                all.extend(piece);
                *row = rest;
            }
        }
        all
    }
}

/// Groups that follow each other put together to at least so many numbers.
fn buckets(parameters: &[Parameter], groups: &[Vec<usize>], at_least: usize) -> Vec<Bucket> {
    let (mut buckets, mut places, mut count) = (Vec::new(), Vec::new(), 0);
    for (last, group) in groups.iter().enumerate() {
        places.extend(group);
        count += group.iter().map(|&place| parameters[place].count).sum::<usize>();
        if count >= at_least || last + 1 == groups.len() && count > 0 {
            buckets.push(Bucket { places: std::mem::take(&mut places), last });
            count = 0;
        }
    }
    buckets
}

/// A bound within a bucket, or the nearest that leaves whole what must stay so.
fn whole(parameters: &[Parameter], bucket: &Bucket, bound: usize) -> usize {
    let mut begin = 0;
    for &place in &bucket.places {
        let Parameter { count, divisible } = parameters[place];
        if bound < begin + count {
            return match divisible {
                true => bound,
                false if bound - begin < count.div_ceil(2) => begin,
                false => begin + count,
            };
        }
        begin += count;
    }
    begin
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shards of parameters in buckets of at least so many numbers.
    fn shards(parameters: &[Parameter], groups: &[&[usize]], at_least: usize, workers: usize) -> Shards {
        Shards::with_buckets(parameters, groups.iter().map(|group| group.to_vec()).collect(), workers, at_least)
    }

    #[test]
    fn groups_are_exchanged_together_until_they_are_large_enough() {
        let parameters = [5, 1, 7, 3, 3, 2].map(|count| Parameter { count, divisible: true });
        let of = |groups: &[&[usize]], at_least| {
            let shards = shards(&parameters, groups, at_least, 1);
            shards.buckets.iter().map(|bucket| (bucket.places.clone(), bucket.last)).collect::<Vec<_>>()
        };
        let groups: [&[usize]; 4] = [&[4], &[0, 2], &[], &[1, 3, 5]];
        assert_eq!(of(&groups, 1), [(vec![4], 0), (vec![0, 2], 1), (vec![1, 3, 5], 3)]);
        assert_eq!(of(&groups, 4), [(vec![4, 0, 2], 1), (vec![1, 3, 5], 3)]);
        assert_eq!(of(&groups, 100), [(vec![4, 0, 2, 1, 3, 5], 3)]);
        assert_eq!(of(&[&[0, 1], &[]], 3), [(vec![0, 1], 0)]);
    }

    #[test]
    fn every_number_belongs_to_one_worker_and_comes_back() {
        let counts = [5, 1, 7, 3, 3, 2];
        let groups: [&[usize]; 3] = [&[4, 2], &[0], &[1, 3, 5]];
        for indivisible in [None, Some(2)] {
            let parameter = |(i, &count)| Parameter { count, divisible: indivisible != Some(i) };
            let parameters: Vec<Parameter> = counts.iter().enumerate().map(parameter).collect();
            let mut numbers = (0..).map(|n| n as f32);
            let given: Vec<Option<Vec<f32>>> =
                counts.iter().map(|&count| Some(numbers.by_ref().take(count).collect())).collect();
            for (workers, at_least) in
                [1, 2, 3, 9, 40].into_iter().flat_map(|workers| [1, 4, 100].map(|n| (workers, n)))
            {
                let shards = shards(&parameters, &groups, at_least, workers);
                let lengths = shards.lengths();
                assert_eq!(lengths.iter().sum::<usize>(), 21);
                let longest = lengths.iter().max().expect("a worker");
                assert!(*longest <= 21usize.div_ceil(workers) + indivisible.map_or(0, |_| 6), "{workers}: {longest}");
                // [bucket][worker] to [worker][bucket].
                let split: Vec<Vec<Vec<f32>>> =
                    (0..shards.buckets.len()).map(|bucket| shards.split(bucket, &given)).collect();
                let parts = |worker: usize| split.iter().map(|parts| parts[worker].clone()).collect::<Vec<_>>();
                let rows: Vec<Vec<f32>> = (0..workers)
                    .map(|worker| {
                        let pieces = shards.pieces(worker, &parts(worker), &[true; 6]);
                        for (i, piece) in pieces.iter().enumerate() {
                            let length = piece.as_ref().map_or(0, Vec::len);
                            assert_eq!(length, shards.ranges(worker)[i].len());
                            assert!(indivisible != Some(i) || [0, counts[i]].contains(&length));
                        }
                        pieces.into_iter().flatten().flatten().collect()
                    })
                    .collect();
                assert_eq!(rows.iter().map(Vec::len).collect::<Vec<_>>(), lengths);
                assert_eq!(shards.join(&rows), (0..21).map(|n| n as f32).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn what_has_no_gradient_is_nothing() {
        let parameters = [5, 1, 7].map(|count| Parameter { count, divisible: true });
        let shards = Shards::new(&parameters, vec![vec![2, 1, 0]], 2);
        let split = shards.split(0, &[None, Some(vec![4.0]), None]);
        assert_eq!(split.concat().iter().sum::<f32>(), 4.0);
        assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [6, 7]);
        let there = [false, true, false];
        let pieces = [0, 1].map(|worker| shards.pieces(worker, &split[worker..=worker], &there));
        assert_eq!(pieces.iter().flatten().flatten().collect::<Vec<_>>(), [&vec![4.0]]);
    }

    /// Matrices that must stay whole, one in each of many buckets: no worker gets all of them.
    #[test]
    fn what_a_bucket_cannot_share_out_the_next_ones_do() {
        let parameters = [Parameter { count: BUCKET, divisible: false }; 12];
        for workers in [2, 3, 4, 6] {
            let shards = Shards::new(&parameters, (0..12).rev().map(|place| vec![place]).collect(), workers);
            assert_eq!(shards.buckets.len(), 12);
            assert_eq!(shards.lengths(), vec![12 / workers * BUCKET; workers]);
        }
    }
}
