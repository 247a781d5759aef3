//! Few-shot evaluation as upstream does it (`open_flamingo/eval/evaluate.py`): the same prompts, demonstrations,
//! answers and metrics, on any model folder.
//!
//! A [`Task`] is data: where samples are, what is asked, how an answer is found and scored. A [`Benchmark`] is a task
//! with its samples. An [`Evaluator`] asks a model; [`evaluate`] goes through tasks, shots and trials, and keeps
//! everything in one folder.

mod dataset;
mod error;
mod gallery;
mod random;
mod report;
mod rices;
mod run;
mod score;
mod select;
mod submission;
mod task;
mod template;
mod trial;

pub use dataset::{Sample, read};
pub use error::EvalError;
pub use gallery::{Gallery, Seen, Shown};
pub use random::{Numpy, Python, torch_permutation};
pub use report::report;
pub use rices::{FeatureCache, Features};
pub use run::{Choice, Entry, Evaluation, Header, Plan, Progress, Results, Subject, Trial, evaluate, open};
pub use score::{Score, score};
pub use select::{Choose, Query, Selection, effective_shots};
pub use task::{
    Answer, Classes, Classify, Generate, KnownClasses, Metric, Postprocess, Source, Submission, SubmissionForm, Task,
};
pub use trial::{Benchmark, Evaluator, Prediction, Settings, Setup, Stage};
