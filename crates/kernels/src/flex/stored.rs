//! Linear layers whose weights stay as they are stored: f32, f16, bf16 or quantised. Inputs and sums are f32.
//!
//! Decoding reads every weight once for a row or a few, so that memory is what limits it: [`few_rows`] streams rows of the
//! weight through dot products on all threads. With many rows of inputs the products themselves cost most:
//! [`many_rows`] lays panels of the weight out as f32 and multiplies by those.

#[cfg(target_arch = "x86_64")]
use super::halves;
use super::lanes::{Lanes, MOST, Work, run};
use super::panels::{Factor, multiply};
use super::product::{Matrix, worth_threads};
use burn::tensor::{bf16, f16};
use rayon::prelude::*;
use std::array;
use std::ops::Range;

/// Weights that are worth a task.
const TASK: usize = 1 << 16;

/// A number format of weights.
pub(super) trait Stored: Copy + Send + Sync {
    /// Whether it is no finer than bf16.
    const COARSE: bool;

    /// Its number, exactly.
    fn number(self) -> f32;

    /// As many numbers as a register holds.
    ///
    /// # Safety
    /// That of [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Stored for f32 {
    const COARSE: bool = false;

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
    const COARSE: bool = true;

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
    const COARSE: bool = false;

    fn number(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: the caller's promise.
        unsafe { L::load_f16(from) }
    }
}

/// A weight, `[d_out, d_in]`, as it lies in memory.
pub(super) trait Weight: Sync {
    /// Whether its numbers are no finer than bf16.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only products of bf16 ask"))]
    const COARSE: bool;

    /// Outputs and inputs.
    fn size(&self) -> [usize; 2];

    /// The products of some rows of the weight, from `row` on, and `ROWS` rows of inputs, `x`, `[ROWS, d_in]`: registers whose
    /// numbers, added up, are those. A product is the same number whatever others are asked for beside it.
    ///
    /// # Safety
    /// That of [`Lanes`].
    unsafe fn dots<const OUTPUTS: usize, const ROWS: usize, L: Lanes>(
        &self,
        row: usize,
        x: &[f32],
    ) -> [[L; OUTPUTS]; ROWS];

    /// Some numbers of a row, from `first` on, a multiple of a quantised weight's block as their count is.
    ///
    /// # Safety
    /// That of [`Lanes`].
    unsafe fn unpack<L: Lanes>(&self, row: usize, first: usize, numbers: &mut [f32]);
}

/// A weight that is plain numbers.
pub(super) struct Plain<'a, S> {
    numbers: &'a [S],
    d_in: usize,
}

impl<'a, S> Plain<'a, S> {
    /// Rows of `d_in` numbers.
    pub(super) fn new(numbers: &'a [S], d_in: usize) -> Self {
        Self { numbers, d_in }
    }

    fn row(&self, row: usize) -> &[S] {
        &self.numbers[row * self.d_in..][..self.d_in]
    }
}

impl<S: Stored> Weight for Plain<'_, S> {
    const COARSE: bool = S::COARSE;

    fn size(&self) -> [usize; 2] {
        [self.numbers.len() / self.d_in, self.d_in]
    }

    #[inline(always)]
    unsafe fn dots<const OUTPUTS: usize, const ROWS: usize, L: Lanes>(
        &self,
        row: usize,
        x: &[f32],
    ) -> [[L; OUTPUTS]; ROWS] {
        let d_in = self.d_in;
        let weight = &self.numbers[row * d_in..][..OUTPUTS * d_in];
        assert_eq!(x.len(), ROWS * d_in, "inputs of another width");
        let whole = d_in / L::COUNT * L::COUNT;
        // SAFETY: all places lie before `whole`, which is within a row of `weight` and `x`; the rest is the caller's promise.
        unsafe {
            let mut sums = [[L::zero(); OUTPUTS]; ROWS];
            for at in (0..whole).step_by(L::COUNT) {
                let weights = array::from_fn(|output| S::load::<L>(weight.as_ptr().add(output * d_in + at)));
                add_products(&mut sums, weights, |row| L::load(x.as_ptr().add(row * d_in + at)));
            }
            if whole < d_in {
                let rest = |row: usize| row * d_in + whole..(row + 1) * d_in;
                let weights = array::from_fn(|output| filled_up(&weight[rest(output)]));
                add_products(&mut sums, weights, |row| filled_up(&x[rest(row)]));
            }
            sums
        }
    }

    #[inline(always)]
    unsafe fn unpack<L: Lanes>(&self, row: usize, first: usize, numbers: &mut [f32]) {
        let weight = &self.row(row)[first..][..numbers.len()];
        let whole = weight.len() / L::COUNT * L::COUNT;
        for at in (0..whole).step_by(L::COUNT) {
            // SAFETY: the place is before `whole`; the rest is the caller's promise.
            unsafe { S::load::<L>(weight.as_ptr().add(at)).store(numbers.as_mut_ptr().add(at)) };
        }
        for (to, from) in numbers[whole..].iter_mut().zip(&weight[whole..]) {
            *to = from.number();
        }
    }
}

/// Adds each product of a weight and an input.
///
/// # Safety
/// That of [`Lanes`].
#[expect(clippy::needless_range_loop, reason = "indices of what lies in several places")]
#[inline(always)]
unsafe fn add_products<const OUTPUTS: usize, const ROWS: usize, L: Lanes>(
    sums: &mut [[L; OUTPUTS]; ROWS],
    weights: [L; OUTPUTS],
    input: impl Fn(usize) -> L,
) {
    for row in 0..ROWS {
        let x = input(row);
        for output in 0..OUTPUTS {
            // SAFETY: the caller's promise.
            sums[row][output] = unsafe { weights[output].mul_add(x, sums[row][output]) };
        }
    }
}

/// Less than a register of numbers, and zeros.
///
/// # Safety
/// That of [`Lanes`].
#[inline(always)]
unsafe fn filled_up<S: Stored, L: Lanes>(numbers: &[S]) -> L {
    const { assert!(L::COUNT <= MOST, "room for a register") };
    let mut all = [0.0; MOST];
    all.iter_mut().zip(numbers).for_each(|(to, number)| *to = number.number());
    // SAFETY: no register holds more; the rest is the caller's promise.
    unsafe { L::load(all.as_ptr()) }
}

/// Some columns of an output, `[rows, d_out]`.
pub(super) struct Columns<'a, W> {
    out: Matrix,
    columns: Range<usize>,
    weight: &'a W,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    rows: usize,
}

impl<'a, W> Columns<'a, W> {
    /// Columns of `out` that are to be written, with inputs `[rows, d_in]` and the bias of all columns.
    ///
    /// # Safety
    /// They are there, and until they are written nobody else reads or writes them.
    pub(super) unsafe fn new(
        out: Matrix,
        columns: Range<usize>,
        weight: &'a W,
        x: &'a [f32],
        bias: Option<&'a [f32]>,
        rows: usize,
    ) -> Self {
        Self { out, columns, weight, x, bias, rows }
    }
}

impl<W: Weight> Work for Columns<'_, W> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(mut self) {
        // Inputs are read once for several outputs, which also keeps several sums on their way.
        while self.columns.len() >= OUTPUTS {
            // SAFETY: the caller's promise.
            unsafe { self.write::<OUTPUTS, L>() };
        }
        while !self.columns.is_empty() {
            // SAFETY: the caller's promise.
            unsafe { self.write::<1, L>() };
        }
    }
}

/// Outputs that are worked on together, with four rows of inputs: as many sums as a processor has registers for.
const OUTPUTS: usize = 4;

impl<W: Weight> Columns<'_, W> {
    /// Writes the first of the columns, and leaves the others.
    ///
    /// # Safety
    /// That of [`Columns::with`]; there are so many.
    #[inline(always)]
    unsafe fn write<const OUTPUTS: usize, L: Lanes>(&mut self) {
        for first in (0..self.rows).step_by(4) {
            // SAFETY: the caller's promise.
            unsafe {
                match self.rows - first {
                    1 => self.put::<OUTPUTS, 1, L>(first),
                    2 => self.put::<OUTPUTS, 2, L>(first),
                    3 => self.put::<OUTPUTS, 3, L>(first),
                    _ => self.put::<OUTPUTS, 4, L>(first),
                }
            }
        }
        self.columns.start += OUTPUTS;
    }

    /// Writes the first of the columns in some rows, from `first` on.
    ///
    /// # Safety
    /// As [`Columns::write`].
    #[expect(clippy::needless_range_loop, reason = "what is counted at compile time stays in registers")]
    #[inline(always)]
    unsafe fn put<const OUTPUTS: usize, const ROWS: usize, L: Lanes>(&self, first: usize) {
        let ([_, d_in], column) = (self.weight.size(), self.columns.start);
        let mut bias = [0.0; OUTPUTS];
        if let Some(all) = self.bias {
            bias.copy_from_slice(&all[column..][..OUTPUTS]);
        }
        // SAFETY: these places are there, and numbers of a row lie together; nobody else reads or writes them. The rest is the
        // caller's promise.
        unsafe {
            let dots = self.weight.dots::<OUTPUTS, ROWS, L>(column, &self.x[first * d_in..][..ROWS * d_in]);
            for row in 0..ROWS {
                let mut sums = L::sums(dots[row]);
                for output in 0..OUTPUTS {
                    sums[output] += bias[output];
                }
                self.out.at(first + row, column).cast::<[f32; OUTPUTS]>().write_unaligned(sums);
            }
        }
    }
}

/// The transposed weight, as the right factor of a product.
pub(super) struct Transposed<'a, W>(pub(super) &'a W);

impl<W: Weight> Factor for Transposed<'_, W> {
    #[inline(always)]
    unsafe fn column<L: Lanes>(&self, column: usize, first: usize, numbers: &mut [f32]) {
        // SAFETY: the caller's promise.
        unsafe { self.0.unpack::<L>(column, first, numbers) };
    }
}

/// `x Wᵀ + b` for `[rows, d_in]`: `[rows, d_out]`, one dot product after the other. No size is 0.
pub(super) fn few_rows(x: &[f32], weight: &impl Weight, bias: Option<&[f32]>, rows: usize) -> Vec<f32> {
    let [d_out, d_in] = weight.size();
    assert!(x.len() == rows * d_in && bias.is_none_or(|bias| bias.len() == d_out), "inputs and a bias of these sizes");
    // SAFETY: the columns are there, and they are a task's own, which writes all of them and reads none.
    unsafe { by_columns(weight.size(), rows, |out, columns| run(Columns::new(out, columns, weight, x, bias, rows))) }
}

/// `[rows, d_out]` from a weight of this size, `[d_out, d_in]`, on all threads: `fill` writes some columns, which nobody else
/// does. No size is 0.
///
/// # Safety
/// `fill` writes all rows of the columns that it is given, and reads none.
pub(super) unsafe fn by_columns(
    [d_out, d_in]: [usize; 2],
    rows: usize,
    fill: impl Fn(Matrix, Range<usize>) + Sync,
) -> Vec<f32> {
    let outputs = (TASK / d_in).clamp(1, d_out);
    let mut out: Vec<f32> = Vec::with_capacity(rows * d_out);
    let places = Matrix { start: out.as_mut_ptr(), row: d_out as isize, column: 1 };
    match outputs == d_out {
        // Not worth waking a thread.
        true => fill(places, 0..d_out),
        false => (0..d_out.div_ceil(outputs)).into_par_iter().for_each(|task| {
            let first = task * outputs;
            fill(places, first..(first + outputs).min(d_out));
        }),
    }
    // SAFETY: the caller's promise: every column was written.
    unsafe { out.set_len(rows * d_out) };
    out
}

/// `x Wᵀ` added to `out`, `[rows, d_out]`. No size is 0. Products by weights that are no finer than bf16 are products of bf16,
/// on processors that have those.
pub(super) fn many_rows<W: Weight>(x: &[f32], weight: &W, out: &mut [f32], rows: usize) {
    let [d_out, d_in] = weight.size();
    assert_eq!(out.len(), rows * d_out, "room for every output");
    let (out, size) = (Matrix::of(out, d_out), [rows, d_out, d_in]);
    #[cfg(target_arch = "x86_64")]
    if W::COARSE && halves::known() {
        // SAFETY: the processor was asked; both have these sizes.
        return unsafe { halves::multiply(out, x, weight, rows, worth_threads(size)) };
    }
    let x = Matrix::read(x, [rows, d_in]);
    // SAFETY: all three have these sizes.
    unsafe { multiply(out, true, x, &Transposed(weight), size, 1.0, worth_threads(size)) };
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::lanes::Portable;
    #[cfg(target_arch = "aarch64")]
    use super::super::lanes::neon::Neon;
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    use super::super::lanes::wasm::Simd128;
    #[cfg(target_arch = "x86_64")]
    use super::super::lanes::x86;
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(in super::super) enum Way {
        Portable,
        #[cfg(target_arch = "x86_64")]
        Avx2,
        #[cfg(target_arch = "x86_64")]
        Avx512,
        #[cfg(target_arch = "aarch64")]
        Neon,
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        Simd128,
    }

    /// The ways that the processor of the test knows.
    pub(in super::super) fn ways() -> Vec<Way> {
        let mut ways = vec![Way::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            ways.extend(x86::has_avx2().then_some(Way::Avx2));
            ways.extend(x86::has_avx512().then_some(Way::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        ways.push(Way::Neon);
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        ways.push(Way::Simd128);
        ways
    }

    pub(in super::super) fn run_as(way: Way, work: impl Work) {
        // SAFETY: it needs nothing, or the processor was asked.
        unsafe {
            match way {
                Way::Portable => work.with::<Portable>(),
                #[cfg(target_arch = "x86_64")]
                Way::Avx2 => x86::with_avx2(work),
                #[cfg(target_arch = "x86_64")]
                Way::Avx512 => x86::with_avx512(work),
                #[cfg(target_arch = "aarch64")]
                Way::Neon => work.with::<Neon>(),
                #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
                Way::Simd128 => work.with::<Simd128>(),
            }
        }
    }

    /// How many times as fast work is with AVX2 as with what every processor has; nothing where that cannot be told. What is not
    /// inlined into a loop is compiled for any processor, and the loop with it: wide registers are then of no use.
    #[cfg(target_arch = "x86_64")]
    pub(in super::super) fn gain(mut work: impl FnMut(Way)) -> Option<f64> {
        if !ways().contains(&Way::Avx2) || cfg!(target_feature = "avx2") {
            eprintln!("skipped: no AVX2, or nothing without it");
            return None;
        }
        let mut time = |way: Way| {
            let start = std::time::Instant::now();
            work(way);
            start.elapsed().as_secs_f64()
        };
        // They take turns, so that whatever else the machine does meets both; a round in which it leaves neither alone says
        // nothing about the code, and the best one does.
        let mut round = || {
            let times = (0..1000).map(|_| [Way::Portable, Way::Avx2].map(&mut time));
            let [portable, avx2] = times.fold([f64::INFINITY; 2], |[a, b], [c, d]| [a.min(c), b.min(d)]);
            portable / avx2
        };
        Some((0..5).map(|_| round()).fold(0.0, f64::max))
    }

    pub(in super::super) fn number(i: usize) -> f32 {
        ((i * 7919 % 2003) as f32 - 1001.0) / 500.0
    }

    /// Some numbers of a row of a weight.
    pub(in super::super) struct Unpack<'a, W> {
        pub(in super::super) weight: &'a W,
        pub(in super::super) row: usize,
        pub(in super::super) first: usize,
        pub(in super::super) numbers: &'a mut [f32],
    }

    impl<W: Weight> Work for Unpack<'_, W> {
        #[inline(always)]
        unsafe fn with<L: Lanes>(self) {
            // SAFETY: the caller's promise.
            unsafe { self.weight.unpack::<L>(self.row, self.first, self.numbers) };
        }
    }

    fn sums_are_exact<S: Stored>(stored: fn(f32) -> S) {
        for (rows, d_in) in [(1, 1), (1, 63), (1, 200), (2, 64), (3, 31), (4, 100), (5, 77), (9, 129)] {
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let weight: Vec<S> = (0..6 * d_in).map(|i| stored(number(i + 17))).collect();
            let bias = [0.5, -0.25, 2.0, 0.0, 1.0, -3.0];
            let dot = |column: usize, row: usize| {
                let (weight, x) = (&weight[column * d_in..][..d_in], &x[row * d_in..][..d_in]);
                let products = weight.iter().zip(x).map(|(w, x)| f64::from(w.number()) * f64::from(*x));
                products.sum::<f64>() + f64::from(bias[column])
            };
            for way in ways() {
                let mut found = vec![f32::NAN; rows * 6];
                let plain = Plain::new(&weight, d_in);
                let (out, bias) = (Matrix::of(&mut found, 6), Some(&bias[..]));
                // SAFETY: the output is ours and has six columns.
                run_as(way, unsafe { Columns::new(out, 0..6, &plain, &x, bias, rows) });
                for (i, found) in found.iter().enumerate() {
                    let wanted = dot(i % 6, i / 6);
                    assert!((f64::from(*found) - wanted).abs() < 2e-4, "{way:?}, {rows} {d_in}: {found}, not {wanted}");
                }
            }
        }
    }

    fn numbers_are_exact<S: Stored>(all: impl Iterator<Item = S>) {
        let weight: Vec<S> = all.collect();
        for way in ways() {
            let mut unpacked = vec![0.0; weight.len()];
            let plain = Plain::new(&weight, weight.len());
            run_as(way, Unpack { weight: &plain, row: 0, first: 0, numbers: &mut unpacked });
            for (found, wanted) in unpacked.iter().zip(&weight) {
                let wanted = wanted.number();
                assert!(*found == wanted || (found.is_nan() && wanted.is_nan()), "{way:?}: {found}, not {wanted}");
            }
        }
    }

    /// Registers are added up together as each by itself, to the last bit.
    #[test]
    fn several_sums_are_those_of_one() {
        struct Sums<'a>(&'a [f32], &'a mut Vec<[f32; 2]>);
        impl Work for Sums<'_> {
            #[inline(always)]
            unsafe fn with<L: Lanes>(self) {
                // SAFETY: the caller's promise; there are seven registers' numbers.
                unsafe {
                    let all: [L; 7] = std::array::from_fn(|i| L::load(self.0[i * L::COUNT..][..L::COUNT].as_ptr()));
                    let found = L::sums(all);
                    self.1.extend(all.iter().zip(found).map(|(one, found)| [one.sum(), found]));
                }
            }
        }
        let numbers: Vec<f32> = (0..7 * 16).map(|i| number(i) / 3.0 + 1e-3 * number(i * i)).collect();
        for way in ways() {
            let mut sums = Vec::new();
            run_as(way, Sums(&numbers, &mut sums));
            assert_eq!(sums.len(), 7);
            assert!(sums.iter().all(|[alone, together]| alone.to_bits() == together.to_bits()), "{way:?}: {sums:?}");
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
