//! Linear layers whose weights stay as they are stored: f32, f16 or bf16. Inputs and sums are f32.
//!
//! Decoding reads every weight once for a row or a few, so that memory is what limits it: [`few_rows`] streams rows of the
//! weight through dot products on all threads. With many rows of inputs the products themselves cost most:
//! [`many_rows`] unpacks a part of the weight that fits into a core's cache and multiplies by that.

use burn::tensor::{bf16, f16};
use gemm::Parallelism;
use rayon::prelude::*;

use super::filled;
use super::lanes::{Lanes, Work, run};
use super::product::{Matrix, product};

/// Weights that are worth a task.
const TASK: usize = 1 << 16;

/// Weights that are unpacked together.
const UNPACKED: usize = 1 << 18;

/// A number format of weights.
pub(super) trait Stored: Copy + Send + Sync {
    /// Its number, exactly.
    fn number(self) -> f32;

    /// As many numbers as a register holds.
    ///
    /// # Safety
    /// That of [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Stored for f32 {
    fn number(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load(from) }
    }
}

impl Stored for bf16 {
    fn number(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_bf16(from) }
    }
}

impl Stored for f16 {
    fn number(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(from) }
    }
}

/// Some columns of an output, column by column.
struct Columns<'a, S> {
    columns: &'a mut [f32],
    /// A row for each column, `[d_out, d_in]`.
    weight: &'a [S],
    /// `[rows, d_in]`.
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    rows: usize,
    d_in: usize,
}

impl<S: Stored> Work for Columns<'_, S> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        let Self { columns, weight, x, bias, rows, d_in } = self;
        for (i, (column, weight)) in columns.chunks_exact_mut(rows).zip(weight.chunks_exact(d_in)).enumerate() {
            column.fill(bias.map_or(0.0, |bias| bias[i]));
            for (x, column) in x.chunks(4 * d_in).zip(column.chunks_mut(4)) {
                // SAFETY: the caller's promise.
                unsafe {
                    match column.len() {
                        1 => add_dots::<1, 4, L, S>(weight, x, column),
                        2 => add_dots::<2, 2, L, S>(weight, x, column),
                        3 => add_dots::<3, 2, L, S>(weight, x, column),
                        _ => add_dots::<4, 2, L, S>(weight, x, column),
                    }
                }
            }
        }
    }
}

/// Weights as f32; both have one length.
struct Unpack<'a, S> {
    weight: &'a [S],
    unpacked: &'a mut [f32],
}

impl<S: Stored> Work for Unpack<'_, S> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        let Self { weight, unpacked } = self;
        assert_eq!(weight.len(), unpacked.len(), "room for every weight");
        let whole = weight.len() / L::COUNT * L::COUNT;
        for at in (0..whole).step_by(L::COUNT) {
            // SAFETY: the place is before `whole`; the rest is the caller's promise.
            unsafe { S::load::<L>(weight.as_ptr().add(at)).store(unpacked.as_mut_ptr().add(at)) };
        }
        for (to, from) in unpacked[whole..].iter_mut().zip(&weight[whole..]) {
            *to = from.number();
        }
    }
}

/// Adds to each of `ROWS` sums the product of a row of the weight and its row of `x`, with `EACH` registers a row.
///
/// # Safety
/// That of [`Lanes`] for `L`.
#[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
#[inline(always)]
unsafe fn add_dots<const ROWS: usize, const EACH: usize, L: Lanes, S: Stored>(
    weight: &[S],
    x: &[f32],
    sums: &mut [f32],
) {
    let d_in = weight.len();
    assert!(x.len() == ROWS * d_in && sums.len() == ROWS, "a row for each sum");
    let step = EACH * L::COUNT;
    let whole = d_in / step * step;
    // SAFETY: all places lie before `whole`, which is within a row of `weight` and `x`; the rest is the caller's promise.
    unsafe {
        let mut lanes = [[L::zero(); EACH]; ROWS];
        for first in (0..whole).step_by(step) {
            for each in 0..EACH {
                let at = first + each * L::COUNT;
                let weight = S::load::<L>(weight.as_ptr().add(at));
                for row in 0..ROWS {
                    let x = L::load(x.as_ptr().add(row * d_in + at));
                    lanes[row][each] = weight.mul_add(x, lanes[row][each]);
                }
            }
        }
        for row in 0..ROWS {
            sums[row] += lanes[row].iter().map(|lanes| lanes.sum()).sum::<f32>();
        }
    }
    for (sum, x) in sums.iter_mut().zip(x.chunks_exact(d_in)) {
        *sum += weight[whole..].iter().zip(&x[whole..]).map(|(w, x)| w.number() * x).sum::<f32>();
    }
}

/// `x Wᵀ + b` for `[rows, d_in]` and `[d_out, d_in]`: `[rows, d_out]`, one dot product after the other. No size is 0.
pub(super) fn few_rows<S: Stored>(
    x: &[f32],
    weight: &[S],
    bias: Option<&[f32]>,
    [rows, d_out, d_in]: [usize; 3],
) -> Vec<f32> {
    let outputs = (TASK / d_in).clamp(1, d_out);
    // Column by column, so that a task writes to one place.
    let columns = filled(d_out * rows, outputs * rows, |task, columns| {
        let first = task * outputs;
        let (weight, bias) = (&weight[first * d_in..], bias.map(|bias| &bias[first..]));
        run(Columns { columns, weight, x, bias, rows, d_in });
    });
    if rows == 1 {
        return columns;
    }
    (0..rows * d_out).map(|i| columns[i % d_out * rows + i / d_out]).collect()
}

/// `x Wᵀ` added to `out`, `[rows, d_out]`. No size is 0.
pub(super) fn many_rows<S: Stored>(x: &[f32], weight: &[S], out: &mut [f32], [rows, d_out, d_in]: [usize; 3]) {
    assert_eq!(out.len(), rows * d_out, "room for every output");
    let outputs = (UNPACKED / d_in / 16 * 16).max(16);
    let to = Shared(out.as_mut_ptr());
    weight.par_chunks(outputs * d_in).enumerate().for_each(|(part, weight)| {
        let mut unpacked = vec![0.0; weight.len()];
        run(Unpack { weight, unpacked: &mut unpacked });
        let (first, count) = (part * outputs, weight.len() / d_in);
        let b = Matrix::read(&unpacked, [count, d_in]).transposed();
        // SAFETY: each part has its own columns of `out`, whose length was checked.
        unsafe {
            let to = Matrix { start: to.get().add(first), row: d_out as isize, column: 1 };
            product(to, true, Matrix::read(x, [rows, d_in]), b, [rows, count, d_in], 1.0, Parallelism::None);
        }
    });
}

/// A place that several threads write to, each to other columns.
struct Shared(*mut f32);

impl Shared {
    fn get(&self) -> *mut f32 {
        self.0
    }
}

// SAFETY: who takes the pointer promises to write where nobody else does.
unsafe impl Sync for Shared {}

#[cfg(test)]
mod tests {
    use super::super::lanes::Portable;
    #[cfg(target_arch = "x86_64")]
    use super::super::lanes::x86;
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Way {
        Portable,
        #[cfg(target_arch = "x86_64")]
        Avx2,
        #[cfg(target_arch = "x86_64")]
        Avx512,
    }

    /// The ways that the processor of the test knows.
    fn ways() -> Vec<Way> {
        let mut ways = vec![Way::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            ways.extend(x86::has_avx2().then_some(Way::Avx2));
            ways.extend(x86::has_avx512().then_some(Way::Avx512));
        }
        ways
    }

    fn run_as(way: Way, work: impl Work) {
        // SAFETY: it needs nothing, or the processor was asked.
        unsafe {
            match way {
                Way::Portable => work.with::<Portable>(),
                #[cfg(target_arch = "x86_64")]
                Way::Avx2 => x86::with_avx2(work),
                #[cfg(target_arch = "x86_64")]
                Way::Avx512 => x86::with_avx512(work),
            }
        }
    }

    fn number(i: usize) -> f32 {
        ((i * 7919 % 2003) as f32 - 1001.0) / 500.0
    }

    fn sums_are_exact<S: Stored>(stored: fn(f32) -> S) {
        for (rows, d_in) in [(1, 1), (1, 63), (1, 200), (2, 64), (3, 31), (4, 100), (5, 77), (9, 129)] {
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let weight: Vec<S> = (0..3 * d_in).map(|i| stored(number(i + 17))).collect();
            let bias = [0.5, -0.25, 2.0];
            let dot = |column: usize, row: usize| {
                let (weight, x) = (&weight[column * d_in..][..d_in], &x[row * d_in..][..d_in]);
                let products = weight.iter().zip(x).map(|(w, x)| f64::from(w.number()) * f64::from(*x));
                products.sum::<f64>() + f64::from(bias[column])
            };
            for way in ways() {
                let mut columns = vec![f32::NAN; 3 * rows];
                run_as(way, Columns { columns: &mut columns, weight: &weight, x: &x, bias: Some(&bias), rows, d_in });
                for (i, found) in columns.iter().enumerate() {
                    let wanted = dot(i / rows, i % rows);
                    assert!((f64::from(*found) - wanted).abs() < 2e-4, "{way:?}, {rows} {d_in}: {found}, not {wanted}");
                }
            }
        }
    }

    fn numbers_are_exact<S: Stored>(all: impl Iterator<Item = S>) {
        let weight: Vec<S> = all.collect();
        for way in ways() {
            let mut unpacked = vec![0.0; weight.len()];
            run_as(way, Unpack { weight: &weight, unpacked: &mut unpacked });
            for (found, wanted) in unpacked.iter().zip(&weight) {
                let wanted = wanted.number();
                assert!(*found == wanted || (found.is_nan() && wanted.is_nan()), "{way:?}: {found}, not {wanted}");
            }
        }
    }

    #[test]
    fn every_processor_reads_the_same_numbers() {
        // One less than all, so that some are left over.
        numbers_are_exact((1..=u16::MAX).map(f16::from_bits));
        numbers_are_exact((1..=u16::MAX).map(bf16::from_bits));
        numbers_are_exact((0..1003).map(number));
    }

    #[test]
    fn every_processor_gets_the_same_sums() {
        sums_are_exact::<f32>(|x| x);
        sums_are_exact::<f16>(f16::from_f32);
        sums_are_exact::<bf16>(bf16::from_f32);
    }
}
