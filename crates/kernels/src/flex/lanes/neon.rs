//! NEON, which every 64-bit ARM processor has.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{LEVELS, Lanes, bf16, f16};

/// Needs nothing more than the architecture.
#[derive(Clone, Copy)]
pub(in super::super) struct Neon(float32x4_t);

/// Four bytes in the lower half of a register's half.
///
/// # Safety
/// The pointer is valid for them.
#[inline(always)]
unsafe fn four(from: *const u8) -> uint8x8_t {
    // SAFETY: the caller's promise.
    unsafe { vcreate_u8(u64::from(from.cast::<u32>().read_unaligned())) }
}

/// The first four numbers.
#[inline(always)]
fn floats(numbers: int8x8_t) -> Neon {
    // SAFETY: the architecture has it, here and below.
    Neon(unsafe { vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(numbers)))) })
}

impl Lanes for Neon {
    const COUNT: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self(unsafe { vdupq_n_f32(0.0) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { vld1q_f32(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        Self(unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.cast())))) })
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // The language has the instruction only for a type that is not stable.
        let numbers: float32x4_t;
        unsafe {
            let halves = vld1_u16(from.cast());
            asm!("fcvtl {0:v}.4s, {1:v}.4h", out(vreg) numbers, in(vreg) halves, options(pure, nomem, nostack));
        }
        Self(numbers)
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        floats(unsafe { vreinterpret_s8_u8(four(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_levels(from: *const u8) -> [Self; 2] {
        // The table lookup looks each byte up.
        unsafe {
            let (codes, levels) = (four(from), vld1q_s8(LEVELS.as_ptr()));
            let [low, high] = [vand_u8(codes, vdup_n_u8(15)), vshr_n_u8::<4>(codes)];
            [floats(vqtbl1_s8(levels, low)), floats(vqtbl1_s8(levels, high))]
        }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { vdupq_n_f32(x) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { vaddq_f32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { vmulq_f32(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, more: Self) -> Self {
        Self(unsafe { vfmaq_f32(more.0, self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, rows: usize, to: *mut f32, to_rows: usize) {
        unsafe {
            let [a, b, c, d]: [float32x4_t; 4] = std::array::from_fn(|row| vld1q_f32(from.add(row * rows)));
            // Even and odd places of two rows, then halves of those.
            let pairs = |x, y| [vreinterpretq_f64_f32(vtrn1q_f32(x, y)), vreinterpretq_f64_f32(vtrn2q_f32(x, y))];
            let ([even, odd], [even_below, odd_below]) = (pairs(a, b), pairs(c, d));
            let columns = [
                vtrn1q_f64(even, even_below),
                vtrn1q_f64(odd, odd_below),
                vtrn2q_f64(even, even_below),
                vtrn2q_f64(odd, odd_below),
            ];
            for (i, column) in columns.into_iter().enumerate() {
                vst1q_f32(to.add(i * to_rows), vreinterpretq_f32_f64(column));
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        unsafe { vaddvq_f32(self.0) }
    }
}
