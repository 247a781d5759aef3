//! Texts that are continued together get the numbers that they get alone.

use std::path::PathBuf;
use std::sync::Arc;

use flamingo_config::Scheme;
use flamingo_data::{Interleaved, Picture, few_shot};
use flamingo_engine::{Batch, Device, Next, Precision, Seat, SessionOptions, Text, probe};
use flamingo_generate::{Continuation, GenerationConfig};
use flamingo_zoo::{Latents, Model, Prompt};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn drawing(name: &str) -> Arc<Picture> {
    let file = root().join("tests/fixtures/emoji").join(name).with_extension("png");
    Arc::new(Picture::open(&file).expect("a drawing"))
}

/// Prompts of one, two and three pictures and of none, of different lengths; in one, text comes before its picture.
fn prompts() -> Vec<Prompt> {
    let shot = |name: &str, text: &str| (drawing(name), text.to_string());
    let prompt =
        |shots: Vec<_>, query: Option<&str>, text: &str| few_shot(shots, query.map(drawing), text).expect("a prompt");
    vec![
        prompt(vec![], Some("banana"), "A picture of"),
        prompt(vec![shot("crab", "Output:red")], Some("carrot"), "Output:"),
        prompt(vec![shot("crab", "Output:nature"), shot("light-bulb", "Output:object")], Some("carrot"), "Output:"),
        prompt(vec![], None, "A picture of"),
        prompt(vec![], Some("pizza"), "Question:what color is this? Short answer:"),
        Prompt { text: "A picture of<image> is".into(), images: vec![drawing("crab")] },
    ]
}

/// A prompt's tokens but for some of the last, and those: what a server reads beforehand, and what it reads beside other texts.
fn halves(ids: &[u32], i: usize) -> (&[u32], &[u32]) {
    ids.split_at(ids.len().saturating_sub(1 + 2 * (i % 4)))
}

fn row(ids: &[u32]) -> Text {
    Text::new(1, ids.to_vec(), vec![true; ids.len()])
}

/// Logits after each token of a prompt that is continued alone.
fn alone(model: &Model, prompt: &Prompt, i: usize, settings: &GenerationConfig) -> Vec<Vec<f32>> {
    let (text, latents) = model.inputs(&look(model, prompt)).expect("a readable prompt");
    let (first, rest) = halves(&text.ids, i);
    let start = |ids| model.engine().start_seen(&row(ids), latents.as_ref(), SessionOptions::default());
    let (mut session, mut logits) = match first {
        [] => start(rest).expect("a session"),
        _ => {
            let (mut session, _) = start(first).expect("a session");
            let logits = session.feed(rest.to_vec(), vec![true; rest.len()]).expect("logits").data;
            let last = logits.len() - model.config().tokens.vocab_size;
            (session, logits[last..].to_vec())
        }
    };
    let mut continuation = Continuation::new(text.ids.clone(), settings, 0).expect("usable settings");
    let mut all = vec![logits.clone()];
    loop {
        let token = continuation.choose(&mut logits).expect("a token");
        if continuation.ended() {
            return all;
        }
        logits = session.step(&[token]).expect("logits");
        all.push(logits.clone());
    }
}

fn look(model: &Model, prompt: &Prompt) -> Interleaved<Latents> {
    let pictures: Vec<&Picture> = prompt.images.iter().map(AsRef::as_ref).collect();
    let images = model.latents(&pictures, 0).expect("latents");
    Interleaved { text: prompt.text.clone(), images }
}

struct Running {
    seat: Seat,
    continuation: Continuation,
    /// What follows the last token; nothing before the prompt is read.
    logits: Vec<f32>,
    all: Vec<Vec<f32>>,
    prompt: usize,
    ids: Vec<u32>,
}

impl Running {
    fn next(&self) -> Next<'_> {
        match self.continuation.ids().last() {
            Some(&id) => Next::Written(id),
            None => Next::Prompt(halves(&self.ids, self.prompt).1),
        }
    }
}

fn join(model: &Model, batch: &mut dyn Batch, prompts: &[Prompt], i: usize, settings: &GenerationConfig) -> Running {
    let (Text { ids, .. }, latents) = model.inputs(&look(model, &prompts[i])).expect("a readable prompt");
    let seat = batch.open(latents.as_ref(), SessionOptions::default()).expect("a seat");
    let (first, _) = halves(&ids, i);
    if !first.is_empty() {
        batch.step(&[(seat, Next::Prompt(first))]).expect("logits");
    }
    let continuation = Continuation::new(ids.clone(), settings, 0).expect("usable settings");
    Running { seat, continuation, all: Vec::new(), logits: Vec::new(), prompt: i, ids }
}

/// Continues prompts in a batch that one more joins at each step and that each leaves when it has ended.
fn together(model: &Model, prompts: &[Prompt], settings: &GenerationConfig) -> Vec<Vec<Vec<f32>>> {
    let mut batch = model.engine().batch();
    // More than a backend takes at once, most from the beginning and the others later.
    let order: Vec<usize> = (0..prompts.len() * 6).map(|i| i % prompts.len()).collect();
    let mut waiting = order.iter();
    let first: Vec<usize> = waiting.by_ref().take(19).copied().collect();
    let mut running: Vec<Running> = first.into_iter().map(|i| join(model, &mut *batch, prompts, i, settings)).collect();
    let mut done: Vec<Vec<Vec<f32>>> = vec![Vec::new(); prompts.len()];
    while !running.is_empty() {
        let next: Vec<(Seat, Next)> = running.iter().map(|one| (one.seat, one.next())).collect();
        let (count, logits) = (next.len(), batch.step(&next).expect("logits"));
        for (one, logits) in running.iter_mut().zip(logits.chunks(logits.len() / count)) {
            one.logits = logits.to_vec();
            one.all.push(logits.to_vec());
            one.continuation.choose(&mut one.logits).expect("a token");
        }
        let (ended, going): (Vec<_>, Vec<_>) = running.into_iter().partition(|one| one.continuation.ended());
        for one in ended {
            batch.leave(one.seat);
            let before = &mut done[one.prompt];
            assert!(before.is_empty() || *before == one.all, "a prompt was continued in two ways");
            *before = one.all;
        }
        running = going;
        if let Some(&i) = waiting.next() {
            running.push(join(model, &mut *batch, prompts, i, settings));
        }
    }
    done
}

/// Compares every logit of texts in a batch with those of each alone.
fn compare(name: &str, device: Device, precision: Precision, tokens: usize) {
    let model = Model::open(&root().join("models").join(name), device, precision).expect("a model");
    let (prompts, settings) = (prompts(), model.settings(tokens));
    let found = together(&model, &prompts, &settings);
    for (i, (prompt, found)) in prompts.iter().zip(&found).enumerate() {
        let wanted = alone(&model, prompt, i, &settings);
        assert_eq!(found.len(), wanted.len(), "{name} {precision:?}: prompt {i}");
        for (step, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
            assert!(found == wanted, "{name} {precision:?}: other numbers for prompt {i} at token {step}");
        }
    }
}

/// ALiBi, rotary embeddings and learned positions, in every format of weights.
#[test]
fn a_text_does_not_depend_on_those_beside_it() {
    for precision in
        [Precision::F16, Precision::F32, Precision::Quantised(Scheme::Q8), Precision::Quantised(Scheme::Q4)]
    {
        compare("flamingo-tiny-mpt", Device::Flex, precision, 12);
    }
    for precision in [Precision::F16, Precision::BF16] {
        compare("flamingo-tiny-neox", Device::Flex, precision, 12);
    }
    compare("flamingo-tiny-opt", Device::Flex, Precision::F16, 12);
}

/// A model of the zoo whose text looks at the latest picture only, or at all before it.
fn looking(name: &str, only_immediate: bool) -> (tempfile::TempDir, Model) {
    let folder = tempfile::tempdir().expect("a folder");
    for file in std::fs::read_dir(root().join("models").join(name)).expect("a model") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), folder.path().join(file.file_name())).expect("a copy");
    }
    let config = folder.path().join("config.json");
    let of = |only: bool| format!("\"only_attend_immediate_media\": {only}");
    let text = std::fs::read_to_string(&config).expect("a configuration");
    assert!(text.contains(&of(true)), "the model looks at the latest picture");
    std::fs::write(&config, text.replace(&of(true), &of(only_immediate))).expect("a configuration");
    let model = Model::open(folder.path(), Device::Flex, Precision::F32).expect("a model");
    (folder, model)
}

/// A few tokens at a time, pictures shown as they come: what follows is what follows the whole.
#[test]
fn a_prompt_can_be_read_in_pieces() {
    for only_immediate in [true, false] {
        let (_folder, model) = looking("flamingo-tiny-neox", only_immediate);
        let mark = model.config().tokens.image;
        for (i, prompt) in prompts().iter().enumerate() {
            let looked = look(&model, prompt);
            let (text, latents) = model.inputs(&looked).expect("a readable prompt");
            let start = model.engine().start_seen(&text, latents.as_ref(), SessionOptions::default());
            let (_, wanted) = start.expect("a session");
            for few in [1, 2, 3, 5, 8] {
                let mut batch = model.engine().batch();
                let seat = batch.open(None, SessionOptions::default()).expect("a seat");
                let (mut shown, mut found) = (0, Vec::new());
                for piece in text.ids.chunks(few) {
                    let marks = piece.iter().filter(|&&id| id == mark).count();
                    let images = looked.images[shown..shown + marks].to_vec();
                    if let Some(latents) = model.media(&[Interleaved { text: String::new(), images }]) {
                        batch.session(seat).expect("a session").show(&latents).expect("pictures for these marks");
                    }
                    shown += marks;
                    found = batch.step(&[(seat, Next::Prompt(piece))]).expect("logits");
                }
                let worst = found.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-4, "prompt {i} in pieces of {few}, {only_immediate}: {worst}");
            }
        }
    }
}

/// Pictures that were shown and not yet looked at go along with a fork, and what is wrong with them is said at once.
#[test]
fn shown_pictures_wait_for_their_text() {
    let (_folder, model) = looking("flamingo-tiny-neox", true);
    let looked = look(&model, &prompts()[2]);
    let (text, latents) = model.inputs(&looked).expect("a readable prompt");
    let latents = latents.expect("pictures");
    let mut batch = model.engine().batch();
    let seat = batch.open(Some(&latents), SessionOptions::default()).expect("a seat");
    let fork = batch.fork(seat).expect("a seat");
    let wanted = batch.step(&[(seat, Next::Prompt(&text.ids))]).expect("logits");
    // More were shown than the text has marks for so far.
    let more = batch.session(fork).expect("a session").show(&latents);
    assert!(more.is_err_and(|e| e.to_string().contains("other pictures than marks")), "pictures before their marks");
    assert_eq!(batch.step(&[(fork, Next::Prompt(&text.ids))]).expect("logits"), wanted);

    let narrow = flamingo_engine::Array { shape: vec![1, 1, 2, 3], data: vec![0.0; 6] };
    assert!(batch.open(Some(&narrow), SessionOptions::default()).is_err(), "latents of another shape");
    let mut given = vec![0; 2];
    let told = std::sync::Mutex::new(&mut given);
    let next = Next::Written(text.ids[0]);
    let advanced = batch.advance(&[(fork, next), (seat, next)], &|text, logits| {
        told.lock().expect("no panic")[text] += logits.len();
    });
    advanced.expect("logits");
    assert_eq!(given, [model.config().tokens.vocab_size; 2], "each text's logits, once");
}

/// The kernels for GPUs add up each row alike, too.
#[test]
fn nor_on_a_gpu() {
    let device = Device::Wgpu(None);
    if let Err(why) = probe(device) {
        let required = std::env::var("FLAMINGO_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "wgpu"), "wgpu is required: {why}");
        eprintln!("skipped: {why}");
        return;
    }
    for precision in [Precision::F32, Precision::Quantised(Scheme::Q8)] {
        compare("flamingo-tiny-mpt", device, precision, 4);
    }
}
