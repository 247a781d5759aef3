//! Adding up what there is to say about samples.

use super::distribution::{Bars, Reservoir};
use super::sample::{Facts, Kind};
use super::{InspectOptions, Kept, Members, Samples, Summary, Texts};
use crate::Skipped;
use crate::prepare::{Counts, count};

/// Thresholds that are compared, in hundredths.
const THRESHOLDS: std::ops::RangeInclusive<u32> = 20..=40;

/// Extensions that are told apart; a damaged or hostile shard may have millions.
const EXTENSIONS: usize = 64;

/// Lengths of texts, as they come.
struct Lengths {
    characters: Reservoir,
    tokens: Reservoir,
}

/// What was seen so far.
pub(super) struct Collector<'a> {
    pub(super) options: &'a InspectOptions,
    pub(super) shards: u64,
    samples: Samples,
    members: std::collections::BTreeMap<String, Members>,
    damage: Counts,
    formats: Counts,
    unusable: Counts,
    width: Reservoir,
    height: Reservoir,
    picture_bytes: Reservoir,
    captions: Lengths,
    texts: Lengths,
    pictures_per_document: Reservoir,
    similarity: Bars,
    thresholds: Vec<Kept>,
}

impl<'a> Collector<'a> {
    pub(super) fn new(options: &'a InspectOptions) -> Self {
        let kept = |hundredths| Kept { threshold: f64::from(hundredths) / 100.0, documents: 0, pictures: 0 };
        Self {
            options,
            shards: 0,
            samples: Samples::default(),
            members: Default::default(),
            damage: Counts::new(),
            formats: Counts::new(),
            unusable: Counts::new(),
            width: Reservoir::new(),
            height: Reservoir::new(),
            picture_bytes: Reservoir::new(),
            captions: Lengths::new(),
            texts: Lengths::new(),
            pictures_per_document: Reservoir::new(),
            similarity: Bars::new(),
            thresholds: THRESHOLDS.step_by(2).map(kept).collect(),
        }
    }

    /// Samples so far.
    pub(super) fn seen(&self) -> u64 {
        let Samples { pairs, documents, generated, unknown } = self.samples;
        pairs + documents + generated + unknown
    }

    pub(super) fn add(&mut self, facts: Facts) {
        match facts.kind {
            Kind::Pair => self.samples.pairs += 1,
            Kind::Document => self.samples.documents += 1,
            Kind::Generated => self.samples.generated += 1,
            Kind::Unknown => self.samples.unknown += 1,
        }
        for (extension, bytes) in facts.members {
            let known = self.members.len() < EXTENSIONS || self.members.contains_key(&extension);
            let members = self.members.entry(if known { extension } else { "others".into() }).or_default();
            members.count += 1;
            members.bytes += bytes;
        }
        for picture in facts.pictures {
            match picture {
                Ok(size) => {
                    count(&mut self.formats, size.format);
                    self.width.add(size.width.into());
                    self.height.add(size.height.into());
                    self.picture_bytes.add(size.bytes as u64);
                }
                Err(reason) => count(&mut self.unusable, reason),
            }
        }
        facts.problems.iter().for_each(|problem| count(&mut self.unusable, problem));
        let texts = if facts.kind == Kind::Pair { &mut self.captions } else { &mut self.texts };
        if let Some((characters, tokens)) = facts.text {
            texts.characters.add(characters);
            tokens.into_iter().for_each(|tokens| texts.tokens.add(tokens));
        }
        if matches!(facts.kind, Kind::Document | Kind::Generated) {
            self.pictures_per_document.add(facts.named as u64);
        }
        self.compare(&facts.similarities);
    }

    /// Counts what each threshold keeps of a document, as [`crate::DocumentRules`] would.
    fn compare(&mut self, similarities: &[f64]) {
        similarities.iter().for_each(|&similarity| self.similarity.add(similarity));
        let rules = &self.options.rules;
        for kept in &mut self.thresholds {
            let enough = similarities.iter().filter(|&&similarity| similarity >= kept.threshold).count();
            let pictures = enough.min(rules.max_num_images);
            if pictures >= rules.min_num_images.max(1) {
                kept.documents += 1;
                kept.pictures += pictures as u64;
            }
        }
    }

    /// Counts what was left out of a shard.
    pub(super) fn damaged(&mut self, skipped: Skipped) {
        for (kind, found, _) in skipped.kinds() {
            if found > 0 {
                *self.damage.entry(kind.into()).or_default() += found as u64;
            }
        }
    }

    pub(super) fn finish(self) -> Summary {
        Summary {
            shards: self.shards,
            samples: self.samples,
            members: self.members,
            damage: self.damage,
            formats: self.formats,
            unusable: self.unusable,
            width: self.width.finish(),
            height: self.height.finish(),
            picture_bytes: self.picture_bytes.finish(),
            captions: self.captions.finish(),
            texts: self.texts.finish(),
            pictures_per_document: self.pictures_per_document.finish(),
            similarity: self.similarity.finish(),
            thresholds: self.thresholds,
        }
    }
}

impl Lengths {
    fn new() -> Self {
        Self { characters: Reservoir::new(), tokens: Reservoir::new() }
    }

    fn finish(self) -> Texts {
        Texts { characters: self.characters.finish(), tokens: self.tokens.finish() }
    }
}
