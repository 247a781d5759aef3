//! Sums and maxima over the units of a cube, and over rows.

use burn::tensor::DType;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeRuntime, cubecl};

use super::{PLANE, Rows, empty, has_planes, vector_size};

/// Units of a cube that works on a row.
pub(super) const UNITS: u32 = 256;

/// Cubes that add up all numbers of a tensor.
pub(super) const PARTS: usize = 256;

/// Rows that a cube adds up before the sums are added up.
const ROWS: usize = 256;

/// The sum of a cube's values, or the largest, for all its units. `shared` has a place for each of them.
#[cube]
pub(super) fn of_cube(
    value: f32,
    shared: &mut SharedMemory<f32>,
    #[comptime] largest: bool,
    #[comptime] planes: bool,
) -> f32 {
    // What was there has been read.
    sync_cube();
    if planes {
        let of_plane = if largest { plane_max(value) } else { plane_sum(value) };
        if UNIT_POS % PLANE == 0 {
            shared[(UNIT_POS / PLANE) as usize] = of_plane;
        }
        sync_cube();
        let mut all = shared[0];
        #[unroll]
        for plane in 1..comptime!((UNITS / PLANE) as usize) {
            if largest {
                all = max(all, shared[plane]);
            } else {
                all += shared[plane];
            }
        }
        all
    } else {
        shared[UNIT_POS as usize] = value;
        sync_cube();
        #[unroll]
        for step in 0..comptime!(UNITS.trailing_zeros()) {
            let half = comptime!(UNITS >> (step + 1));
            if UNIT_POS < half {
                let other = shared[(UNIT_POS + half) as usize];
                if largest {
                    shared[UNIT_POS as usize] = max(shared[UNIT_POS as usize], other);
                } else {
                    shared[UNIT_POS as usize] += other;
                }
            }
            sync_cube();
        }
        shared[0]
    }
}

/// The sum of a vector's numbers.
#[cube]
pub(super) fn of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = vector[0];
    #[unroll]
    for lane in 1..N::value() {
        sum += vector[lane];
    }
    sum
}

/// Sums of [`ROWS`] rows each: a unit for each column.
#[cube(launch_unchecked)]
fn sum_some_rows<T: Float, S: Float>(
    x: &Array<T>,
    sums: &mut Array<S>,
    count: u32,
    width: u32,
    stride: u32,
    #[define(T, S)] _dtypes: [StorageType; 2],
) {
    let column = CUBE_POS_X * CUBE_DIM_X + UNIT_POS_X;
    if column >= width {
        terminate!();
    }
    let first = CUBE_POS_Y * comptime!(ROWS as u32);
    let end = min(first + comptime!(ROWS as u32), count);
    let mut sum = 0f32;
    for row in first..end {
        sum += f32::cast_from(x[row as usize * stride as usize + column as usize]);
    }
    sums[CUBE_POS_Y as usize * width as usize + column as usize] = S::cast_from(sum);
}

/// The squares that each of [`PARTS`] cubes has added up, from `first` on.
#[cube(launch_unchecked)]
fn sum_squares_kernel<T: Float, N: Size>(
    x: &Array<Vector<T, N>>,
    sums: &mut Array<f32>,
    first: u32,
    #[comptime] planes: bool,
    #[define(T)] _dtype: StorageType,
) {
    let mut shared = SharedMemory::<f32>::new(comptime!(UNITS as usize));
    let mut squares = Vector::<f32, N>::new(0f32);
    let mut i = ABSOLUTE_POS;
    while i < x.len() {
        let numbers = Vector::<f32, N>::cast_from(x[i]);
        squares += numbers * numbers;
        i += comptime!(PARTS * UNITS as usize);
    }
    let sum = of_cube(of_vector::<N>(squares), &mut shared, false, planes);
    if UNIT_POS == 0 {
        sums[first as usize + CUBE_POS] = sum;
    }
}

/// [`crate::Gradients::sum_squares`].
pub(super) fn sum_squares<R: CubeRuntime>(all: Vec<CubeTensor<R>>) -> CubeTensor<R> {
    let sums = empty(&all[0], [all.len() * PARTS, 1], DType::F32);
    for (i, x) in all.into_iter().enumerate() {
        let x = into_contiguous(x);
        let size = vector_size(&x, &[x.meta.num_elements()]);
        let (planes, dtype) = (has_planes(&x), x.dtype.into());
        // SAFETY: units stay within the numbers, and each cube has a place of its own.
        unsafe {
            sum_squares_kernel::launch_unchecked::<R>(
                &sums.client,
                CubeCount::Static(PARTS as u32, 1, 1),
                CubeDim::new_1d(UNITS),
                size,
                x.into_array_arg(),
                sums.clone().into_array_arg(),
                (i * PARTS) as u32,
                planes,
                dtype,
            );
        }
    }
    sum_rows(sums)
}

/// The sum over the rows of `[rows, columns]`: `[columns]`, in stages, so that there is work for all of a GPU.
pub(super) fn sum_rows<R: CubeRuntime>(x: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = x.dtype;
    let mut x = x;
    loop {
        let rows = Rows::of(x);
        let parts = rows.count.div_ceil(ROWS).max(1);
        let out = if parts == 1 { dtype } else { DType::F32 };
        let sums = empty(&rows.x, [parts, rows.width], out);
        let count = CubeCount::Static((rows.width as u32).div_ceil(PLANE).max(1), parts as u32, 1);
        let dtypes = [rows.x.dtype.into(), out.into()];
        let (height, width, stride) = (rows.count as u32, rows.width as u32, rows.stride as u32);
        // SAFETY: a unit reads and writes within the columns and rows that it is told.
        unsafe {
            sum_some_rows::launch_unchecked::<R>(
                &sums.client,
                count,
                CubeDim::new_1d(PLANE),
                rows.x.clone().into_array_arg(),
                sums.clone().into_array_arg(),
                height,
                width,
                stride,
                dtypes,
            );
        }
        if parts == 1 {
            return burn_cubecl::ops::reshape(sums, [rows.width].into());
        }
        x = sums;
    }
}
