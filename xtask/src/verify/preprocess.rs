//! Recorded pictures: pixels after resize, crop and conversion, and the decoded pixels where decoders differ.

use std::path::Path;

use anyhow::{Context, bail};
use flamingo_data::{ConvertOrder, ImageTransform, Picture};
use flamingo_engine::Array;

use super::Values;
use super::compare::{Outcome, Row, Summary};
use super::dump::Value;
use super::recording::Recording;
use crate::golden::read_json;

pub(super) fn compute(folder: &Path) -> anyhow::Result<Values> {
    let recorded = read_json(&folder.join("preprocess.json"))?;
    let images = recorded["images"].as_array().context("preprocess.json lists no images")?;
    let mut values = Values::default();
    for image in images {
        let file = image["file"].as_str().context("an image of preprocess.json has no file")?;
        let picture = Picture::open(&folder.join(file)).with_context(|| format!("cannot use {file}"))?;
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        pixels(&mut values, format!("{file}/decoded_rgb_u8"), vec![height, width, 3], &picture.rgb());
        for size in image["outputs"].as_object().into_iter().flatten().map(|(size, _)| size) {
            let side: usize = size.parse().with_context(|| format!("{file} has an output of size {size}"))?;
            let mut transform = ImageTransform::clip(side);
            let shape = || vec![3, side, side];
            pixels(&mut values, format!("{file}/{size}/u8"), shape(), &transform.pixels(&picture));
            let data = transform.tensor(&picture);
            values.floats(format!("{file}/{size}/tensor"), Array { shape: shape(), data });
            transform.order = ConvertOrder::RgbFirst;
            pixels(&mut values, format!("{file}/{size}/u8_rgb_first"), shape(), &transform.pixels(&picture));
        }
    }
    Ok(values)
}

fn pixels(values: &mut Values, name: String, shape: Vec<usize>, pixels: &[u8]) {
    values.arrays.insert(name, Value::Integers { shape, data: pixels.iter().map(|&p| i32::from(p)).collect() });
}

/// Pixels may differ by one level of 255, which is what JPEG decoders leave to each other; the normalised
/// tensor's recorded values by as much.
pub(super) fn check(folder: &Path, values: &Values) -> anyhow::Result<Summary> {
    let recording = Recording::open(folder)?;
    let mut summary = Summary::default();
    for name in recording.names()? {
        let expected = recording.need(&name)?;
        let Some(Value::Integers { shape, data }) = values.arrays.get(&name) else {
            bail!("`{name}` is recorded and we computed no such value");
        };
        let same = *shape == expected.shape;
        let diff = data.iter().zip(&expected.data).map(|(&a, &b)| (f64::from(a) - b).abs()).fold(0.0, f64::max);
        summary.rows.push(Row {
            name,
            outcome: if same && diff <= 1.0 { Outcome::Pass } else { Outcome::Fail },
            max_abs_diff: Some(diff),
            tolerance: Some(1.0),
            note: (!same).then(|| format!("shape {shape:?}, recorded {:?}", expected.shape)),
        });
    }
    Ok(summary)
}
