//! easy-VQA: pictures of one coloured shape, and questions about them.

use std::collections::BTreeMap;

use crate::CorpusError;
use crate::packages::Packages;
use crate::random::Random;

const FILE: &str = "easy_vqa-1.0-py3-none-any.whl";

/// A picture with its questions and answers.
pub(crate) struct Shape {
    pub(crate) png: Vec<u8>,
    pub(crate) questions: Vec<(String, String)>,
}

/// Both of its parts.
pub(crate) struct Shapes {
    pub(crate) train: Vec<Shape>,
    pub(crate) test: Vec<Shape>,
}

pub(crate) fn read(packages: &Packages) -> Result<Shapes, CorpusError> {
    let part = |name: &str| -> Result<Vec<Shape>, CorpusError> {
        let questions = packages.wheel(FILE, &format!("easy_vqa/data/{name}/questions.json"))?;
        let questions = questions.values().next().map(Vec::as_slice).unwrap_or_default();
        let questions: Vec<(String, String, usize)> =
            serde_json::from_slice(questions).map_err(|e| CorpusError::content(FILE, e))?;
        let mut by_picture: BTreeMap<usize, Vec<(String, String)>> = BTreeMap::new();
        for (question, answer, picture) in questions {
            by_picture.entry(picture).or_default().push((question, answer));
        }
        let pictures = packages.wheel(FILE, ".png")?;
        let found = by_picture.into_iter().filter_map(|(number, questions)| {
            let png = pictures.get(&format!("easy_vqa/data/{name}/images/{number}.png"))?.clone();
            Some(Shape { png, questions })
        });
        Ok(found.collect())
    };
    Ok(Shapes { train: part("train")?, test: part("test")? })
}

/// Pictures with captions such as `a blue circle`, as far as the answers tell.
pub(crate) fn captions(shapes: &[Shape], count: usize, random: &mut Random) -> Vec<(Vec<u8>, String)> {
    let caption = |shape: &Shape| {
        let answer = |about: &str| {
            let asks =
                |(question, answer): &&(String, String)| question.contains(about) && answer != "yes" && answer != "no";
            shape.questions.iter().find(asks).map(|(_, answer)| answer.clone())
        };
        let kind = answer("what shape").or_else(|| {
            let named = |name: &&str| shape.questions.iter().any(|(q, _)| q.starts_with("what") && q.contains(*name));
            ["circle", "rectangle", "triangle"].into_iter().find(named).map(str::to_string)
        });
        match (answer("color"), kind) {
            (Some(colour), Some(kind)) => Some(format!("a {colour} {kind}")),
            (Some(colour), None) => Some(format!("a {colour} shape")),
            (None, Some(kind)) => Some(format!("a {kind}")),
            (None, None) => None,
        }
    };
    (0..count)
        .filter_map(|_| {
            let shape = random.of(shapes);
            Some((shape.png.clone(), caption(shape)?))
        })
        .collect()
}
