//! The AdamW update in one pass over memory.

use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::lanes::{Lanes, Work, run};
use super::{BLOCK, contiguous, values};
use crate::AdamWStep;

pub(super) fn update(
    weight: FlexTensor,
    gradient: FlexTensor,
    first: FlexTensor,
    second: FlexTensor,
    step: AdamWStep,
) -> [FlexTensor; 3] {
    // In place, unless somebody else holds it too or it does not lie row by row.
    let own = |x: FlexTensor| {
        if x.is_contiguous() && x.layout().start_offset() == 0 { x } else { x.to_contiguous() }
    };
    let [mut weight, mut first, mut second] = [weight, first, second].map(own);
    let gradient = contiguous(gradient);
    let gradient = values(&gradient);
    let count = gradient.len();
    let sizes = [&weight, &first, &second].map(|x| x.layout().num_elements());
    assert_eq!(sizes, [count; 3], "weight, means and gradient have different sizes");
    let (w, m, v) = (
        &mut weight.storage_mut::<f32>()[..count],
        &mut first.storage_mut::<f32>()[..count],
        &mut second.storage_mut::<f32>()[..count],
    );
    let blocks = w.par_chunks_mut(BLOCK).zip(m.par_chunks_mut(BLOCK)).zip(v.par_chunks_mut(BLOCK));
    blocks.zip(gradient.par_chunks(BLOCK)).for_each(|(((w, m), v), g)| {
        run(Update { w, m, v, g, step });
    });
    [weight, first, second]
}

/// Numbers of a weight, their means and gradients.
struct Update<'a> {
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    g: &'a [f32],
    step: AdamWStep,
}

impl Work for Update<'_> {
    #[inline(always)]
    unsafe fn with<L: Lanes>(self) {
        let Self { w, m, v, g, step } = self;
        let [beta_1, beta_2, eps, keep, rate] =
            [step.beta_1, step.beta_2, step.eps, step.keep, step.rate].map(|x| x as f32);
        let (rest_1, rest_2) = ((1.0 - step.beta_1) as f32, (1.0 - step.beta_2) as f32);
        let root_bias_2 = step.root_bias_2 as f32;
        for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
            *m = *m * beta_1 + g * rest_1;
            *v = *v * beta_2 + g * g * rest_2;
            *w = *w * keep - *m / (v.sqrt() / root_bias_2 + eps) * rate;
        }
    }
}
