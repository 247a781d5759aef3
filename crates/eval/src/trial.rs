//! One trial: every question of a selection asked, answers written down as they come.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use flamingo_config::{ModelConfig, Position};
use flamingo_data::Interleaved;
use flamingo_generate::{EarlyStopping, GenerationConfig, Strategy};
use flamingo_zoo::{Latents, Model, Prefix, ZooError};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::EvalError;
use crate::dataset::{self, Sample};
use crate::gallery::{Gallery, Shown};
use crate::rices::FeatureCache;
use crate::run::Choice;
use crate::select::{Choose, Query, Selection};
use crate::task::{Answer, Generate, Postprocess, Task};

/// A task with its samples.
pub struct Benchmark {
    /// What is asked.
    pub task: Task,
    /// The samples that are asked about.
    pub test: Vec<Sample>,
    /// The samples that demonstrations come from, where they are others.
    pub demonstrations: Option<Vec<Sample>>,
    /// All questions of a test whose references are not published.
    pub(crate) all_questions: Vec<Map<String, Value>>,
    /// Tells its samples from others.
    pub(crate) digest: String,
}

impl Benchmark {
    /// Reads the samples of a task from the folder of its data.
    ///
    /// # Errors
    /// As [`dataset::read`].
    pub fn open(task: Task, root: &Path) -> Result<Self, EvalError> {
        let classes = match &task.answer {
            Answer::Classify(classify) => Some(classify.classes.names()),
            Answer::Generate(_) => None,
        };
        let read = |source| dataset::read(source, root, classes.as_deref());
        let test = read(&task.test)?;
        let mut demonstrations = task.demonstrations.as_ref().map(read).transpose()?;
        if let Some(classes) = &classes {
            let known: HashSet<&str> = classes.iter().map(String::as_str).collect();
            for sample in test.iter().chain(demonstrations.iter().flatten()) {
                if !known.contains(sample.answer.as_str()) {
                    let what = format!("sample {} is a `{}`, which is no class of the task", sample.id, sample.answer);
                    return Err(EvalError::content(&*sample.file, what));
                }
            }
        }
        let pool = demonstrations.as_ref().unwrap_or(&test);
        if let Some(unanswered) = pool.iter().find(|sample| sample.references.is_empty()) {
            let what = format!("sample {} has no answer, and demonstrations need one", unanswered.id);
            return Err(EvalError::content(&*unanswered.file, what));
        }
        let mut hash = Sha256::new();
        for sample in test.iter().chain(demonstrations.iter().flatten()) {
            let fields = (&sample.id, &sample.image, &sample.fields, &sample.answer, &sample.references);
            hash.update(serde_json::to_string(&fields).unwrap_or_default());
        }
        let digest = format!("{:x}", hash.finalize());
        // A demonstration says one answer; a large set of them has millions more.
        for sample in demonstrations.iter_mut().flatten() {
            sample.references = Vec::new();
        }
        let all_questions = match &task.submission {
            Some(submission) => dataset::list_of(&root.join(&submission.questions), "questions")?,
            None => Vec::new(),
        };
        Ok(Self { task, test, demonstrations, all_questions, digest })
    }

    fn pool(&self) -> &[Sample] {
        self.demonstrations.as_deref().unwrap_or(&self.test)
    }
}

/// What all trials have in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Questions of a trial, at most.
    pub num_samples: Option<usize>,
    /// Samples that random demonstrations are drawn from, at most.
    pub query_set_size: usize,
    /// Whether 0 shots are a prompt without any demonstration, rather than upstream's two without pictures.
    pub bare_zero_shot: bool,
    /// Prompts that are read together.
    pub batch_size: usize,
    /// Whether classification and a model that writes `<image>` compute what upstream's do, defects included, and
    /// prompts are read in upstream's order.
    pub upstream_compat: bool,
}

/// Which trial of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Demonstrations.
    pub shots: usize,
    /// How they are chosen.
    pub choice: Choice,
    /// Decides every random choice.
    pub seed: u32,
}

/// What a trial is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Looking at pictures, to find those that are alike.
    Looking,
    /// Asking the model.
    Asking,
}

/// Sees how far a trial is: its stage, how much of it is done, and of how much.
pub type OnProgress<'a> = &'a mut dyn FnMut(Stage, usize, usize);

/// What the model answered to a question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The sample's id.
    pub id: Value,
    /// Its place in the file that it was read from.
    pub place: usize,
    /// Its picture.
    pub image: String,
    /// The prompt; of an ensemble the first.
    pub prompt: String,
    /// Ids of the demonstrations, in the order of the prompt.
    pub demonstrations: Vec<Value>,
    /// Their pictures, where the prompt shows them.
    pub demonstration_images: Vec<String>,
    /// The answer that counts.
    pub answer: String,
    /// What the model wrote, before anything was cut away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<String>,
    /// The likeliest classes, at most five, with the mean log-likelihood of their tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<(String, f64)>,
    /// What the answer is held against.
    pub references: Vec<Value>,
    /// The kind of the question, where the annotations tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question_type: Option<String>,
    /// The kind of its answers, where the annotations tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_type: Option<String>,
}

/// Classes that a prediction names.
const NAMED_CLASSES: usize = 5;

/// A question, ready to be asked.
struct Asked<'a> {
    sample: &'a Sample,
    place: usize,
    /// The demonstrations of the first order.
    demonstrations: Vec<&'a Sample>,
    /// A prompt for each order of the demonstrations.
    prompts: Vec<Interleaved<&'a Path>>,
    tokens: usize,
}

impl Asked<'_> {
    fn key(&self) -> String {
        self.sample.id.to_string()
    }

    fn pictures(&self) -> impl Iterator<Item = Shown<'_>> {
        self.prompts.iter().flat_map(|prompt| placed(&prompt.images))
    }
}

/// A model that is asked, and the pictures that it has seen.
pub struct Evaluator<'a> {
    /// The model.
    pub model: &'a Model,
    /// What all trials have in common.
    pub settings: Settings,
    /// The pictures.
    pub gallery: Gallery,
}

impl<'a> Evaluator<'a> {
    /// Asks the questions of a trial; `cache` is where similar pictures are found by. Answers go to `file`, a JSON
    /// object a line; what a trial that was broken off left beside it is not asked again, and a whole file is only
    /// read.
    ///
    /// # Errors
    /// [`EvalError`] for samples that do not fit the task or the model, pictures that cannot be read, or a device that
    /// fails.
    pub fn trial(
        &mut self,
        benchmark: &Benchmark,
        setup: Setup,
        cache: &mut FeatureCache,
        file: &Path,
        on_progress: OnProgress,
    ) -> Result<Vec<Prediction>, EvalError> {
        if file.is_file() {
            return read(file);
        }
        let task = &benchmark.task;
        let ensemble = matches!(&task.answer, Answer::Classify(c) if c.prompt_ensembling);
        let selection = Selection {
            test: benchmark.test.len(),
            demonstrations: benchmark.demonstrations.as_ref().map(Vec::len),
            num_samples: self.settings.num_samples,
            query_set_size: self.settings.query_set_size,
            shots: setup.shots,
            bare_zero_shot: self.settings.bare_zero_shot,
            seed: setup.seed,
            batch_size: self.settings.batch_size,
            ensemble,
        };
        let queries = match setup.choice {
            Choice::Random => selection.select(&Choose::Random)?,
            Choice::Fixed => selection.select(&Choose::Fixed)?,
            Choice::Rices => select_similar(&selection, benchmark, cache, on_progress)?,
        };
        let mut asked = self.ask(benchmark, &queries, setup.shots)?;
        check_pictures(&asked)?;
        let in_order: Vec<String> = asked.iter().map(Asked::key).collect();
        if !self.settings.upstream_compat {
            // Rows of like length waste little on padding; the longest first, so that memory fails early if it does.
            asked.sort_by_key(|asked| std::cmp::Reverse(asked.tokens));
        }
        // A prompt that begins with its mark is cut into tokens alike behind any demonstrations.
        let shared = setup.choice == Choice::Fixed && !ensemble && !self.settings.upstream_compat;
        let prefix = match queries.first().and_then(|query| query.orders.first()) {
            Some(order) if shared && !order.is_empty() && task.prompt.starts_with(flamingo_data::IMAGE) => {
                Some(self.prefix(benchmark, order, setup.shots)?)
            }
            _ => None,
        };
        // What shares a prefix is read together only where it is of one length: padding would stand in its middle.
        let groups: Vec<&[Asked]> = match prefix {
            Some(_) => asked.chunk_by(|a, b| a.tokens == b.tokens).collect(),
            None => vec![&asked],
        };
        let batch_size = self.settings.batch_size.max(1);
        let batches: Vec<&[Asked]> = groups.iter().flat_map(|group| group.chunks(batch_size)).collect();

        let partial = file.with_extension("jsonl.partial");
        let mut done: HashMap<String, Prediction> =
            resumed(&partial)?.into_iter().map(|prediction| (prediction.id.to_string(), prediction)).collect();
        let mut log =
            std::fs::OpenOptions::new().create(true).append(true).open(&partial).map_err(EvalError::file(&partial))?;
        let classes = self.class_ids(task)?;
        on_progress(Stage::Asking, 0, asked.len());
        let mut count = 0;
        for (i, batch) in batches.iter().enumerate() {
            count += batch.len();
            // A batch that is there in part is asked again as a whole: what stands beside a row decides how it rounds.
            if batch.iter().all(|asked| done.contains_key(&asked.key())) {
                continue;
            }
            let soon = batches[i + 1..].iter().flat_map(|batch| batch.iter()).flat_map(Asked::pictures);
            let mut lines = String::new();
            for prediction in self.answers(task, batch, soon, prefix.as_ref(), &classes)? {
                lines += &line(&prediction);
                done.insert(prediction.id.to_string(), prediction);
            }
            log.write_all(lines.as_bytes()).map_err(EvalError::file(&partial))?;
            on_progress(Stage::Asking, count, asked.len());
        }
        let predictions: Vec<Prediction> = in_order.iter().filter_map(|id| done.remove(id)).collect();
        let content: String = predictions.iter().map(line).collect();
        flamingo_data::write_whole(file, content.as_bytes()).map_err(EvalError::file(file))?;
        std::fs::remove_file(&partial).map_err(EvalError::file(&partial))?;
        Ok(predictions)
    }

    /// The prompts of questions, and how long they are.
    fn ask<'b>(&self, benchmark: &'b Benchmark, queries: &[Query], shots: usize) -> Result<Vec<Asked<'b>>, EvalError> {
        let task = &benchmark.task;
        let pool = benchmark.pool();
        let tokenizer = self.model.tokenizer();
        let longest = longest_prompt(self.model.config(), task);
        let places = self.model.config().resampler.max_num_media;
        // Upstream's classification shows pictures of demonstrations whose marks it has taken away: the one mark that
        // is left then stands for the first of them.
        let misled = shots == 0 && self.settings.upstream_compat && matches!(task.answer, Answer::Classify(_));
        let asked = |query: &Query| {
            let sample = &benchmark.test[query.sample];
            let mut prompts = Vec::with_capacity(query.orders.len());
            for order in &query.orders {
                let (text, mut images) = demonstrations(benchmark, order, shots)?;
                let first = order.first().filter(|_| misled);
                images.push(first.map_or(&sample.image, |&first| &pool[first].image));
                prompts.push(Interleaved { text: text + &task.query(sample)?, images });
            }
            let Some(Interleaved { text, images }) = prompts.first() else {
                return Err(EvalError::Settings("a question without a prompt".into()));
            };
            let wrong = |what: String| Err(EvalError::content(&*sample.file, format!("sample {}: {what}", sample.id)));
            let marks = text.matches(flamingo_data::IMAGE).count();
            if marks != images.len() {
                return wrong(format!("its prompt has {marks} marks <image> for {} pictures", images.len()));
            }
            if let Some(most) = places.filter(|&most| images.len() > most) {
                return wrong(format!(
                    "its prompt has {} pictures, and the model has places for {most}: ask with fewer --shots",
                    images.len()
                ));
            }
            let tokens = tokenizer.encode(text).map_err(ZooError::from)?.len();
            if tokens > longest {
                return wrong(format!(
                    "its prompt has {tokens} tokens, and with its answer the model has places for {longest} of them: \
                     ask with fewer --shots"
                ));
            }
            let first = query.orders.first().map(Vec::as_slice).unwrap_or_default();
            let demonstrations = first.iter().map(|&i| &pool[i]).collect();
            Ok(Asked { sample, place: query.sample, demonstrations, prompts, tokens })
        };
        queries.par_iter().map(asked).collect()
    }

    /// The demonstrations that all questions share, read.
    fn prefix(&mut self, benchmark: &Benchmark, order: &[usize], shots: usize) -> Result<Prefix<'a>, EvalError> {
        let (text, paths) = demonstrations(benchmark, order, shots)?;
        let seen = self.gallery.look(self.model, &placed(&paths).collect::<Vec<_>>(), std::iter::empty())?;
        let images = placed(&paths).map(|shown| seen.of(shown)).collect();
        Ok(self.model.prefix(&Interleaved { text, images })?)
    }

    /// The tokens of the classes' names.
    fn class_ids(&self, task: &Task) -> Result<Vec<Vec<u32>>, EvalError> {
        let Answer::Classify(classify) = &task.answer else { return Ok(Vec::new()) };
        let names = classify.classes.names();
        let ids = names.iter().map(|name| self.model.tokenizer().encode_plain(name));
        Ok(ids.collect::<Result<_, _>>().map_err(ZooError::from)?)
    }

    fn answers<'p>(
        &mut self,
        task: &Task,
        batch: &'p [Asked],
        soon: impl Iterator<Item = Shown<'p>>,
        prefix: Option<&Prefix>,
        classes: &[Vec<u32>],
    ) -> Result<Vec<Prediction>, EvalError> {
        let wanted: Vec<Shown> = batch.iter().flat_map(Asked::pictures).collect();
        let seen = self.gallery.look(self.model, &wanted, soon)?;
        let prompts = |order: usize| -> Vec<Interleaved<Latents>> {
            let prompt = |asked: &Asked| {
                let prompt = &asked.prompts[order];
                let images = placed(&prompt.images).map(|shown| seen.of(shown)).collect();
                Interleaved { text: prompt.text.clone(), images }
            };
            batch.iter().map(prompt).collect()
        };
        match &task.answer {
            Answer::Generate(generate) => {
                let settings = search(self.model, generate);
                let outputs = match prefix {
                    Some(prefix) => self.model.generate_after(prefix, &prompts(0), &settings)?,
                    None => {
                        let upstream_compat = self.settings.upstream_compat;
                        let go_on = &mut |_, _: &str| ControlFlow::Continue(());
                        self.model.generate_seen(&prompts(0), &settings, upstream_compat, go_on)?
                    }
                };
                let texts = outputs.into_iter().map(|mut outputs| outputs.swap_remove(0).text);
                let answered = batch.iter().zip(texts).map(|(asked, text)| Prediction {
                    generated: Some(text.clone()),
                    ..prediction(asked, generate.postprocess.apply(&text))
                });
                Ok(answered.collect())
            }
            Answer::Classify(classify) => {
                let names = classify.classes.names();
                let orders = batch.first().map_or(0, |asked| asked.prompts.len());
                let mut means = vec![vec![0.0; names.len()]; batch.len()];
                for order in 0..orders {
                    let scores = match prefix {
                        Some(prefix) => self.model.score_after(prefix, &prompts(order), classes)?,
                        None if self.settings.upstream_compat => {
                            self.model.score_seen_as_upstream(&prompts(order), classes)?
                        }
                        None => self.model.score_seen(&prompts(order), classes)?,
                    };
                    for (means, scores) in means.iter_mut().zip(scores) {
                        for (mean, score) in means.iter_mut().zip(scores) {
                            *mean += score.mean / orders as f64;
                        }
                    }
                }
                let answered = batch.iter().zip(means).map(|(asked, log_probs)| {
                    if let Some(wrong) = log_probs.iter().find(|x| !x.is_finite()) {
                        return Err(EvalError::Settings(format!(
                            "the model gives sample {} a log-likelihood of {wrong}: try --precision f32",
                            asked.sample.id
                        )));
                    }
                    let classes = likeliest(&names, &log_probs);
                    Ok(Prediction { classes: classes.clone(), ..prediction(asked, classes[0].0.clone()) })
                });
                answered.collect()
            }
        }
    }
}

/// A prediction that holds but the answer.
fn prediction(asked: &Asked, answer: String) -> Prediction {
    let path = |path: &Path| path.display().to_string();
    let kind = |key: &str| asked.sample.fields.get(key).and_then(Value::as_str).map(str::to_string);
    let shown = asked.prompts.first().is_some_and(|prompt| prompt.images.len() > 1);
    let images = asked.demonstrations.iter().filter(|_| shown).map(|sample| path(&sample.image));
    Prediction {
        id: asked.sample.id.clone(),
        place: asked.place,
        image: path(&asked.sample.image),
        prompt: asked.prompts.first().map_or_else(String::new, |prompt| prompt.text.clone()),
        demonstrations: asked.demonstrations.iter().map(|sample| sample.id.clone()).collect(),
        demonstration_images: images.collect(),
        answer,
        generated: None,
        classes: Vec::new(),
        references: asked.sample.references.clone(),
        question_type: kind("question_type"),
        answer_type: kind("answer_type"),
    }
}

/// The likeliest classes, the first of equals first.
fn likeliest(names: &[String], log_probs: &[f64]) -> Vec<(String, f64)> {
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.sort_by(|&a, &b| log_probs[b].total_cmp(&log_probs[a]).then(a.cmp(&b)));
    order.truncate(NAMED_CLASSES);
    order.into_iter().map(|i| (names[i].clone(), log_probs[i])).collect()
}

/// Tokens that a prompt may have: a learned table of positions must have room for the answer, too.
fn longest_prompt(config: &ModelConfig, task: &Task) -> usize {
    let answer = match &task.answer {
        Answer::Generate(generate) => generate.max_new_tokens,
        // Names of classes are short.
        Answer::Classify(_) => 32,
    };
    match config.decoder.architecture().position {
        Position::Learned { offset, rows } => rows.saturating_sub(offset + answer),
        _ => usize::MAX,
    }
}

/// Pictures of a prompt, with their places.
fn placed<'p>(images: &[&'p Path]) -> impl Iterator<Item = Shown<'p>> {
    images.iter().enumerate().map(|(place, &path)| (path, place))
}

/// The text of a prompt's demonstrations, and their pictures: none in a zero-shot prompt.
fn demonstrations<'b>(
    benchmark: &'b Benchmark,
    order: &[usize],
    shots: usize,
) -> Result<(String, Vec<&'b Path>), EvalError> {
    let shown: Vec<&Sample> = order.iter().map(|&i| &benchmark.pool()[i]).collect();
    let text = shown.iter().map(|sample| benchmark.task.demonstration(sample)).collect::<Result<String, _>>()?;
    if shots == 0 {
        return Ok((text.replace(flamingo_data::IMAGE, ""), Vec::new()));
    }
    Ok((text, shown.iter().map(|sample| sample.image.as_path()).collect()))
}

fn search(model: &Model, generate: &Generate) -> GenerationConfig {
    let mut settings = model.settings(generate.max_new_tokens);
    settings.min_new_tokens = generate.min_new_tokens;
    if generate.num_beams > 1 {
        settings.strategy = Strategy::Beam {
            num_beams: generate.num_beams,
            length_penalty: generate.length_penalty,
            early_stopping: EarlyStopping::False,
        };
    }
    settings
}

impl Postprocess {
    /// The answer that counts in what a model wrote.
    pub fn apply(self, generated: &str) -> String {
        match self {
            Self::Trim => generated.trim().to_string(),
            Self::Caption => flamingo_metrics::caption::postprocess(generated),
            Self::Vqa => flamingo_metrics::vqa::short_answer(generated).to_string(),
            Self::OkVqa => flamingo_metrics::vqa::short_answer_stemmed(generated),
        }
    }
}

fn select_similar(
    selection: &Selection,
    benchmark: &Benchmark,
    cache: &mut FeatureCache,
    on_progress: OnProgress,
) -> Result<Vec<Query>, EvalError> {
    let pool: Vec<&Sample> = benchmark.pool().iter().collect();
    let mut looking = |done, total| on_progress(Stage::Looking, done, total);
    let among = cache.features(&pool, &mut looking)?;
    let samples = selection.samples();
    let asked: Vec<&Sample> = samples.iter().map(|&i| &benchmark.test[i]).collect();
    let own = cache.features(&asked, &mut looking)?;
    let shots = selection.demonstrations_each();
    let itself = |sample: usize| selection.demonstrations.is_none().then_some(sample);
    let found: HashMap<usize, Vec<usize>> = samples
        .par_iter()
        .zip(&own.of)
        .map(|(&sample, &picture)| (sample, among.most_similar(&own.distinct[picture], shots, itself(sample))))
        .collect();
    selection.select(&Choose::Similar(&|sample, _| found[&sample].clone()))
}

/// Whether every picture is there, before hours are spent on the first of them.
fn check_pictures(asked: &[Asked]) -> Result<(), EvalError> {
    let mut there: HashSet<&Path> = HashSet::new();
    for sample in asked.iter().flat_map(|asked| asked.demonstrations.iter().chain([&asked.sample])) {
        if there.insert(&sample.image) && !sample.image.is_file() {
            return Err(sample.without_picture());
        }
    }
    Ok(())
}

fn line(prediction: &Prediction) -> String {
    // Texts, whole numbers, and numbers that are finite.
    serde_json::to_string(prediction).unwrap_or_default() + "\n"
}

/// Reads predictions.
pub(crate) fn read(file: &Path) -> Result<Vec<Prediction>, EvalError> {
    parse(file, &std::fs::read_to_string(file).map_err(EvalError::file(file))?)
}

fn parse(file: &Path, text: &str) -> Result<Vec<Prediction>, EvalError> {
    let lines = text.lines().enumerate();
    lines
        .map(|(i, line)| {
            serde_json::from_str(line).map_err(|e| EvalError::content(file, format!("line {}: {e}", i + 1)))
        })
        .collect()
}

/// Reads what a trial that was broken off has left, and cuts away a last line that is not whole.
fn resumed(partial: &Path) -> Result<Vec<Prediction>, EvalError> {
    let error = || EvalError::file(partial);
    let bytes = match std::fs::read(partial) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes.map_err(error())?,
    };
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    if whole < bytes.len() {
        let file = std::fs::OpenOptions::new().write(true).open(partial).map_err(error())?;
        file.set_len(whole as u64).map_err(error())?;
    }
    parse(partial, &String::from_utf8_lossy(&bytes[..whole]))
}
