//! A recorded vision tower.
//!
//! A model folder needs all of its parts, so the tower is converted inside a model whose other parts are
//! small and random; only the tower runs.

use std::path::Path;

use anyhow::Context;
use flamingo_engine::{Array, Device, Pixels, Precision};

use super::Values;
use super::recording::Recording;
use crate::golden;

pub(super) fn compute(folder: &Path, device: Device) -> anyhow::Result<Values> {
    let work = tempfile::tempdir().context("cannot make a temporary folder")?;
    let model = golden::convert_clip(folder, work.path())?;
    let engine = flamingo_engine::open(&model, device, Precision::F32)?;
    let pixels = Recording::open(folder)?.need("pixels")?;
    let [rows, _, side, _] = pixels.shape[..] else {
        anyhow::bail!("`pixels` has shape {:?}, not four dimensions", pixels.shape);
    };
    let pixels = Pixels { rows, images: 1, frames: 1, side, data: pixels.f32() };

    let mut values = Values::default();
    for (name, array) in engine.trace_vision(&pixels)? {
        if name == "encode_image" {
            values.floats("encode_image_normed", normed(&array));
            values.floats("pooled", array.clone());
        }
        values.floats(name, array);
    }
    Ok(values)
}

/// Rows divided by their length.
fn normed(rows: &Array) -> Array {
    let dim = rows.shape[1];
    let data = rows.data.chunks(dim).flat_map(|row| {
        let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        row.iter().map(move |&x| (f64::from(x) / norm) as f32)
    });
    Array { shape: rows.shape.clone(), data: data.collect() }
}
