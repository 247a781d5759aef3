//! Texts that are continued together though each stands at a place of its own: what a server decodes.

use std::collections::BTreeMap;

use flamingo_kernels::Kernels;
use flamingo_model::{Text, Turn};
use rayon::prelude::*;

use crate::EngineError;
use crate::array::Array;
use crate::engine::{BurnEngine, compute, on_cpu};
use crate::session::{BurnSession, Session, SessionOptions};

/// A text's place in a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat(u64);

/// Texts that take their turns together. They come and go at any time and share nothing but the weights, which are read
/// once for all: a text gets the numbers that it would get alone.
pub trait Batch: Send {
    /// Reads a prompt of one row, with pictures as [`crate::Engine::latents`] gives them. Returns its seat and the logits that
    /// follow its last token, `vocab_size`.
    ///
    /// # Errors
    /// As [`crate::Engine::start_seen`]; [`EngineError::Input`] for a prompt of several rows.
    fn read(
        &mut self,
        prompt: &Text,
        latents: Option<&Array>,
        options: SessionOptions,
    ) -> Result<(Seat, Vec<f32>), EngineError>;

    /// Gives what is read so far a second seat; what is cached is shared until one of them goes on.
    ///
    /// # Errors
    /// [`EngineError::Input`] for an empty seat.
    fn fork(&mut self, seat: Seat) -> Result<Seat, EngineError>;

    /// The text at a seat: it can be fed and shown more by itself.
    ///
    /// # Errors
    /// As [`Batch::fork`].
    fn session(&mut self, seat: Seat) -> Result<&mut dyn Session, EngineError>;

    /// Feeds one token at each of some seats, none of them twice, and returns the logits that follow, `vocab_size` for each.
    ///
    /// # Errors
    /// As [`Batch::fork`]; [`EngineError::Input`] for ids outside the vocabulary or a text that is too long, before any text has
    /// moved; [`EngineError::Device`] if the device fails.
    fn step(&mut self, next: &[(Seat, u32)]) -> Result<Vec<f32>, EngineError>;

    /// Empties a seat.
    fn leave(&mut self, seat: Seat);

    /// Bytes of the keys and values at a seat, its pictures' included.
    fn bytes(&self, seat: Seat) -> usize;
}

pub(crate) struct BurnBatch<'a, B: Kernels> {
    engine: &'a BurnEngine<B>,
    seats: BTreeMap<Seat, BurnSession<'a, B>>,
    next: u64,
}

impl<'a, B: Kernels> BurnBatch<'a, B> {
    pub(crate) fn new(engine: &'a BurnEngine<B>) -> Self {
        Self { engine, seats: BTreeMap::new(), next: 0 }
    }

    fn seat(&mut self, session: BurnSession<'a, B>) -> Seat {
        let seat = Seat(self.next);
        self.next += 1;
        self.seats.insert(seat, session);
        seat
    }

    /// The sessions at some seats, in the order of `next`.
    fn sessions(&mut self, next: &[(Seat, u32)]) -> Result<Vec<(&mut BurnSession<'a, B>, u32)>, EngineError> {
        let places: BTreeMap<Seat, usize> = next.iter().enumerate().map(|(i, (seat, _))| (*seat, i)).collect();
        let mut taken: Vec<(usize, &mut BurnSession<'a, B>)> =
            self.seats.iter_mut().filter_map(|(seat, session)| Some((*places.get(seat)?, session))).collect();
        if taken.len() != next.len() {
            return Err(EngineError::Input("a seat that is empty, or is asked for twice".into()));
        }
        taken.sort_by_key(|(place, _)| *place);
        Ok(taken.into_iter().zip(next).map(|((_, session), (_, token))| (session, *token)).collect())
    }
}

fn empty(seat: Seat) -> EngineError {
    EngineError::Input(format!("seat {} is empty", seat.0))
}

impl<B: Kernels> Batch for BurnBatch<'_, B> {
    fn read(
        &mut self,
        prompt: &Text,
        latents: Option<&Array>,
        options: SessionOptions,
    ) -> Result<(Seat, Vec<f32>), EngineError> {
        if prompt.rows != 1 {
            return Err(EngineError::Input(format!("a prompt of {} rows for one seat", prompt.rows)));
        }
        let (session, logits) = compute::<B, _>(|| self.engine.read_seen(prompt, latents, options))?;
        Ok((self.seat(session), logits))
    }

    fn fork(&mut self, seat: Seat) -> Result<Seat, EngineError> {
        let session = self.seats.get(&seat).ok_or_else(|| empty(seat))?.clone();
        Ok(self.seat(session))
    }

    fn session(&mut self, seat: Seat) -> Result<&mut dyn Session, EngineError> {
        self.seats.get_mut(&seat).map(|session| session as &mut dyn Session).ok_or_else(|| empty(seat))
    }

    fn step(&mut self, next: &[(Seat, u32)]) -> Result<Vec<f32>, EngineError> {
        let engine = self.engine;
        let mut sessions = self.sessions(next)?;
        compute::<B, _>(|| {
            for (session, token) in &sessions {
                session.check_next(*token)?;
            }
            let step = |together: &mut [(&mut BurnSession<B>, u32)]| {
                let mut turns: Vec<Turn<B>> =
                    together.iter_mut().map(|(session, token)| session.turn(*token)).collect();
                engine.last_logits(engine.model.forward_each(&mut turns))
            };
            // On a CPU groups go side by side: what is done for each text by itself is too little to share among threads.
            let groups: Result<Vec<Vec<f32>>, EngineError> = match on_cpu::<B>() {
                true => sessions.par_chunks_mut(B::ROWS_ALIKE).map(step).collect(),
                false => sessions.chunks_mut(B::ROWS_ALIKE).map(step).collect(),
            };
            Ok(groups?.concat())
        })
    }

    fn leave(&mut self, seat: Seat) {
        self.seats.remove(&seat);
    }

    fn bytes(&self, seat: Seat) -> usize {
        self.seats.get(&seat).map_or(0, BurnSession::bytes)
    }
}
