//! Bodies of requests: JSON of a limited size, in a limited time, within the memory that all requests share.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, Request, StatusCode};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::Refusal;

/// Memory is counted in pieces of this size.
const PIECE: usize = 1024;

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
    pub(crate) held: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(crate) fn new(max_body: usize, all: usize, time: Duration) -> Self {
        let room = (all.max(max_body) / PIECE + 1).min(Semaphore::MAX_PERMITS);
        Self { max_body, time, room: Arc::new(Semaphore::new(room)) }
    }

    /// Reads a body of JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&self, request: Request<Body>) -> Result<Received<T>, Refusal> {
        check_type(request.headers())?;
        let (bytes, held) = timeout(self.time, self.bytes(request)).await.map_err(|_| {
            Refusal::timeout(format!("the request was not sent within {} seconds", self.time.as_secs_f32()))
        })??;
        let value = serde_json::from_slice(&bytes).map_err(|e| {
            Refusal::invalid(format!("the request's body is not the JSON that is expected here: {e}"))
                .coded("invalid_json")
        })?;
        Ok(Received { value, held })
    }

    async fn bytes(&self, request: Request<Body>) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Refusal> {
        let too_large = || {
            let message = format!("the request is larger than the {} bytes that are taken", self.max_body);
            Refusal::status(StatusCode::PAYLOAD_TOO_LARGE, message).coded("request_too_large")
        };
        let announced =
            request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > self.max_body as u64) {
            return Err(too_large());
        }
        let mut frames = request.into_body().into_data_stream();
        let (mut bytes, mut held): (Vec<u8>, Option<OwnedSemaphorePermit>) = (Vec::new(), None);
        while let Some(frame) = frames.next().await {
            let frame = frame.map_err(|_| Refusal::invalid("the request broke off"))?;
            if bytes.len() + frame.len() > self.max_body {
                return Err(too_large());
            }
            bytes.extend_from_slice(&frame);
            let pieces = bytes.len().div_ceil(PIECE);
            let missing = pieces - held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            if missing > 0 {
                let more = self.room.clone().acquire_many_owned(missing as u32).await;
                let more = more.map_err(|_| Refusal::unavailable("the server ends"))?;
                match &mut held {
                    Some(held) => held.merge(more),
                    None => held = Some(more),
                }
            }
        }
        Ok((bytes, held))
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), Refusal> {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || kind.ends_with("+json") {
        return Ok(());
    }
    let message = "the request's content-type is not application/json: send JSON and this header";
    Err(Refusal::status(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}
