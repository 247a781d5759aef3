//! Texts that are continued together, beside one alone: tokens a second of the batch engine, without a server around it.
//!
//!     cargo bench --bench batch -- --texts 1 --texts 16 --tokens 64
//!
//! Counts take turns, run by run, so that a machine whose speed changes treats all of them alike. Each run reads the last tokens
//! of as many few-shot prompts, whose beginning was read before, and continues all of them. Lines give medians.

use std::path::Path;
use std::time::Instant;

use clap::Parser;
use flamingo_data::{Picture, few_shot};
use flamingo_engine::{Batch, Device, Next, Precision, Seat, SessionOptions};
use flamingo_zoo::Model;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Args {
    /// Texts that are continued together. Several numbers give several lines; ratios are to the first.
    #[arg(long, default_values_t = [1, 2, 4, 8, 16, 32], value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    texts: Vec<usize>,
    /// New tokens of each.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// How often each count is run.
    #[arg(long, default_value_t = 11)]
    runs: usize,
    /// A model folder, or the name of one in the zoo.
    #[arg(long, default_value = "flamingo-tiny-neox")]
    model: String,
    #[arg(long, default_value = "flex")]
    device: Device,
    #[arg(long)]
    precision: Option<Precision>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = flamingo_zoo::find(&args.model, &root.join("models")).expect("a model");
    let model = Model::open(&folder, args.device, args.precision).expect("a model with weights");

    let drawing = |name: &str| Picture::open(&root.join("tests/fixtures/emoji").join(name)).expect("a drawing");
    let shots = [(drawing("crab.png"), "Output:nature"), (drawing("light-bulb.png"), "Output:object")];
    let prompt = few_shot(shots, Some(drawing("carrot.png")), "Output:").expect("a prompt");
    let pictures: Vec<&Picture> = prompt.images.iter().collect();
    let images = model.latents(&pictures, 0).expect("latents");
    let (text, latents) = model
        .inputs(&flamingo_data::Interleaved { text: prompt.text.clone(), images })
        .expect("a prompt that the model reads");
    let eoc = model.config().tokens.endofchunk;
    let shared = text.ids.iter().rposition(|&id| id == eoc).expect("demonstrations") + 1;

    let mut batch = model.engine().batch();
    let options = SessionOptions { reserve: shared, ..SessionOptions::default() };
    let beginning = batch.open(latents.as_ref(), options).expect("a seat");
    batch.step(&[(beginning, Next::Prompt(&text.ids[..shared]))]).expect("logits");

    let mut seconds: Vec<Vec<f64>> = vec![Vec::new(); args.texts.len()];
    for run in 0..=args.runs {
        for (i, &texts) in args.texts.iter().enumerate() {
            let start = Instant::now();
            go_on(&mut *batch, beginning, &text.ids[shared..], texts, args.tokens);
            // The first makes everything warm.
            if run > 0 {
                seconds[i].push(start.elapsed().as_secs_f64());
            }
        }
    }
    println!(
        "{} on {}, {}, {} tokens each, {} runs",
        args.model,
        args.device,
        model.engine().precision(),
        args.tokens,
        args.runs
    );
    println!("| texts | tokens a second | slowest and fastest run | ratio |\n|---|---|---|---|");
    let mut first = None;
    for (&texts, seconds) in args.texts.iter().zip(&mut seconds) {
        seconds.sort_by(f64::total_cmp);
        let rate = |seconds: f64| (texts * args.tokens) as f64 / seconds;
        let median = rate(seconds[seconds.len() / 2]);
        let ratio = median / *first.get_or_insert(median);
        let (slowest, fastest) = (rate(seconds[seconds.len() - 1]), rate(seconds[0]));
        println!("| {texts} | {median:.1} | {slowest:.1} – {fastest:.1} | {ratio:.2} |");
    }
}

/// Reads the rest of a prompt in as many texts and continues them, always with the likeliest token.
fn go_on(batch: &mut dyn Batch, beginning: Seat, rest: &[u32], texts: usize, tokens: usize) {
    let seats: Vec<Seat> = (0..texts).map(|_| batch.fork(beginning).expect("a seat")).collect();
    let mut next: Vec<(Seat, Next)> = seats.iter().map(|&seat| (seat, Next::Prompt(rest))).collect();
    for _ in 0..tokens {
        let logits = batch.step(&next).expect("logits");
        let vocab = logits.len() / texts;
        next.clear();
        next.extend(
            seats.iter().zip(logits.chunks(vocab)).map(|(&seat, logits)| (seat, Next::Written(likeliest(logits)))),
        );
    }
    seats.into_iter().for_each(|seat| batch.leave(seat));
}

fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}
