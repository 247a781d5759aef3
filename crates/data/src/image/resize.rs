//! Pillow's resize (`libImaging/Resample.c`, `Geometry.c`), to the last bit.
//!
//! Two passes, horizontal and vertical, each rounded to whole levels; 8-bit pixels are weighted with
//! coefficients of 22 fractional bits.

use super::{Picture, Pixels};

/// Fractional bits of a coefficient.
const PRECISION: u32 = 22;

/// Resizes so that the shorter side has `size` pixels and the other `int(size * long / short)`, as torchvision
/// computes it.
pub(super) fn shorter_side(picture: &Picture, size: u32) -> Picture {
    let (width, height) = (picture.width, picture.height);
    let (short, long) = (width.min(height), width.max(height));
    if short == size {
        return picture.clone();
    }
    let long = (f64::from(size) * f64::from(long) / f64::from(short)) as u32;
    let (width, height) = if width <= height { (size, long) } else { (long, size) };
    resize(picture, width, height)
}

fn resize(picture: &Picture, width: u32, height: u32) -> Picture {
    let from = (picture.width as usize, picture.height as usize);
    let to = (width as usize, height as usize);
    let pixels = match &picture.pixels {
        Pixels::Bilevel(p) => Pixels::Bilevel(nearest::<1>(p, from, to)),
        Pixels::Palette(p) => Pixels::Palette(nearest::<3>(p, from, to)),
        Pixels::Grey(p) => Pixels::Grey(bicubic::<u8, 1>(p, from, to)),
        Pixels::Grey16(p) => Pixels::Grey16(bicubic::<u16, 1>(p, from, to)),
        Pixels::Rgb(p) => Pixels::Rgb(bicubic::<u8, 3>(p, from, to)),
        Pixels::Cmyk(p) => Pixels::Cmyk(bicubic::<u8, 4>(p, from, to)),
        Pixels::GreyAlpha(p) => {
            let mut p = bicubic::<u8, 2>(&premultiplied::<2>(p), from, to);
            unpremultiply::<2>(&mut p);
            Pixels::GreyAlpha(p)
        }
        Pixels::Rgba(p) => {
            let mut p = bicubic::<u8, 4>(&premultiplied::<4>(p), from, to);
            unpremultiply::<4>(&mut p);
            Pixels::Rgba(p)
        }
    };
    Picture { width, height, pixels }
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
fn nearest<const N: usize>(pixels: &[u8], from: (usize, usize), to: (usize, usize)) -> Vec<u8> {
    let places = |from: usize, to: usize| -> Vec<usize> {
        let step = from as f64 / to as f64;
        let mut at = step * 0.5;
        (0..to)
            .map(|_| {
                let place = (at as usize).min(from - 1);
                at += step;
                place
            })
            .collect()
    };
    let (columns, rows) = (places(from.0, to.0), places(from.1, to.1));
    let mut out = Vec::with_capacity(to.0 * to.1 * N);
    for row in rows {
        for &column in &columns {
            let at = (row * from.0 + column) * N;
            out.extend_from_slice(&pixels[at..at + N]);
        }
    }
    out
}

/// A sample that can be averaged.
trait Level: Copy + Default {
    /// A weight in the form that sums of this type use.
    type Weight: Copy;
    fn weight(weight: f64) -> Self::Weight;
    fn sum(pairs: impl Iterator<Item = (Self, Self::Weight)>) -> Self;
}

impl Level for u8 {
    type Weight = i32;

    fn weight(weight: f64) -> i32 {
        let scaled = weight * f64::from(1 << PRECISION);
        (if scaled < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
    }

    fn sum(pairs: impl Iterator<Item = (u8, i32)>) -> u8 {
        let sum = pairs.fold(1 << (PRECISION - 1), |sum: i32, (level, weight)| sum + i32::from(level) * weight);
        (sum >> PRECISION).clamp(0, 255) as u8
    }
}

impl Level for u16 {
    type Weight = f64;

    fn weight(weight: f64) -> f64 {
        weight
    }

    fn sum(pairs: impl Iterator<Item = (u16, f64)>) -> u16 {
        let sum = pairs.fold(0.0, |sum, (level, weight)| sum + f64::from(level) * weight);
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

/// For each target sample the weights of its source samples. When shrinking, the kernel is widened.
fn windows<L: Level>(from: usize, to: usize) -> Vec<Window<L::Weight>> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..to)
        .map(|i| {
            let centre = (i as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5).max(0.0)) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (first..last).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
            let sum: f64 = weights.iter().sum();
            let share = |w: f64| if sum != 0.0 { w / sum } else { w };
            Window { first, weights: weights.into_iter().map(|w| L::weight(share(w))).collect() }
        })
        .collect()
}

fn bicubic<L: Level, const N: usize>(pixels: &[L], from: (usize, usize), to: (usize, usize)) -> Vec<L> {
    let pixels = if from.0 == to.0 { pixels.to_vec() } else { horizontal::<L, N>(pixels, from, to.0) };
    if from.1 == to.1 { pixels } else { vertical::<L, N>(&pixels, (to.0, from.1), to.1) }
}

fn horizontal<L: Level, const N: usize>(pixels: &[L], from: (usize, usize), to: usize) -> Vec<L> {
    let windows = windows::<L>(from.0, to);
    let mut out = Vec::with_capacity(to * from.1 * N);
    for row in pixels.chunks_exact(from.0 * N) {
        for window in &windows {
            for channel in 0..N {
                let samples = row[window.first * N + channel..].iter().step_by(N).copied();
                out.push(L::sum(samples.zip(window.weights.iter().copied())));
            }
        }
    }
    out
}

fn vertical<L: Level, const N: usize>(pixels: &[L], from: (usize, usize), to: usize) -> Vec<L> {
    let stride = from.0 * N;
    let mut out = Vec::with_capacity(stride * to);
    for window in windows::<L>(from.1, to) {
        for column in 0..stride {
            let samples = pixels[window.first * stride + column..].iter().step_by(stride).copied();
            out.push(L::sum(samples.zip(window.weights.iter().copied())));
        }
    }
    out
}
