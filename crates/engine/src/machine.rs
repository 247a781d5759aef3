//! What this machine can do at best, to tell how near to it a model comes.

use std::time::Instant;

/// Bytes that are read to measure how fast that is: more than any cache holds.
const READ: usize = 1 << 30;

/// Times of each measurement, of which the best counts.
const TIMES: usize = 5;

/// What a machine can do at best, with all its cores.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Bytes a second that are read from memory.
    pub read: f64,
    /// Multiplications and additions of f32 a second, of a product of large matrices; without flex nobody measures it.
    pub product: Option<f64>,
}

impl Machine {
    /// Measures it: a second or two.
    pub fn measure() -> Self {
        #[cfg(feature = "flex")]
        let product = Some(flamingo_kernels::flex::product_rate());
        #[cfg(not(feature = "flex"))]
        let product = None;
        Self { read: read_rate(), product }
    }
}

fn read_rate() -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let numbers = vec![1u64; READ / size_of::<u64>()];
    let best = (0..TIMES).map(|_| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for part in numbers.chunks(numbers.len().div_ceil(threads)) {
                scope.spawn(|| std::hint::black_box(sum(part)));
            }
        });
        start.elapsed().as_secs_f64()
    });
    READ as f64 / best.fold(f64::INFINITY, f64::min)
}

/// The sum of numbers, in sums that do not wait for each other.
fn sum(numbers: &[u64]) -> u64 {
    let mut sums = [0u64; 32];
    for numbers in numbers.chunks_exact(32) {
        sums.iter_mut().zip(numbers).for_each(|(sum, x)| *sum = sum.wrapping_add(*x));
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}
