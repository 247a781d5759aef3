//! What is answered to whom.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, Request, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flamingo_data::{IMAGE, Tokenizer};
use flamingo_zoo::Finish;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use crate::api::chat::{
    Answer, ChatChoice, ChatChunk, ChatChunkChoice, ChatLogProb, ChatLogProbs, ChatRequest, ChatResponse, Delta,
    TopLogProb,
};
use crate::api::completions::{CompletionChoice, CompletionLogProbs, CompletionRequest, CompletionResponse};
use crate::api::more::{
    AttentionRequest, AttentionResponse, Embedding, EmbeddingRequest, EmbeddingResponse, EmbeddingUsage,
    EncodingFormat, Features, Look, LookingToken, ModelInfo, ModelList, Score, ScoreRequest, ScoreResponse,
};
use crate::api::{Chosen, Details, Usage};
use crate::app::{App, check_text, now};
use crate::assets;
use crate::body::Received;
use crate::error::{ErrorBody, Refusal};
use crate::job::{Completion, Event, Prompt, Stats, TokenProbability, Work};
use crate::template::Message;

/// Continuations of one request, all its prompts together.
const MAX_CONTINUATIONS: usize = 128;

/// Candidates of a request, and their tokens together.
const MAX_CANDIDATES: usize = 1024;
const MAX_CANDIDATE_TOKENS: usize = 1 << 14;

/// Messages of a chat.
const MAX_MESSAGES: usize = 1024;

/// Shares of attention below this are not worth their digits.
const UNSEEN: f32 = 1e-6;

/// Numbers of a request's attention maps.
const MAX_MAPS: usize = 1 << 22;

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/score", post(score))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/attention", post(attention))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/", get(assets::index))
        .route("/assets/{*name}", get(assets::asset))
        .fallback(async || Refusal::status(StatusCode::NOT_FOUND, "there is nothing at this address"))
        .method_not_allowed_fallback(async |method: Method| {
            let message = format!("this address does not take {method}");
            Refusal::status(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(from_fn_with_state(app.clone(), measure))
        .with_state(app)
}

/// How much later than the model's thread a request is given up here.
pub(crate) const GRACE: Duration = Duration::from_millis(100);

async fn measure(
    State(app): State<Arc<App>>,
    path: Option<MatchedPath>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let started = Instant::now();
    // What comes before the model's queue takes time, too: a body, pictures from elsewhere. The model's thread tells first if it can.
    let response = match tokio::time::timeout(app.options.timeout + GRACE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::timeout("the request took longer than it may").into_response(),
    };
    let route = path.as_ref().map_or("none", MatchedPath::as_str);
    app.metrics.answered(route, response.status().as_u16(), started.elapsed());
    response
}

/// What any request for work may be answered instead.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "for the description alone")]
enum Refusals {
    /// The request is at fault.
    #[response(status = 400)]
    Invalid(ErrorBody),
    /// No such model.
    #[response(status = 404)]
    NoModel(ErrorBody),
    /// It takes too long.
    #[response(status = 408)]
    Late(ErrorBody),
    /// It is too large.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// It is no JSON.
    #[response(status = 415)]
    NoJson(ErrorBody),
    /// The queue is full.
    #[response(status = 429)]
    Overloaded(ErrorBody),
    /// The model or its device failed.
    #[response(status = 500)]
    Failed(ErrorBody),
    /// The server ends.
    #[response(status = 503)]
    Ending(ErrorBody),
}

/// Continues prompts of text and pictures.
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionRequest, responses(
    (status = 200, description = "Continuations; as server-sent events, the last of which is [DONE], with `stream`", content(
        (CompletionResponse = "application/json"), (String = "text/event-stream"))),
    Refusals,
))]
pub(crate) async fn completions(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, Refusal> {
    let received = app.bodies.json::<CompletionRequest>(request).await?;
    let Received { value: request, held, begun } = received;
    app.check_model(request.model.as_deref())?;
    let chosen = request.sampling().check(app.settings(), app.options.max_batch)?;
    let logprobs = match request.logprobs {
        Some(top) if top > 5 => {
            return Err(Refusal::field("logprobs", "logprobs is at most 5 here: chat completions tell up to 20"));
        }
        top => top.map(|top| top as usize),
    };
    let mut prompts = Vec::new();
    let each = request.prompt.into_each();
    let most = MAX_CONTINUATIONS.min(app.options.max_queue * chosen.n);
    if each.is_empty() || each.len().saturating_mul(chosen.n) > most {
        let message = format!("a request has from 1 to {most} continuations, all prompts together");
        return Err(Refusal::field("prompt", message));
    }
    for parts in each {
        prompts.push(app.prompt(parts, chosen.settings.max_new_tokens).await?);
    }
    drop(held);
    let stream = request.stream.unwrap_or(false);
    let answer = Answering::begin(&app, begun, prompts, chosen, logprobs, stream)?;
    let form = CompletionForm {
        id: app.answer_id("cmpl"),
        created: now(),
        model: app.options.name.clone(),
        told: HashMap::new(),
        logprobs: logprobs.is_some(),
    };
    let usage = request.stream_options.unwrap_or_default().include_usage;
    match stream {
        true => streamed(answer, app.tokenizer.clone(), form, usage).await,
        false => {
            let (texts, stats) = answer.all().await?;
            let choices = texts.into_iter().enumerate().map(|(index, text)| {
                let logprobs = logprobs.map(|_| completion_logprobs(&app.tokenizer, &text.tokens, &mut 0));
                CompletionChoice { index, text: text.text, logprobs, finish_reason: text.finish.map(Into::into) }
            });
            let (usage, details) = (Some(Usage::of(&stats)), Some(Details::of(&stats)));
            Ok(Json(form.response(choices.collect(), usage, details)).into_response())
        }
    }
}

/// Continues a conversation, whose answers are demonstrations.
#[utoipa::path(post, path = "/v1/chat/completions", request_body = ChatRequest, responses(
    (status = 200, description = "Answers; as server-sent events, the last of which is [DONE], with `stream`", content(
        (ChatResponse = "application/json"), (String = "text/event-stream"))),
    Refusals,
))]
pub(crate) async fn chat(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Response, Refusal> {
    let received = app.bodies.json::<ChatRequest>(request).await?;
    let Received { value: request, held, begun } = received;
    app.check_model(request.model.as_deref())?;
    let chosen = request.sampling().check(app.settings(), app.options.max_batch)?;
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (_, Some(top)) if top > 20 => return Err(Refusal::field("top_logprobs", "top_logprobs is at most 20")),
        (false, Some(_)) => return Err(Refusal::field("top_logprobs", "top_logprobs needs logprobs to be true")),
        (true, top) => Some(top.unwrap_or(0) as usize),
        (false, None) => None,
    };
    if request.messages.is_empty() || request.messages.len() > MAX_MESSAGES {
        let why = match request.messages.len() {
            0 => "there is no message".to_string(),
            count => format!("there are {count} messages: at most {MAX_MESSAGES} are taken"),
        };
        return Err(Refusal::field("messages", why));
    }
    let (mut messages, mut urls, mut bytes) = (Vec::new(), Vec::new(), 0);
    for message in request.messages {
        let (content, own) = app.joined(message.content.into_parts())?;
        bytes += content.len();
        let text = content.replace(IMAGE, "");
        messages.push(Message { role: message.role.name(), content, text, images: own.len() });
        urls.extend(own);
    }
    app.check_images(urls.len())?;
    app.check_bytes(bytes)?;
    let (template, caption_prompt) = (app.options.template.clone(), app.config.caption_prompt.clone());
    // A template may take its time.
    let rendered = tokio::task::spawn_blocking(move || template.render(&messages, &caption_prompt)).await;
    let text = rendered.map_err(|_| Refusal::failed("the server's template failed"))?;
    let text =
        text.map_err(|why| Refusal::invalid(format!("the server's template cannot write these messages: {why}")))?;
    let prompt = app.prompt_of(text, urls, chosen.settings.max_new_tokens).await?;
    drop(held);
    let stream = request.stream.unwrap_or(false);
    let answer = Answering::begin(&app, begun, vec![prompt], chosen, logprobs, stream)?;
    let form = ChatForm {
        id: app.answer_id("chatcmpl"),
        created: now(),
        model: app.options.name.clone(),
        begun: HashMap::new(),
        logprobs: logprobs.is_some(),
    };
    let usage = request.stream_options.unwrap_or_default().include_usage;
    if stream {
        return streamed(answer, app.tokenizer.clone(), form, usage).await;
    }
    let (texts, stats) = answer.all().await?;
    let choices = texts.into_iter().enumerate().map(|(index, text)| ChatChoice {
        index,
        message: Answer { role: "assistant", content: text.text.trim_start().to_string(), refusal: None },
        logprobs: logprobs.map(|_| chat_logprobs(&app.tokenizer, &text.tokens)),
        finish_reason: text.finish.unwrap_or(Finish::Length).into(),
    });
    Ok(Json(ChatResponse {
        id: form.id,
        object: "chat.completion",
        created: form.created,
        model: form.model,
        choices: choices.collect(),
        usage: Usage::of(&stats),
        flamingo: Details::of(&stats),
    })
    .into_response())
}

/// Compares candidates by how likely they follow a prompt.
#[utoipa::path(post, path = "/v1/score", request_body = ScoreRequest, responses(
    (status = 200, description = "How likely each is", body = ScoreResponse),
    Refusals,
))]
pub(crate) async fn score(State(app): State<Arc<App>>, request: Request<Body>) -> Result<Json<ScoreResponse>, Refusal> {
    let received = app.bodies.json::<ScoreRequest>(request).await?;
    let Received { value: request, held, begun } = received;
    app.check_model(request.model.as_deref())?;
    if request.candidates.is_empty() || request.candidates.len() > MAX_CANDIDATES {
        return Err(Refusal::field("candidates", format!("there are from 1 to {MAX_CANDIDATES} candidates")));
    }
    let mut candidates = Vec::with_capacity(request.candidates.len());
    for (i, text) in request.candidates.iter().enumerate() {
        check_text(text)?;
        let ids = app.tokens(text.clone(), false).await?;
        if ids.is_empty() {
            return Err(Refusal::field("candidates", format!("candidate {i} is empty: there is nothing to compare")));
        }
        candidates.push(ids);
    }
    let tokens: usize = candidates.iter().map(Vec::len).sum();
    if tokens > MAX_CANDIDATE_TOKENS {
        let message =
            format!("the candidates have {tokens} tokens together: at most {MAX_CANDIDATE_TOKENS} are compared");
        return Err(Refusal::field("candidates", message));
    }
    let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
    let prompt = app.prompt(request.prompt.into_parts(), longest).await?;
    drop(held);
    let (scores, stats) = ask(&app, begun, |answer| Work::Score { prompt, candidates, answer }).await?;
    let best = scores.iter().map(|score| score.total).fold(f64::NEG_INFINITY, f64::max);
    let all: f64 = scores.iter().map(|score| (score.total - best).exp()).sum();
    let each = request.candidates.into_iter().zip(scores).enumerate();
    let data = each.map(|(index, (candidate, score))| Score {
        index,
        candidate,
        log_prob: score.total,
        mean_log_prob: score.mean,
        tokens: score.tokens,
        probability: (score.total - best).exp() / all,
    });
    Ok(Json(ScoreResponse {
        object: "list",
        model: app.options.name.clone(),
        data: data.collect(),
        usage: Usage::of(&stats),
        flamingo: Details::of(&stats),
    }))
}

/// CLIP's features of pictures, of length 1.
#[utoipa::path(post, path = "/v1/embeddings", request_body = EmbeddingRequest, responses(
    (status = 200, description = "The features of each", body = EmbeddingResponse),
    Refusals,
))]
pub(crate) async fn embeddings(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<EmbeddingResponse>, Refusal> {
    let received = app.bodies.json::<EmbeddingRequest>(request).await?;
    let Received { value: request, held, begun } = received;
    app.check_model(request.model.as_deref())?;
    let urls = request.input.into_urls();
    if urls.is_empty() {
        return Err(Refusal::field("input", "there is no picture"));
    }
    app.check_images(urls.len())?;
    let views = app.pictures.views(urls).await?;
    drop(held);
    let features = ask(&app, begun, |answer| Work::Embed { views, answer }).await?;
    let embedding = |features: Vec<f32>| match request.encoding_format {
        EncodingFormat::Float => Features::Numbers(features),
        EncodingFormat::Base64 => {
            let bytes: Vec<u8> = features.iter().flat_map(|x| x.to_le_bytes()).collect();
            Features::Base64(BASE64_STANDARD.encode(bytes))
        }
    };
    let each = features.into_iter().enumerate();
    let data = each.map(|(index, own)| Embedding { object: "embedding", index, embedding: embedding(own) }).collect();
    Ok(Json(EmbeddingResponse {
        object: "list",
        model: app.options.name.clone(),
        data,
        usage: EmbeddingUsage::default(),
    }))
}

/// Where a text looked: for each token the patches of the pictures that it saw.
#[utoipa::path(post, path = "/v1/attention", request_body = AttentionRequest, responses(
    (status = 200, description = "Where each token looked", body = AttentionResponse),
    Refusals,
))]
pub(crate) async fn attention(
    State(app): State<Arc<App>>,
    request: Request<Body>,
) -> Result<Json<AttentionResponse>, Refusal> {
    let received = app.bodies.json::<AttentionRequest>(request).await?;
    let Received { value: request, held, begun } = received;
    app.check_model(request.model.as_deref())?;
    check_text(&request.completion)?;
    let (text, urls) = app.joined(request.prompt.into_parts())?;
    if urls.is_empty() {
        return Err(Refusal::field("prompt", "there is no picture to look at: give one at least"));
    }
    let mut ids = app.prompt_tokens(text, urls.len()).await?;
    let prompt_tokens = ids.len();
    ids.extend(app.tokens(request.completion, false).await?);
    app.check_length(ids.len(), 0)?;
    let [height, width] = app.info.flamingo.grid;
    let (images, patches) = (urls.len(), height * width);
    if ids.len() * images * patches > MAX_MAPS {
        return Err(Refusal::invalid("so many tokens and pictures make too large an answer: ask for fewer"));
    }
    let views = app.pictures.views(urls).await?;
    drop(held);
    let own = ids.clone();
    let maps = ask(&app, begun, |answer| Work::Attend { ids: own, views, answer }).await?;
    let image = app.config.tokens.image;
    let mut marks = 0..;
    let tokens = ids.iter().zip(maps.data.chunks(images * patches)).enumerate().map(|(i, (&id, maps))| LookingToken {
        text: app.tokenizer.decode(&[id], false),
        image: if id == image { marks.next() } else { None },
        completion: i >= prompt_tokens,
        looks: maps
            .chunks(patches)
            .enumerate()
            .filter(|(_, map)| map.iter().sum::<f32>() > UNSEEN)
            .map(|(image, map)| Look { image, map: map.to_vec() })
            .collect(),
    });
    Ok(Json(AttentionResponse {
        object: "attention",
        model: app.options.name.clone(),
        grid: [height, width],
        tokens: tokens.collect(),
    }))
}

/// The models of this server: one.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, description = "The models", body = ModelList)))]
pub(crate) async fn models(State(app): State<Arc<App>>) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![app.info.clone()] })
}

/// A model of this server.
#[utoipa::path(get, path = "/v1/models/{id}", params(("id" = String, Path, description = "Its name")), responses(
    (status = 200, description = "The model", body = ModelInfo),
    (status = 404, description = "No such model", body = ErrorBody),
))]
pub(crate) async fn model(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<ModelInfo>, Refusal> {
    app.check_model(Some(&id))?;
    Ok(Json(app.info.clone()))
}

/// A server that answers.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Status {
    /// `ok`, `ready` or `not ready`.
    status: &'static str,
}

/// Whether the server answers at all.
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It does", body = Status)))]
pub(crate) async fn health() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Whether requests are taken.
#[utoipa::path(get, path = "/ready", responses(
    (status = 200, description = "They are", body = Status),
    (status = 503, description = "They are not: the server ends, or its model is gone", body = Status),
))]
pub(crate) async fn ready(State(app): State<Arc<App>>) -> (StatusCode, Json<Status>) {
    match app.ready() {
        true => (StatusCode::OK, Json(Status { status: "ready" })),
        false => (StatusCode::SERVICE_UNAVAILABLE, Json(Status { status: "not ready" })),
    }
}

/// Counters in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, description = "Counters", body = String, content_type = "application/openmetrics-text"),
))]
pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Refusal> {
    let bytes = app.pictures.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).bytes();
    let queue = app.jobs.max_capacity() - app.jobs.capacity();
    let text = app.metrics.text(queue, bytes).map_err(|e| Refusal::failed(e.to_string()))?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], crate::document()).into_response()
}

/// Asks the model for something that it answers in one piece.
async fn ask<T>(
    app: &App,
    begun: Instant,
    work: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Work,
) -> Result<T, Refusal> {
    let (sender, receiver) = oneshot::channel();
    app.submit(vec![work(sender)], begun)?;
    receiver.await.unwrap_or_else(|_| Err(gone()))
}

fn gone() -> Refusal {
    Refusal::unavailable("the model is gone: start the server again")
}

/// A request whose continuations are being written.
struct Answering {
    events: mpsc::UnboundedReceiver<Event>,
    prompts: usize,
    continuations: usize,
}

/// A continuation that has ended.
#[derive(Clone, Default)]
struct Written {
    text: String,
    tokens: Vec<TokenProbability>,
    finish: Option<Finish>,
}

impl Answering {
    fn begin(
        app: &App,
        begun: Instant,
        prompts: Vec<Prompt>,
        chosen: Chosen,
        logprobs: Option<usize>,
        stream: bool,
    ) -> Result<Self, Refusal> {
        let (sender, events) = mpsc::unbounded_channel();
        let Chosen { settings, n, stops } = chosen;
        let answering = Self { events, prompts: prompts.len(), continuations: prompts.len() * n };
        let work = |(i, prompt)| {
            let (settings, stops) = (settings.clone(), stops.clone());
            let completion = Completion { prompt, settings, n, first: i * n, stops, logprobs, stream };
            Work::Complete { completion, events: sender.clone() }
        };
        app.submit(prompts.into_iter().enumerate().map(work).collect(), begun)?;
        Ok(answering)
    }

    /// Waits for all of it.
    async fn all(mut self) -> Result<(Vec<Written>, Stats), Refusal> {
        let mut texts = vec![Written::default(); self.continuations];
        let mut all = Stats::default();
        let mut going = self.prompts;
        while going > 0 {
            match self.events.recv().await {
                Some(Event::Piece { index, text, tokens }) => {
                    texts[index].text += &text;
                    texts[index].tokens.extend(tokens);
                }
                Some(Event::End { index, finish }) => texts[index].finish = Some(finish),
                Some(Event::Done(stats)) => {
                    all.add(&stats);
                    going -= 1;
                }
                Some(Event::Failed(refusal)) => return Err(refusal),
                None => return Err(gone()),
            }
        }
        Ok((texts, all))
    }
}

/// How pieces of an answer are written.
trait Form: Send + 'static {
    /// A piece of a continuation; with its end, and then what all took, where it is the last.
    fn chunk(
        &mut self,
        tokenizer: &Tokenizer,
        index: usize,
        text: String,
        tokens: Vec<TokenProbability>,
        finish: Option<Finish>,
        details: Option<Details>,
    ) -> Vec<String>;

    /// How many tokens were read and written.
    fn usage(&self, usage: Usage) -> String;
}

/// What a stream still has to send.
struct Streaming<F> {
    answering: Answering,
    tokenizer: Arc<Tokenizer>,
    form: F,
    usage: bool,
    stats: Stats,
    going: usize,
    /// The end of a continuation, held back: the last of all carries what they took.
    end: Option<(usize, Finish)>,
    ready: std::collections::VecDeque<String>,
    over: bool,
}

/// An answer in pieces. What is refused at once is refused with its own status.
async fn streamed<F: Form>(
    mut answering: Answering,
    tokenizer: Arc<Tokenizer>,
    form: F,
    usage: bool,
) -> Result<Response, Refusal> {
    let first = match answering.events.recv().await {
        Some(Event::Failed(refusal)) => return Err(refusal),
        None => return Err(gone()),
        Some(event) => event,
    };
    let going = answering.prompts;
    let mut streaming = Streaming {
        answering,
        tokenizer,
        form,
        usage,
        stats: Stats::default(),
        going,
        end: None,
        ready: std::collections::VecDeque::new(),
        over: false,
    };
    streaming.take(first);
    let pieces = stream::unfold(streaming, |mut streaming| async move {
        loop {
            if let Some(data) = streaming.ready.pop_front() {
                return Some((Ok::<_, Infallible>(Sent::default().data(data)), streaming));
            }
            if streaming.over {
                return None;
            }
            let event = streaming.answering.events.recv().await.unwrap_or_else(|| Event::Failed(gone()));
            streaming.take(event);
        }
    });
    Ok(Sse::new(pieces).keep_alive(KeepAlive::default()).into_response())
}

impl<F: Form> Streaming<F> {
    fn take(&mut self, event: Event) {
        match event {
            Event::Piece { index, text, tokens } => {
                let chunks = self.form.chunk(&self.tokenizer, index, text, tokens, None, None);
                self.ready.extend(chunks);
            }
            Event::End { index, finish } => {
                self.close(None);
                self.end = Some((index, finish));
            }
            Event::Done(stats) => {
                self.stats.add(&stats);
                self.going -= 1;
                if self.going == 0 {
                    self.close(Some(Details::of(&self.stats)));
                    if self.usage {
                        self.ready.push_back(self.form.usage(Usage::of(&self.stats)));
                    }
                    self.ready.push_back("[DONE]".into());
                    self.over = true;
                }
            }
            Event::Failed(refusal) => {
                self.ready.push_back(json(&refusal.body()));
                self.over = true;
            }
        }
    }

    /// Sends the end that was held back.
    fn close(&mut self, details: Option<Details>) {
        if let Some((index, finish)) = self.end.take() {
            let chunks = self.form.chunk(&self.tokenizer, index, String::new(), Vec::new(), Some(finish), details);
            self.ready.extend(chunks);
        }
    }
}

struct CompletionForm {
    id: String,
    created: u64,
    model: String,
    /// Characters of each continuation whose tokens' probabilities were told.
    told: HashMap<usize, usize>,
    logprobs: bool,
}

impl CompletionForm {
    fn response(
        &self,
        choices: Vec<CompletionChoice>,
        usage: Option<Usage>,
        flamingo: Option<Details>,
    ) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            flamingo,
        }
    }
}

impl Form for CompletionForm {
    fn chunk(
        &mut self,
        tokenizer: &Tokenizer,
        index: usize,
        text: String,
        tokens: Vec<TokenProbability>,
        finish: Option<Finish>,
        details: Option<Details>,
    ) -> Vec<String> {
        let told = self.told.entry(index).or_default();
        let logprobs = self.logprobs.then(|| completion_logprobs(tokenizer, &tokens, told));
        let choice = CompletionChoice { index, text, logprobs, finish_reason: finish.map(Into::into) };
        vec![json(&self.response(vec![choice], None, details))]
    }

    fn usage(&self, usage: Usage) -> String {
        json(&self.response(Vec::new(), Some(usage), None))
    }
}

struct ChatForm {
    id: String,
    created: u64,
    model: String,
    /// Whether each answer has any text yet: the space that it begins with is left out.
    begun: HashMap<usize, bool>,
    logprobs: bool,
}

impl ChatForm {
    fn response(&self, choices: Vec<ChatChunkChoice>, usage: Option<Usage>, flamingo: Option<Details>) -> String {
        json(&ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            flamingo,
        })
    }
}

impl Form for ChatForm {
    fn chunk(
        &mut self,
        tokenizer: &Tokenizer,
        index: usize,
        text: String,
        tokens: Vec<TokenProbability>,
        finish: Option<Finish>,
        details: Option<Details>,
    ) -> Vec<String> {
        let mut chunks = Vec::new();
        let choice = |delta, logprobs, finish: Option<Finish>| {
            vec![ChatChunkChoice { index, delta, logprobs, finish_reason: finish.map(Into::into) }]
        };
        if !self.begun.contains_key(&index) {
            let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
            chunks.push(self.response(choice(delta, None, None), None, None));
        }
        let has_text = self.begun.entry(index).or_default();
        let text = if *has_text { text } else { text.trim_start().to_string() };
        *has_text |= !text.is_empty();
        let logprobs = (self.logprobs && !tokens.is_empty()).then(|| chat_logprobs(tokenizer, &tokens));
        let content = finish.is_none().then_some(text);
        chunks.push(self.response(choice(Delta { role: None, content }, logprobs, finish), None, details));
        chunks
    }

    fn usage(&self, usage: Usage) -> String {
        self.response(Vec::new(), Some(usage), None)
    }
}

/// Log-probabilities in OpenAI's older form; `told` counts the characters before them.
fn completion_logprobs(tokenizer: &Tokenizer, tokens: &[TokenProbability], told: &mut usize) -> CompletionLogProbs {
    let mut all = CompletionLogProbs::default();
    for token in tokens {
        let text = tokenizer.decode(&[token.id], false);
        all.text_offset.push(*told);
        *told += text.chars().count();
        all.tokens.push(text);
        all.token_logprobs.push(token.log_prob);
        all.top_logprobs
            .push(token.top.iter().map(|&(id, log_prob)| (tokenizer.decode(&[id], false), log_prob)).collect());
    }
    all
}

/// Log-probabilities in OpenAI's newer form.
fn chat_logprobs(tokenizer: &Tokenizer, tokens: &[TokenProbability]) -> ChatLogProbs {
    let likely = |&(id, logprob): &(u32, f32)| {
        let token = tokenizer.decode(&[id], false);
        TopLogProb { bytes: tokenizer.token_bytes(id), token, logprob }
    };
    let content = tokens.iter().map(|token| {
        let TopLogProb { token: text, logprob, bytes } = likely(&(token.id, token.log_prob));
        ChatLogProb { token: text, logprob, bytes, top_logprobs: token.top.iter().map(likely).collect() }
    });
    ChatLogProbs { content: content.collect(), refusal: None }
}

/// One line of JSON. Nothing that is written here can fail to be.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
