//! Registers of numbers, where loops that the compiler vectorises by itself are not good enough.

use burn::tensor::{bf16, f16};
use flamingo_config::LEVELS;

#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
pub(super) mod wasm;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

/// Numbers that the widest registers hold.
pub(super) const MOST: usize = 16;

/// Numbers that a processor works on together.
///
/// # Safety
/// Methods may only run where the processor has what the implementation says that it needs, and within functions that are
/// compiled for it; pointers must be valid for [`Lanes::COUNT`] elements.
pub(super) trait Lanes: Copy {
    /// How many.
    const COUNT: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_i8(from: *const i8) -> Self;
    /// [`LEVELS`] of the lower halves of as many bytes, and of the upper halves.
    unsafe fn load_levels(from: *const u8) -> [Self; 2];
    unsafe fn splat(x: f32) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * other + more`.
    unsafe fn mul_add(self, other: Self, more: Self) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Writes as many rows as a register has numbers, `rows` apart, as columns of `to`, whose rows are `to_rows` apart.
    unsafe fn transpose(from: *const f32, rows: usize, to: *mut f32, to_rows: usize);
    /// The numbers added up.
    unsafe fn sum(self) -> f32;

    /// [`Lanes::sum`] of several, each the same number as by itself.
    #[inline(always)]
    unsafe fn sums<const N: usize>(all: [Self; N]) -> [f32; N] {
        // SAFETY: the caller's promise.
        all.map(|one| unsafe { one.sum() })
    }
}

/// What is done with whatever lanes the processor has, or loops that the compiler vectorises for them: all of such a loop has
/// to be inlined into [`run`], which closures and functions are only where they are short, unless they are told to.
pub(super) trait Work {
    /// Does it.
    ///
    /// # Safety
    /// That of [`Lanes`]. Implementations are inlined into a function that is compiled for `L`.
    unsafe fn with<L: Lanes>(self);
}

/// Does a piece of work with the widest lanes that there are.
pub(super) fn run(work: impl Work) {
    #[cfg(target_arch = "x86_64")]
    {
        if x86::has_avx512() {
            // SAFETY: the processor has it.
            return unsafe { x86::with_avx512(work) };
        }
        if x86::has_avx2() {
            // SAFETY: the processor has it.
            return unsafe { x86::with_avx2(work) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    type Widest = neon::Neon;
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    type Widest = wasm::Simd128;
    #[cfg(not(any(target_arch = "aarch64", all(target_arch = "wasm32", target_feature = "simd128"))))]
    type Widest = Portable;
    // SAFETY: every processor that this is compiled for has these.
    unsafe { work.with::<Widest>() }
}

/// What needs nothing.
#[cfg_attr(
    all(any(target_arch = "aarch64", all(target_arch = "wasm32", target_feature = "simd128")), not(test)),
    expect(dead_code, reason = "NEON is always there, and so is what WebAssembly is compiled for")
)]
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 4]);

impl Lanes for Portable {
    const COUNT: usize = 4;

    #[inline(always)]
    unsafe fn zero() -> Self {
        Self([0.0; 4])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[bf16; 4]>().read_unaligned() }.map(bf16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { from.cast::<[i8; 4]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn load_levels(from: *const u8) -> [Self; 2] {
        // SAFETY: the caller's promise.
        let bytes = unsafe { from.cast::<[u8; 4]>().read_unaligned() };
        let level = |code: u8| f32::from(LEVELS[usize::from(code)]);
        [Self(bytes.map(|byte| level(byte & 15))), Self(bytes.map(|byte| level(byte >> 4)))]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        let of = |i: usize| self.0[i] + other.0[i];
        Self([of(0), of(1), of(2), of(3)])
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        let of = |i: usize| self.0[i] * other.0[i];
        Self([of(0), of(1), of(2), of(3)])
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, more: Self) -> Self {
        // Not fused, which would be a call where a processor cannot.
        let of = |i: usize| self.0[i] * other.0[i] + more.0[i];
        Self([of(0), of(1), of(2), of(3)])
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn transpose(from: *const f32, rows: usize, to: *mut f32, to_rows: usize) {
        for row in 0..4 {
            for column in 0..4 {
                // SAFETY: the caller's promise.
                unsafe { *to.add(column * to_rows + row) = *from.add(row * rows + column) };
            }
        }
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        (self.0[0] + self.0[2]) + (self.0[1] + self.0[3])
    }
}
