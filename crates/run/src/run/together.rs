//! What the workers of a run do with each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use flamingo_data::find_shards;
use flamingo_distributed::{Group, Readers};
use flamingo_engine::{Array, Coming, Ready};
use flamingo_weights::ModelFolder;
use serde::{Deserialize, Serialize};

use super::{Computed, Run, file_name, in_full};
use crate::batch::Parts;
use crate::checkpoint::{Progress, State};
use crate::shards::Shards;
use crate::{Recipe, RunError};

/// What a worker tells the others after computing its gradients.
#[derive(Serialize, Deserialize)]
struct Report {
    /// Its share of the loss of each batch, in the order of micro-steps and streams, as bits: it may be no number, which
    /// JSON cannot say.
    losses: Vec<u32>,
    tokens: u64,
    pictures: u64,
    /// How long it read data and computed.
    seconds: f64,
    /// Which parameters have a gradient.
    there: Vec<bool>,
    /// Whether it is time for a checkpoint; rank 0's counts.
    save: bool,
}

/// A stream's batch, in parts, and this worker's share of its loss.
struct Share {
    stream: usize,
    parts: Parts,
    share: f64,
}

/// The gradients of a group of parameters, on their way to other workers.
type Sent = (usize, Vec<Option<Coming>>);

/// What a worker knows once its gradients have gone out and others' have come in.
struct Exchanged {
    /// Its part of each bucket, summed.
    parts: Vec<Vec<f32>>,
    /// Which parameters have a gradient here.
    there: Vec<bool>,
}

impl Run {
    /// As one worker would compute it with all workers' rows in one batch, up to rounding: a worker's loss counts by the
    /// tokens that it predicts. Leaves each gradient with its parameter's owner.
    pub(super) fn compute_together(&mut self) -> Result<Computed, RunError> {
        let mut group = std::mem::replace(&mut self.group, Group::alone());
        let computed = self.compute_with(&mut group);
        self.group = group;
        computed
    }

    fn compute_with(&mut self, group: &mut Group) -> Result<Computed, RunError> {
        let (world, rank) = (group.world(), group.rank());
        let (tokens, pictures) = (self.progress.window.tokens, self.progress.window.pictures);
        let (mut losses, mut seconds) = (Vec::new(), 0.0);
        for _ in 1..self.recipe.gradient_accumulation_steps {
            for batch in self.shares(group, &mut seconds)? {
                losses.push(self.learn(batch, None, &mut seconds)?);
            }
        }
        // In the last backward pass gradients go out while others are computed.
        let mut batches = self.shares(group, &mut seconds)?;
        let last = batches.pop();
        for batch in batches {
            losses.push(self.learn(batch, None, &mut seconds)?);
        }
        let (shards, half) = (self.shards.clone(), self.recipe.bf16_gradients);
        let (alarm, exchanging) = (group.alarm(), self.exchanging.clone());
        // Others are told at once, whichever of the two threads fails.
        let tell = |error: &RunError| alarm.fail(&in_full(error));
        let (out, gradients) = mpsc::channel::<Sent>();
        let mut exchanged = None;
        let computed = exchanging.in_place_scope(|scope| {
            scope.spawn(|_| exchanged = Some(exchange(group, &shards, half, gradients).inspect_err(tell)));
            let computed = self.learn_and_send(last, &shards, &out, &mut seconds);
            // The exchange ends where nothing more can come, but not before others have done their part of it.
            drop(out);
            computed.inspect_err(tell)
        });
        losses.extend(computed?);
        let exchanged = exchanged.unwrap_or_else(|| unreachable!("the scope waits for it"))?;
        let report = Report {
            losses: losses.into_iter().map(f32::to_bits).collect(),
            tokens: self.progress.window.tokens - tokens,
            pictures: self.progress.window.pictures - pictures,
            seconds,
            there: exchanged.there,
            save: self.time_is_up(),
        };
        let reports = group.gather(&report)?;
        self.progress.window.tokens = tokens + reports.iter().map(|report| report.tokens).sum::<u64>();
        self.progress.window.pictures = pictures + reports.iter().map(|report| report.pictures).sum::<u64>();
        self.progress.window.computing.resize(world, 0.0);
        for (sum, report) in self.progress.window.computing.iter_mut().zip(&reports) {
            *sum += report.seconds;
        }
        let sum_of = |index: usize| reports.iter().map(|report| f32::from_bits(report.losses[index])).sum::<f32>();
        let losses: Vec<f32> = (0..reports[0].losses.len()).map(sum_of).collect();
        let save = reports[0].save;
        if losses.iter().any(|loss| !loss.is_finite()) {
            return Ok(Computed { losses, norm: 0.0, save });
        }
        let mut parts = exchanged.parts;
        let squares: f64 = parts.iter().flatten().map(|&x| f64::from(x) * f64::from(x)).sum();
        let norm = group.gather(&squares.to_bits())?.into_iter().map(f64::from_bits).sum::<f64>().sqrt();
        let factor = (self.recipe.max_grad_norm / (norm + 1e-6)).min(1.0) as f32;
        parts.iter_mut().flatten().for_each(|x| *x *= factor);
        let there: Vec<bool> =
            (0..reports[0].there.len()).map(|index| reports.iter().any(|report| report.there[index])).collect();
        self.training.set_gradients(self.shards.pieces(rank, &parts, &there))?;
        Ok(Computed { losses, norm, save })
    }

    /// Adds the gradients of a step's last batch; hands out those of each group that has them all, and the rest in the end.
    fn learn_and_send(
        &mut self,
        last: Option<Share>,
        shards: &Shards,
        out: &mpsc::Sender<Sent>,
        seconds: &mut f64,
    ) -> Result<Option<f32>, RunError> {
        let mut next = 0;
        let mut ready = |number: usize, gradients: Vec<Option<Coming>>| {
            next = number + 1;
            // Whoever does not listen any more has an error to tell.
            out.send((number, gradients)).ok();
        };
        let loss = last.map(|last| self.learn(last, Some(&mut ready), seconds)).transpose()?;
        // A GPU may not have done yet what it was told.
        let computing = Instant::now();
        let mut rest = self.training.take_gradients()?;
        *seconds += computing.elapsed().as_secs_f64();
        for number in next..shards.groups() {
            let taken = |&place: &usize| rest[place].take().map(|gradient| -> Coming { Box::new(|| Ok(gradient)) });
            out.send((number, shards.group(number).iter().map(taken).collect())).ok();
        }
        Ok(loss)
    }

    /// The next batch of each stream with this worker's shares, which follow from what the others predict.
    fn shares(&mut self, group: &mut Group, seconds: &mut f64) -> Result<Vec<Share>, RunError> {
        let reading = Instant::now();
        let batches = self.next_batches()?;
        *seconds += reading.elapsed().as_secs_f64();
        let predicted: Vec<usize> = batches.iter().map(|(_, count)| *count).collect();
        let everybodys = group.gather(&predicted)?;
        let share = |(stream, (parts, count)): (usize, (Parts, usize))| {
            let total: usize = everybodys.iter().map(|counts| counts[stream]).sum();
            let share = match count {
                // DistributedDataParallel takes the mean of the workers' means.
                _ if self.recipe.upstream_compat => 1.0 / group.world() as f64,
                0 if total > 0 => 0.0,
                _ => count as f64 / total as f64,
            };
            Share { stream, parts, share }
        };
        Ok(batches.into_iter().enumerate().map(share).collect())
    }

    /// Adds a batch's gradients; returns this worker's share of the loss.
    fn learn(&mut self, batch: Share, ready: Option<Ready>, seconds: &mut f64) -> Result<f32, RunError> {
        let Share { stream, parts, share } = batch;
        let computing = Instant::now();
        self.count(&parts);
        let weight = self.streams[stream].weight / self.recipe.gradient_accumulation_steps as f64;
        let loss = match share {
            0.0 => 0.0,
            _ => share as f32 * self.backward(parts, weight * share, ready)?,
        };
        *seconds += computing.elapsed().as_secs_f64();
        Ok(loss)
    }

    /// Sends the weights that this worker has updated to the others, and takes theirs.
    pub(super) fn share_weights(&mut self) -> Result<(), RunError> {
        if self.group.world() == 1 {
            return Ok(());
        }
        let mine = self.training.owned_weights()?;
        let rows = self.group.share(mine, &self.shards.lengths(), Readers::All)?;
        Ok(self.training.set_weights(&self.shards.join(&rows))?)
    }

    /// For rank 0: the weights, and what the optimizers of all workers remember.
    pub(super) fn state_of_all(&mut self) -> Result<State, RunError> {
        let mut state = self.training.state()?;
        if self.group.world() == 1 {
            return Ok(state);
        }
        let mut memory = state.split_off(state.iter().take_while(|(name, _)| name.starts_with("weight.")).count());
        let shapes: Vec<(String, Vec<usize>)> =
            memory.iter().map(|(name, array)| (name.clone(), array.shape.clone())).collect();
        let shapes = self.group.gather(&shapes)?;
        let count = |shape: &[usize]| shape.iter().product::<usize>();
        let lengths: Vec<usize> =
            shapes.iter().map(|shapes| shapes.iter().map(|(_, shape)| count(shape)).sum()).collect();
        let mine = memory.drain(..).flat_map(|(_, array)| array.data).collect();
        let rows = self.group.share(mine, &lengths, Readers::First)?;
        // A parameter in several rows is remembered in as many pieces, which follow each other.
        let mut whole: BTreeMap<String, Array> = BTreeMap::new();
        for (name, piece) in shapes.into_iter().zip(rows).flat_map(|(shapes, row)| arrays(shapes, &row)) {
            match whole.get_mut(&name) {
                // All have counted the same steps.
                Some(_) if name.starts_with("steps.") => {}
                Some(array) => {
                    array.shape[0] += piece.shape[0];
                    array.data.extend(piece.data);
                }
                None => drop(whole.insert(name, piece)),
            }
        }
        state.extend(whole);
        Ok(state)
    }
}

/// Adds up gradients with other workers, a bucket as soon as it is there; all workers have the same buckets, and fill those for
/// which they have no gradients with zeros. Ends early where no more come.
fn exchange(
    group: &mut Group,
    shards: &Shards,
    half: bool,
    gradients: mpsc::Receiver<Sent>,
) -> Result<Exchanged, RunError> {
    let mut values: Vec<Option<Vec<f32>>> = vec![None; shards.ranges(0).len()];
    let mut there = vec![false; values.len()];
    let mut parts = Vec::new();
    let mut buckets = shards.complete_with().enumerate().peekable();
    for (number, gradients) in gradients {
        for (&place, coming) in shards.group(number).iter().zip(gradients) {
            values[place] = coming.map(|coming| coming()).transpose()?;
            there[place] = values[place].is_some();
        }
        while let Some((bucket, _)) = buckets.next_if(|(_, last)| *last <= number) {
            let split = shards.split(bucket, &values);
            shards.places(bucket).iter().for_each(|&place| values[place] = None);
            // The coordinator sees who is late, and no tensor is asked for before all are here.
            group.gather(&())?;
            parts.push(group.reduce(split, half)?);
        }
    }
    Ok(Exchanged { parts, there })
}

/// What must be the same in all processes, though each reads it for itself: the model, and which shards there are.
pub(super) fn check_alike(
    group: &mut Group,
    recipe: &Recipe,
    folder: &ModelFolder,
    fingerprint: &str,
) -> Result<(), RunError> {
    if group.world() == 1 {
        return Ok(());
    }
    let config = serde_json::to_string(folder.config()).unwrap_or_default();
    let mut seen = vec![config, format!("weights and tokenizer of fingerprint {fingerprint}")];
    for shards in [&recipe.laion_shards, &recipe.mmc4_shards].into_iter().flatten() {
        // Where they lie may differ.
        seen.extend(find_shards(shards)?.iter().map(|shard| file_name(Path::new(shard))));
    }
    let all = group.gather(&seen)?;
    let differs = all.iter().position(|other| *other != all[0]);
    differs.map_or(Ok(()), |rank| {
        let part = all[0].iter().zip(&all[rank]).find(|(a, b)| a != b).map_or("another number of shards", |(_, b)| b);
        Err(RunError::Recipe(format!(
            "rank {rank} has another model or other shards than rank 0 ({part}): give all processes the same files"
        )))
    })
}

/// Values one after the other, as tensors of these shapes.
fn arrays(shapes: Vec<(String, Vec<usize>)>, mut values: &[f32]) -> State {
    let array = |(name, shape): (String, Vec<usize>)| {
        let (data, rest) = values.split_at(shape.iter().product());
        values = rest;
        (name, Array { shape, data: data.to_vec() })
    };
    shapes.into_iter().map(array).collect()
}

/// The checkpoint that rank 0 has, for all workers.
pub(super) fn checkpoint_of_first(
    group: &mut Group,
    last: Option<(Progress, State)>,
) -> Result<Option<(Progress, State)>, RunError> {
    if group.world() == 1 {
        return Ok(last);
    }
    let (progress, state) = last.unzip();
    let state = state.unwrap_or_default();
    let shapes: Vec<(String, Vec<usize>)> =
        state.iter().map(|(name, array)| (name.clone(), array.shape.clone())).collect();
    let Some((Some(progress), shapes)) = group.gather(&(progress, shapes))?.into_iter().next() else { return Ok(None) };
    let mut lengths = vec![0; group.world()];
    lengths[0] = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let values = state.into_iter().flat_map(|(_, array)| array.data).collect();
    let rows = group.share(values, &lengths, Readers::All)?;
    Ok(Some((progress, arrays(shapes, &rows[0]))))
}
