//! What is asked of a model: a task is data, not code.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::EvalError;
use crate::dataset::Sample;
use crate::template::fill;

/// A task, as a TOML file describes it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// Short name, the key of its results.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// What stands before an answer, `{field}` filled in from the sample, `<image>` where its picture is.
    pub prompt: String,
    /// What stands behind a demonstration's `<|endofchunk|>`.
    #[serde(default)]
    pub separator: String,
    /// How answers become a score.
    pub metric: Metric,
    /// How an answer is found.
    pub answer: Answer,
    /// What is asked.
    pub test: Source,
    /// Where demonstrations come from. Without it: the other samples of the test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demonstrations: Option<Source>,
    /// For a test whose references are not published: the file that its server takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<Submission>,
}

/// A file of answers for the server of a test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// Its form.
    pub form: SubmissionForm,
    /// All questions of the test, of which the task may ask a part: the file names every one.
    pub questions: PathBuf,
}

/// The form of a file of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubmissionForm {
    /// The VQA challenge's: `question_id` and `answer`.
    Vqa,
    /// VizWiz's: `image` and `answer`, in the order of the questions.
    Vizwiz,
}

/// How answers become a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// CIDEr of captions, times 100.
    Cider,
    /// VQA accuracy over several people's answers, in percent.
    VqaAccuracy,
    /// Area under the ROC curve, of two classes, 0 to 1.
    RocAuc,
    /// Share of answers that equal a reference, 0 to 1.
    Accuracy,
}

/// How an answer is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// The model writes it.
    Generate(Generate),
    /// The likeliest of given classes, by the mean log-likelihood of their tokens.
    Classify(Classify),
}

/// Settings of writing an answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// Most tokens.
    pub max_new_tokens: usize,
    /// Fewest tokens.
    #[serde(default)]
    pub min_new_tokens: usize,
    /// Beams; 1 is greedy search.
    #[serde(default = "one")]
    pub num_beams: usize,
    /// See `flamingo_generate::Strategy`.
    #[serde(default)]
    pub length_penalty: f64,
    /// What is cut away of what the model wrote.
    #[serde(default)]
    pub postprocess: Postprocess,
}

fn one() -> usize {
    1
}

/// What is cut away of what a model wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Postprocess {
    /// Space around it.
    #[default]
    Trim,
    /// From `Output` on, and quotation marks.
    Caption,
    /// From `Question`, `Answer` or `Short` on, then from `, ` on.
    Vqa,
    /// As [`Postprocess::Vqa`]; words are then stemmed as the references of OK-VQA are.
    OkVqa,
}

/// Settings of choosing among classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Classify {
    /// Their names.
    pub classes: Classes,
    /// Whether each question is asked with up to six orders of its demonstrations, log-likelihoods averaged.
    #[serde(default)]
    pub prompt_ensembling: bool,
}

/// Names of classes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Classes {
    /// These.
    Listed(Vec<String>),
    /// A known set.
    Known(KnownClasses),
}

/// Known sets of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnownClasses {
    /// The 1,000 of ImageNet, under the names that OpenAI gave them for CLIP.
    Imagenet,
}

const IMAGENET: &str = include_str!("../tasks/imagenet_classes.txt");

impl Classes {
    /// The names, in order.
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::Listed(names) => names.clone(),
            Self::Known(KnownClasses::Imagenet) => IMAGENET.lines().map(str::to_string).collect(),
        }
    }
}

/// Samples in one of the published formats. Paths are relative to the folder of the data; `image` is the path of a
/// picture with fields of its annotation filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// Karpathy's JSON of captions: `images` with `split`, `filepath`, `filename`, `cocoid`, `sentences`.
    Karpathy {
        /// The JSON.
        annotations: PathBuf,
        /// Which split of it.
        split: String,
        /// Path of a picture.
        image: String,
    },
    /// The VQA challenge's two JSON files.
    Vqa {
        /// `questions` with `question`, `question_id`, `image_id`.
        questions: PathBuf,
        /// `annotations` with `question_id` and `answers`; a test without them gets no score.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        annotations: Option<PathBuf>,
        /// Path of a picture.
        image: String,
    },
    /// Hateful Memes: a JSON object a line with `id`, `img`, `text`, `label`.
    HatefulMemes {
        /// The lines.
        annotations: PathBuf,
        /// Path of a picture.
        image: String,
    },
    /// ImageNet: a folder of pictures for each class, in the order of their names.
    ImageFolder {
        /// The folder of folders.
        folder: PathBuf,
    },
    /// One's own: a JSON object a line with `image`, `answer` or `references` (a list; the first is what a
    /// demonstration says), and any other fields that the prompt wants.
    Jsonl {
        /// The lines.
        file: PathBuf,
    },
}

/// The tasks that upstream evaluates, with its values.
const SHIPPED: [(&str, &str); 10] = [
    ("coco", include_str!("../tasks/coco.toml")),
    ("flickr30", include_str!("../tasks/flickr30.toml")),
    ("vqav2", include_str!("../tasks/vqav2.toml")),
    ("ok_vqa", include_str!("../tasks/ok_vqa.toml")),
    ("vqav2_testdev", include_str!("../tasks/vqav2_testdev.toml")),
    ("vizwiz_test", include_str!("../tasks/vizwiz_test.toml")),
    ("vizwiz", include_str!("../tasks/vizwiz.toml")),
    ("textvqa", include_str!("../tasks/textvqa.toml")),
    ("hateful_memes", include_str!("../tasks/hateful_memes.toml")),
    ("imagenet", include_str!("../tasks/imagenet.toml")),
];

impl Task {
    /// Names of the tasks that are part of the program.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// A shipped task by its name, or any from its file.
    ///
    /// # Errors
    /// [`EvalError::File`] or [`EvalError::Content`] for a file that is no task, [`EvalError::Settings`] for a name
    /// that is neither.
    pub fn open(name: &str) -> Result<Self, EvalError> {
        let (path, text) = match SHIPPED.iter().find(|(shipped, _)| *shipped == name) {
            Some((_, text)) => (PathBuf::from(name), text.to_string()),
            None if Path::new(name).extension().is_some_and(|extension| extension == "toml") => {
                (PathBuf::from(name), std::fs::read_to_string(name).map_err(EvalError::file(name))?)
            }
            None => {
                let known = Self::shipped().collect::<Vec<_>>().join(", ");
                return Err(EvalError::Settings(format!(
                    "there is no task `{name}`: give one of {known}, or the path of a task's TOML file"
                )));
            }
        };
        let task: Self = toml::from_str(&text).map_err(|e| EvalError::content(&path, e.to_string().trim_end()))?;
        task.check().map_err(|what| EvalError::content(&path, what))?;
        Ok(task)
    }

    fn check(&self) -> Result<(), String> {
        if !self.name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-') || self.name.is_empty() {
            return Err(format!("the name `{}` is not of letters, digits, `_` and `-`", self.name.escape_debug()));
        }
        let marks = self.prompt.matches(flamingo_data::IMAGE).count();
        if marks != 1 {
            return Err(format!("the prompt has {marks} marks <image> instead of one"));
        }
        let classes = match &self.answer {
            Answer::Classify(classify) => Some(classify.classes.names()),
            Answer::Generate(_) => None,
        };
        if let Answer::Generate(generate) = &self.answer
            && (generate.max_new_tokens == 0 || generate.num_beams == 0)
        {
            return Err("max_new_tokens and num_beams are at least 1".into());
        }
        match (self.metric, &classes) {
            (Metric::RocAuc, None) => Err("roc_auc wants classes: give [answer.classify]".into()),
            (Metric::RocAuc, Some(classes)) if classes.len() != 2 => {
                Err(format!("roc_auc is of two classes, not {}", classes.len()))
            }
            (Metric::Cider | Metric::VqaAccuracy, Some(_)) => {
                Err("cider and vqa_accuracy want written answers: give [answer.generate]".into())
            }
            (_, Some(classes)) if classes.is_empty() || classes.iter().any(|name| name.trim().is_empty()) => {
                Err("there are no classes, or one without a name".into())
            }
            _ => Ok(()),
        }
    }

    /// The prompt of a sample that is asked about.
    ///
    /// # Errors
    /// The field that the prompt wants and the sample lacks.
    pub fn query(&self, sample: &Sample) -> Result<String, EvalError> {
        fill(&self.prompt, |name| sample.fields.get(name)).map_err(|field| {
            EvalError::content(&*sample.file, format!("sample {} has no `{field}`, which the prompt wants", sample.id))
        })
    }

    /// A sample as a demonstration.
    ///
    /// # Errors
    /// As [`Task::query`].
    pub fn demonstration(&self, sample: &Sample) -> Result<String, EvalError> {
        Ok(format!("{}{}{}{}", self.query(sample)?, sample.answer, flamingo_data::ENDOFCHUNK, self.separator))
    }
}
