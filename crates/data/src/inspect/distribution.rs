//! Many numbers, in few.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::Serialize;

/// Numbers that are remembered.
const REMEMBERED: usize = 1 << 16;

/// Bars of a histogram for one unit.
const BARS: i32 = 50;

/// How numbers are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// How many there are.
    pub count: u64,
    /// The least.
    pub min: u64,
    /// One in twenty is no greater.
    pub p05: u64,
    /// One in four is no greater.
    pub p25: u64,
    /// One in two is no greater.
    pub p50: u64,
    /// Three in four are no greater.
    pub p75: u64,
    /// Nineteen in twenty are no greater.
    pub p95: u64,
    /// The greatest.
    pub max: u64,
    /// Their mean.
    pub mean: f64,
}

/// Numbers between -1 and 1, counted in bars of 0.02.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Histogram {
    /// Where the first bar begins.
    pub start: f64,
    /// Width of each bar.
    pub width: f64,
    /// How many numbers there are in each bar, its left edge included.
    pub counts: Vec<u64>,
}

/// Numbers as they come: all of the first 65,536, then a fair sample (Vitter's algorithm R).
pub(super) struct Reservoir {
    kept: Vec<u64>,
    count: u64,
    sum: f64,
    min: u64,
    max: u64,
    rng: ChaCha8Rng,
}

impl Reservoir {
    pub(super) fn new() -> Self {
        Self { kept: Vec::new(), count: 0, sum: 0.0, min: u64::MAX, max: 0, rng: ChaCha8Rng::seed_from_u64(0) }
    }

    pub(super) fn add(&mut self, number: u64) {
        self.count += 1;
        self.sum += number as f64;
        (self.min, self.max) = (self.min.min(number), self.max.max(number));
        if self.kept.len() < REMEMBERED {
            self.kept.push(number);
        } else if let Some(place) = self.kept.get_mut((self.rng.next_u64() % self.count) as usize) {
            *place = number;
        }
    }

    pub(super) fn finish(mut self) -> Option<Distribution> {
        self.kept.sort_unstable();
        let (last, kept) = (self.kept.len().checked_sub(1)?, self.kept);
        let at = |share: f64| kept[(last as f64 * share).round() as usize];
        let [p05, p25, p50, p75, p95] = [0.05, 0.25, 0.5, 0.75, 0.95].map(at);
        let (count, min, max, mean) = (self.count, self.min, self.max, self.sum / self.count as f64);
        Some(Distribution { count, min, p05, p25, p50, p75, p95, max, mean })
    }
}

/// Counts of numbers between -1 and 1; others are counted at the ends.
pub(super) struct Bars([u64; 2 * BARS as usize]);

impl Bars {
    pub(super) fn new() -> Self {
        Self([0; 2 * BARS as usize])
    }

    pub(super) fn add(&mut self, number: f64) {
        let edge = |bar: i32| f64::from(bar) / f64::from(BARS);
        let mut bar = (number.clamp(-1.0, 1.0) * f64::from(BARS)).floor() as i32;
        // The product may be rounded over an edge.
        bar += i32::from(number >= edge(bar + 1)) - i32::from(number < edge(bar));
        self.0[(bar + BARS).clamp(0, 2 * BARS - 1) as usize] += 1;
    }

    pub(super) fn finish(self) -> Histogram {
        let first = self.0.iter().position(|&count| count > 0).unwrap_or(0);
        let end = self.0.iter().rposition(|&count| count > 0).map_or(first, |last| last + 1);
        let (start, width) = (f64::from(first as i32 - BARS) / f64::from(BARS), 1.0 / f64::from(BARS));
        Histogram { start, width, counts: self.0[first..end].to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_numbers_are_exact_and_many_nearly() {
        let mut few = Reservoir::new();
        (0..=100).rev().for_each(|number| few.add(number));
        let found = few.finish().expect("numbers");
        assert_eq!((found.min, found.p05, found.p50, found.p95, found.max), (0, 5, 50, 95, 100));
        assert_eq!((found.count, found.mean), (101, 50.0));
        let many = || {
            let mut many = Reservoir::new();
            (0..1_000_000).for_each(|number| many.add(number));
            assert_eq!(many.kept.len(), REMEMBERED);
            many.finish().expect("numbers")
        };
        let found = many();
        assert_eq!((found.min, found.max, found.count), (0, 999_999, 1_000_000));
        assert!(found.p05.abs_diff(50_000) < 5000 && found.p50.abs_diff(500_000) < 10_000, "{found:?}");
        assert_eq!(found, many());
        assert_eq!(Reservoir::new().finish(), None);
    }

    #[test]
    fn a_bar_begins_with_its_edge() {
        let mut bars = Bars::new();
        for hundredths in (20..40).step_by(2) {
            let edge = f64::from(hundredths) / 100.0;
            bars.add(edge);
            bars.add(edge.next_down());
        }
        let found = bars.finish();
        assert_eq!((found.start, found.counts), (0.18, [vec![1], vec![2; 9], vec![1]].concat()));
        let mut ends = Bars::new();
        [-1e300, -1.0, 1.0, 1e300].into_iter().for_each(|number| ends.add(number));
        assert_eq!(ends.finish().counts.iter().sum::<u64>(), 4);
        assert!(Bars::new().finish().counts.is_empty());
    }
}
