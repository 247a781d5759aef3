//! Products on CUDA.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::matmul::init_matmul_output;
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::std::InputBinding;

#[cfg(feature = "cuda")]
mod backend {
    use burn::tensor::DType;
    use burn::tensor::ops::{FloatTensor, FloatTensorOps};
    use burn_cuda::Cuda;

    use crate::{Attention, Gradients, Kernels, generic};

    impl Kernels for Cuda {
        fn product(lhs: FloatTensor<Self>, rhs: FloatTensor<Self>) -> FloatTensor<Self> {
            if lhs.dtype == DType::F32 { super::exact_product(lhs, rhs) } else { Self::float_matmul(lhs, rhs) }
        }

        /// Burn's fused attention rounds f32 as its products do.
        fn attend(attention: Attention<Self>) -> FloatTensor<Self> {
            match attention.q.dtype {
                DType::F32 => generic::attend_by_products::<Self>(attention),
                _ => generic::attend::<Self>(attention),
            }
        }
    }

    impl Gradients for Cuda {}
}

/// A product by multiplications and additions of f32. Burn's own takes the tensor cores, which round the factors of f32
/// to TF32, ten bits: an error of 1e-3.
fn exact_product<R: CubeRuntime>(lhs: CubeTensor<R>, rhs: CubeTensor<R>) -> CubeTensor<R> {
    let (client, dtype) = (lhs.client.clone(), lhs.dtype);
    let out = init_matmul_output(&lhs, &rhs, dtype);
    let (lhs, rhs) = (lhs.binding(), rhs.binding());
    let launch = |strategy: Strategy| {
        let (lhs, rhs) = (InputBinding::new(lhs.clone(), dtype.into()), InputBinding::new(rhs.clone(), dtype.into()));
        let elements = MatmulGlobalElems { lhs: dtype.into(), rhs: dtype.into(), out: dtype.into() };
        launch_ref(&strategy, &client, lhs, rhs, out.clone().binding(), &mut MatmulElems::from_globals(&elements))
    };
    if let Err(first) = launch(Strategy::SimpleUnit(Default::default())) {
        launch(Strategy::Naive).unwrap_or_else(|second| panic!("no kernel takes this product: {first:?}, {second:?}"));
    }
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
