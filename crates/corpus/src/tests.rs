//! The way from drawings to what training reads, on a few drawings made here.

use flamingo_data::{DocumentRules, Tokenizer};

use crate::concepts::{Concept, TEST_STYLE};
use crate::drawing::{Drawing, PICTURE};
use crate::easy_vqa::{Shape, Shapes};
use crate::pages::Page;
use crate::random::Random;
use crate::sequences::{Pool, Sequence};
use crate::shards::{Member, Shards};
use crate::{Albums, Placed, Split};
use crate::{evaluation, scenes, words};

const STYLES: [&str; 4] = ["noto", "fluent", "fluent-flat", "fxemoji"];

fn concepts() -> Vec<Concept> {
    let concept = |i: usize| Concept {
        hexcode: format!("1f{i:03x}"),
        name: format!("thing{}", char::from(b'a' + i as u8)),
        tags: vec!["tag".into()],
        category: ["nature", "food", "object"][i % 3],
        kind: ["mammal", "fruit", "tool", "bird"][i % 4].into(),
        held_out: i >= 22,
        spellings: Default::default(),
    };
    (0..26).map(concept).collect()
}

/// A square of a colour in each style.
fn drawings(styles: &[&'static str], concepts: &[Concept]) -> Vec<Drawing> {
    let colours = ["red", "#2244dd", "#22aa44", "#f5d020"];
    let square = |style: &'static str, i: usize| {
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 16 16\"><path fill=\"{}\" d=\"M2 2h{}v10h-9z\"/></svg>",
            colours[i % 4],
            8 + i % 4
        );
        Drawing::of_svg(style, i, svg, 16.0).expect("a drawing")
    };
    styles.iter().flat_map(|style| (0..concepts.len()).map(|i| square(style, i)).collect::<Vec<_>>()).collect()
}

/// Sequences over the drawings that training may see, each with its JSON.
fn sequences(count: usize) -> Vec<(&'static str, String, usize, String)> {
    let concepts = concepts();
    let all = drawings(&[&STYLES[..], &[TEST_STYLE]].concat(), &concepts);
    let Split { train, test, named } = Split::new(all, &concepts);
    assert_eq!(named, (0..22).collect::<Vec<_>>());
    assert!(train.iter().all(|d| d.style != TEST_STYLE && d.concept < 22) && train.len() == 4 * 22);
    assert!(test.iter().all(|d| d.style == TEST_STYLE) && test.len() == 26);
    let variants: Vec<Vec<Vec<u8>>> = train.iter().enumerate().map(|(i, d)| d.variants(1, i, 2, &concepts)).collect();
    let shapes = [Shape { png: variants[0][0].clone(), questions: vec![("what shape?".into(), "circle".into())] }];
    let scenes = scenes::many(&train, &concepts, &named, 30, 1, "scenes");
    let pool = Pool::new(&train, &concepts, &named, &variants, &shapes, &scenes);
    let mut random = Random::new(1, "sequences");
    let one = |sequence: Sequence| (sequence.task, sequence.json(), sequence.pictures.len(), sequence.text());
    (0..count).map(|_| one(pool.sequence(&mut random))).collect()
}

#[test]
fn sequences_and_pages_are_what_training_reads() {
    let sequences = sequences(200);
    let tasks: std::collections::BTreeSet<&str> = sequences.iter().map(|s| s.0).collect();
    assert_eq!(tasks.len(), 7, "{tasks:?}");
    let folder = tempfile::tempdir().expect("a folder");
    let texts: Vec<String> = sequences.iter().map(|s| s.3.clone()).collect();
    words::tokenizer(&texts, folder.path()).expect("a tokenizer");
    let mut tokenizer = Tokenizer::open(folder.path()).expect("a tokenizer");
    let tokens = tokenizer.add_flamingo_tokens().expect("tokens");
    assert_eq!(tokens.eos, Some(0));
    let rules = DocumentRules { min_bytes: 0, max_num_images: 17, max_tokens: 2000, ..DocumentRules::default() };
    for (_, json, pictures, _) in &sequences {
        let document = rules.apply(json.as_bytes(), &tokenizer, &tokens, 0.0).expect("a document");
        assert_eq!(document.pictures.len(), *pictures);
        assert_eq!(document.pictures[0].width(), PICTURE as u32);
        let text = tokenizer.decode(&document.ids, false);
        assert_eq!(text.matches("<image>").count(), *pictures, "{text}");
        assert!(text.starts_with("<image>") && text.ends_with("<|endofchunk|><|endoftext|>"), "{text}");
        assert!(!text.contains("<image> ") && !text.contains(" <|endofchunk|>"), "{text}");
    }
    let picture = concepts();
    let picture = drawings(&["noto"], &picture)[0].plain();
    let page = Page { sentences: vec!["One.".into(), "Two.".into()], pictures: vec![(picture, 1)] };
    let document = rules.apply(&page.json(), &tokenizer, &tokens, 0.9).expect("a document");
    assert_eq!(tokenizer.decode(&document.ids, false), "One.<image>Two.<|endofchunk|><|endoftext|>");
}

#[test]
fn equal_seeds_make_equal_material_and_held_out_things_are_not_in_it() {
    let (one, other) = (sequences(120), sequences(120));
    assert!(one == other);
    for concept in concepts().iter().filter(|concept| concept.held_out) {
        assert!(one.iter().all(|(_, _, _, text)| !text.contains(&concept.name)), "{}", concept.name);
    }
}

#[test]
fn old_shards_of_the_same_name_go() {
    let folder = tempfile::tempdir().expect("a folder");
    let make = |name: &str, samples: usize| {
        let mut shards = Shards::new(folder.path(), name, 1).expect("a folder");
        let member = Member { extension: "txt", content: b"a" };
        (0..samples).for_each(|_| shards.add(&[Member { ..member }]).expect("a shard"));
        shards.finish().expect("shards");
    };
    make("pairs", 3);
    make("pairs-of-mine", 1);
    make("pairs", 1);
    let files = std::fs::read_dir(folder.path()).expect("a folder").flatten().map(|file| file.file_name());
    let mut files: Vec<String> = files.map(|name| name.to_string_lossy().into_owned()).collect();
    files.sort();
    assert_eq!(files, ["pairs-0000.tar", "pairs-of-mine-0000.tar"]);
}

#[test]
fn recoloured_variants_are_not_said_to_have_the_old_colour() {
    let mut concepts = concepts();
    let drawing = &drawings(&["noto"], &concepts)[0];
    assert_eq!(drawing.colour, Some("red"));
    let recoloured = |concepts: &[Concept]| (0..22).filter(|&v| drawing.is_recoloured(v, concepts)).collect::<Vec<_>>();
    assert_eq!(recoloured(&concepts), [12, 13, 14, 15, 20, 21]);
    let pixel = |png: Vec<u8>| image::load_from_memory(&png).expect("a picture").to_rgb8().get_pixel(32, 32).0;
    // Some are so far from the middle that the background is there.
    let red = |png: Vec<u8>| matches!(pixel(png), [r, g, b] if r > g.max(b));
    let red: Vec<bool> = drawing.variants(1, 0, 22, &concepts).into_iter().map(red).collect();
    let share = |recoloured: bool| {
        let of: Vec<usize> = (0..22).filter(|&v| drawing.is_recoloured(v, &concepts) == recoloured).collect();
        of.iter().filter(|&&v| red[v]).count() as f32 / of.len() as f32
    };
    assert!(share(false) > 0.8 && share(true) == 0.0, "{red:?}");
    concepts[0].name = "red thing".into();
    assert!(recoloured(&concepts).is_empty());
}

#[test]
fn questions_of_the_test_are_spelled_as_in_training() {
    let concepts = concepts();
    let test = drawings(&[TEST_STYLE], &concepts);
    let named: Vec<usize> = (0..22).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let shape = |answer: &str| Shape {
        png: test[0].plain(),
        questions: vec![("what shape is it?".into(), answer.into()), ("is it red?".into(), "yes".into())],
    };
    let shapes = Shapes { train: vec![shape("circle")], test: vec![shape("circle"), shape("triangle")] };
    let counts = evaluation::write(folder.path(), &test, &concepts, &named, &shapes, 1).expect("questions");
    assert_eq!(counts["easy_vqa question 0"], 4);
    assert_eq!(counts["name name 0"], 22);
    let questions = std::fs::read_to_string(folder.path().join("questions.jsonl")).expect("questions");
    for line in questions.lines() {
        let question: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let prompt = question["prompt"].as_str().expect("a prompt");
        let images = question["images"].as_array().expect("pictures");
        assert_eq!(prompt.matches("<image>").count(), images.len());
        assert_eq!(images.len(), question["shots"].as_u64().expect("a number") as usize + 1);
        assert!(["Short answer:", "Output:", "A picture of"].iter().any(|end| prompt.ends_with(end)), "{prompt}");
        for image in images {
            assert!(folder.path().join(image.as_str().expect("a path")).is_file());
        }
    }
    // The same for `flamingo eval`: a picture and its answer a line.
    let lines = |file: &str| {
        let path = folder.path().join("tasks").join(file);
        let text = std::fs::read_to_string(&path).expect("a task");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        for line in &lines {
            assert!(path.with_file_name(line["image"].as_str().expect("a path")).is_file());
        }
        lines
    };
    assert!(lines("name.jsonl").iter().all(|line| line["answer"] != "" && line["answer"].as_str() < Some("!")));
    assert_eq!(lines("category.jsonl").len(), test.len());
    assert_eq!((lines("easy_vqa_train.jsonl").len(), lines("easy_vqa_test.jsonl").len()), (2, 4));
    assert_eq!(lines("easy_vqa_test.jsonl")[2]["answer"], "triangle");

    // More shots are the same ones and more before them.
    let shown = |shots: u64| {
        let line = questions.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
        let mut line = line.filter(|q| q["task"] == "colour" && q["form"] == "shown" && q["shots"] == shots);
        line.next().expect("a question")["prompt"].as_str().expect("a prompt").to_string()
    };
    assert!(shown(4).ends_with(&shown(1)) && shown(16).ends_with(&shown(8)));
}

#[test]
fn albums_tell_pictures_that_do_not_belong_by_their_similarity() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut shards = Shards::new(folder.path(), "tasks", 1000).expect("a folder");
    for (_, json, ..) in sequences(400) {
        shards.add(&[Member { extension: "json", content: json.as_bytes() }]).expect("a sequence");
    }
    shards.finish().expect("shards");
    let shard = folder.path().join("tasks-0000.tar").display().to_string();
    let albums = Albums::read(&[shard]).expect("albums");
    // What a picture shows, as a tower would know it: the mean colour.
    let features: Vec<Vec<f32>> = albums
        .pictures()
        .iter()
        .map(|png| {
            let picture = image::load_from_memory(png).expect("a picture").to_rgb8();
            let sum = |c: usize| picture.pixels().map(|pixel| f32::from(pixel.0[c])).sum::<f32>();
            vec![sum(0), sum(1), sum(2)]
        })
        .collect();
    let write = |misplaced: f32| {
        let placed = albums.write(folder.path(), &features, misplaced, 1).expect("albums");
        let tar = std::fs::File::open(folder.path().join("albums-0000.tar")).expect("a shard");
        let mut documents = Vec::new();
        flamingo_data::read_samples(tar, &mut |sample| {
            documents.push(serde_json::from_slice::<serde_json::Value>(&sample.parts["json"]).expect("JSON"));
            std::ops::ControlFlow::Continue(())
        });
        (placed, documents)
    };
    let (as_they_were, documents) = write(0.0);
    assert!(documents.len() > 50 && as_they_were.iter().all(|picture| !picture.misplaced));
    let (exchanged, others) = write(0.5);
    assert_eq!(exchanged.len(), as_they_were.len());
    let (apart, together): (Vec<Placed>, Vec<Placed>) = exchanged.iter().partition(|picture| picture.misplaced);
    let share = apart.len() as f64 / exchanged.len() as f64;
    assert!((0.4..0.6).contains(&share), "{share}");
    let mean = |of: &[Placed]| of.iter().map(|picture| picture.similarity).sum::<f64>() / of.len() as f64;
    assert!(mean(&together) > mean(&apart) + 0.2, "{} {}", mean(&together), mean(&apart));
    // The matrices say the same.
    let own = |document: &serde_json::Value| {
        let rows = document["similarity_matrix"].as_array().expect("rows").clone();
        rows.iter().enumerate().map(|(i, row)| row[i].as_f64().expect("a number")).collect::<Vec<_>>()
    };
    for (placed, documents) in [(&as_they_were, &documents), (&exchanged, &others)] {
        let written: Vec<f64> = documents.iter().flat_map(own).collect();
        assert_eq!(written, placed.iter().map(|picture| picture.similarity).collect::<Vec<_>>());
    }
    assert_eq!(write(0.5), (exchanged, others));
    // Half a shard is no smaller shard.
    let whole = std::fs::read(folder.path().join("tasks-0000.tar")).expect("a shard");
    let half = folder.path().join("half.tar");
    std::fs::write(&half, &whole[..whole.len() / 2 + 100]).expect("a file");
    let error = Albums::read(&[half.display().to_string()]).err().expect("half a shard").to_string();
    assert!(error.contains("half.tar: it is damaged"), "{error}");
    assert!(Albums::read(&[]).is_err() && Albums::read(&["nothing.tar".into()]).is_err());
}
