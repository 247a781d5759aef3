//! Texts that are continued together though each stands at a place of its own: what a server decodes.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn::tensor::{Int, Tensor};
use flamingo_config::Architecture;
use flamingo_kernels::Kernels;
use flamingo_model::Turn;
use rayon::prelude::*;

use crate::EngineError;
use crate::array::Array;
use crate::engine::{BurnEngine, compute, on_cpu};
use crate::session::{BurnSession, Next, Session, SessionOptions};

/// A text's place in a [`Batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat(u64);

/// What is done with the logits that follow a text: its place among those that go on, and `vocab_size` numbers.
pub type Then<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// Texts that take their turns together. They come and go at any time and share nothing but the weights, which are read
/// once for all: a text gets the numbers that it would get alone.
pub trait Batch: Send {
    /// A seat for a text that is yet to be read, with its pictures as [`crate::Engine::latents`] gives them, for one row.
    ///
    /// # Errors
    /// [`EngineError::Input`] for latents of another shape.
    fn open(&mut self, latents: Option<&Array>, options: SessionOptions) -> Result<Seat, EngineError>;

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

    /// Feeds what comes next at each of some seats, none of them twice, and hands over the logits that follow, `vocab_size` for
    /// each, with the text's place in `next`: as soon as they are there, on threads that find them.
    ///
    /// # Errors
    /// As [`Batch::fork`]; [`EngineError::Input`] for no token, ids outside the vocabulary or a text that is too long, before
    /// any text has moved; [`EngineError::Device`] if the device fails, or `then` panics, for some of the texts or all.
    fn advance(&mut self, next: &[(Seat, Next)], then: Then) -> Result<(), EngineError>;

    /// [`Batch::advance`]; returns the logits of all texts, one after the other.
    ///
    /// # Errors
    /// As [`Batch::advance`].
    fn step(&mut self, next: &[(Seat, Next)]) -> Result<Vec<f32>, EngineError> {
        let all = Mutex::new(vec![Vec::new(); next.len()]);
        self.advance(next, &|text, logits| {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all[text] = logits.to_vec();
        })?;
        Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner).concat())
    }

    /// Tokens up to which the next of a text is read beside others in [`Batch::step`]; what is longer goes by itself.
    fn few(&self) -> usize;

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

/// A text in a step: its place in the answer, and what comes next.
type Going<'s, 'a, B> = (usize, &'s mut BurnSession<'a, B>, &'s Next<'s>);

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

    /// The texts at some seats.
    fn going<'s>(&'s mut self, next: &'s [(Seat, Next)]) -> Result<Vec<Going<'s, 'a, B>>, EngineError> {
        let places: BTreeMap<Seat, usize> = next.iter().enumerate().map(|(i, (seat, _))| (*seat, i)).collect();
        let going = self.seats.iter_mut().filter_map(|(seat, session)| {
            let place = *places.get(seat)?;
            Some((place, session, &next[place].1))
        });
        let going: Vec<Going<B>> = going.collect();
        match going.len() == next.len() {
            true => Ok(going),
            false => Err(EngineError::Input("a seat that is empty, or is asked for twice".into())),
        }
    }
}

fn empty(seat: Seat) -> EngineError {
    EngineError::Input(format!("seat {} is empty", seat.0))
}

/// Reads what comes next in some texts, and hands over what follows. Those of a few tokens go together.
fn read<B: Kernels>(engine: &BurnEngine<B>, mut texts: Vec<Going<B>>, then: Then) -> Result<(), EngineError> {
    if let [(place, session, next)] = &mut texts[..]
        && next.ids().len() > B::ROWS_ALIKE
    {
        let text = session.check_next(next)?;
        let hidden = session.hidden(&text)?;
        then(*place, &mut engine.last_logits(hidden)?);
        return Ok(());
    }
    let places: Vec<usize> = texts.iter().map(|(place, ..)| *place).collect();
    let turns: Result<Vec<Turn<B>>, EngineError> =
        texts.iter_mut().map(|(_, session, next)| session.turn(next)).collect();
    let mut turns = turns?;
    let hidden = engine.model.forward_each(&mut turns);
    let mut end = 0;
    let last: Vec<i32> = turns
        .iter()
        .map(|turn| {
            end += turn.ids.len() as i32;
            end - 1
        })
        .collect();
    let hidden = match last.len() == hidden.dims()[1] {
        true => hidden,
        false => hidden.clone().select(1, Tensor::<B, 1, Int>::from_ints(last.as_slice(), &hidden.device())),
    };
    let mut logits = Array::from_tensor(&engine.model.decoder.logits(hidden))?.data;
    let vocab = engine.config.tokens.vocab_size;
    match logits.len() < SEVERAL_THREADS {
        true => places.into_iter().zip(logits.chunks_exact_mut(vocab)).for_each(|(place, logits)| then(place, logits)),
        false => places
            .into_par_iter()
            .zip(logits.par_chunks_exact_mut(vocab))
            .for_each(|(place, logits)| then(place, logits)),
    }
    Ok(())
}

/// Numbers of a layer's weight up to which kernels leave it to one thread of a CPU (measured on two).
const ONE_THREAD: usize = 1 << 16;

/// Logits from which on it is worth several threads to look at them all.
const SEVERAL_THREADS: usize = 1 << 15;

/// Groups that a step should have at least: as many as there are threads where layers are too small for several.
pub(crate) fn sides<B: Kernels>(architecture: &Architecture) -> usize {
    let small = architecture.d_model * architecture.d_ff <= ONE_THREAD;
    if on_cpu::<B>() && small { rayon::current_num_threads() } else { 1 }
}

/// Shares texts of so many tokens out among groups of at most `few` tokens and of like size: as few as that takes, but a multiple
/// of `sides` where there are texts enough, so that no thread waits for others. What is longer is a group of its own.
fn groups(tokens: &[usize], few: usize, sides: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(tokens[text]));
    let (long, short): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|&text| tokens[text] > few);
    let total: usize = short.iter().map(|&text| tokens[text]).sum();
    let count = total.div_ceil(few).next_multiple_of(sides).min(short.len());
    let mut groups = vec![(0, Vec::new()); count];
    for text in short {
        match groups.iter_mut().min_by_key(|(held, _)| *held) {
            Some((held, texts)) if *held + tokens[text] <= few => {
                *held += tokens[text];
                texts.push(text);
            }
            _ => groups.push((tokens[text], vec![text])),
        }
    }
    long.into_iter().map(|text| vec![text]).chain(groups.into_iter().map(|(_, texts)| texts)).collect()
}

impl<B: Kernels> Batch for BurnBatch<'_, B> {
    fn open(&mut self, latents: Option<&Array>, options: SessionOptions) -> Result<Seat, EngineError> {
        let mut session = BurnSession::new(self.engine, 1, None, options);
        if let Some(latents) = latents {
            session.show(latents)?;
        }
        Ok(self.seat(session))
    }

    fn fork(&mut self, seat: Seat) -> Result<Seat, EngineError> {
        let session = self.seats.get(&seat).ok_or_else(|| empty(seat))?.clone();
        Ok(self.seat(session))
    }

    fn session(&mut self, seat: Seat) -> Result<&mut dyn Session, EngineError> {
        self.seats.get_mut(&seat).map(|session| session as &mut dyn Session).ok_or_else(|| empty(seat))
    }

    fn advance(&mut self, next: &[(Seat, Next)], then: Then) -> Result<(), EngineError> {
        let engine = self.engine;
        let going = self.going(next)?;
        for (_, session, next) in &going {
            session.check_next(next)?;
        }
        let tokens: Vec<usize> = going.iter().map(|(_, _, next)| next.ids().len()).collect();
        let mut going: Vec<Option<Going<B>>> = going.into_iter().map(Some).collect();
        let sides = sides::<B>(engine.model.decoder.architecture());
        let together = groups(&tokens, B::ROWS_ALIKE, sides)
            .into_iter()
            .map(|texts| texts.into_iter().filter_map(|text| going[text].take()).collect::<Vec<_>>());
        let together: Vec<Vec<Going<B>>> = together.collect();
        compute::<B, _>(|| {
            let read = |texts| read(engine, texts, then);
            // On a CPU groups go side by side: what is done for each text by itself is too little to share among threads.
            match on_cpu::<B>() {
                true => together.into_par_iter().try_for_each(read),
                false => together.into_iter().try_for_each(read),
            }
        })
    }

    fn few(&self) -> usize {
        B::ROWS_ALIKE
    }

    fn leave(&mut self, seat: Seat) {
        self.seats.remove(&seat);
    }

    fn bytes(&self, seat: Seat) -> usize {
        self.seats.get(&seat).map_or(0, BurnSession::bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shared_out_in_groups_of_few_tokens() {
        let sizes = |groups: Vec<Vec<usize>>| groups.iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(groups(&[1; 16], 8, 1)), [8, 8]);
        assert_eq!(sizes(groups(&[1; 8], 8, 1)), [8]);
        assert_eq!(sizes(groups(&[1; 8], 8, 3)), [3, 3, 2]);
        assert_eq!(sizes(groups(&[1; 10], 4, 2)), [3, 3, 2, 2]);
        assert_eq!(sizes(groups(&[1; 2], 8, 3)), [1, 1]);
        assert_eq!(groups(&[], 8, 2), Vec::<Vec<usize>>::new());
        // Of like size: 10 tokens are two fives.
        assert_eq!(groups(&[1, 1, 1, 1, 1, 5], 8, 1), [vec![5], vec![0, 1, 2, 3, 4]]);
        assert_eq!(groups(&[3, 20, 1], 8, 1), [vec![1], vec![0, 2]]);
        for (few, sides) in [(1, 1), (8, 1), (8, 4), (8, 64)] {
            let tokens = [5, 5, 5, 1, 9, 2, 8, 3, 1, 7, 1];
            let found = groups(&tokens, few, sides);
            let mut texts = found.concat();
            texts.sort_unstable();
            assert_eq!(texts, (0..tokens.len()).collect::<Vec<_>>());
            let size = |group: &Vec<usize>| group.iter().map(|&text| tokens[text]).sum::<usize>();
            assert!(found.iter().all(|group| group.len() == 1 || size(group) <= few), "{found:?}");
        }
    }
}
