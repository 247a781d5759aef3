//! How prompts are read: their pictures one by one, their text in pieces. Texts that are being written go on in between, and a
//! prompt is left there if nobody waits for what follows.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use flamingo_data::Interleaved;
use flamingo_engine::{Array, Next, Seat, SessionOptions};
use flamingo_generate::SequenceScore;
use flamingo_zoo::{Latents, Model, Scoring, View};
use sha2::{Digest, Sha256};

use super::{Broken, Scheduler, Waiting};
use crate::bounded::Bounded;
use crate::job::{Content, Image, Key, Prompt, Stats};

/// Tokens of a prompt that are read together: enough to keep a device busy, few enough to be soon done.
const PIECE: usize = 256;

/// Pictures whose features are found together.
const PICTURES: usize = 8;

/// What came of beginning a prompt.
pub(super) struct Begun {
    pub(super) seat: Seat,
    /// How many tokens are read.
    pub(super) read: usize,
    /// What follows, where all are.
    pub(super) logits: Option<Vec<f32>>,
    pub(super) stats: Stats,
}

impl Scheduler<'_> {
    /// Reads a prompt, but for what follows its demonstrations where that is a few tokens.
    pub(super) fn begun(&mut self, prompt: &Prompt, new_tokens: usize, waiting: &Waiting) -> Result<Begun, Broken> {
        self.pause(waiting)?;
        let mut stats = Stats {
            prompt: prompt.text.clone(),
            pictures: prompt.images.len(),
            prompt_tokens: prompt.ids.len(),
            ..Stats::default()
        };
        let (latents, took) = self.timed(|own| own.look(&prompt.images, waiting, &mut stats))?;
        stats.images = took;
        let (begun, took) = self.timed(|own| own.begun_seen(prompt, &latents, new_tokens, waiting, &mut stats))?;
        let (seat, read, logits) = begun;
        stats.prefill = took;
        self.scheduling.metrics.read(&stats);
        Ok(Begun { seat, read, logits, stats })
    }

    /// What some work for a prompt gives, and how long it took without what others did meanwhile.
    fn timed<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, Broken>) -> Result<(T, Duration), Broken> {
        let (started, before) = (Instant::now(), self.paused);
        let done = work(self)?;
        Ok((done, started.elapsed().saturating_sub(self.paused - before)))
    }

    /// Latents of a prompt's pictures; those that are not remembered are looked at, one by one, so that their numbers do not
    /// depend on each other.
    fn look(&mut self, images: &[Image], waiting: &Waiting, stats: &mut Stats) -> Result<Vec<Latents>, Broken> {
        let mut latents = Vec::with_capacity(images.len());
        for (place, image) in images.iter().enumerate() {
            let place = if self.model.tells_places() { place } else { 0 };
            let view = match &image.content {
                Content::Seen(known) => {
                    stats.cached_pictures += 1;
                    latents.push(known.clone());
                    continue;
                }
                Content::New(view) => view,
            };
            // Another request, or this one, may have brought it since.
            let known = self.seen().get(&(image.key, place)).cloned();
            stats.cached_pictures += usize::from(known.is_some());
            latents.push(match known {
                Some(known) => known,
                None => {
                    self.pause(waiting)?;
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
    /// where all are. A prompt has two parts: its demonstrations, which other prompts may share, and the rest.
    fn begun_seen(
        &mut self,
        prompt: &Prompt,
        latents: &[Latents],
        new_tokens: usize,
        waiting: &Waiting,
        stats: &mut Stats,
    ) -> Result<(Seat, usize, Option<Vec<f32>>), Broken> {
        let tokens = &self.model.config().tokens;
        let ids = &prompt.ids;
        let shared = ids[..ids.len() - 1].iter().rposition(|&id| id == tokens.endofchunk).map_or(0, |last| last + 1);
        let shown = ids[..shared].iter().filter(|&&id| id == tokens.image).count();
        let seat = match shared {
            0 => {
                let reserve = ids.len() + new_tokens;
                self.batch.open(None, SessionOptions { reserve, upstream_compat: false })?
            }
            _ => self.after(&ids[..shared], &prompt.images[..shown], &latents[..shown], waiting, stats)?,
        };
        match self.read_on(seat, &ids[shared..], &latents[shown..], waiting) {
            Ok(None) => Ok((seat, shared, None)),
            Ok(logits) => Ok((seat, ids.len(), logits)),
            Err(e) => {
                self.batch.leave(seat);
                Err(e)
            }
        }
    }

    /// Shows the last pictures of a prompt, and reads its last tokens if they are more than a few.
    fn read_on(
        &mut self,
        seat: Seat,
        rest: &[u32],
        latents: &[Latents],
        waiting: &Waiting,
    ) -> Result<Option<Vec<f32>>, Broken> {
        if let Some(latents) = media(self.model, latents) {
            self.batch.session(seat)?.show(&latents)?;
        }
        match rest.len() <= self.batch.few() {
            true => Ok(None),
            false => Ok(Some(self.read(seat, rest, waiting)?)),
        }
    }

    /// Reads more of a prompt, in pieces; returns what follows.
    fn read(&mut self, seat: Seat, ids: &[u32], waiting: &Waiting) -> Result<Vec<f32>, Broken> {
        let mut logits = Vec::new();
        for piece in ids.chunks(PIECE) {
            self.pause(waiting)?;
            logits = self.batch.step(&[(seat, Next::Prompt(piece))])?;
        }
        Ok(logits)
    }

    /// A seat that goes on after a beginning, which is read where it is not remembered.
    fn after(
        &mut self,
        ids: &[u32],
        images: &[Image],
        latents: &[Latents],
        waiting: &Waiting,
        stats: &mut Stats,
    ) -> Result<Seat, Broken> {
        let key = key_of(ids, images);
        if let Some(&prefix) = self.prefixes.get(&key) {
            stats.cached_tokens = ids.len();
            return Ok(self.batch.fork(prefix)?);
        }
        let options = SessionOptions { reserve: ids.len(), upstream_compat: false };
        let prefix = self.batch.open(media(self.model, latents).as_ref(), options)?;
        if let Err(broken) = self.read(prefix, ids, waiting) {
            self.batch.leave(prefix);
            return Err(broken);
        }
        let seat = match self.batch.fork(prefix) {
            Ok(seat) => seat,
            Err(e) => {
                self.batch.leave(prefix);
                return Err(e.into());
            }
        };
        for gone in self.prefixes.put(key, prefix, self.batch.bytes(prefix)) {
            self.batch.leave(gone);
        }
        self.scheduling.metrics.prefixes(self.prefixes.bytes());
        Ok(seat)
    }

    /// Log-likelihood of each candidate after a prompt.
    pub(super) fn score(
        &mut self,
        prompt: &Prompt,
        candidates: &[Vec<u32>],
        waiting: &Waiting,
    ) -> Result<(Vec<SequenceScore>, Stats), Broken> {
        let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
        let begun = self.begun(prompt, longest, waiting)?;
        let seat = begun.seat;
        let scored = self.score_begun(begun, prompt, candidates, waiting);
        self.batch.leave(seat);
        scored
    }

    /// [`Scheduler::score`] of a prompt that is read but for a few tokens.
    fn score_begun(
        &mut self,
        begun: Begun,
        prompt: &Prompt,
        candidates: &[Vec<u32>],
        waiting: &Waiting,
    ) -> Result<(Vec<SequenceScore>, Stats), Broken> {
        let Begun { seat, read, logits, mut stats } = begun;
        let started = Instant::now();
        let logits = match logits {
            Some(logits) => logits,
            None => self.batch.step(&[(seat, Next::Prompt(&prompt.ids[read..]))])?,
        };
        stats.prefill += started.elapsed();
        let (scores, took) = self.timed(|own| {
            let mut scoring = Scoring::new(own.model, logits, 1, prompt.ids.len(), candidates)?;
            while scoring.go_on(own.batch.session(seat)?)? {
                own.pause(waiting)?;
            }
            Ok(scoring.scores().swap_remove(0))
        })?;
        stats.decode = took;
        Ok((scores, stats))
    }

    /// Features of pictures.
    pub(super) fn features(&mut self, views: &[View], waiting: &Waiting) -> Result<Vec<Vec<f32>>, Broken> {
        let mut features = Vec::with_capacity(views.len());
        for views in views.chunks(PICTURES) {
            self.pause(waiting)?;
            features.extend(self.model.features_of(views)?);
        }
        Ok(features)
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
