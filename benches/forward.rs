//! Times vision encoding, resampler, prefill and decode on each backend of this build.
//!
//! `cargo bench --bench forward -- [--config NAME|model.toml] [--layers N] [--tokens N] [--images N] [--runs N]
//! [--decode N] [--device D]… [--precision P]… [--torch PYTHON]`. Weights are random. `--torch` also runs upstream's
//! PyTorch in f32 on the same shapes (benches/compare) and prints ratios: above 1, ours is faster.

mod common;

use common::{Options, median, row};
use flamingo_engine::{Pixels, Text, Timings};

fn main() {
    let defaults = [("tokens", 256), ("images", 1), ("runs", 5), ("decode", 16)];
    let options = Options::parse(&defaults, "openflamingo-3b");
    let [tokens, images, runs, decode] = defaults.map(|(name, _)| options.number(name));
    let model = options.random_model();
    let config = model.folder.config().clone();

    let side = config.vision.image_size;
    let size = images * 3 * side * side;
    let data = (0..size).map(|i| (i * 7919 % 2003) as f32 / 1001.0 - 1.0).collect();
    let pixels = Pixels { rows: 1, images, frames: 1, side, data };
    let mut ids: Vec<u32> = (0..tokens).map(|i| (i * 31 % config.tokens.base_rows()) as u32).collect();
    for image in 0..images {
        ids[image * tokens / images] = config.tokens.image;
    }
    let text = Text::new(1, ids, vec![true; tokens]);

    println!(
        "{} cut to {} blocks, {} image(s), {} tokens, median of {} runs, ms",
        config.name,
        config.decoder.architecture().n_layers,
        images,
        tokens,
        runs
    );
    println!("{:<28} {:>14} {:>14} {:>14} {:>14}", "", "vision", "resampler", "prefill", "decode/token");
    let mut ours = Vec::new();
    let runs_on = options.devices.iter().flat_map(|device| options.precisions.iter().map(move |p| (*device, *p)));
    for (device, precision) in runs_on {
        let engine = match flamingo_engine::open(&model.folder, device, precision) {
            Ok(engine) => engine,
            Err(error) => {
                println!("{device}: skipped: {error}");
                continue;
            }
        };
        engine.time(&text, &pixels, decode).expect("a warm-up");
        let timings: Vec<Timings> = (0..runs).map(|_| engine.time(&text, &pixels, decode).expect("timings")).collect();
        let stage = |stage: fn(&Timings) -> std::time::Duration| {
            median(timings.iter().map(|t| stage(t).as_secs_f64()).collect())
        };
        let values = [stage(|t| t.vision), stage(|t| t.resampler), stage(|t| t.prefill), stage(|t| t.decode)];
        let name = format!("{}, {precision}", engine.device());
        row(&name, &values);
        ours.push((name, values));
    }
    let keys = ["vision_ms", "resampler_ms", "prefill_ms", "decode_ms_per_token"];
    let Some(theirs) = options.torch("torch_bench.py", &model, &["tokens", "images", "runs", "decode"], keys) else {
        return;
    };
    row("PyTorch, CPU", &theirs);
    for (name, values) in ours {
        row(&format!("ratio, {name}"), &std::array::from_fn::<f64, 4, _>(|i| theirs[i] / values[i]));
    }
}
