//! Elementary functions in f32, without branches, so that loops over them vectorise. Relative errors are below 5e-7, of the
//! normal distribution's tails below 4e-6 (tests hold them to it against f64).

/// `e^x`; 0 below -87.3, where f32 has no normal numbers left, and finite above 88.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = n ln 2 + r, |r| <= ln 2 / 2; the constant rounds by pushing the fraction out of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.0);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    // Taylor's series to the sixth power: the rest is below 2e-7.
    let mut p = 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    // n stands in the last bits of what was rounded: a conversion of n would be one number at a time.
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    let y = p * power;
    if x < -87.3 { 0.0 } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    // Through e^-2|x|; near 0 that would cancel, so there the series takes over.
    let a = x.abs();
    let e = exp(-2.0 * a);
    let far = (1.0 - e) / (1.0 + e);
    let s = x * x;
    let near = a * (1.0 - s * (1.0 / 3.0 - s * (2.0 / 15.0 - s * (17.0 / 315.0 - s * (62.0 / 2835.0)))));
    let y = if a < 0.3 { near } else { far };
    y.copysign(x)
}

/// The normal distribution's share below `x` and its density at `x`.
#[inline(always)]
pub fn normal(x: f32) -> (f32, f32) {
    // 0.5 erfc(z / √2) = e^(-z²/2) R(1 / (1 + z / 4)) for z >= 0; R is a polynomial fitted to least relative error.
    let z = x.abs();
    let e = exp(-0.5 * z * z);
    let t = 1.0 / (1.0 + 0.25 * z);
    let mut r = 0.016_579_753;
    r = r * t - 0.062_792_7;
    r = r * t + 0.051_653_53;
    r = r * t + 0.028_434_394;
    r = r * t + 0.012_712_898;
    r = r * t + 0.086_656_414;
    r = r * t + 0.071_999_55;
    r = r * t + 0.095_515_7;
    r = r * t + 0.099_492_56;
    r = r * t + 0.099_747_9;
    let tail = e * r * t;
    let share = if x > 0.0 { 1.0 - tail } else { tail };
    (share, e * 0.398_942_3)
}

/// Lanes of a sum: enough to fill the widest registers twice.
const LANES: usize = 32;

/// The sum of `f` over a slice, in lanes: rounding does not depend on the processor. `f` should be short: what is longer than the
/// compiler inlines is not vectorised.
#[inline(always)]
pub fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    total(lanes)
}

/// The sum of `e^(x - top)` over a slice, in the same lanes.
#[inline(always)]
pub fn sum_of_powers(values: &[f32], top: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    for chunk in values.chunks(LANES) {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += exp(x - top);
        }
    }
    total(lanes)
}

/// The sum of the products of two slices.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks_a, chunks_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = chunks_a.remainder().iter().zip(chunks_b.remainder());
    for (lane, (x, y)) in lanes.iter_mut().zip(rest) {
        *lane += x * y;
    }
    for (a, b) in chunks_a.zip(chunks_b) {
        for (lane, (x, y)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += x * y;
        }
    }
    total(lanes)
}

#[inline(always)]
fn total(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest value; -inf of nothing. NaN is not seen.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let chunks = values.chunks_exact(LANES);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = larger(*lane, x);
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, x);
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// Turns scores into weights that add up to 1. A row of -inf becomes zeros, a row with NaN becomes NaN.
#[inline(always)]
pub fn softmax(row: &mut [f32]) {
    let top = max(row).max(f32::MIN);
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let total = sum(row, |x| x);
    let factor = if total == 0.0 { 0.0 } else { 1.0 / total };
    for x in row.iter_mut() {
        *x *= factor;
    }
}
