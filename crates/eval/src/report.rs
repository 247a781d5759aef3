//! Evaluations as a page of HTML that needs nothing else: curves, tables, and what was answered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flamingo_data::Picture;
use flamingo_plot::{Content, Curve, Panel, draw};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use crate::EvalError;
use crate::run::{Choice, Entry, Evaluation, Trial};
use crate::task::Task;
use crate::trial::Prediction;

/// Answers of each kind that a gallery shows.
const SHOWN: usize = 4;
/// Demonstrations that are shown of a prompt.
const DEMONSTRATIONS: usize = 4;
/// Pixels of a picture's side.
const SIDE: u32 = 96;

const STYLE: &str = "
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; } th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; }
th { text-align: left; } td.number { text-align: right; font-variant-numeric: tabular-nums; }
small { color: #555; } svg { max-width: 100%; height: auto; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)); gap: 1rem; }
.answer { border: 1px solid #ddd; border-left: 5px solid #ddd; border-radius: 4px; padding: .7rem; }
.answer.right { border-left-color: #009e73; } .answer.wrong { border-left-color: #d55e00; } pre { white-space: pre-wrap; font-size: 12px; }
";

/// A page about evaluations, to be compared with each other.
///
/// # Errors
/// [`EvalError::Settings`] without evaluations, or for tasks of one name that ask differently; [`EvalError::File`] or
/// [`EvalError::Content`] if answers cannot be read. Pictures that cannot be read any more are left out.
pub fn report(evaluations: &[Evaluation]) -> Result<String, EvalError> {
    if evaluations.is_empty() {
        return Err(EvalError::Settings("there is no evaluation to report".into()));
    }
    let mut tasks: BTreeMap<&str, &Task> = BTreeMap::new();
    for evaluation in evaluations {
        for (name, task) in &evaluation.header.tasks {
            if !evaluation.results.contains_key(name) {
                continue;
            }
            if tasks.insert(name, task).is_some_and(|other| other != task) {
                return Err(EvalError::Settings(format!(
                    "the evaluations mean different tasks by `{name}`: make a page for each"
                )));
            }
        }
    }
    let mut names: Vec<&str> = evaluations.iter().map(|evaluation| evaluation.header.model.as_str()).collect();
    names.dedup();
    let names = names.join(", ");
    let mut pictures = Pictures::default();
    let sections: Vec<Markup> =
        tasks.values().map(|task| section(task, evaluations, &mut pictures)).collect::<Result<_, _>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Evaluation of " (names) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "Evaluation of " (names) }
                p {
                    "Scores against the number of demonstrations in the prompt. "
                    @if evaluations.iter().any(|evaluation| !evaluation.header.settings.bare_zero_shot) {
                        "\"0\" means two demonstrations without their pictures. "
                    }
                    "Bars and brackets: 95 % intervals by the bootstrap over questions."
                }
                @for section in &sections { (section) }
                (pictures.definitions())
            }
        }
    };
    Ok(page.into_string())
}

/// One line of a task's table: a model with one way to choose demonstrations.
struct Series<'a> {
    name: String,
    choice: Choice,
    evaluation: &'a Evaluation,
    entries: Vec<&'a Entry>,
}

fn series<'a>(task: &str, evaluations: &'a [Evaluation]) -> Vec<Series<'a>> {
    let mut all = Vec::new();
    for evaluation in evaluations {
        let model = &evaluation.header.model;
        // Runs of one model are told apart by their folders.
        let name = match evaluations.iter().filter(|other| &other.header.model == model).count() {
            1 => model.clone(),
            _ => format!("{model} ({})", evaluation.folder.display()),
        };
        for choice in [Choice::Random, Choice::Fixed, Choice::Rices] {
            let of_task = evaluation.results.get(task).into_iter().flatten();
            let mut entries: Vec<&Entry> = of_task.filter(|entry| entry.demonstrations == choice).collect();
            entries.sort_by_key(|entry| entry.shots);
            if !entries.is_empty() {
                let how = match choice {
                    Choice::Random => "random",
                    Choice::Fixed => "the same for all",
                    Choice::Rices => "similar",
                };
                all.push(Series { name: format!("{name}, {how}"), choice, evaluation, entries });
            }
        }
    }
    all
}

fn section(task: &Task, evaluations: &[Evaluation], pictures: &mut Pictures) -> Result<Markup, EvalError> {
    let series = series(&task.name, evaluations);
    let mut shots: Vec<usize> = series.iter().flat_map(|series| &series.entries).map(|entry| entry.shots).collect();
    shots.sort_unstable();
    shots.dedup();
    let galleries: Vec<Markup> =
        series.iter().map(|series| gallery(task, series, pictures)).collect::<Result<_, _>>()?;
    Ok(html! {
        h2 { (task.title) }
        p { "Prompt: " code { (task.prompt) } ". Metric: " (task.metric.title()) "." }
        @if let Some(svg) = curves(task, &series) { (PreEscaped(svg)) }
        table {
            tr {
                th { "model, demonstrations" }
                @for shots in &shots { th { (shots) " shots" } }
                th { "questions" }
            }
            @for series in &series {
                tr {
                    td { (series.name) }
                    @for &shots in &shots { (cell(series.entries.iter().find(|entry| entry.shots == shots))) }
                    td.number { (series.entries.iter().map(|entry| entry.samples).max().unwrap_or(0)) }
                }
            }
        }
        @for series in &series { (kinds(series, &shots)) }
        @for gallery in &galleries { (gallery) }
    })
}

/// Scores by kinds of answers and of questions, for data that tell them.
fn kinds(series: &Series, shots: &[usize]) -> Markup {
    type Kinds = fn(&Entry) -> &BTreeMap<String, f64>;
    let groups: [(&str, Kinds); 2] =
        [("kind of answer", |entry| &entry.by_answer_type), ("kind of question", |entry| &entry.by_question_type)];
    if series.entries.iter().all(|entry| groups.iter().all(|(_, of)| of(entry).is_empty())) {
        return html! {};
    }
    html! {
        details {
            summary { "Scores of " (series.name) " by kinds of answers and questions" }
            @for (title, of) in groups {
                table {
                    tr { th { (title) } @for shots in shots { th { (shots) " shots" } } }
                    @for kind in series.entries.iter().flat_map(|entry| of(entry).keys()).collect::<BTreeSet<_>>() {
                        tr {
                            td { (kind) }
                            @for &shots in shots {
                                td.number {
                                    @let entry = series.entries.iter().find(|entry| entry.shots == shots);
                                    @if let Some(&score) = entry.and_then(|entry| of(entry).get(kind)) { (number(score)) }
                                    @else { "–" }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn cell(entry: Option<&&Entry>) -> Markup {
    html! {
        td.number {
            @if let Some(entry) = entry {
                @if let Some(mean) = entry.mean { (number(mean)) } @else { "–" }
                @if let Some([low, high]) = entry.interval { " " small { "[" (number(low)) ", " (number(high)) "]" } }
                @if entry.trials.len() > 1 {
                    @if let Some(stddev) = entry.stddev { " " small { "± " (number(stddev)) } }
                }
            }
        }
    }
}

/// Shares with three digits, percentages and CIDEr with one.
fn number(x: f64) -> String {
    if x.abs() <= 1.0 { format!("{x:.3}") } else { format!("{x:.1}") }
}

/// Scores over shots; `None` where no score is known.
fn curves(task: &Task, series: &[Series]) -> Option<String> {
    let curve = |(colour, series): (usize, &Series)| {
        let points = series.entries.iter().filter_map(|entry| Some((entry.shots as f64, entry.mean?))).collect();
        let intervals = series.entries.iter().filter_map(|entry| Some((entry.shots as f64, entry.interval?))).collect();
        Curve { name: Some(series.name.clone()), colour, faint: false, points, intervals }
    };
    let curves: Vec<Curve> = series.iter().enumerate().map(curve).filter(|curve| !curve.points.is_empty()).collect();
    let panel = Panel {
        title: task.title.clone(),
        x: "demonstrations".into(),
        y: task.metric.title().into(),
        content: Content::Curves { curves, log: false },
    };
    draw(&[panel]).ok()
}

/// Some right and some wrong answers, of the trial with the most demonstrations.
fn gallery(task: &Task, series: &Series, pictures: &mut Pictures) -> Result<Markup, EvalError> {
    let Some(trial) = series.evaluation.trial_with_most_shots(task, series.choice)? else {
        return Ok(html! {});
    };
    let (right, wrong) = split(&trial);
    Ok(html! {
        details {
            summary { "What " (series.name) " answered with " (trial.setup.shots) " shots" }
            @if !right.is_empty() || !wrong.is_empty() {
                div.gallery {
                    @for (prediction, score) in spread(&right).into_iter().chain(spread(&wrong)) {
                        (answer(prediction, score, right.iter().any(|(p, _)| std::ptr::eq(*p, prediction)), pictures))
                    }
                }
            }
        }
    })
}

type Scored<'a> = (&'a Prediction, Option<f64>);

/// Answers that are rather right and rather wrong: above and below the middle between the worst and the best.
fn split(trial: &Trial) -> (Vec<Scored<'_>>, Vec<Scored<'_>>) {
    let each = trial.score.as_ref().and_then(|score| score.each.clone());
    let scores: Vec<Option<f64>> = match each {
        Some(each) => each.into_iter().map(Some).collect(),
        None => vec![None; trial.predictions.len()],
    };
    let known = || scores.iter().flatten().copied();
    let middle = (known().fold(f64::INFINITY, f64::min) + known().fold(f64::NEG_INFINITY, f64::max)) / 2.0;
    let is_right = |(prediction, score): &Scored| match score {
        Some(score) => *score > middle || (*score == middle && *score > 0.0),
        None => prediction.references.iter().any(|reference| reference.as_str() == Some(&prediction.answer)),
    };
    trial.predictions.iter().zip(scores).partition(is_right)
}

/// Some of all, evenly spread.
fn spread<'a>(all: &[Scored<'a>]) -> Vec<Scored<'a>> {
    let count = all.len().min(SHOWN);
    (0..count).map(|i| all[i * all.len() / count]).collect()
}

fn answer(prediction: &Prediction, score: Option<f64>, right: bool, pictures: &mut Pictures) -> Markup {
    let text = |reference: &Value| match reference {
        Value::String(text) => text.clone(),
        other => other.get("answer").and_then(Value::as_str).unwrap_or_default().to_string(),
    };
    let mut references: Vec<String> = prediction.references.iter().map(text).collect();
    references.dedup();
    let demonstrations = &prediction.demonstration_images;
    let shown = &demonstrations[demonstrations.len().saturating_sub(DEMONSTRATIONS)..];
    html! {
        div.answer.right[right].wrong[!right && !references.is_empty()] {
            (pictures.show(&prediction.image, SIDE, "the picture that is asked about"))
            p {
                "answer: " b { (prediction.answer) } br;
                "expected: " (references.join(" · "))
                @if let Some(score) = score { br; small { "score " (number(score)) ", sample " (prediction.id) } }
            }
            details {
                summary { "prompt" }
                pre { (prediction.prompt) }
                @for path in shown { (pictures.show(path, SIDE / 2, "a demonstration's picture")) " " }
            }
        }
    }
}

/// Small copies of pictures, each once however often it is shown.
#[derive(Default)]
struct Pictures {
    /// Their numbers, and their files as part of the page, where they can be read.
    known: BTreeMap<String, (usize, Option<String>)>,
}

impl Pictures {
    fn show(&mut self, path: &str, side: u32, label: &str) -> Markup {
        let next = self.known.len();
        let (number, data) = self.known.entry(path.to_string()).or_insert_with(|| (next, thumbnail(path)));
        let (number, there) = (*number, data.is_some());
        html! {
            @if there {
                svg width=(side) height=(side) viewBox=(format!("0 0 {SIDE} {SIDE}")) role="img" aria-label=(label) {
                    use href=(format!("#picture-{number}")) {}
                }
            }
        }
    }

    fn definitions(&self) -> Markup {
        html! {
            svg width="0" height="0" aria-hidden="true" {
                defs {
                    @for (number, data) in self.known.values() {
                        @if let Some(data) = data {
                            image id=(format!("picture-{number}")) width=(SIDE) height=(SIDE) href=(data) {}
                        }
                    }
                }
            }
        }
    }
}

/// A small copy of a picture as a data URL.
fn thumbnail(path: &str) -> Option<String> {
    let jpeg = Picture::open(Path::new(path)).and_then(|picture| picture.thumbnail(SIDE)).ok()?;
    Some(format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg)))
}
