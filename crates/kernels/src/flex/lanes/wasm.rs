//! WebAssembly's registers of 128 bits.

use std::arch::wasm32::*;

use super::{LEVELS, Lanes, bf16, f16};

/// Needs the feature `simd128`, without which none of this is compiled.
#[derive(Clone, Copy)]
pub(in super::super) struct Simd128(v128);

/// The first four of eight-bit numbers.
#[inline(always)]
fn floats(numbers: v128) -> Simd128 {
    Simd128(f32x4_convert_i32x4(i32x4_extend_low_i16x8(i16x8_extend_low_i8x16(numbers))))
}

impl Lanes for Simd128 {
    const COUNT: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(f32x4_splat(0.0))
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise, here and below; loads and stores need no alignment.
        Self(unsafe { v128_load(from.cast()) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        Self(u32x4_shl(unsafe { u32x4_load_extend_u16x4(from.cast()) }, 16))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // Exponent and fraction where f32 has them are the number but for the exponents' biases, which a product makes up for,
        // of numbers below the normal ones, too. Infinities and NaN have the largest exponent in both.
        let halves = unsafe { u32x4_load_extend_u16x4(from.cast()) };
        let magnitude = v128_and(halves, u32x4_splat(0x7fff));
        let scaled = f32x4_mul(u32x4_shl(magnitude, 13), f32x4_splat(f32::from_bits((254 - 15) << 23)));
        let infinite = v128_and(u32x4_gt(magnitude, u32x4_splat(0x7bff)), u32x4_splat(0xff << 23));
        let sign = u32x4_shl(v128_and(halves, u32x4_splat(0x8000)), 16);
        Self(v128_or(v128_or(scaled, infinite), sign))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        floats(unsafe { v128_load32_zero(from.cast()) })
    }

    #[inline(always)]
    unsafe fn load_levels(from: *const u8) -> [Self; 2] {
        // The swizzle looks each byte up.
        let (codes, levels) = unsafe { (v128_load32_zero(from.cast()), v128_load(LEVELS.as_ptr().cast())) };
        let [low, high] = [v128_and(codes, u8x16_splat(15)), u8x16_shr(codes, 4)];
        [floats(i8x16_swizzle(levels, low)), floats(i8x16_swizzle(levels, high))]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(f32x4_splat(x))
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(f32x4_add(self.0, other.0))
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(f32x4_mul(self.0, other.0))
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, more: Self) -> Self {
        // Not fused: only the relaxed instructions are, where a processor can.
        Self(f32x4_add(f32x4_mul(self.0, other.0), more.0))
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { v128_store(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, rows: usize, to: *mut f32, to_rows: usize) {
        unsafe {
            let [a, b, c, d]: [v128; 4] = std::array::from_fn(|row| v128_load(from.add(row * rows).cast()));
            // Pairs of two rows, then halves of those.
            let [ab, cd] = [i32x4_shuffle::<0, 4, 1, 5>(a, b), i32x4_shuffle::<0, 4, 1, 5>(c, d)];
            let [ab_high, cd_high] = [i32x4_shuffle::<2, 6, 3, 7>(a, b), i32x4_shuffle::<2, 6, 3, 7>(c, d)];
            let columns = [
                i64x2_shuffle::<0, 2>(ab, cd),
                i64x2_shuffle::<1, 3>(ab, cd),
                i64x2_shuffle::<0, 2>(ab_high, cd_high),
                i64x2_shuffle::<1, 3>(ab_high, cd_high),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                v128_store(to.add(i * to_rows).cast(), column);
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let halves = f32x4_add(self.0, i64x2_shuffle::<1, 0>(self.0, self.0));
        f32x4_extract_lane::<0>(halves) + f32x4_extract_lane::<1>(halves)
    }
}
