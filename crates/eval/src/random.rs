//! The generators behind upstream's random choices, so that equal seeds pick equal samples.

use std::collections::HashSet;

use rand_mt::Mt;

/// `numpy.random` after `numpy.random.seed(seed)`: its legacy generator.
pub struct Numpy(Mt);

impl Numpy {
    /// Seeds it.
    pub fn new(seed: u32) -> Self {
        Self(Mt::new(seed))
    }

    /// `choice(n, size=count, replace=False)`: the first of a shuffle of all. At most `n` are chosen.
    pub fn choice(&mut self, n: usize, count: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            all.swap(i, self.up_to(i));
        }
        all.truncate(count);
        all
    }

    /// A number of at most `max`: bits enough for it, drawn until they are no more.
    fn up_to(&mut self, max: usize) -> usize {
        let max = max as u32;
        let mask = u32::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
        loop {
            let value = self.0.next_u32() & mask;
            if value <= max {
                return value as usize;
            }
        }
    }
}

/// Python's `random` after `random.seed(seed)`.
pub struct Python(Mt);

impl Python {
    /// Seeds it.
    pub fn new(seed: u32) -> Self {
        Self(Mt::new_with_key([seed]))
    }

    /// Positions that `sample(population, count)` picks from a population of `n`. At most `n` are picked.
    pub fn sample(&mut self, n: usize, count: usize) -> Vec<usize> {
        let count = count.min(n);
        // Python keeps a set of what was picked where that is smaller than a list of all.
        let mut set_size = 21;
        if count > 5 {
            set_size += 4usize.pow((count as f64 * 3.0).log(4.0).ceil() as u32);
        }
        if n <= set_size {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..count).map(|_| pool.swap_remove(self.below(pool.len()))).collect();
        }
        let mut seen = HashSet::with_capacity(count);
        let mut picked = Vec::with_capacity(count);
        while picked.len() < count {
            let position = self.below(n);
            if seen.insert(position) {
                picked.push(position);
            }
        }
        picked
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// A number below `n`, which is at least 1.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let value = (self.0.next_u32() >> (32 - bits)) as usize;
            if value < n {
                return value;
            }
        }
    }
}

/// `torch.randperm(n)` on the CPU from a generator with this seed: the order in which upstream's
/// `DistributedSampler` (seed 0, and it shuffles) goes through the samples.
pub fn torch_permutation(n: usize, seed: u32) -> Vec<usize> {
    let mut random = Mt::new(seed);
    let mut all: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        all.swap(i, i + random.next_u32() as usize % (n - i));
    }
    all
}
