//! Training on a device, through the engine's own interface.

use std::path::Path;
use std::sync::Arc;

use flamingo_engine::{
    AdamW, ContrastiveOptions, Device, Dtype, Muon, Optimizer, Part, Pixels, Text, Training, TrainingOptions,
    open_contrastive, open_training,
};
use flamingo_weights::ModelFolder;

fn open() -> Box<dyn Training> {
    open_with(Optimizer::default())
}

fn open_with(optimizer: Optimizer) -> Box<dyn Training> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/golden-tiny");
    let folder = Arc::new(ModelFolder::open(&folder).expect("the model of the repository"));
    open_training(&folder, Device::Flex, &TrainingOptions { optimizer, ..TrainingOptions::default() })
        .expect("a training")
}

/// Muon for the matrices of the blocks.
fn muon() -> Optimizer {
    Optimizer { muon: Some(Muon { factor: 1.0, momentum: 0.95, weight_decay: 0.1 }), adamw: AdamW::default() }
}

/// One picture and a few tokens, other ones at each step.
fn batch(step: usize) -> (Text, Pixels, Vec<i64>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/golden-tiny");
    batch_of(&ModelFolder::open(&folder).expect("the model of the repository"), step)
}

fn batch_of(folder: &ModelFolder, step: usize) -> (Text, Pixels, Vec<i64>) {
    let (image, side) = (folder.config().tokens.image, folder.config().vision.image_size);
    let ids: Vec<u32> = [image].into_iter().chain((0..6).map(|i| (10 + 7 * step as u32 + 31 * i) % 300)).collect();
    let labels: Vec<i64> = ids.iter().map(|&id| if id == image { -100 } else { i64::from(id) }).collect();
    let data = (0..3 * side * side).map(|i| ((i * 13 + step * 7) % 17) as f32 / 8.0 - 1.0).collect();
    let pixels = Pixels { rows: 1, images: 1, frames: 1, side, data };
    (Text::new(1, ids, vec![true; 7]), pixels, labels)
}

fn step(training: &mut dyn Training, step: usize) -> f32 {
    let (text, pixels, labels) = batch(step);
    let loss = training.backward(&text, Some(&pixels), &labels, 1.0).expect("a loss");
    training.clip(1.0).expect("a norm");
    training.update(1e-2).expect("an update");
    loss
}

#[test]
fn a_restored_training_goes_on_bit_for_bit() {
    for optimizer in [Optimizer::default(), muon()] {
        goes_on_bit_for_bit(optimizer);
    }
}

fn goes_on_bit_for_bit(optimizer: Optimizer) {
    let open = || open_with(optimizer);
    let mut whole = open();
    let losses: Vec<f32> = (0..6).map(|i| step(&mut *whole, i)).collect();
    let mut first = open();
    (0..3).for_each(|i| assert_eq!(step(&mut *first, i).to_bits(), losses[i].to_bits()));
    let state = first.state().expect("a state");
    let mut second = open();
    // Gradients of a step that was never finished do not matter.
    step(&mut *second, 9);
    second.restore(state.clone()).expect("a restored state");
    (3..6).for_each(|i| assert_eq!(step(&mut *second, i).to_bits(), losses[i].to_bits(), "step {i}"));
    assert_eq!(second.state().expect("a state"), whole.state().expect("a state"));

    // A state of another model changes nothing.
    let mut broken = state;
    broken.pop();
    let before = second.state().expect("a state");
    assert!(second.restore(broken[..2].to_vec()).is_err());
    assert_eq!(second.state().expect("a state"), before);
}

#[test]
fn muon_updates_the_blocks_matrices_and_adamw_the_rest() {
    let after = |optimizer| {
        let mut training = open_with(optimizer);
        step(&mut *training, 0);
        training.weights().expect("weights")
    };
    let (adamw, muon) = (after(Optimizer::default()), after(muon()));
    let differs = |name: &str| {
        let of = |weights: &[(String, flamingo_engine::Array)]| {
            weights.iter().find(|(other, _)| other == name).expect("a weight").1.data.clone()
        };
        of(&adamw) != of(&muon)
    };
    assert!(differs("resampler.layers.0.attention.to_q.weight"));
    assert!(!differs("resampler.latents") && !differs("resampler.norm.weight"));
}

#[test]
fn a_model_learns_one_batch_by_heart_and_what_is_frozen_stays() {
    let mut training = open();
    let names: Vec<String> = training.weights().expect("weights").into_iter().map(|(name, _)| name).collect();
    let trains = |name: &String| {
        name.starts_with("resampler.") || name.starts_with("cross_attention.") || name == "decoder.embedding.added"
    };
    assert!(names.iter().all(trains) && names.len() > 20, "{names:?}");
    let first = step(&mut *training, 0);
    let last = (0..30).map(|_| step(&mut *training, 0)).last().expect("a loss");
    assert!(last < 0.3 * first, "{first} to {last}");
}

#[test]
fn a_batch_without_labels_teaches_nothing() {
    let mut training = open();
    let text = Text::new(1, vec![301, 5, 6], vec![true; 3]);
    let loss = training.backward(&text, None, &[-100; 3], 1.0).expect("a loss");
    assert!(loss.is_nan());
    assert!(training.gradients().expect("gradients").is_empty());
    assert!(training.backward(&text, None, &[999; 3], 1.0).is_err());
    assert!(training.backward(&text, None, &[1; 2], 1.0).is_err());
}

#[test]
fn captions_are_compared_with_class_token_and_patches_as_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/golden-tiny");
    let folder = Arc::new(ModelFolder::open(&folder).expect("the model of the repository"));
    let text_tower = flamingo_config::TextTowerConfig { decoder: folder.config().decoder.clone() };
    let side = folder.config().vision.image_size;
    let data = (0..2 * 3 * side * side).map(|i| (i % 29) as f32 / 15.0 - (i % 7) as f32 / 5.0).collect();
    let pixels = Pixels { rows: 2, images: 1, frames: 1, side, data };
    let text = Text::new(2, vec![5, 6, 7, 8, 9, 10], vec![true; 6]);
    let loss = |patch_loss: f64| {
        let options = ContrastiveOptions {
            text_tower: text_tower.clone(),
            optimizer: Optimizer::default(),
            patch_dropout: 0.0,
            patch_loss,
            seed: 0,
        };
        let mut training = open_contrastive(&folder, Device::Flex, &options).expect("a training");
        training.backward(&text, Some(&pixels), &[], 1.0).expect("a loss")
    };
    let (class, patches) = (loss(0.0), loss(1.0));
    assert!((class - patches).abs() > 1e-3, "{class} and {patches}");
    let mixed = 0.75 * class + 0.25 * patches;
    assert!((loss(0.25) - mixed).abs() < 1e-5 * mixed.abs(), "{} for {mixed}", loss(0.25));
}

#[test]
fn half_precision_gives_nearly_the_same_gradients_and_keeps_weights_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/golden-tiny");
    let folder = Arc::new(ModelFolder::open(&folder).expect("the model of the repository"));
    for parts in [Part::UPSTREAM.to_vec(), vec![Part::Resampler, Part::CrossAttention, Part::Decoder]] {
        let open = |precision| {
            let options = TrainingOptions { parts: parts.clone(), precision, ..TrainingOptions::default() };
            open_training(&folder, Device::Flex, &options).expect("a training")
        };
        let (mut whole, mut half) = (open(Dtype::F32), open(Dtype::Bf16));
        let gradients = |training: &mut dyn Training| {
            let (text, pixels, labels) = batch(0);
            let loss = training.backward(&text, Some(&pixels), &labels, 1.0).expect("a loss");
            let gradients = training.gradients().expect("gradients");
            (loss, gradients.into_iter().flat_map(|(_, array)| array.data).collect::<Vec<f32>>())
        };
        let ((loss, wanted), (half_loss, found)) = (gradients(&mut *whole), gradients(&mut *half));
        assert!((loss - half_loss).abs() < 0.02 * loss, "{loss} and {half_loss}");
        let length = |values: &[f32]| values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let difference: Vec<f32> = found.iter().zip(&wanted).map(|(a, b)| a - b).collect();
        assert!(length(&difference) < 0.05 * length(&wanted), "{} of {}", length(&difference), length(&wanted));
        // A step that bf16 could not hold is not lost: the weights are f32.
        let before = half.weights().expect("weights");
        half.update(1e-6).expect("an update");
        let changed = before.iter().zip(half.weights().expect("weights")).filter(|((_, a), (_, b))| a.data != b.data);
        assert!(changed.count() > before.len() / 2);
    }
}

#[test]
fn checkpointing_gives_the_same_gradients() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/golden-tiny");
    let folder = Arc::new(ModelFolder::open(&folder).expect("the model of the repository"));
    let everything = vec![Part::Vision, Part::Resampler, Part::CrossAttention, Part::Decoder];
    for parts in [Part::UPSTREAM.to_vec(), everything, vec![Part::CrossAttention], vec![Part::Resampler]] {
        let gradients = |gradient_checkpointing| {
            let options =
                TrainingOptions { parts: parts.clone(), gradient_checkpointing, ..TrainingOptions::default() };
            let mut training = open_training(&folder, Device::Flex, &options).expect("a training");
            let (text, pixels, labels) = batch(0);
            let loss = training.backward(&text, Some(&pixels), &labels, 0.7).expect("a loss");
            let without = training.backward(&text, None, &labels, 0.3).expect("a loss");
            (loss, without, training.gradients().expect("gradients"))
        };
        let ((loss, without, wanted), (again, without_again, found)) = (gradients(false), gradients(true));
        assert!((loss - again).abs() < 1e-6 && (without - without_again).abs() < 1e-6, "{loss} {again}");
        assert_eq!(wanted.len(), found.len(), "{parts:?}");
        for ((name, a), (other, b)) in wanted.iter().zip(&found) {
            assert_eq!(name, other);
            let size = a.data.iter().fold(1e-6f32, |size, x| size.max(x.abs()));
            let worst = a.data.iter().zip(&b.data).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst < 1e-5 * size, "{name}: {worst} of {size}");
        }
    }
}

/// Gradients that are handed over layer by layer are those of one graph: whole, each once, and in the order that was told.
#[test]
fn gradients_are_handed_over_as_soon_as_they_are_whole() {
    let everything = vec![Part::Vision, Part::Resampler, Part::CrossAttention, Part::Decoder];
    for parts in [Part::UPSTREAM.to_vec(), everything.clone(), vec![Part::CrossAttention], vec![Part::Resampler]] {
        gradients_are_handed_over("golden-tiny", &parts, Dtype::F32);
    }
    // Heads that are the embedding table get gradients first and last.
    for model in ["flamingo-tiny-mpt", "flamingo-tiny-opt"] {
        gradients_are_handed_over(model, &everything, Dtype::F32);
    }
    gradients_are_handed_over("golden-tiny", &Part::UPSTREAM, Dtype::Bf16);
}

fn gradients_are_handed_over(model: &str, parts: &[Part], precision: Dtype) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(model);
    let folder = Arc::new(ModelFolder::open(&folder).expect("a model of the repository"));
    let tolerance = if precision == Dtype::F32 { 1e-5 } else { 3e-2 };
    let open = |gradient_checkpointing| {
        let parts = parts.to_vec();
        let options = TrainingOptions { parts, gradient_checkpointing, precision, ..TrainingOptions::default() };
        open_training(&folder, Device::Flex, &options).expect("a training")
    };
    let (text, pixels, labels) = batch_of(&folder, 0);
    let mut whole = open(false);
    let before = whole.backward(&text, None, &labels, 0.3).expect("a loss");
    let loss = whole.backward(&text, Some(&pixels), &labels, 0.7).expect("a loss");
    let wanted = whole.take_gradients().expect("gradients");
    for checkpointing in [false, true] {
        let mut training = open(checkpointing);
        let stages = training.stages();
        let mut places = stages.concat();
        places.sort_unstable();
        assert_eq!(places, (0..wanted.len()).collect::<Vec<_>>(), "{parts:?}: not each parameter once");

        let mut found = vec![None; wanted.len()];
        assert!((training.backward(&text, None, &labels, 0.3).expect("a loss") - before).abs() < 1e-6);
        let mut told = Vec::new();
        let again = training.backward_in_stages(&text, Some(&pixels), &labels, 0.7, &mut |group, gradients| {
            told.push(group);
            for (&place, coming) in stages[group].iter().zip(gradients) {
                found[place] = coming.map(|coming| coming().expect("a gradient"));
            }
        });
        assert!((again.expect("a loss") - loss).abs() < 1e-6);
        assert_eq!(told, (0..stages.len() - 1).collect::<Vec<_>>());
        for (place, left) in training.take_gradients().expect("gradients").into_iter().enumerate() {
            let Some(left) = left else { continue };
            assert!(found[place].is_none(), "a gradient was handed over before it was whole");
            found[place] = Some(left);
        }
        for (place, (a, b)) in wanted.iter().zip(&found).enumerate() {
            let (Some(a), Some(b)) = (a, b) else {
                assert_eq!(a.is_some(), b.is_some(), "{place}");
                continue;
            };
            let size = a.iter().fold(1e-6f32, |size, x| size.max(x.abs()));
            let worst = a.iter().zip(b).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()));
            assert!(worst < tolerance * size, "{model}, {parts:?}, {place}: {worst} of {size}");
        }

        // A loss that is no number hands nothing over.
        let nothing = vec![-100; labels.len()];
        let lost = training.backward_in_stages(&text, Some(&pixels), &nothing, 1.0, &mut |_, _| panic!("gradients"));
        assert!(lost.expect("a loss").is_nan());
    }
}
