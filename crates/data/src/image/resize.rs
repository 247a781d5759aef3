//! Pillow's resize (`libImaging/Resample.c`, `Geometry.c`), to the last bit.
//!
//! Two passes, horizontal and vertical, each rounded to whole levels; 8-bit pixels are weighted with
//! coefficients of 22 fractional bits.

use super::{Picture, Pixels};

/// Fractional bits of a coefficient.
const PRECISION: u32 = 22;

/// The middle square of the picture, after a resize that gives its shorter side `size` pixels and the other
/// `int(size * long / short)`, as torchvision computes it. What lies beside the square is never computed.
pub(super) fn middle_square(picture: &Picture, size: usize) -> Picture {
    let from = (picture.width as usize, picture.height as usize);
    let (short, long) = (from.0.min(from.1), from.0.max(from.1));
    let long = if short == size { long } else { (size as f64 * long as f64 / short as f64) as usize };
    let to = if from.0 <= from.1 { (size, long) } else { (long, size) };
    let columns = Axis { from: from.0, to: to.0, first: centre(to.0, size), count: size };
    let rows = Axis { from: from.1, to: to.1, first: centre(to.1, size), count: size };
    let pixels = match &picture.pixels {
        Pixels::Bilevel(p) => Pixels::Bilevel(nearest::<1>(p, &columns, &rows)),
        Pixels::Palette(p) => Pixels::Palette(nearest::<3>(p, &columns, &rows)),
        Pixels::Grey(p) => Pixels::Grey(bicubic::<u8, 1>(p, &columns, &rows)),
        Pixels::Grey16(p) => Pixels::Grey16(bicubic::<u16, 1>(p, &columns, &rows)),
        Pixels::Rgb(p) => Pixels::Rgb(bicubic::<u8, 3>(p, &columns, &rows)),
        Pixels::Cmyk(p) => Pixels::Cmyk(bicubic::<u8, 4>(p, &columns, &rows)),
        // Without a resize nothing is premultiplied.
        Pixels::GreyAlpha(p) if from == to => Pixels::GreyAlpha(bicubic::<u8, 2>(p, &columns, &rows)),
        Pixels::Rgba(p) if from == to => Pixels::Rgba(bicubic::<u8, 4>(p, &columns, &rows)),
        Pixels::GreyAlpha(p) => {
            let mut p = bicubic::<u8, 2>(&premultiplied::<2>(p), &columns, &rows);
            unpremultiply::<2>(&mut p);
            Pixels::GreyAlpha(p)
        }
        Pixels::Rgba(p) => {
            let mut p = bicubic::<u8, 4>(&premultiplied::<4>(p), &columns, &rows);
            unpremultiply::<4>(&mut p);
            Pixels::Rgba(p)
        }
    };
    Picture { width: size as u32, height: size as u32, pixels }
}

/// One direction of a resize from `from` samples to `to`, of which `count` from `first` on are kept.
struct Axis {
    from: usize,
    to: usize,
    first: usize,
    count: usize,
}

/// Where the middle `side` of `length` begins: half the rest, a half rounded to even as Python rounds.
fn centre(length: usize, side: usize) -> usize {
    let rest = length.saturating_sub(side);
    let half = rest / 2;
    if rest.is_multiple_of(2) || half.is_multiple_of(2) { half } else { half + 1 }
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

/// Repeats and drops pixels.
fn nearest<const N: usize>(pixels: &[u8], columns: &Axis, rows: &Axis) -> Vec<u8> {
    let places = |axis: &Axis| -> Vec<usize> {
        let step = axis.from as f64 / axis.to as f64;
        // Pillow adds up the steps, rounding errors included; it cannot make a picture so long that this lasts.
        let summed = axis.first.min(1 << 24);
        let start = (0..summed).fold(step * 0.5, |at, _| at + step) + (axis.first - summed) as f64 * step;
        let places = std::iter::successors(Some(start), |at| Some(at + step));
        places.take(axis.count).map(|at| (at as usize).min(axis.from - 1)).collect()
    };
    let (across, down) = (places(columns), places(rows));
    let mut out = Vec::with_capacity(across.len() * down.len() * N);
    for row in down {
        for column in &across {
            let at = (row * columns.from + column) * N;
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

/// For each kept sample the weights of its source samples. When shrinking, the kernel is widened.
fn windows<L: Level>(axis: &Axis) -> Vec<Window<L::Weight>> {
    let scale = axis.from as f64 / axis.to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (axis.first..axis.first + axis.count)
        .map(|i| {
            if axis.from == axis.to {
                return Window { first: i, weights: vec![L::weight(1.0)] };
            }
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

/// A horizontal pass over the rows that matter, then a vertical one.
fn bicubic<L: Level, const N: usize>(pixels: &[L], columns: &Axis, rows: &Axis) -> Vec<L> {
    let (across, down) = (windows::<L>(columns), windows::<L>(rows));
    let top = down.iter().map(|window| window.first).min().unwrap_or(0);
    let bottom = down.iter().map(|window| window.first + window.weights.len()).max().unwrap_or(0);
    let stride = columns.count * N;
    let mut wide = Vec::with_capacity((bottom - top) * stride);
    for row in pixels.chunks_exact(columns.from * N).take(bottom).skip(top) {
        for window in &across {
            for channel in 0..N {
                let samples = row[window.first * N + channel..].iter().step_by(N).copied();
                wide.push(L::sum(samples.zip(window.weights.iter().copied())));
            }
        }
    }
    let mut out = Vec::with_capacity(rows.count * stride);
    for window in &down {
        for column in 0..stride {
            let samples = wide[(window.first - top) * stride + column..].iter().step_by(stride).copied();
            out.push(L::sum(samples.zip(window.weights.iter().copied())));
        }
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
