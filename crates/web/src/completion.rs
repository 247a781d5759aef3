//! Continuations of a prompt, token by token.

use flamingo_engine::{Batch, Next, Seat, SessionOptions};
use flamingo_generate::log_softmax;
use flamingo_zoo::{Finish, Writing};
use serde_json::{Map, Value};
use web_time::{Instant, SystemTime, UNIX_EPOCH};

use crate::answer::{Choice, Completed, Details, LogProbs, Usage, milliseconds};
use crate::request::CompletionRequest;
use crate::{Flamingo, Pictures, WebError};

/// Continuations of a prompt that are being made.
pub struct Completion<'a> {
    flamingo: &'a Flamingo,
    batch: Box<dyn Batch + 'a>,
    texts: Vec<Text<'a>>,
    /// Tokens that were chosen and not read yet.
    next: Vec<(Seat, Next<'static>)>,
    /// How many alternatives are told for each token, if any.
    alternatives: Option<usize>,
    id: String,
    created: u64,
    prompt_tokens: usize,
    details: Details,
}

/// One continuation.
struct Text<'a> {
    seat: Seat,
    writing: Writing<'a>,
    /// What may come next.
    logits: Vec<f32>,
    text: String,
    log_probs: Option<LogProbs>,
}

impl Text<'_> {
    fn ended(&self) -> bool {
        self.writing.finish().is_some()
    }

    fn finish_reason(&self) -> &'static str {
        match self.writing.finish() {
            Some(Finish::Stop) => "stop",
            Some(Finish::Length) | None => "length",
        }
    }
}

impl<'a> Completion<'a> {
    pub(crate) fn new(
        flamingo: &'a Flamingo,
        request: CompletionRequest,
        pictures: Pictures,
    ) -> Result<Self, WebError> {
        let model = flamingo.model();
        let number = flamingo.number();
        let settings = request.settings(model.settings(0), number)?;
        let (count, stops, alternatives) = (request.choices()?, request.stops()?, request.alternatives()?);
        let looked = flamingo.look(request.prompt.with(pictures.into_vec())?)?;
        let (text, latents) = model.inputs(&looked.prompt)?;
        let prompt_tokens = text.ids.len();
        let longest = model.config().decoder.architecture().max_positions;
        if prompt_tokens.saturating_add(settings.max_new_tokens) > longest {
            return Err(WebError::Request(format!(
                "{prompt_tokens} tokens of the prompt and {} new ones are more than the {longest} that the model reads",
                settings.max_new_tokens
            )));
        }
        let mut details = looked.details(prompt_tokens);
        let start = Instant::now();
        let mut batch = model.engine().batch();
        let options = SessionOptions { reserve: prompt_tokens + settings.max_new_tokens, ..SessionOptions::default() };
        let first = batch.open(latents.as_ref(), options)?;
        let logits = batch.step(&[(first, Next::Prompt(&text.ids))])?;
        let mut texts = Vec::with_capacity(count);
        for index in 0..count {
            texts.push(Text {
                seat: if index == 0 { first } else { batch.fork(first)? },
                writing: Writing::new(model, text.ids.clone(), &settings, stops.clone(), index)?,
                logits: logits.clone(),
                text: String::new(),
                log_probs: alternatives.map(|_| LogProbs::default()),
            });
        }
        details.timings.prefill_ms = milliseconds(start.elapsed());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = format!("cmpl-{number}");
        Ok(Self { flamingo, batch, texts, next: Vec::new(), alternatives, id, created, prompt_tokens, details })
    }

    /// One token more in each continuation that has not ended. Returns the pieces of text that became whole with them, each as
    /// the server streams it; nothing once all have ended.
    ///
    /// # Errors
    /// [`WebError`] if the model fails.
    pub fn step(&mut self) -> Result<Option<Vec<String>>, WebError> {
        if self.texts.iter().all(Text::ended) {
            return Ok(None);
        }
        let start = Instant::now();
        if !self.next.is_empty() {
            let logits = self.batch.step(&self.next)?;
            let mut logits = logits.chunks_exact(self.flamingo.model().config().tokens.vocab_size);
            for text in self.texts.iter_mut().filter(|text| !text.ended()) {
                text.logits = logits.next().unwrap_or_default().to_vec();
            }
            self.next.clear();
        }
        let mut pieces = Vec::new();
        for index in 0..self.texts.len() {
            if self.texts[index].ended() {
                continue;
            }
            let piece = self.choose(index)?;
            let text = &self.texts[index];
            if !text.ended() {
                self.next.extend(text.writing.ids().last().map(|&token| (text.seat, Next::Written(token))));
            }
            if !piece.is_empty() {
                let choice = Choice { index, text: piece, finish_reason: None, logprobs: None };
                pieces.push(serde_json::to_string(&self.completed(vec![choice], None, None))?);
            }
        }
        self.details.timings.decode_ms += milliseconds(start.elapsed());
        Ok(Some(pieces))
    }

    /// The whole answer, of what there is.
    ///
    /// # Errors
    /// [`WebError::Json`] if it cannot be written down.
    pub fn finish(self) -> Result<String, WebError> {
        let choices = self.texts.iter().enumerate().map(|(index, text)| Choice {
            index,
            text: text.text.clone(),
            finish_reason: Some(text.finish_reason()),
            logprobs: text.log_probs.clone(),
        });
        let tokens = self.texts.iter().map(|text| text.writing.ids().len()).sum();
        let usage = Usage::new(self.prompt_tokens, tokens);
        let answer = self.completed(choices.collect(), Some(usage), Some(self.details.clone()));
        Ok(serde_json::to_string(&answer)?)
    }

    /// Chooses a token of one continuation and returns the text that became whole with it.
    fn choose(&mut self, index: usize) -> Result<String, WebError> {
        let tokenizer = self.flamingo.model().tokenizer();
        let text = &mut self.texts[index];
        let mut log_probs = Vec::new();
        if self.alternatives.is_some() {
            log_probs = text.logits.clone();
            log_softmax(&mut log_probs);
        }
        let (token, piece) = text.writing.choose(&mut text.logits)?;
        if let (Some(told), Some(count)) = (&mut text.log_probs, self.alternatives) {
            let name = |token: u32| tokenizer.decode(&[token], false);
            let mut order: Vec<u32> = (0..log_probs.len() as u32).collect();
            order.sort_by(|&a, &b| log_probs[b as usize].total_cmp(&log_probs[a as usize]));
            let top = order.iter().take(count).map(|&token| (name(token), Value::from(log_probs[token as usize])));
            told.tokens.push(name(token));
            told.token_logprobs.push(log_probs[token as usize]);
            told.top_logprobs.push(top.collect::<Map<_, _>>());
            told.text_offset.push(text.text.chars().count());
        }
        text.text += &piece;
        Ok(piece)
    }

    fn completed(&self, choices: Vec<Choice>, usage: Option<Usage>, flamingo: Option<Details>) -> Completed {
        Completed {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.flamingo.model().config().name.clone(),
            choices,
            usage,
            flamingo,
        }
    }
}
