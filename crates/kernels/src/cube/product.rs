//! Matrix products.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::{init_matmul_output, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::components::tile::TileMatmulKind;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::matmul::routines::BlueprintStrategy::Inferred;
use cubek::matmul::routines::double_buffering::DoubleBufferingArgs;
use cubek::matmul::routines::ordered_double_buffering::OrderedSelectionArgs;
use cubek::matmul::routines::simple::SimpleArgs;
use cubek::std::InputBinding;

/// [`crate::Kernels::product`].
pub(super) fn product<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let dtype = lhs.dtype;
    let on_cuda = R::name(&lhs.client) == "cuda";
    match dtype {
        DType::F32 if on_cuda => exact_product(lhs, rhs),
        DType::BF16 | DType::F16 if on_cuda => fast_product(lhs, rhs),
        _ => {
            let out = matmul(lhs, rhs, None, Default::default(), dtype);
            out.unwrap_or_else(|error| panic!("no kernel takes this product: {error:?}"))
        }
    }
}

/// Outputs from which on large tiles give all of a GPU something to do.
const MANY_OUTPUTS: usize = 1 << 22;

/// Rows that one large tile holds.
const ROWS_OF_TILE: usize = 128;

/// A product of 16-bit numbers on tensor cores, by the kernel that was fastest for such shapes on an H100
/// (`benches/gpu-check.md`). Burn tries them all at each new shape, or else takes its first.
fn fast_product<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let rank = lhs.meta.shape().num_dims();
    let (m, n) = (lhs.meta.shape()[rank - 2], rhs.meta.shape()[rank - 1]);
    let rows_of = |x: &CubeTensor<R>| x.meta.strides()[rank - 1] == 1;
    let batched = lhs.meta.shape().num_elements() > m * lhs.meta.shape()[rank - 1];
    let double = DoubleBufferingArgs { tile_matmul: TileMatmulKind::Mma, specialized: false };
    let ordered = OrderedSelectionArgs {
        tile_matmul: TileMatmulKind::Mma,
        partition_k: Some(2),
        row_count: Some(8),
        rows_per_plane: Some(2),
    };
    let simple = SimpleArgs { tile_matmul: TileMatmulKind::Mma, multi_rows: false };
    let first = match () {
        () if batched => Strategy::SimpleCyclicMma(Inferred(simple.clone())),
        () if m > ROWS_OF_TILE && m * n < MANY_OUTPUTS => Strategy::OrderedDoubleMma(Inferred(ordered)),
        () if rows_of(&lhs) && !rows_of(&rhs) => Strategy::SpecializedTmaMma(Inferred(().into())),
        () => Strategy::DoubleTmaMma(Inferred(double)),
    };
    // Not every kernel takes every shape: rows that no tensor map can describe, widths that are no whole vectors.
    launched(lhs, rhs, [first, Strategy::SimpleCyclicMma(Inferred(simple)), Strategy::Auto, Strategy::Naive])
}

/// A product by multiplications and additions of f32. Burn's own takes the tensor cores, which round the factors of f32
/// to TF32, ten bits: an error of 1e-3.
fn exact_product<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    launched(lhs, rhs, [Strategy::SimpleUnit(Default::default()), Strategy::Naive])
}

/// The product by the first kernel that takes it.
fn launched<R: CubeRuntime, const N: usize>(
    lhs: CubeTensor<R>,
    rhs: CubeTensor<R>,
    strategies: [Strategy; N],
) -> CubeTensor<R> {
    let (client, dtype) = (lhs.client.clone(), lhs.dtype);
    let out = init_matmul_output(&lhs, &rhs, dtype);
    let (lhs, rhs) = (lhs.binding(), rhs.binding());
    let taken = strategies.iter().any(|strategy| {
        let (lhs, rhs) = (InputBinding::new(lhs.clone(), dtype.into()), InputBinding::new(rhs.clone(), dtype.into()));
        let elements = MatmulGlobalElems { lhs: dtype.into(), rhs: dtype.into(), out: dtype.into() };
        let elements = &mut MatmulElems::from_globals(&elements);
        launch_ref(strategy, &client, lhs, rhs, out.clone().binding(), elements).is_ok()
    });
    assert!(taken, "no kernel takes this product");
    out
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use burn::tensor::{Distribution, Tensor};
    use burn_wgpu::Wgpu;

    use super::exact_product;
    use crate::{primitive, tensor};

    /// The kernel is the same on every GPU; Vulkan's can be had in software.
    #[test]
    #[ignore = "needs a Vulkan adapter: cargo test --workspace --lib exact_products -- --ignored"]
    fn exact_products() {
        let device = Default::default();
        let random = |shape: [usize; 3]| Tensor::<Wgpu, 3>::random(shape, Distribution::Default, &device);
        for [batch, m, k, n] in [[1, 1, 64, 96], [2, 5, 7, 3], [1, 130, 257, 65], [6, 33, 32, 33], [1, 1, 1, 1]] {
            let [a, b] = [random([batch, m, k]), random([batch, k, n])];
            let (at, bt) = (random([batch, k, m]).transpose(), random([batch, n, k]).transpose());
            for (a, b) in [(a.clone(), b.clone()), (at.clone(), b), (a, bt.clone()), (at, bt)] {
                let found: Tensor<Wgpu, 3> = tensor(exact_product(primitive(a.clone()), primitive(b.clone())));
                let (found, a, b) = (found.into_data(), a.into_data(), b.into_data());
                let [found, a, b] = [found, a, b].map(|x| x.to_vec::<f32>().expect("f32"));
                for (i, &value) in found.iter().enumerate() {
                    let (row, column, of) = (i / n % m, i % n, i / (m * n));
                    let term =
                        |j: usize| f64::from(a[of * m * k + row * k + j]) * f64::from(b[of * k * n + j * n + column]);
                    let expected: f64 = (0..k).map(term).sum();
                    let error = (f64::from(value) - expected).abs() / k as f64;
                    assert!(error < 1e-6, "{batch} {m}x{k}x{n}: {value}, {expected}");
                }
            }
        }
        // As attention has them: heads between tokens and their values, and one mask for all.
        let [q, k] = [random([5, 3, 8]), random([7, 3, 8])].map(|x| x.swap_dims(0, 1).unsqueeze_dim::<4>(0));
        let one = random([1, 1, 35]).reshape([1, 1, 5, 7]);
        let scores = exact(q.clone(), k.clone().transpose());
        let weighted = exact(one.clone().expand([1, 3, 5, 7]), k.clone());
        for (found, expected) in [(scores, q.matmul(k.clone().transpose())), (weighted, one.repeat_dim(1, 3).matmul(k))]
        {
            let furthest: f32 = (found - expected).abs().max().into_scalar();
            assert!(furthest < 1e-5, "{furthest}");
        }
    }

    fn exact(lhs: Tensor<Wgpu, 4>, rhs: Tensor<Wgpu, 4>) -> Tensor<Wgpu, 4> {
        tensor(exact_product(primitive(lhs), primitive(rhs)))
    }
}
