//! Times reading, decoding and resizing of captioned photographs from shards, pictures a second and thread.
//!
//! `cargo bench --bench data -- [--samples N] [--side N] [--torch PYTHON]`. The shards are made here from the photographs
//! of the tests; `--torch` also reads them with webdataset, Pillow and open_clip's transform in one process
//! (benches/compare) and prints the ratio: above 1, ours is faster.

mod common;

use std::sync::Arc;
use std::time::Instant;

use common::Options;
use flamingo_data::{Decode, ImageTransform, Loader, LoaderOptions, Pairs, Tokenizer};

fn main() {
    let options = Options::parse(&[("samples", 600), ("side", 224)], "");
    let (samples, side) = (options.number("samples"), options.number("side"));
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let work = tempfile::tempdir().expect("a temporary folder");
    let shard = work.path().join("photos.tar");
    let photos = ["astronaut", "chelsea", "coffee", "rocket"];
    let mut tar = tar::Builder::new(std::fs::File::create(&shard).expect("a file"));
    for i in 0..samples {
        let name = photos[i % photos.len()];
        let photo = std::fs::read(root.join(format!("tests/fixtures/photos/{name}.jpg"))).expect("a photograph");
        for (extension, content) in [("jpg", photo.as_slice()), ("txt", name.as_bytes())] {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, format!("{i:06}.{extension}"), content).expect("a member");
        }
    }
    tar.finish().expect("a shard");

    let mut tokenizer = Tokenizer::open(&root.join("models/golden-tiny")).expect("a tokenizer");
    tokenizer.add_flamingo_tokens().expect("tokens");
    let transform = ImageTransform::clip(side);
    let pairs = Pairs { tokenizer: Arc::new(tokenizer), transform, max_tokens: 32, flip: true, upstream_compat: false };
    let decode: Decode<_> = Arc::new(move |sample, rng| pairs.example(sample, rng));
    let shards = vec![shard.display().to_string()];
    let loader = LoaderOptions { shards, shuffle: 0, batch_size: 20, ..LoaderOptions::default() };
    // The first round fills the page cache.
    let rates: Vec<f64> = (0..4)
        .map(|_| {
            let mut loader = Loader::start(loader.clone(), decode.clone(), None).expect("a loader");
            let start = Instant::now();
            (0..samples / 20).for_each(|_| drop(loader.next_batch().expect("a batch")));
            (samples / 20 * 20) as f64 / start.elapsed().as_secs_f64()
        })
        .skip(1)
        .collect();
    let ours = common::median(rates) / 1000.0;
    println!("{samples} photographs of about 360 pixels to {side}, pictures a second, one thread");
    println!("ours      {ours:>8.0}");
    let shard = shard.display().to_string();
    if let Some([theirs]) =
        options.script("torch_data.py", &["--shard", &shard], &["samples", "side"], ["images_per_second"])
    {
        println!("PyTorch   {theirs:>8.0}");
        println!("ratio     {:>8.2}", ours / theirs);
    }
}
