//! Sequences in which a few examples define a task.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::concepts::Concept;
use crate::drawing::{Drawing, OWN_COLOURS};
use crate::easy_vqa::Shape;
use crate::random::Random;
use crate::scenes::Scene;
use crate::words;

/// Most pictures of a sequence.
const MOST: usize = 17;

/// A property of drawings that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    Name,
    Colour,
    Category,
    Kind,
}

impl Property {
    pub(crate) fn task(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Colour => "colour",
            Self::Category => "category",
            Self::Kind => "kind",
        }
    }

    pub(crate) fn of(self, drawing: &Drawing, concepts: &[Concept], named: &[usize]) -> Option<String> {
        let concept = &concepts[drawing.concept];
        match self {
            Self::Name => named.binary_search(&drawing.concept).is_ok().then(|| concept.name.clone()),
            Self::Colour => drawing.colour.map(str::to_string),
            Self::Category => Some(concept.category.to_string()),
            Self::Kind => Some(concept.kind.clone()),
        }
    }

    /// Ways to ask; the first one is the test's.
    pub(crate) fn questions(self) -> &'static [&'static str] {
        match self {
            Self::Name => &["what is it?", "what is this?", "what does the picture show?"],
            Self::Colour => &["what colour is it?", "which colour does it have?", "what is its colour?"],
            Self::Category => &["what category is it?", "which category does it belong to?", "what group is it in?"],
            Self::Kind => &["what kind is it?", "which kind of thing is it?", "what kind of thing is this?"],
        }
    }
}

/// The text of a demonstration that asks, up to its answer.
pub(crate) fn asked(question: &str) -> String {
    format!("Question:{question} Short answer:")
}

/// The text of a demonstration that only shows, up to its answer.
pub(crate) const SHOWN: &str = "Output:";

/// The text of a picture to be named, up to its name.
pub(crate) const NAMING: &str = "A picture of";

/// Pictures, each with the text behind it.
pub(crate) struct Sequence<'a> {
    pub(crate) task: &'static str,
    pub(crate) pictures: Vec<(&'a [u8], String)>,
}

impl Sequence<'_> {
    /// In the form of upstream's generated sequences.
    pub(crate) fn json(&self) -> String {
        let mark = |i: usize| format!("_!_IMAGE{}_!_", i + 1);
        let example: String = self.pictures.iter().enumerate().map(|(i, (_, text))| mark(i) + text).collect();
        let map: BTreeMap<String, serde_json::Value> = self
            .pictures
            .iter()
            .enumerate()
            .map(|(i, (png, _))| (mark(i), serde_json::json!({"base64_image": STANDARD.encode(png)})))
            .collect();
        serde_json::json!({"is_gpt": true, "example": example, "image_map": map}).to_string()
    }

    pub(crate) fn text(&self) -> String {
        self.pictures.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" ")
    }
}

/// What sequences are drawn from.
pub(crate) struct Pool<'a> {
    /// Variants of each drawing, those in its own colours first.
    pictures: &'a [Vec<Vec<u8>>],
    concepts: Vec<usize>,
    /// For each property, drawings by answer.
    by_answer: BTreeMap<&'static str, Vec<(String, Vec<usize>)>>,
    shapes: &'a [Shape],
    /// Questions about shapes that begin alike and have the same answer, as far as that is yes or no: the shape's place
    /// and the question's.
    shape_questions: Vec<Vec<(usize, usize)>>,
    scenes: &'a [Scene],
}

impl<'a> Pool<'a> {
    pub(crate) fn new(
        drawings: &[Drawing],
        concepts: &[Concept],
        named: &[usize],
        pictures: &'a [Vec<Vec<u8>>],
        shapes: &'a [Shape],
        scenes: &'a [Scene],
    ) -> Self {
        let mut by_answer = BTreeMap::new();
        for property in [Property::Name, Property::Colour, Property::Category, Property::Kind] {
            let mut answers: BTreeMap<String, Vec<usize>> = BTreeMap::new();
            for (i, drawing) in drawings.iter().enumerate() {
                if let Some(answer) = property.of(drawing, concepts, named) {
                    answers.entry(answer).or_default().push(i);
                }
            }
            by_answer.insert(property.task(), answers.into_iter().collect());
        }
        let mut shape_questions: BTreeMap<_, Vec<(usize, usize)>> = BTreeMap::new();
        for (i, shape) in shapes.iter().enumerate() {
            for (j, (question, answer)) in shape.questions.iter().enumerate() {
                let beginning: Vec<&str> = question.split(' ').take(2).collect();
                let decides = answer == "yes" || answer == "no";
                shape_questions.entry((beginning, decides.then_some(answer))).or_default().push((i, j));
            }
        }
        let shape_questions = shape_questions.into_values().collect();
        let concepts = drawings.iter().map(|d| d.concept).collect();
        Self { pictures, concepts, by_answer, shapes, shape_questions, scenes }
    }

    pub(crate) fn sequence(&self, random: &mut Random) -> Sequence<'a> {
        let count = pictures(random);
        let share = random.unit();
        match share {
            s if s < 0.32 => self.properties(Property::Name, count, random),
            s if s < 0.42 => self.properties(Property::Colour, count, random),
            s if s < 0.53 => self.properties(Property::Category, count, random),
            s if s < 0.64 => self.properties(Property::Kind, count, random),
            s if s < 0.70 => self.yes_or_no(count, random),
            s if s < 0.96 => self.shapes(count, random),
            _ => self.scenes(count, random),
        }
    }

    /// A drawing and its answer; half of the time the answer is drawn first, so that rare ones are seen.
    fn item(&self, property: Property, random: &mut Random) -> (usize, &str) {
        let answers = &self.by_answer[property.task()];
        let (answer, drawings) = if random.chance(0.5) {
            random.of(answers)
        } else {
            let total: usize = answers.iter().map(|(_, drawings)| drawings.len()).sum();
            let mut at = random.below(total);
            let holds = |(_, drawings): &&(String, Vec<usize>)| {
                let here = at < drawings.len();
                at = at.wrapping_sub(if here { 0 } else { drawings.len() });
                here
            };
            answers.iter().find(holds).unwrap_or(&answers[0])
        };
        (*random.of(drawings), answer)
    }

    /// Any variant of a drawing, or one in its own colours, where the colour is told.
    fn picture(&self, drawing: usize, property: Property, random: &mut Random) -> &'a [u8] {
        let variants = &self.pictures[drawing];
        let count = if property == Property::Colour { OWN_COLOURS.min(variants.len()) } else { variants.len() };
        &variants[random.below(count)]
    }

    fn properties(&self, property: Property, count: usize, random: &mut Random) -> Sequence<'a> {
        let form = random.unit();
        let mixed = form < 0.1;
        let mut seen = Vec::new();
        let mut pictures = Vec::new();
        let question = *random.of(property.questions());
        while pictures.len() < count {
            let property = if mixed {
                *random.of(&[Property::Name, Property::Colour, Property::Category, Property::Kind])
            } else {
                property
            };
            let (drawing, answer) = self.item(property, random);
            if seen.contains(&self.concepts[drawing]) {
                continue;
            }
            seen.push(self.concepts[drawing]);
            let text = if mixed {
                format!("{}{answer}", asked(random.of::<&str>(property.questions())))
            } else if property == Property::Name && form < 0.65 {
                format!("{NAMING} {}", words::with_article(answer))
            } else if form < 0.5 {
                format!("{}{answer}", asked(question))
            } else {
                format!("{SHOWN}{answer}")
            };
            pictures.push((self.picture(drawing, property, random), text));
        }
        Sequence { task: property.task(), pictures }
    }

    /// Whether things are of a category, asked or only shown.
    fn yes_or_no(&self, count: usize, random: &mut Random) -> Sequence<'a> {
        let categories = &self.by_answer["category"];
        let (wanted, members) = random.of(categories);
        let asks = random.chance(0.5);
        let question = asked(&format!("is it {}?", words::with_article(wanted)));
        let pictures = (0..count).map(|_| {
            let yes = random.chance(0.5);
            let drawing = loop {
                let from = if yes { members } else { &random.of(categories).1 };
                let drawing = *random.of(from);
                if members.binary_search(&drawing).is_ok() == yes {
                    break drawing;
                }
            };
            let answer = if yes { "yes" } else { "no" };
            let text = format!("{}{answer}", if asks { question.as_str() } else { SHOWN });
            (self.picture(drawing, Property::Category, random), text)
        });
        let pictures = pictures.collect();
        Sequence { task: "yes_no", pictures }
    }

    /// "Is a ... present?" is mostly answered with no and "is no ... present?" with yes; here both answers to each way of
    /// asking are equally frequent, so that only the picture tells.
    fn shapes(&self, count: usize, random: &mut Random) -> Sequence<'a> {
        let pictures = (0..count).map(|_| {
            let alike = random.of(&self.shape_questions);
            let (shape, question) = *random.of(alike);
            let shape = &self.shapes[shape];
            let (question, answer) = &shape.questions[question];
            (shape.png.as_slice(), format!("{}{answer}", asked(question)))
        });
        Sequence { task: "easy_vqa", pictures: pictures.collect() }
    }

    fn scenes(&self, count: usize, random: &mut Random) -> Sequence<'a> {
        let fact = *random.of(&["count", "side", "presence"]);
        let mut pictures = Vec::new();
        while pictures.len() < count {
            let scene = random.of(self.scenes);
            let Some((question, answer)) = scene.facts.get(fact) else { continue };
            // A question that names things cannot be left out.
            let text = if fact == "count" && random.chance(0.3) {
                format!("{SHOWN}{answer}")
            } else {
                format!("{}{answer}", asked(question))
            };
            pictures.push((scene.png.as_slice(), text));
        }
        Sequence { task: "scene", pictures }
    }
}

/// How many pictures a sequence has: few are common, up to [`MOST`] happen.
fn pictures(random: &mut Random) -> usize {
    if random.chance(0.04) { 10 + random.below(MOST - 9) } else { 1 + random.below(8) }
}
