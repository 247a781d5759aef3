//! Pillow's resize (`libImaging/Resample.c`, `Geometry.c`), to the last bit.
//!
//! Two passes, horizontal and then vertical, each rounded to whole levels; 8-bit pixels are weighted with
//! coefficients of 22 fractional bits. So does Pillow up to 12.0; Pillow 13.0 begins with the vertical pass where a
//! picture more than twice as high as wide is shrunk, and rounds some pixels of those differently.

use std::ops::Range;

use super::{Picture, Pixels};

/// Fractional bits of a coefficient.
const PRECISION: u32 = 22;

/// Steps that positions are summed up for, as Pillow sums them; behind them they are multiplied. Pillow has no memory
/// for pictures that long.
const SUMMED: u64 = 1 << 26;

/// One axis: `from` source samples become `to`, of which `wanted` are computed.
struct Axis {
    from: usize,
    to: u64,
    wanted: Range<u64>,
}

impl Axis {
    /// The middle `side` of `to` samples.
    fn centred(from: u32, to: u64, side: u64) -> Self {
        let first = centre(to, side);
        Self { from: from as usize, to, wanted: first..first + side }
    }

    fn scale(&self) -> f64 {
        self.from as f64 / self.to as f64
    }
}

/// Where the middle `side` of `length` begins: half the rest, a half rounded to even as Python rounds.
fn centre(length: u64, side: u64) -> u64 {
    let rest = length.saturating_sub(side);
    let half = rest / 2;
    if rest.is_multiple_of(2) || half.is_multiple_of(2) { half } else { half + 1 }
}

/// Resizes so that the shorter side has `side` pixels and the other `int(side * long / short)`, as torchvision computes
/// it, and crops the middle `side * side`.
///
/// Only what the crop shows is computed: a line of a million pixels would be resized to terabytes.
pub(super) fn square(picture: &Picture, side: u32) -> Picture {
    let (width, height) = (picture.width, picture.height);
    let (short, long) = (width.min(height), width.max(height));
    let long = (f64::from(side) * f64::from(long) / f64::from(short)) as u64;
    let side_64 = u64::from(side);
    let (to_width, to_height) = if width <= height { (side_64, long) } else { (long, side_64) };
    let x = Axis::centred(width, to_width, side_64);
    let y = Axis::centred(height, to_height, side_64);
    let pixels = match &picture.pixels {
        Pixels::Bilevel(p) => Pixels::Bilevel(nearest::<1>(p, &x, &y)),
        Pixels::Palette(p) => Pixels::Palette(nearest::<3>(p, &x, &y)),
        Pixels::Grey(p) => Pixels::Grey(bicubic::<u8, 1>(p, &x, &y)),
        Pixels::Grey16(p) => Pixels::Grey16(bicubic::<u16, 1>(p, &x, &y)),
        Pixels::Rgb(p) => Pixels::Rgb(bicubic::<u8, 3>(p, &x, &y)),
        Pixels::Cmyk(p) => Pixels::Cmyk(bicubic::<u8, 4>(p, &x, &y)),
        // A picture of the right size is only cropped: premultiplying would lose colour levels.
        Pixels::GreyAlpha(p) if short == side => Pixels::GreyAlpha(nearest::<2>(p, &x, &y)),
        Pixels::Rgba(p) if short == side => Pixels::Rgba(nearest::<4>(p, &x, &y)),
        Pixels::GreyAlpha(p) => {
            let mut p = bicubic::<u8, 2>(&premultiplied::<2>(p), &x, &y);
            unpremultiply::<2>(&mut p);
            Pixels::GreyAlpha(p)
        }
        Pixels::Rgba(p) => {
            let mut p = bicubic::<u8, 4>(&premultiplied::<4>(p), &x, &y);
            unpremultiply::<4>(&mut p);
            Pixels::Rgba(p)
        }
    };
    Picture { width: side, height: side, pixels }
}

/// `a * b / 255`, rounded: Pillow's `MULDIV255`.
pub(super) fn multiply(a: u8, b: u8) -> u8 {
    let product = u32::from(a) * u32::from(b) + 128;
    (((product >> 8) + product) >> 8) as u8
}

/// Colours times alpha; the last of `N` channels is alpha.
fn premultiplied<const N: usize>(pixels: &[u8]) -> Vec<u8> {
    let mut pixels = pixels.to_vec();
    for pixel in pixels.chunks_exact_mut(N) {
        let alpha = pixel[N - 1];
        for colour in &mut pixel[..N - 1] {
            *colour = multiply(*colour, alpha);
        }
    }
    pixels
}

fn unpremultiply<const N: usize>(pixels: &mut [u8]) {
    for pixel in pixels.chunks_exact_mut(N) {
        let alpha = u32::from(pixel[N - 1]);
        if alpha != 0 && alpha != 255 {
            for colour in &mut pixel[..N - 1] {
                *colour = (255 * u32::from(*colour) / alpha).min(255) as u8;
            }
        }
    }
}

/// Repeats and drops pixels. Source positions are summed up step by step, rounding errors included.
fn nearest<const N: usize>(pixels: &[u8], x: &Axis, y: &Axis) -> Vec<u8> {
    let places = |axis: &Axis| -> Vec<usize> {
        let step = axis.scale();
        let mut at = step * 0.5;
        if axis.wanted.start > SUMMED {
            at += step * axis.wanted.start as f64;
        } else {
            (0..axis.wanted.start).for_each(|_| at += step);
        }
        axis.wanted
            .clone()
            .map(|_| {
                let place = (at as usize).min(axis.from - 1);
                at += step;
                place
            })
            .collect()
    };
    let (columns, rows) = (places(x), places(y));
    let mut out = Vec::with_capacity(rows.len() * columns.len() * N);
    for row in rows {
        for &column in &columns {
            let at = (row * x.from + column) * N;
            out.extend_from_slice(&pixels[at..at + N]);
        }
    }
    out
}

/// A sample that can be averaged.
trait Level: Copy + Default {
    /// A weight in the form that sums of this type use.
    type Weight: Copy;
    /// A weighted sum in the making; its default is the sum of nothing.
    type Sum: Copy + Default;
    fn weight(weight: f64) -> Self::Weight;
    fn add(sum: &mut Self::Sum, level: Self, weight: Self::Weight);
    fn rounded(sum: Self::Sum) -> Self;
}

impl Level for u8 {
    type Weight = i32;
    type Sum = i32;

    fn weight(weight: f64) -> i32 {
        let scaled = weight * f64::from(1 << PRECISION);
        (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
    }

    #[inline(always)]
    fn add(sum: &mut i32, level: u8, weight: i32) {
        *sum += i32::from(level) * weight;
    }

    #[inline(always)]
    fn rounded(sum: i32) -> u8 {
        ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as u8
    }
}

impl Level for u16 {
    type Weight = f64;
    type Sum = f64;

    fn weight(weight: f64) -> f64 {
        weight
    }

    #[inline(always)]
    fn add(sum: &mut f64, level: u16, weight: f64) {
        *sum += f64::from(level) * weight;
    }

    #[inline(always)]
    fn rounded(sum: f64) -> u16 {
        (if sum < 0.0 { sum - 0.5 } else { sum + 0.5 }) as u16
    }
}

/// Source samples of one target sample.
struct Window<W> {
    first: usize,
    weights: Vec<W>,
}

/// The cubic convolution kernel with `a = -0.5`.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// For each wanted sample the weights of its source samples. When shrinking, the kernel is widened.
fn windows<L: Level>(axis: &Axis) -> Vec<Window<L::Weight>> {
    let scale = axis.scale();
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    axis.wanted
        .clone()
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5).max(0.0)) as usize;
            let last = ((centre + support + 0.5) as usize).min(axis.from);
            let weights: Vec<f64> = (first..last).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let sum: f64 = weights.iter().sum();
            let share = |w: f64| if sum != 0.0 { w / sum } else { w };
            Window { first, weights: weights.into_iter().map(|w| L::weight(share(w))).collect() }
        })
        .collect()
}

/// Both passes. Where an axis keeps its length the weights are 0 and 1, and its pass copies.
fn bicubic<L: Level, const N: usize>(pixels: &[L], x: &Axis, y: &Axis) -> Vec<L> {
    let (columns, mut rows) = (windows::<L>(x), windows::<L>(y));
    // The horizontal pass makes only the rows that the vertical one reads.
    let top = rows.iter().map(|window| window.first).min().unwrap_or(0);
    let bottom = rows.iter().map(|window| window.first + window.weights.len()).max().unwrap_or(0);
    rows.iter_mut().for_each(|window| window.first -= top);
    let stride = x.from * N;
    let narrow = horizontal::<L, N>(&pixels[top * stride..bottom * stride], stride, &columns);
    vertical(&narrow, columns.len() * N, &rows)
}

fn horizontal<L: Level, const N: usize>(pixels: &[L], stride: usize, columns: &[Window<L::Weight>]) -> Vec<L> {
    let mut out = Vec::with_capacity(columns.len() * (pixels.len() / stride) * N);
    for row in pixels.chunks_exact(stride) {
        for window in columns {
            let mut sums = [L::Sum::default(); N];
            let samples = row[window.first * N..].chunks_exact(N);
            for (pixel, &weight) in samples.zip(&window.weights) {
                sums.iter_mut().zip(pixel).for_each(|(sum, &level)| L::add(sum, level, weight));
            }
            out.extend(sums.map(L::rounded));
        }
    }
    out
}

/// Goes through whole rows, which the compiler vectorises.
fn vertical<L: Level>(pixels: &[L], stride: usize, rows: &[Window<L::Weight>]) -> Vec<L> {
    let mut out = Vec::with_capacity(stride * rows.len());
    let mut sums = vec![L::Sum::default(); stride];
    for window in rows {
        sums.fill(L::Sum::default());
        for (row, &weight) in pixels[window.first * stride..].chunks_exact(stride).zip(&window.weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &level)| L::add(sum, level, weight));
        }
        out.extend(sums.iter().map(|&sum| L::rounded(sum)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::centre;

    #[test]
    fn halves_round_to_even() {
        // Python: [round(x / 2) for x in range(7)]
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|rest| centre(10 + rest, 10)), [0, 0, 1, 2, 2, 2, 3]);
    }
}
