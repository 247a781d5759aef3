//! Samples, read from the published formats.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::EvalError;
use crate::task::Source;
use crate::template::fill;

/// One picture with a question or a caption.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The file that it was read from.
    pub file: Arc<Path>,
    /// What its annotations call it.
    pub id: Value,
    /// Its picture.
    pub image: PathBuf,
    /// What prompts may ask for.
    pub fields: Map<String, Value>,
    /// What it says as a demonstration.
    pub answer: String,
    /// What answers are held against: texts, or the VQA challenge's answers with their fields. Empty where the test's
    /// answers are not published.
    pub references: Vec<Value>,
}

impl Sample {
    pub(crate) fn without_picture(&self) -> EvalError {
        let what = format!("the picture of sample {} is not there: {}", self.id, self.image.display());
        EvalError::content(&*self.file, what)
    }
}

/// Reads samples. `root` is the folder of the data, `classes` names the classes of an image folder.
///
/// # Errors
/// [`EvalError::File`] or [`EvalError::Content`], with the sample at fault.
pub fn read(source: &Source, root: &Path, classes: Option<&[String]>) -> Result<Vec<Sample>, EvalError> {
    let samples = match source {
        Source::Karpathy { annotations, split, image } => karpathy(&root.join(annotations), split, root, image),
        Source::Vqa { questions, annotations, image } => {
            vqa(&root.join(questions), annotations.as_ref().map(|file| root.join(file)).as_deref(), root, image)
        }
        Source::HatefulMemes { annotations, image } => hateful_memes(&root.join(annotations), root, image),
        Source::ImageFolder { folder } => image_folder(&root.join(folder), classes),
        Source::Jsonl { file } => jsonl(&root.join(file)),
    }?;
    let file = samples.first().map(|sample| sample.file.clone());
    let Some(file) = file else {
        return Err(EvalError::content(root, "there is no sample in the task's files"));
    };
    let mut ids = HashSet::new();
    match samples.iter().find(|sample| !ids.insert(sample.id.to_string())) {
        Some(twice) => Err(EvalError::content(&*file, format!("there are two samples {}", twice.id))),
        None => Ok(samples),
    }
}

fn text_of(path: &Path) -> Result<String, EvalError> {
    std::fs::read_to_string(path).map_err(EvalError::file(path))
}

pub(crate) fn json_of<T: DeserializeOwned>(path: &Path) -> Result<T, EvalError> {
    serde_json::from_str(&text_of(path)?).map_err(|e| EvalError::content(path, e))
}

/// JSON objects, one a line; empty lines are passed over.
fn lines_of(path: &Path) -> Result<Vec<Map<String, Value>>, EvalError> {
    let text = text_of(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let object = |(i, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|e| EvalError::content(path, format!("line {}: {e}", i + 1)))
    };
    lines.map(object).collect()
}

/// The list under a key of an object.
pub(crate) fn list_of(path: &Path, key: &str) -> Result<Vec<Map<String, Value>>, EvalError> {
    let mut file: Map<String, Value> = json_of(path)?;
    let list = file.remove(key).ok_or_else(|| EvalError::content(path, format!("it has no list `{key}`")))?;
    serde_json::from_value(list).map_err(|e| EvalError::content(path, format!("`{key}`: {e}")))
}

/// A text under a key; `what` is the object's name in messages.
fn text_in<'a>(path: &Path, object: &'a Map<String, Value>, key: &str, what: &str) -> Result<&'a str, EvalError> {
    object
        .get(key)
        .and_then(Value::as_str)
        .ok_or_else(|| EvalError::content(path, format!("{what} has no text `{key}`")))
}

fn picture(
    path: &Path,
    root: &Path,
    template: &str,
    object: &Map<String, Value>,
    what: &str,
) -> Result<PathBuf, EvalError> {
    let image = fill(template, |name| object.get(name));
    let image = image.map_err(|key| EvalError::content(path, format!("{what} has no `{key}`")))?;
    Ok(root.join(image))
}

fn karpathy(path: &Path, split: &str, root: &Path, image: &str) -> Result<Vec<Sample>, EvalError> {
    let file: Arc<Path> = path.into();
    let mut samples = Vec::new();
    for (i, entry) in list_of(path, "images")?.into_iter().enumerate() {
        let what = format!("image {i}");
        if text_in(path, &entry, "split", &what)? != split {
            continue;
        }
        let name = text_in(path, &entry, "filename", &what)?;
        // Flickr30k has no numbers: its pictures go by their file names.
        let stem = name.split('.').next().unwrap_or(name);
        let id = entry.get("cocoid").cloned().unwrap_or_else(|| stem.into());
        let what = format!("image {id}");
        let sentences = entry.get("sentences").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let texts: Option<Vec<&str>> = sentences.iter().map(|s| s.get("raw").and_then(Value::as_str)).collect();
        let texts = texts.filter(|texts| !texts.is_empty());
        let texts = texts.ok_or_else(|| EvalError::content(path, format!("{what} has no `sentences` with `raw`")))?;
        samples.push(Sample {
            file: file.clone(),
            image: picture(path, root, image, &entry, &what)?,
            answer: texts[0].trim().to_string(),
            references: texts.iter().map(|&text| text.into()).collect(),
            fields: Map::new(),
            id,
        });
    }
    if samples.is_empty() {
        return Err(EvalError::content(path, format!("no image is of the split `{split}`")));
    }
    Ok(samples)
}

fn vqa(path: &Path, annotations: Option<&Path>, root: &Path, image: &str) -> Result<Vec<Sample>, EvalError> {
    let file: Arc<Path> = path.into();
    let mut answers = HashMap::new();
    if let Some(path) = annotations {
        for (i, annotation) in list_of(path, "annotations")?.into_iter().enumerate() {
            let id = annotation.get("question_id").map(Value::to_string);
            let id = id.ok_or_else(|| EvalError::content(path, format!("annotation {i} has no `question_id`")))?;
            if let Some(twice) = answers.insert(id, annotation).and_then(|old| old.get("question_id").cloned()) {
                return Err(EvalError::content(path, format!("there are two annotations of question {twice}")));
            }
        }
    }
    let mut samples = Vec::new();
    for (i, mut question) in list_of(path, "questions")?.into_iter().enumerate() {
        let id = question.get("question_id").cloned();
        let id = id.ok_or_else(|| EvalError::content(path, format!("question {i} has no `question_id`")))?;
        let what = format!("question {id}");
        text_in(path, &question, "question", &what)?;
        let image = picture(path, root, image, &question, &what)?;
        let (mut references, mut answer) = (Vec::new(), String::new());
        if let Some(path) = annotations {
            let annotation = answers.remove(&id.to_string());
            let mut annotation =
                annotation.ok_or_else(|| EvalError::content(path, format!("{what} has no annotation")))?;
            references = match annotation.remove("answers") {
                Some(Value::Array(answers)) if !answers.is_empty() => answers,
                _ => return Err(EvalError::content(path, format!("{what} has no list `answers`, or an empty one"))),
            };
            for reference in &references {
                if reference.get("answer").and_then(Value::as_str).is_none() {
                    return Err(EvalError::content(path, format!("{what} has an answer without a text `answer`")));
                }
            }
            answer = references[0]["answer"].as_str().unwrap_or_default().to_string();
            // The kinds of question and answer, by which the challenge's own results are listed.
            for key in ["question_type", "answer_type"] {
                question.extend(annotation.remove_entry(key));
            }
        }
        samples.push(Sample { file: file.clone(), image, answer, references, fields: question, id });
    }
    match (answers.keys().min(), annotations) {
        (Some(id), Some(path)) => {
            Err(EvalError::content(path, format!("there is an annotation of question {id}, which is not asked")))
        }
        _ => Ok(samples),
    }
}

fn hateful_memes(path: &Path, root: &Path, image: &str) -> Result<Vec<Sample>, EvalError> {
    let file: Arc<Path> = path.into();
    let mut samples = Vec::new();
    for (i, entry) in lines_of(path)?.into_iter().enumerate() {
        let id = entry.get("id").cloned();
        let id = id.ok_or_else(|| EvalError::content(path, format!("meme {i} has no `id`")))?;
        let what = format!("meme {id}");
        text_in(path, &entry, "text", &what)?;
        let answer = match entry.get("label").and_then(Value::as_u64) {
            Some(0) => "no",
            Some(1) => "yes",
            _ => return Err(EvalError::content(path, format!("{what} has no `label` of 0 or 1"))),
        };
        samples.push(Sample {
            file: file.clone(),
            image: picture(path, root, image, &entry, &what)?,
            answer: answer.into(),
            references: vec![answer.into()],
            fields: entry,
            id,
        });
    }
    Ok(samples)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>, EvalError> {
    let entries = std::fs::read_dir(folder).map_err(EvalError::file(folder))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(EvalError::file(folder))?;
    paths.sort();
    Ok(paths)
}

/// Pictures of a folder, then those of the folders in it, as Python's `os.walk` goes.
fn pictures_below(folder: &Path, images: &mut Vec<PathBuf>) -> Result<(), EvalError> {
    const EXTENSIONS: [&str; 9] = ["jpg", "jpeg", "png", "ppm", "bmp", "pgm", "tif", "tiff", "webp"];
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = sorted(folder)?.into_iter().partition(|path| path.is_dir());
    images.extend(files.into_iter().filter(|path| {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
    }));
    folders.iter().try_for_each(|folder| pictures_below(folder, images))
}

/// Pictures of an image folder, as `torchvision.datasets.ImageFolder` lists them.
fn image_folder(folder: &Path, classes: Option<&[String]>) -> Result<Vec<Sample>, EvalError> {
    let file: Arc<Path> = folder.into();
    let folders: Vec<PathBuf> = sorted(folder)?.into_iter().filter(|path| path.is_dir()).collect();
    let classes = classes.unwrap_or_default();
    if folders.len() != classes.len() {
        return Err(EvalError::content(
            folder,
            format!("it has {} folders for {} classes", folders.len(), classes.len()),
        ));
    }
    let mut samples = Vec::new();
    for (class, name) in folders.iter().zip(classes) {
        let mut images = Vec::new();
        pictures_below(class, &mut images)?;
        if images.is_empty() {
            return Err(EvalError::content(class, "there is no picture in it"));
        }
        for image in images {
            samples.push(Sample {
                file: file.clone(),
                id: samples.len().into(),
                image,
                fields: Map::new(),
                answer: name.clone(),
                references: vec![name.clone().into()],
            });
        }
    }
    Ok(samples)
}

fn jsonl(path: &Path) -> Result<Vec<Sample>, EvalError> {
    let file: Arc<Path> = path.into();
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut samples = Vec::new();
    for (i, mut entry) in lines_of(path)?.into_iter().enumerate() {
        let id = entry.get("id").cloned().unwrap_or_else(|| i.into());
        let what = format!("sample {id}");
        let image = folder.join(text_in(path, &entry, "image", &what)?);
        let references = match (entry.remove("references"), entry.remove("answer")) {
            (Some(Value::Array(references)), None) if !references.is_empty() => references,
            (None, Some(answer)) => vec![answer],
            _ => {
                let what = format!("{what} must have either an `answer` or a list `references` that is not empty");
                return Err(EvalError::content(path, what));
            }
        };
        let text = references.iter().all(Value::is_string).then(|| references[0].as_str()).flatten();
        let answer = text.ok_or_else(|| EvalError::content(path, format!("{what} has an answer that is no text")))?;
        samples.push(Sample {
            file: file.clone(),
            image,
            answer: answer.to_string(),
            references: references.clone(),
            fields: entry,
            id,
        });
    }
    Ok(samples)
}
