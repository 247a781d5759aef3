//! Times a training step, part by part, on each backend of this build that trains.
//!
//! `cargo bench --bench train -- [--config NAME|model.toml] [--layers N] [--rows N] [--tokens N] [--images N] [--runs N]
//! [--device D]… [--torch PYTHON]`. Weights are random. `--torch` also runs upstream's PyTorch on the same shapes
//! (benches/compare) and prints ratios: above 1, ours is faster.

mod common;

use std::time::Instant;

use common::{Options, median};
use flamingo_engine::{Pixels, Text, TrainingOptions, open_training};

/// As `flamingo train` sets it (crates/cli/train.rs): `mi_option_purge_delay`, milliseconds.
const PURGE_DELAY: (libmimalloc_sys::mi_option_t, std::ffi::c_long) = (15, 30_000);

fn main() {
    // SAFETY: the option exists in this version of mimalloc, takes a number, and may change at any time.
    unsafe { libmimalloc_sys::mi_option_set_default(PURGE_DELAY.0, PURGE_DELAY.1) };
    let options =
        Options::parse(&[("rows", 8), ("tokens", 64), ("images", 2), ("runs", 5)], "benches/train-small.toml");
    let (rows, tokens, images) = (options.number("rows"), options.number("tokens"), options.number("images"));
    let model = options.random_model();
    let config = model.folder.config().clone();

    let side = config.vision.image_size;
    let data = (0..rows * images * 3 * side * side).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    let pixels = Pixels { rows, images, frames: 1, side, data };
    let mut ids: Vec<u32> = (0..rows * tokens).map(|i| (i * 31 % config.tokens.base_rows()) as u32).collect();
    for (row, image) in (0..rows).flat_map(|row| (0..images).map(move |image| (row, image))) {
        ids[row * tokens + image * tokens / images] = config.tokens.image;
    }
    let labels: Vec<i64> = ids.iter().map(|&id| if id == config.tokens.image { -100 } else { i64::from(id) }).collect();
    let text = Text::new(rows, ids, vec![true; rows * tokens]);

    println!(
        "{}, {rows} rows of {tokens} tokens and {images} pictures, median of {} runs, ms",
        config.name,
        options.number("runs")
    );
    println!("{:<28} {:>14} {:>14} {:>14} {:>14}", "", "forward+back", "clip+update", "step", "peak MiB");
    let mut ours = Vec::new();
    for device in &options.devices {
        let mut training = match open_training(&model.folder, *device, &TrainingOptions::default()) {
            Ok(training) => training,
            Err(error) => {
                println!("{device}: skipped: {error}");
                continue;
            }
        };
        let mut run = || {
            let start = Instant::now();
            training.backward(&text, Some(&pixels), &labels, 1.0).expect("a loss");
            let gradients = start.elapsed().as_secs_f64();
            training.clip(1.0).expect("a norm");
            training.update(1e-4).expect("an update");
            let step = start.elapsed().as_secs_f64();
            [gradients, step - gradients, step]
        };
        run();
        let runs: Vec<[f64; 3]> = (0..options.number("runs")).map(|_| run()).collect();
        let times: [f64; 3] = std::array::from_fn(|i| median(runs.iter().map(|run| run[i]).collect()));
        let values = [times[0], times[1], times[2], common::peak_mib()];
        common::row(&device.to_string(), &values);
        ours.push((device.to_string(), values));
    }
    let keys = ["gradients_ms", "update_ms", "step_ms", "peak_rss_mib"];
    let Some(theirs) = options.torch("torch_train.py", &model, &["rows", "tokens", "images", "runs"], keys) else {
        return;
    };
    common::row("PyTorch, CPU", &theirs);
    for (name, values) in ours {
        common::row(&format!("ratio, {name}"), &std::array::from_fn::<f64, 4, _>(|i| theirs[i] / values[i]));
    }
}
