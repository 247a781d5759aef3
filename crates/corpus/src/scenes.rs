//! Pictures of two to four emoji, about which everything is known.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::concepts::Concept;
use crate::drawing::{Drawing, PICTURE, Place, background};
use crate::random::Random;
use crate::words;

/// A composed picture.
pub(crate) struct Scene {
    pub(crate) png: Vec<u8>,
    pub(crate) caption: String,
    /// Question and answer, by task.
    pub(crate) facts: BTreeMap<&'static str, (String, String)>,
}

const NUMBERS: [&str; 5] = ["no", "one", "two", "three", "four"];

/// Names that a scene does not show, for questions whose answer is no.
fn absent<'a>(concepts: &'a [Concept], named: &[usize], shown: &[usize], random: &mut Random) -> &'a str {
    loop {
        let concept = *random.of(named);
        if !shown.contains(&concept) {
            return &concepts[concept].name;
        }
    }
}

/// `count` scenes of named things.
pub(crate) fn many(
    drawings: &[Drawing],
    concepts: &[Concept],
    named: &[usize],
    count: usize,
    seed: u64,
    purpose: &str,
) -> Vec<Scene> {
    let usable: Vec<&Drawing> = drawings.iter().filter(|d| named.binary_search(&d.concept).is_ok()).collect();
    let one = |i: usize| {
        let mut random = Random::new(seed, &format!("{purpose} {i}"));
        if random.chance(0.5) {
            counted(&usable, concepts, named, &mut random)
        } else {
            side_by_side(&usable, concepts, named, &mut random)
        }
    };
    (0..count).into_par_iter().map(one).collect()
}

/// One to four of a kind, in the quarters of the picture.
fn counted(usable: &[&Drawing], concepts: &[Concept], named: &[usize], random: &mut Random) -> Scene {
    let drawing = *random.of(usable);
    let name = &concepts[drawing.concept].name;
    let count = 1 + random.below(4);
    let mut places = [(0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73)];
    random.shuffle(&mut places);
    let mut canvas = background(random);
    for (x, y) in places.into_iter().take(count) {
        let shift = |random: &mut Random| random.within(-2.0, 2.0);
        let (x, y) = (x * PICTURE as f32 + shift(random), y * PICTURE as f32 + shift(random));
        let place = Place::plain(x, y, random.within(24.0, 29.0));
        drawing.draw(&mut canvas, Place { angle: random.within(-10.0, 10.0), ..place });
    }
    let number = NUMBERS[count];
    let caption = if count == 1 { words::with_article(name) } else { format!("{number} {}", words::plural(name)) };
    let facts = [
        ("count", ("how many things are there?".to_string(), number.to_string())),
        presence(concepts, named, &[drawing.concept], random),
    ];
    Scene { png: canvas.png(), caption, facts: facts.into() }
}

/// Two different things, left and right.
fn side_by_side(usable: &[&Drawing], concepts: &[Concept], named: &[usize], random: &mut Random) -> Scene {
    let left = *random.of(usable);
    let right = loop {
        let other = *random.of(usable);
        if other.concept != left.concept {
            break other;
        }
    };
    let mut canvas = background(random);
    for (drawing, x) in [(left, 0.27), (right, 0.73)] {
        let (x, y) = (x * PICTURE as f32, PICTURE as f32 * random.within(0.4, 0.6));
        let place = Place::plain(x, y, random.within(26.0, 32.0));
        drawing.draw(&mut canvas, Place { angle: random.within(-8.0, 8.0), ..place });
    }
    let (l, r) = (&concepts[left.concept].name, &concepts[right.concept].name);
    let first_is_left = random.chance(0.5);
    let (first, second) = if first_is_left { (l, r) } else { (r, l) };
    let answer = if first_is_left { "left" } else { "right" };
    let facts = [
        ("side", (format!("is the {first} left or right of the {second}?"), answer.to_string())),
        ("count", ("how many things are there?".to_string(), "two".to_string())),
        presence(concepts, named, &[left.concept, right.concept], random),
    ];
    Scene {
        png: canvas.png(),
        caption: format!("{} left of {}", words::with_article(l), words::with_article(r)),
        facts: facts.into(),
    }
}

fn presence(
    concepts: &[Concept],
    named: &[usize],
    shown: &[usize],
    random: &mut Random,
) -> (&'static str, (String, String)) {
    let there = random.chance(0.5);
    let name = if there { &concepts[*random.of(shown)].name } else { absent(concepts, named, shown, random) };
    let answer = if there { "yes" } else { "no" };
    ("presence", (format!("is there {}?", words::with_article(name)), answer.to_string()))
}
