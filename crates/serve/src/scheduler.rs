//! The thread that the model belongs to. It takes requests from the queue, reads their prompts, and continues all of them
//! together, a token each at a time. Where few tokens of a prompt follow its demonstrations, they are read beside the texts that
//! go on. A device that fails in a step fails all of them.
//!
//! What a request gets does not depend on the others: texts are decoded with the numbers of each alone
//! ([`flamingo_engine::Batch`]), each samples from a stream of its own, and a prompt is read in the same pieces whether its
//! beginning is remembered or not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flamingo_data::Interleaved;
use flamingo_engine::{Array, Batch, Next, Seat, SessionOptions};
use flamingo_generate::{GenerationConfig, SequenceScore, log_softmax};
use flamingo_zoo::{Finish, Latents, Model, View, Writing, ZooError};
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, oneshot};

use crate::bounded::Bounded;
use crate::error::Refusal;
use crate::metrics::Metrics;

/// How long prompts are begun before texts that are being written, and prompts of which a few tokens are left, go on.
const READING: Duration = Duration::from_millis(25);

/// How long the threads that compute are kept before somebody else of this process may have them.
const TURN: Duration = Duration::from_secs(1);

/// What names a picture or a beginning: the hash of its content.
pub(crate) type Key = [u8; 32];

/// Pictures that were seen, by their content and, where that matters, their place.
pub(crate) type Seen = Arc<Mutex<Bounded<(Key, usize), Latents>>>;

/// A picture of a prompt.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) key: Key,
    pub(crate) content: Content,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// It is remembered.
    Seen(Latents),
    /// It has to be looked at.
    New(View),
}

/// A prompt that was checked.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) images: Vec<Image>,
}

/// A request, on its way to the model.
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) arrived: Instant,
    pub(crate) deadline: Instant,
}

type Answer<T> = oneshot::Sender<Result<T, Refusal>>;

pub(crate) enum Work {
    Complete { completion: Completion, events: mpsc::UnboundedSender<Event> },
    Score { prompt: Prompt, candidates: Vec<Vec<u32>>, answer: Answer<(Vec<SequenceScore>, Stats)> },
    Embed { views: Vec<View>, answer: Answer<Vec<Vec<f32>>> },
    Attend { ids: Vec<u32>, views: Vec<View>, answer: Answer<Array> },
}

/// A prompt to be continued.
#[derive(Clone, Debug)]
pub(crate) struct Completion {
    pub(crate) prompt: Prompt,
    pub(crate) settings: GenerationConfig,
    /// Continuations, and the number of the first.
    pub(crate) n: usize,
    pub(crate) first: usize,
    pub(crate) stops: Vec<String>,
    /// How many of the likeliest tokens are told beside each, where log-probabilities are asked for.
    pub(crate) logprobs: Option<usize>,
    /// Whether pieces are sent as they become certain; else all in one, at the end.
    pub(crate) stream: bool,
}

/// What a continuation sends: as it grows where it is streamed, else at its end.
#[derive(Debug)]
pub(crate) enum Event {
    Piece {
        index: usize,
        text: String,
        tokens: Vec<TokenProbability>,
    },
    End {
        index: usize,
        finish: Finish,
    },
    /// All continuations have ended.
    Done(Box<Stats>),
    Failed(Refusal),
}

/// A token that was chosen, and the likeliest in its place.
#[derive(Clone, Debug)]
pub(crate) struct TokenProbability {
    pub(crate) id: u32,
    pub(crate) log_prob: f32,
    pub(crate) top: Vec<(u32, f32)>,
}

/// What a request took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stats {
    pub(crate) prompt: String,
    pub(crate) queue: Duration,
    pub(crate) images: Duration,
    pub(crate) prefill: Duration,
    pub(crate) decode: Duration,
    pub(crate) pictures: usize,
    pub(crate) cached_pictures: usize,
    pub(crate) prompt_tokens: usize,
    pub(crate) cached_tokens: usize,
    pub(crate) new_tokens: usize,
}

impl Stats {
    /// Adds what another prompt of the same request took.
    pub(crate) fn add(&mut self, other: &Self) {
        if self.prompt.is_empty() {
            self.prompt.clone_from(&other.prompt);
        }
        self.queue = self.queue.max(other.queue);
        self.images += other.images;
        self.prefill += other.prefill;
        self.decode = self.decode.max(other.decode);
        self.pictures += other.pictures;
        self.cached_pictures += other.cached_pictures;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.new_tokens += other.new_tokens;
    }
}

/// What the thread needs besides the model.
pub(crate) struct Scheduling {
    pub(crate) max_batch: usize,
    pub(crate) cache_bytes: usize,
    pub(crate) seen: Seen,
    pub(crate) metrics: Arc<Metrics>,
}

/// Works until the queue is closed and everything in it is done.
pub(crate) fn run(model: &Model, jobs: mpsc::Receiver<Job>, scheduling: Scheduling) {
    let prefixes = Bounded::new(scheduling.cache_bytes);
    let batch = model.engine().batch();
    Scheduler { model, batch, running: Vec::new(), prefixes, scheduling }.run(jobs);
}

struct Scheduler<'m> {
    model: &'m Model,
    batch: Box<dyn Batch + 'm>,
    running: Vec<Request<'m>>,
    /// Beginnings of prompts that were read.
    prefixes: Bounded<Key, Seat>,
    scheduling: Scheduling,
}

/// A request whose prompt is being read, or whose continuations are being written.
struct Request<'m> {
    events: mpsc::UnboundedSender<Event>,
    deadline: Instant,
    /// What it asks for, until its prompt is read.
    unread: Option<Unread>,
    lanes: Vec<Lane<'m>>,
    logprobs: Option<usize>,
    stream: bool,
    stats: Stats,
    /// When its prompt was read.
    read: Instant,
}

/// A prompt of which the last few tokens are left.
struct Unread {
    completion: Completion,
    seat: Seat,
    /// How many tokens are read.
    read: usize,
}

/// What came of beginning a prompt.
struct Begun {
    seat: Seat,
    /// How many tokens are read.
    read: usize,
    /// What follows, where all are.
    logits: Option<Vec<f32>>,
    stats: Stats,
}

impl Unread {
    fn next(&self) -> (Seat, Next<'_>) {
        (self.seat, Next::Prompt(&self.completion.prompt.ids[self.read..]))
    }
}

/// One continuation.
struct Lane<'m> {
    index: usize,
    seat: Seat,
    writing: Writing<'m>,
    /// What became certain and is not sent.
    text: String,
    tokens: Vec<TokenProbability>,
    /// Whether nothing follows: it ended, or its request failed.
    ended: bool,
    /// Why it cannot go on, until its request tells.
    failed: Option<Refusal>,
}

/// A text in a step.
enum Going<'a, 'm> {
    /// A prompt that is read, and what follows.
    Read(Vec<f32>),
    Written {
        lane: &'a mut Lane<'m>,
        events: &'a mpsc::UnboundedSender<Event>,
        logprobs: Option<usize>,
        stream: bool,
    },
}

impl Going<'_, '_> {
    /// What follows a prompt.
    fn logits(self) -> Option<Vec<f32>> {
        match self {
            Self::Read(logits) => Some(logits),
            Self::Written { .. } => None,
        }
    }
}

impl<'m> Scheduler<'m> {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let engine = self.model.engine();
        let mut waiting = None;
        loop {
            if self.running.is_empty() && waiting.is_none() {
                match jobs.blocking_recv() {
                    Some(job) => waiting = Some(job),
                    // The queue is closed, and nothing is left.
                    None => return,
                }
            }
            engine.uninterrupted(&mut || self.work(&mut waiting, &mut jobs));
        }
    }

    /// Does what is waiting and what comes, until nothing is being done or others have a turn.
    fn work(&mut self, waiting: &mut Option<Job>, jobs: &mut mpsc::Receiver<Job>) {
        let end = Instant::now() + TURN;
        while (waiting.is_some() || !self.running.is_empty()) && Instant::now() < end {
            let started = Instant::now();
            while started.elapsed() < READING {
                match waiting.take().or_else(|| jobs.try_recv().ok()) {
                    Some(job) if self.fits(&job) => self.begin(job),
                    Some(job) => {
                        *waiting = Some(job);
                        break;
                    }
                    None => break,
                }
            }
            self.scheduling.metrics.queued(jobs.len() + usize::from(waiting.is_some()));
            self.step();
        }
    }

    /// Whether there is room for a request's continuations; there always is beside none.
    fn fits(&self, job: &Job) -> bool {
        let lanes = self.lanes();
        match &job.work {
            Work::Complete { completion, .. } => lanes == 0 || lanes + completion.n <= self.scheduling.max_batch,
            _ => true,
        }
    }

    /// Continuations that are being written, or will be once their prompts are read.
    fn lanes(&self) -> usize {
        let of = |request: &Request| request.unread.as_ref().map_or(request.lanes.len(), |unread| unread.completion.n);
        self.running.iter().map(of).sum()
    }

    fn begin(&mut self, job: Job) {
        let Job { work, arrived, deadline } = job;
        let queue = arrived.elapsed();
        self.scheduling.metrics.waited(queue);
        let late = Instant::now() > deadline;
        let too_late = || Refusal::timeout("the request waited for the model for longer than it may take");
        // An answer that nobody waits for any more is not begun.
        match work {
            Work::Complete { events, .. } if late => drop(events.send(Event::Failed(too_late()))),
            Work::Score { answer, .. } if late => drop(answer.send(Err(too_late()))),
            Work::Embed { answer, .. } if late => drop(answer.send(Err(too_late()))),
            Work::Attend { answer, .. } if late => drop(answer.send(Err(too_late()))),
            Work::Complete { events, .. } if events.is_closed() => self.scheduling.metrics.cancelled(),
            Work::Complete { completion, events } => {
                match self.begun(&completion.prompt, completion.settings.max_new_tokens) {
                    Ok(Begun { seat, read, logits, stats }) => {
                        let mut request = Request {
                            events,
                            deadline,
                            unread: None,
                            lanes: Vec::new(),
                            logprobs: completion.logprobs,
                            stream: completion.stream,
                            stats: Stats { queue, ..stats },
                            read: Instant::now(),
                        };
                        let unread = Unread { completion, seat, read };
                        match logits {
                            Some(logits) => self.launch(&mut request, unread, &logits),
                            None => request.unread = Some(unread),
                        }
                        self.running.push(request);
                        self.sweep();
                    }
                    Err(e) => drop(events.send(Event::Failed(refused(e)))),
                }
            }
            Work::Score { prompt, candidates, answer } if !answer.is_closed() => {
                let scores = self.score(&prompt, &candidates);
                let _ = answer.send(scores.map(|(scores, stats)| (scores, Stats { queue, ..stats })).map_err(refused));
            }
            Work::Embed { views, answer } if !answer.is_closed() => {
                let _ = answer.send(self.model.features_of(&views).map_err(refused));
            }
            Work::Attend { ids, views, answer } if !answer.is_closed() => {
                let _ = answer.send(self.model.attention_maps(&ids, &views).map_err(refused));
            }
            Work::Score { .. } | Work::Embed { .. } | Work::Attend { .. } => self.scheduling.metrics.cancelled(),
        }
    }

    /// Reads a prompt, but for what follows its demonstrations where that is a few tokens.
    fn begun(&mut self, prompt: &Prompt, new_tokens: usize) -> Result<Begun, ZooError> {
        let mut stats = Stats {
            prompt: prompt.text.clone(),
            pictures: prompt.images.len(),
            prompt_tokens: prompt.ids.len(),
            ..Stats::default()
        };
        let started = Instant::now();
        let latents = self.look(&prompt.images, &mut stats)?;
        stats.images = started.elapsed();
        let started = Instant::now();
        let (seat, read, logits) = self.begun_seen(prompt, &latents, new_tokens, &mut stats)?;
        stats.prefill = started.elapsed();
        self.scheduling.metrics.read(&stats);
        Ok(Begun { seat, read, logits, stats })
    }

    /// Latents of a prompt's pictures; those that are not remembered are looked at, one by one, so that their numbers do not
    /// depend on each other.
    fn look(&mut self, images: &[Image], stats: &mut Stats) -> Result<Vec<Latents>, ZooError> {
        let mut latents = Vec::with_capacity(images.len());
        for (place, image) in images.iter().enumerate() {
            let place = if self.model.tells_places() { place } else { 0 };
            let known = match &image.content {
                Content::Seen(latents) => Some(latents.clone()),
                // Another request, or this one, may have brought it since.
                Content::New(_) => self.seen().get(&(image.key, place)).cloned(),
            };
            stats.cached_pictures += usize::from(known.is_some());
            latents.push(match (known, &image.content) {
                (Some(latents), _) => latents,
                (None, Content::Seen(latents)) => latents.clone(),
                (None, Content::New(view)) => {
                    let found = self.model.latents_of(std::slice::from_ref(view), place)?.swap_remove(0);
                    self.seen().put((image.key, place), found.clone(), found.bytes());
                    found
                }
            });
        }
        Ok(latents)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Bounded<(Key, usize), Latents>> {
        self.scheduling.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// [`Scheduler::begun`] of a prompt whose pictures were looked at: a seat, how many tokens are read there, and what follows
    /// where all are. A prompt has two pieces: its demonstrations, which other prompts may share, and the rest.
    fn begun_seen(
        &mut self,
        prompt: &Prompt,
        latents: &[Latents],
        new_tokens: usize,
        stats: &mut Stats,
    ) -> Result<(Seat, usize, Option<Vec<f32>>), ZooError> {
        let tokens = &self.model.config().tokens;
        let ids = &prompt.ids;
        let shared = ids[..ids.len() - 1].iter().rposition(|&id| id == tokens.endofchunk).map_or(0, |last| last + 1);
        let shown = ids[..shared].iter().filter(|&&id| id == tokens.image).count();
        let seat = match shared {
            0 => {
                let reserve = ids.len() + new_tokens;
                self.batch.open(None, SessionOptions { reserve, upstream_compat: false })?
            }
            _ => self.after(&ids[..shared], &prompt.images[..shown], &latents[..shown], stats)?,
        };
        match self.read_on(seat, &ids[shared..], &latents[shown..]) {
            Ok(None) => Ok((seat, shared, None)),
            Ok(logits) => Ok((seat, ids.len(), logits)),
            Err(e) => {
                self.batch.leave(seat);
                Err(e)
            }
        }
    }

    /// Shows the last pictures of a prompt, and reads its last tokens if they are more than a few.
    fn read_on(&mut self, seat: Seat, rest: &[u32], latents: &[Latents]) -> Result<Option<Vec<f32>>, ZooError> {
        if let Some(latents) = media(self.model, latents) {
            self.batch.session(seat)?.show(&latents)?;
        }
        match rest.len() <= self.batch.few() {
            true => Ok(None),
            false => Ok(Some(self.batch.step(&[(seat, Next::Prompt(rest))])?)),
        }
    }

    /// A seat that goes on after a beginning, which is read where it is not remembered.
    fn after(
        &mut self,
        ids: &[u32],
        images: &[Image],
        latents: &[Latents],
        stats: &mut Stats,
    ) -> Result<Seat, ZooError> {
        let key = key_of(ids, images);
        if let Some(&prefix) = self.prefixes.get(&key) {
            stats.cached_tokens = ids.len();
            return Ok(self.batch.fork(prefix)?);
        }
        let options = SessionOptions { reserve: ids.len(), upstream_compat: false };
        let prefix = self.batch.open(media(self.model, latents).as_ref(), options)?;
        if let Err(e) = self.batch.step(&[(prefix, Next::Prompt(ids))]) {
            self.batch.leave(prefix);
            return Err(e.into());
        }
        let seat = self.batch.fork(prefix)?;
        for gone in self.prefixes.put(key, prefix, self.batch.bytes(prefix)) {
            self.batch.leave(gone);
        }
        self.scheduling.metrics.prefixes(self.prefixes.bytes());
        Ok(seat)
    }

    fn score(&mut self, prompt: &Prompt, candidates: &[Vec<u32>]) -> Result<(Vec<SequenceScore>, Stats), ZooError> {
        let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
        let Begun { seat, read, logits, mut stats } = self.begun(prompt, longest)?;
        let started = Instant::now();
        let logits = match logits {
            Some(logits) => Ok(logits),
            None => self.batch.step(&[(seat, Next::Prompt(&prompt.ids[read..]))]),
        };
        stats.prefill += started.elapsed();
        let started = Instant::now();
        let read = logits.and_then(|logits| Ok((logits, self.batch.session(seat)?)));
        let scores = match read {
            Ok((logits, session)) => self.model.scores(session, logits, 1, prompt.ids.len(), candidates),
            Err(e) => Err(e.into()),
        };
        self.batch.leave(seat);
        stats.decode = started.elapsed();
        Ok((scores?.swap_remove(0), stats))
    }

    /// Begins the continuations of a request whose prompt is read, by the logits that follow it.
    fn launch(&mut self, request: &mut Request<'m>, unread: Unread, logits: &[f32]) {
        let Unread { completion: Completion { prompt, settings, n, first, stops, .. }, seat, .. } = unread;
        request.read = Instant::now();
        for index in 0..n {
            let writing = Writing::new(self.model, prompt.ids.clone(), &settings, stops.clone(), index);
            let lane = writing.and_then(|writing| {
                let seat = if index == 0 { seat } else { self.batch.fork(seat)? };
                let index = first + index;
                Ok(Lane { index, seat, writing, text: String::new(), tokens: Vec::new(), ended: false, failed: None })
            });
            match lane {
                Ok(lane) => request.lanes.push(lane),
                Err(e) => {
                    self.batch.leave(seat);
                    request.fail(refused(e));
                    return;
                }
            }
        }
        let Request { lanes, events, logprobs, stream, .. } = request;
        lanes.iter_mut().for_each(|lane| lane.go_on(&mut logits.to_vec(), *logprobs, *stream, events, self.model));
        request.went_on(&self.scheduling.metrics);
    }

    /// Every text that is being written gets its next token, chosen where its logits were found, and prompts of which a few are
    /// left get those.
    fn step(&mut self) {
        self.sweep();
        let (mut next, mut goings) = (Vec::new(), Vec::new());
        for request in &mut self.running {
            let Request { unread, lanes, events, logprobs, stream, .. } = request;
            if let Some(unread) = unread {
                next.push(unread.next());
                goings.push(Mutex::new(Going::Read(Vec::new())));
            }
            for lane in lanes.iter_mut().filter(|lane| !lane.ended) {
                let Some(&last) = lane.writing.ids().last() else { continue };
                next.push((lane.seat, Next::Written(last)));
                goings.push(Mutex::new(Going::Written { lane, events, logprobs: *logprobs, stream: *stream }));
            }
        }
        if next.is_empty() {
            return;
        }
        let (model, started) = (self.model, Instant::now());
        let stepped = self.batch.advance(&next, &|text, logits| {
            let mut going = goings[text].lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *going {
                Going::Read(all) => *all = logits.to_vec(),
                Going::Written { lane, events, logprobs, stream } => {
                    lane.go_on(logits, *logprobs, *stream, events, model)
                }
            }
        });
        let (took, count) = (started.elapsed(), next.len());
        drop(next);
        let goings = goings.into_iter().map(|going| going.into_inner().unwrap_or_else(PoisonError::into_inner));
        let read: Vec<Vec<f32>> = goings.filter_map(Going::logits).collect();
        let mut running = std::mem::take(&mut self.running);
        match stepped {
            Ok(()) => {
                self.scheduling.metrics.stepped(count, took);
                let mut read = read.into_iter();
                for request in &mut running {
                    let Some(unread) = request.unread.take() else {
                        request.went_on(&self.scheduling.metrics);
                        continue;
                    };
                    request.stats.prefill += took;
                    self.launch(request, unread, &read.next().unwrap_or_default());
                }
                self.running = running;
            }
            Err(e) => {
                let refusal = refused(e.into());
                tracing::error!(error = refusal.detail.message, "a step failed");
                for mut request in running {
                    self.leave(&mut request);
                    request.fail(refusal.clone());
                }
            }
        }
        self.sweep();
    }

    /// Lets go of continuations that have ended, and of requests that are done, late, or that nobody waits for.
    fn sweep(&mut self) {
        let now = Instant::now();
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|request| {
            if request.events.is_closed() {
                self.scheduling.metrics.cancelled();
                self.leave(request);
                return false;
            }
            if now > request.deadline {
                request.fail(Refusal::timeout("the answer took longer than a request may take"));
                self.leave(request);
                return false;
            }
            if request.unread.is_some() {
                return true;
            }
            let (ended, going): (Vec<_>, Vec<_>) = request.lanes.drain(..).partition(|lane| lane.ended);
            ended.iter().for_each(|lane| self.batch.leave(lane.seat));
            request.lanes = going;
            if request.lanes.is_empty() {
                request.stats.decode = request.read.elapsed();
                let _ = request.events.send(Event::Done(Box::new(request.stats.clone())));
            }
            !request.lanes.is_empty()
        });
        self.running = running;
        self.scheduling.metrics.running(self.lanes());
    }

    /// Empties the seats of a request.
    fn leave(&mut self, request: &mut Request) {
        let unread = request.unread.take().map(|unread| unread.seat);
        request.lanes.drain(..).map(|lane| lane.seat).chain(unread).for_each(|seat| self.batch.leave(seat));
    }
}

impl Request<'_> {
    /// Counts the tokens that its continuations just got, or fails as one of them did.
    fn went_on(&mut self, metrics: &Metrics) {
        match self.lanes.iter_mut().find_map(|lane| lane.failed.take()) {
            Some(refusal) => self.fail(refusal),
            None => {
                self.stats.new_tokens += self.lanes.len();
                metrics.wrote(self.lanes.len());
            }
        }
    }

    /// Says why there will be no more of it.
    fn fail(&mut self, refusal: Refusal) {
        let _ = self.events.send(Event::Failed(refusal));
        self.lanes.iter_mut().for_each(|lane| lane.ended = true);
    }
}

impl Lane<'_> {
    /// Chooses the next token by its logits, and sends what is to be sent. A failure is left for the request to tell.
    fn go_on(
        &mut self,
        logits: &mut [f32],
        logprobs: Option<usize>,
        stream: bool,
        events: &mpsc::UnboundedSender<Event>,
        model: &Model,
    ) {
        match self.choose(logits, logprobs, model) {
            Ok(()) => self.send(stream, events),
            Err(refusal) => self.failed = Some(refusal),
        }
    }

    /// Chooses a token, and takes what text became certain with it.
    fn choose(&mut self, logits: &mut [f32], logprobs: Option<usize>, model: &Model) -> Result<(), Refusal> {
        let likely = logprobs.map(|top| Likely::new(logits, top));
        let (id, text) = self.writing.choose(logits).map_err(refused)?;
        self.text += &text;
        // The end of the text is no part of it.
        self.tokens.extend(likely.filter(|_| id != model.config().tokens.endofchunk).map(|likely| likely.of(id)));
        Ok(())
    }

    /// Sends what is to be sent by now: what is certain, where that is asked for, and the end.
    fn send(&mut self, stream: bool, events: &mpsc::UnboundedSender<Event>) {
        let (index, finish) = (self.index, self.writing.finish());
        let something = !self.text.is_empty() || !self.tokens.is_empty();
        if something && (stream || finish.is_some()) {
            let (text, tokens) = (std::mem::take(&mut self.text), std::mem::take(&mut self.tokens));
            let _ = events.send(Event::Piece { index, text, tokens });
        }
        if let Some(finish) = finish {
            self.ended = true;
            let _ = events.send(Event::End { index, finish });
        }
    }
}

/// Log-probabilities of what may come next.
struct Likely {
    all: Vec<f32>,
    top: Vec<(u32, f32)>,
}

impl Likely {
    fn new(logits: &[f32], top: usize) -> Self {
        let mut all = logits.to_vec();
        log_softmax(&mut all);
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        let by_probability = |a: &u32, b: &u32| all[*b as usize].total_cmp(&all[*a as usize]).then(a.cmp(b));
        let count = top.min(order.len());
        if count > 0 && count < order.len() {
            order.select_nth_unstable_by(count - 1, by_probability);
        }
        order.truncate(count);
        order.sort_unstable_by(by_probability);
        let top = order.into_iter().map(|id| (id, all[id as usize])).collect();
        Self { all, top }
    }

    fn of(self, id: u32) -> TokenProbability {
        TokenProbability { id, log_prob: self.all[id as usize], top: self.top }
    }
}

/// Pictures of one text as the engine takes them.
fn media(model: &Model, latents: &[Latents]) -> Option<Array> {
    model.media(&[Interleaved { text: String::new(), images: latents.to_vec() }])
}

/// A beginning by its content.
fn key_of(ids: &[u32], images: &[Image]) -> Key {
    let mut hash = Sha256::new();
    hash.update((ids.len() as u64).to_le_bytes());
    ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
    images.iter().for_each(|image| hash.update(image.key));
    hash.finalize().into()
}

fn refused(error: ZooError) -> Refusal {
    match error {
        ZooError::Prompt(message) => Refusal::invalid(message),
        ZooError::Data(e) => Refusal::invalid(e.to_string()),
        ZooError::Engine(flamingo_engine::EngineError::Input(message)) => Refusal::invalid(message),
        error => Refusal::failed(error.to_string()),
    }
}
