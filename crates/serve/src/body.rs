//! Bodies of requests: JSON of a limited size, in a limited time, within the memory that all requests share.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::Refusal;

/// Memory is counted in pieces of this size.
const PIECE: usize = 1024;

/// How many times the largest body a client may still send after it was refused.
const DISCARDED: usize = 4;

/// Memory for bodies that are being read.
#[derive(Clone, Debug)]
pub(crate) struct Bodies {
    max_body: usize,
    time: Duration,
    room: Arc<Semaphore>,
}

/// What was sent, and the memory that it holds until it is dropped.
pub(crate) struct Received<T> {
    pub(crate) value: T,
    pub(crate) held: OwnedSemaphorePermit,
    /// When it began to come.
    pub(crate) begun: std::time::Instant,
}

impl Bodies {
    pub(crate) fn new(max_body: usize, all: usize, time: Duration) -> Self {
        let room = (all.max(max_body) / PIECE + 1).min(Semaphore::MAX_PERMITS);
        Self { max_body, time, room: Arc::new(Semaphore::new(room)) }
    }

    /// Reads a body of JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<Received<T>, Refusal> {
        let begun = std::time::Instant::now();
        check_type(request.headers())?;
        let (bytes, held) = self.bytes(request).await?;
        let value = parse(&bytes)?;
        Ok(Received { value, held, begun })
    }

    async fn bytes(&self, request: Request<Body>) -> Result<(Vec<u8>, OwnedSemaphorePermit), Refusal> {
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let mut frames = request.into_body().into_data_stream();
        let deadline = Instant::now() + self.time;
        let too_large = length.is_some_and(|length| length > self.max_body as u64);
        // Room for all that was announced, so that large requests do not wait for each other with parts of it.
        let pieces = if too_large { 0 } else { (length.unwrap_or(0) as usize).div_ceil(PIECE) };
        let room = timeout_at(deadline, self.room.clone().acquire_many_owned(pieces as u32)).await;
        let held = room.map_err(|_| Refusal::overloaded())?.map_err(|_| Refusal::unavailable("the server ends"))?;
        let read = if too_large { Ok(None) } else { timeout_at(deadline, self.read(&mut frames, held)).await };
        let read = read.map_err(|_| {
            Refusal::timeout(format!("the request was not sent within {} seconds", self.time.as_secs_f32()))
        })?;
        if let Some(read) = read {
            return read;
        }
        // Most clients hear a refusal only when they have sent all they have to say.
        let _ = timeout_at(deadline, discard(&mut frames, self.max_body.saturating_mul(DISCARDED))).await;
        let message = format!("the request is larger than the {} bytes that are taken", self.max_body);
        Err(Refusal::status(StatusCode::PAYLOAD_TOO_LARGE, message).coded("request_too_large"))
    }

    /// A whole body and the memory that it holds, or `None` if it is too large.
    async fn read(
        &self,
        frames: &mut BodyDataStream,
        mut held: OwnedSemaphorePermit,
    ) -> Option<Result<(Vec<u8>, OwnedSemaphorePermit), Refusal>> {
        let mut bytes: Vec<u8> = Vec::new();
        while let Some(frame) = frames.next().await {
            let Ok(frame) = frame else { return Some(Err(Refusal::invalid("the request broke off"))) };
            if bytes.len() + frame.len() > self.max_body {
                return None;
            }
            bytes.extend_from_slice(&frame);
            let missing = bytes.len().div_ceil(PIECE).saturating_sub(held.num_permits());
            if missing > 0 {
                match self.room.clone().acquire_many_owned(missing as u32).await {
                    Ok(more) => held.merge(more),
                    Err(_) => return Some(Err(Refusal::unavailable("the server ends"))),
                }
            }
        }
        Some(Ok((bytes, held)))
    }
}

/// Reads JSON; what is wrong is said with where it is.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
        let (path, why) = (e.path().to_string(), e.into_inner());
        // What is no JSON, or lacks a field, is nowhere.
        match path.as_str() {
            "." | "?" => Refusal::invalid(format!("the request is not the JSON that is expected here: {why}")),
            path => Refusal::field(path, format!("{path}: {why}")),
        }
        .coded("invalid_json")
    })?;
    reader
        .end()
        .map_err(|e| Refusal::invalid(format!("something follows the request's JSON: {e}")).coded("invalid_json"))?;
    Ok(value)
}

/// Reads what is sent and forgets it, up to a limit.
async fn discard(frames: &mut BodyDataStream, limit: usize) {
    let mut read = 0;
    while let Some(Ok(frame)) = frames.next().await {
        read += frame.len();
        if read > limit {
            return;
        }
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    // Without it any page in a browser could send something here unasked.
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || kind.ends_with("+json") {
        return Ok(());
    }
    let message = "the request's content-type is not application/json: send JSON and this header";
    Err(Refusal::status(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}
