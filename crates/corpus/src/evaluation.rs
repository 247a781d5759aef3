//! Pictures and questions that training never sees.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use crate::CorpusError;
use crate::concepts::Concept;
use crate::drawing::Drawing;
use crate::easy_vqa::{Shape, Shapes};
use crate::random::Random;
use crate::sequences::{NAMING, Property, SHOWN, asked};
use crate::shards;
use crate::words;

/// Questions of a task that is only shown.
const SHOWN_ITEMS: usize = 300;

/// Pictures of shapes that demonstrations of `flamingo eval` come from.
const SHOWN_SHAPES: usize = 200;

/// Numbers of demonstrations.
const SHOTS: [usize; 6] = [0, 1, 2, 4, 8, 16];

/// A question of the test.
struct Item {
    task: &'static str,
    form: &'static str,
    shots: Vec<(usize, String)>,
    query: (usize, String),
    /// What stands between a picture and its answer.
    prompt: String,
}

fn write_items(folder: &Path, file: &str, lines: impl Iterator<Item = Value>) -> Result<usize, CorpusError> {
    let lines: Vec<String> = lines.map(|line| line.to_string() + "\n").collect();
    shards::write(&folder.join(file), lines.concat().as_bytes())?;
    Ok(lines.len())
}

fn write_pictures(folder: &Path, pictures: &[Vec<u8>], prefix: &str) -> Result<(), CorpusError> {
    for (i, png) in pictures.iter().enumerate() {
        shards::write(&folder.join(format!("pictures/{prefix}{i:04}.png")), png)?;
    }
    Ok(())
}

/// Writes `pictures/`, `questions.jsonl` and `easy_vqa.jsonl`; returns how many questions each task has.
pub(crate) fn write(
    folder: &Path,
    test: &[Drawing],
    concepts: &[Concept],
    named: &[usize],
    shapes: &Shapes,
    seed: u64,
) -> Result<BTreeMap<String, usize>, CorpusError> {
    let pictures: Vec<Vec<u8>> = test.iter().map(Drawing::plain).collect();
    write_pictures(folder, &pictures, "emoji-")?;
    write_tasks(folder, test, concepts, named)?;
    let mut items = Vec::new();
    for property in [Property::Colour, Property::Category, Property::Kind] {
        let prompt = asked(property.questions()[0]);
        for (i, drawing) in test.iter().enumerate() {
            if let Some(answer) = property.of(drawing, concepts, named) {
                items.push(Item {
                    task: property.task(),
                    form: "question",
                    shots: vec![],
                    query: (i, answer),
                    prompt: prompt.clone(),
                });
            }
        }
    }
    let mut random = Random::new(seed, "evaluation");
    let named_pictures: Vec<usize> =
        (0..test.len()).filter(|&i| named.binary_search(&test[i].concept).is_ok()).collect();
    for &shots in &[0, 4] {
        for &i in &named_pictures {
            let name = |i: usize| format!(" {}", words::with_article(&concepts[test[i].concept].name));
            let shots = demonstrations(&named_pictures, test, i, shots, &mut random);
            let shots = shots.into_iter().map(|i| (i, name(i))).collect();
            items.push(Item { task: "name", form: "name", shots, query: (i, name(i)), prompt: NAMING.into() });
        }
    }
    for property in [Property::Colour, Property::Category] {
        let answer = |i: usize| property.of(&test[i], concepts, named);
        let usable: Vec<usize> = (0..test.len()).filter(|&i| answer(i).is_some()).collect();
        let mut queries = usable.clone();
        random.shuffle(&mut queries);
        for &query in queries.iter().take(SHOWN_ITEMS) {
            // The same demonstrations for all numbers of shots, so that more is more of the same.
            let all = demonstrations(&usable, test, query, SHOTS[SHOTS.len() - 1], &mut random);
            for shots in SHOTS {
                let pair = |i: usize| (i, answer(i).unwrap_or_default());
                let shots = all[all.len() - shots..].iter().map(|&i| pair(i)).collect();
                items.push(Item {
                    task: property.task(),
                    form: "shown",
                    shots,
                    query: pair(query),
                    prompt: SHOWN.into(),
                });
            }
        }
    }
    let mut answers: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for item in &items {
        answers.entry((item.task, item.form)).or_default().insert(item.query.1.trim());
    }
    let mut counts = BTreeMap::new();
    let lines = items.iter().map(|item| {
        *counts.entry(format!("{} {} {}", item.task, item.form, item.shots.len())).or_default() += 1;
        let shots: String =
            item.shots.iter().map(|(_, answer)| format!("<image>{}{answer}<|endofchunk|>", item.prompt)).collect();
        let images: Vec<String> = item
            .shots
            .iter()
            .map(|(i, _)| *i)
            .chain([item.query.0])
            .map(|i| format!("pictures/emoji-{i:04}.png"))
            .collect();
        json!({
            "task": item.task,
            "form": item.form,
            "shots": item.shots.len(),
            "images": images,
            "prompt": format!("{shots}<image>{}", item.prompt),
            "answer": item.query.1.trim(),
            "answers": answers[&(item.task, item.form)].len(),
            "heldout": concepts[test[item.query.0].concept].held_out,
        })
    });
    let lines: Vec<Value> = lines.collect();
    write_items(folder, "questions.jsonl", lines.into_iter())?;

    let pngs = |shapes: &[Shape]| shapes.iter().map(|shape| shape.png.clone()).collect::<Vec<_>>();
    write_pictures(folder, &pngs(&shapes.test), "shape-")?;
    let asked_of = |shape: &Shape, i: usize| {
        let question = |(question, answer): &(String, String)| {
            json!({
                "task": "easy_vqa",
                "form": "question",
                "shots": 0,
                "images": [format!("pictures/shape-{i:04}.png")],
                "prompt": format!("<image>{}", asked(question)),
                "answer": answer,
                "answers": 13,
                "heldout": false,
            })
        };
        shape.questions.iter().map(question).collect::<Vec<_>>()
    };
    let lines = shapes.test.iter().enumerate().flat_map(|(i, shape)| asked_of(shape, i));
    counts.insert("easy_vqa question 0".into(), write_items(folder, "easy_vqa.jsonl", lines)?);

    // `flamingo eval` draws demonstrations from the part that training knows: questions of the test tell of each other.
    let shown = &shapes.train[..shapes.train.len().min(SHOWN_SHAPES)];
    write_pictures(folder, &pngs(shown), "shape-train-")?;
    for (file, shapes, prefix) in
        [("easy_vqa_train.jsonl", shown, "shape-train-"), ("easy_vqa_test.jsonl", &shapes.test, "shape-")]
    {
        let lines = shapes.iter().enumerate().flat_map(|(i, shape)| {
            shape.questions.iter().map(move |(question, answer)| {
                json!({"image": format!("../pictures/{prefix}{i:04}.png"), "question": question, "answer": answer})
            })
        });
        write_items(folder, &format!("tasks/{file}"), lines)?;
    }
    Ok(counts)
}

/// What `flamingo eval` asks about drawings: a picture and its answer a line.
fn write_tasks(folder: &Path, test: &[Drawing], concepts: &[Concept], named: &[usize]) -> Result<(), CorpusError> {
    for property in [Property::Name, Property::Colour, Property::Category, Property::Kind] {
        let lines = test.iter().enumerate().filter_map(|(i, drawing)| {
            let answer = property.of(drawing, concepts, named)?;
            let answer = match property {
                // Behind `A picture of`.
                Property::Name => format!(" {}", words::with_article(&answer)),
                _ => answer,
            };
            Some(json!({"id": i, "image": format!("../pictures/emoji-{i:04}.png"), "answer": answer}))
        });
        write_items(folder, &format!("tasks/{}.jsonl", property.task()), lines)?;
    }
    Ok(())
}

/// Other pictures, of other concepts than the query's and each other's.
fn demonstrations(from: &[usize], test: &[Drawing], query: usize, count: usize, random: &mut Random) -> Vec<usize> {
    let mut concepts = BTreeSet::from([test[query].concept]);
    let mut chosen = Vec::new();
    while chosen.len() < count {
        let i = *random.of(from);
        if concepts.insert(test[i].concept) {
            chosen.push(i);
        }
    }
    chosen
}
