//! The thread that the model belongs to. It takes requests from the queue, reads their prompts, and continues all of them
//! together, a token each at a time. Where few tokens of a prompt follow its demonstrations, they are read beside the texts that
//! go on; a long prompt is read in pieces between which they do. What nobody waits for any more, or is late, is left between two
//! pieces, pictures or tokens. A device that fails in a step fails all of them.
//!
//! What a request gets does not depend on the others: texts are decoded with the numbers of each alone
//! ([`flamingo_engine::Batch`]), each samples from a stream of its own, and a prompt is read in the same pieces whether its
//! beginning is remembered or not.

mod reading;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use flamingo_engine::{Batch, Next, Seat};
use flamingo_generate::log_softmax;
use flamingo_zoo::{Model, Writing, ZooError};
use tokio::sync::mpsc;

use self::reading::Begun;
use crate::bounded::Bounded;
use crate::error::Refusal;
use crate::job::{Answer, Completion, Event, Job, Key, Seen, Stats, TokenProbability, Work};
use crate::metrics::Metrics;

/// How long prompts are begun before texts that are being written, and prompts of which a few tokens are left, go on.
const READING: Duration = Duration::from_millis(25);

/// How long the threads that compute are kept before somebody else of this process may have them.
const TURN: Duration = Duration::from_secs(1);

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
    Scheduler {
        model,
        batch,
        running: Vec::new(),
        stepped: Instant::now(),
        paused: Duration::ZERO,
        prefixes,
        scheduling,
    }
    .run(jobs);
}

struct Scheduler<'m> {
    model: &'m Model,
    batch: Box<dyn Batch + 'm>,
    running: Vec<Request<'m>>,
    /// When they went on last.
    stepped: Instant,
    /// How long they have done so while prompts were being read.
    paused: Duration,
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

impl Unread {
    fn next(&self) -> (Seat, Next<'_>) {
        (self.seat, Next::Prompt(&self.completion.prompt.ids[self.read..]))
    }
}

/// Who waits for an answer.
struct Waiting<'a> {
    deadline: Instant,
    gone: &'a dyn Fn() -> bool,
}

/// Why there is no answer.
enum Broken {
    /// Nobody waits for it.
    Gone,
    Late,
    Failed(ZooError),
}

impl<E: Into<ZooError>> From<E> for Broken {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
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
                    Some(job) if self.fits(&job) => {
                        self.scheduling.metrics.held(false);
                        self.begin(job);
                    }
                    Some(job) => {
                        *waiting = Some(job);
                        break;
                    }
                    None => break,
                }
            }
            self.scheduling.metrics.held(waiting.is_some());
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
        match work {
            Work::Complete { completion, events } => {
                let waiting = Waiting { deadline, gone: &|| events.is_closed() };
                match self.begun(&completion.prompt, completion.settings.max_new_tokens, &waiting) {
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
                    Err(broken) => {
                        let _ = self.refusal(broken).map(|refusal| events.send(Event::Failed(refusal)));
                    }
                }
            }
            Work::Score { prompt, candidates, answer } => {
                let waiting = Waiting { deadline, gone: &|| answer.is_closed() };
                let scores = self.score(&prompt, &candidates, &waiting);
                self.answer(answer, scores.map(|(scores, stats)| (scores, Stats { queue, ..stats })));
            }
            Work::Embed { views, answer } => {
                let waiting = Waiting { deadline, gone: &|| answer.is_closed() };
                let features = self.features(&views, &waiting);
                self.answer(answer, features);
            }
            Work::Attend { ids, views, answer } => {
                let waiting = Waiting { deadline, gone: &|| answer.is_closed() };
                let maps = self.pause(&waiting).and_then(|()| Ok(self.model.attention_maps(&ids, &views)?));
                self.answer(answer, maps);
            }
        }
    }

    fn answer<T>(&self, answer: Answer<T>, found: Result<T, Broken>) {
        let _ = match found {
            Ok(found) => answer.send(Ok(found)).is_ok(),
            Err(broken) => self.refusal(broken).is_some_and(|refusal| answer.send(Err(refusal)).is_ok()),
        };
    }

    /// What is said instead of an answer, where somebody listens.
    fn refusal(&self, broken: Broken) -> Option<Refusal> {
        match broken {
            Broken::Gone => {
                self.scheduling.metrics.cancelled();
                None
            }
            Broken::Late => {
                self.scheduling.metrics.late();
                Some(late())
            }
            Broken::Failed(error) => Some(refused(error)),
        }
    }

    /// Before any piece of an answer: leaves it where it comes too late or nobody waits for it, and lets texts that are being
    /// written go on if they have not for a while.
    fn pause(&mut self, waiting: &Waiting) -> Result<(), Broken> {
        if Instant::now() > waiting.deadline {
            return Err(Broken::Late);
        }
        if (waiting.gone)() {
            return Err(Broken::Gone);
        }
        if self.stepped.elapsed() > READING {
            let started = Instant::now();
            self.step();
            self.paused += started.elapsed();
        }
        Ok(())
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
            self.stepped = Instant::now();
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
        self.stepped = Instant::now();
    }

    /// Lets go of continuations that have ended, and of requests that are done, late, or that nobody waits for.
    fn sweep(&mut self) {
        let now = Instant::now();
        let mut running = std::mem::take(&mut self.running);
        running.retain_mut(|request| {
            if now > request.deadline {
                self.scheduling.metrics.late();
                request.fail(late());
                self.leave(request);
                return false;
            }
            if request.events.is_closed() {
                self.scheduling.metrics.cancelled();
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

fn late() -> Refusal {
    Refusal::timeout("the answer took longer than a request may take")
}

fn refused(error: ZooError) -> Refusal {
    match error {
        ZooError::Prompt(message) => Refusal::invalid(message),
        ZooError::Data(e) => Refusal::invalid(e.to_string()),
        ZooError::Engine(flamingo_engine::EngineError::Input(message)) => Refusal::invalid(message),
        error => Refusal::failed(error.to_string()),
    }
}
