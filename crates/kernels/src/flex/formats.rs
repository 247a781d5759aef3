//! Halves (bf16, f16) as f32 and back, for kernels that compute in f32 whatever they are given. Burn's casts go by way of f64.

use burn::tensor::{Bytes, DType, Element, Shape, bf16, f16};
use burn_flex::{FlexTensor, Layout};
use rayon::prelude::*;

use super::lanes::{Lanes, Work, run};
use super::stored::{Plain, Stored, Weight};
use super::{BLOCK, elements, filled};

/// A format of 16 bits.
pub(super) trait Half: Stored + Element + bytemuck::Pod {
    const DTYPE: DType;

    /// The nearest number; the even one of two that are as near.
    fn nearest(x: f32) -> Self;
}

impl Half for bf16 {
    const DTYPE: DType = DType::BF16;

    #[inline(always)]
    fn nearest(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        // A NaN stays one, whatever bits are lost.
        let bits = if x.is_nan() { bits | 1 << 22 } else { rounded };
        Self::from_bits((bits >> 16) as u16)
    }
}

impl Half for f16 {
    const DTYPE: DType = DType::F16;

    fn nearest(x: f32) -> Self {
        Self::from_f32(x)
    }
}

/// Whether numbers of this format are computed with as f32.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// The same numbers in f32; what is no half stays as it is.
pub(super) fn widened(x: FlexTensor) -> FlexTensor {
    match x.dtype() {
        DType::BF16 => widen::<bf16>(x),
        DType::F16 => widen::<f16>(x),
        _ => x,
    }
}

/// The nearest numbers in a format of halves; what is not f32, or shall be no half, stays as it is.
pub(super) fn narrowed(x: FlexTensor, dtype: DType) -> FlexTensor {
    match (x.dtype(), dtype) {
        (DType::F32, DType::BF16) => narrow::<bf16>(x),
        (DType::F32, DType::F16) => narrow::<f16>(x),
        _ => x,
    }
}

/// A tensor whose memory holds little beside its elements.
fn compact<T: Element + bytemuck::Pod>(x: FlexTensor) -> FlexTensor {
    if x.storage::<T>().len() <= x.layout().num_elements() { x } else { x.to_contiguous() }
}

fn widen<H: Half>(x: FlexTensor) -> FlexTensor {
    let x = compact::<H>(x);
    FlexTensor::new(Bytes::from_elems(wide(x.storage::<H>())), x.layout().clone(), DType::F32)
}

/// The same numbers in f32.
pub(super) fn wide<H: Half>(from: &[H]) -> Vec<f32> {
    filled(from.len(), BLOCK, |block, to| widen_into(&from[block * BLOCK..][..to.len()], to))
}

fn narrow<H: Half>(x: FlexTensor) -> FlexTensor {
    let x = compact::<f32>(x);
    let from = x.storage::<f32>();
    let mut to = vec![H::nearest(0.0); from.len()];
    to.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK)).for_each(|(to, from)| narrow_into(from, to));
    FlexTensor::new(Bytes::from_elems(to), x.layout().clone(), H::DTYPE)
}

/// The values of a contiguous tensor of halves.
pub(super) fn halves<H: Half>(x: &FlexTensor) -> &[H] {
    &x.storage()[elements(x)]
}

/// A tensor of these halves.
pub(super) fn of_halves<H: Half>(values: Vec<H>, shape: Shape) -> FlexTensor {
    FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape), H::DTYPE)
}

/// What `work` makes of `[rows, width]` in f32, `[rows, outputs]`, as halves: some rows at a time, so that no more than those are in memory as f32.
pub(super) fn by_rows<H: Half>(
    x: &[H],
    [rows, outputs, width]: [usize; 3],
    work: impl Fn(&[f32], usize) -> Vec<f32>,
) -> Vec<H> {
    let mut wide = vec![0.0; rows.min(ROWS) * width];
    let mut out = Vec::with_capacity(rows * outputs);
    for first in (0..rows).step_by(ROWS) {
        let rows = ROWS.min(rows - first);
        let wide = &mut wide[..rows * width];
        widen_into(&x[first * width..][..wide.len()], wide);
        let found = work(wide, rows);
        let place = out.len();
        out.resize(place + found.len(), H::nearest(0.0));
        out[place..].par_chunks_mut(BLOCK).zip(found.par_chunks(BLOCK)).for_each(|(to, from)| narrow_into(from, to));
    }
    out
}

/// Rows that are in f32 at a time.
const ROWS: usize = 256;

pub(super) fn widen_into<H: Half>(from: &[H], to: &mut [f32]) {
    run(Widen { from, to });
}

pub(super) fn narrow_into<H: Half>(from: &[f32], to: &mut [H]) {
    run(Narrow { from, to });
}

struct Widen<'a, H> {
    from: &'a [H],
    to: &'a mut [f32],
}

impl<H: Half> Work for Widen<'_, H> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        if !self.from.is_empty() {
            // SAFETY: the caller's promise.
            unsafe { Plain::new(self.from, self.from.len()).unpack::<L>(0, 0, self.to) };
        }
    }
}

struct Narrow<'a, H> {
    from: &'a [f32],
    to: &'a mut [H],
}

impl<H: Half> Work for Narrow<'_, H> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        self.to.iter_mut().zip(self.from).for_each(|(to, from)| *to = H::nearest(*from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_the_nearest() {
        let halfway = |bits: u16| f32::from_bits(u32::from(bits) << 16 | 0x8000);
        let numbers: Vec<f32> = (0..=u16::MAX)
            .flat_map(|bits| {
                [bf16::from_bits(bits).to_f32(), halfway(bits), halfway(bits).next_up(), halfway(bits).next_down()]
            })
            .collect();
        let mut found = vec![bf16::ZERO; numbers.len()];
        narrow_into(&numbers, &mut found);
        for (x, found) in numbers.iter().zip(found) {
            let wanted = bf16::from_f32(*x);
            assert!(found.to_bits() == wanted.to_bits() || x.is_nan() && found.is_nan(), "{x}: {found}, not {wanted}");
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn roundings_are_vectorised() {
        use super::super::stored::tests::{gain, number, run_as};
        let from: Vec<f32> = (0..4096).map(number).collect();
        let (mut to, mut back) = (vec![bf16::ZERO; 4096], vec![0.0; 4096]);
        let narrow = gain(|way| run_as(way, Narrow { from: &from, to: &mut to }));
        let widen = gain(|way| run_as(way, Widen { from: &to, to: &mut back }));
        for gain in [narrow, widen].into_iter().flatten() {
            assert!(gain > 1.2, "a rounding is {gain:.2} times as fast with registers twice as wide");
        }
    }
}
