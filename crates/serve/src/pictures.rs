//! Pictures of a request: from their addresses to what the model looks at.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use flamingo_data::{ImageTransform, Picture};
use flamingo_zoo::View;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::task::coop::consume_budget;

use crate::error::Refusal;
use crate::fetch::Fetcher;
use crate::job::{Content, Image, Key, Seen};

/// With or without padding: both are sent.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Bytes of an address that are read about as quickly as another thread is woken.
const AT_ONCE: usize = 16 << 10;

/// Turns addresses into pictures.
pub(crate) struct Pictures {
    pub(crate) transform: ImageTransform,
    pub(crate) max_pixels: u64,
    pub(crate) seen: Seen,
    pub(crate) tells_places: bool,
    pub(crate) fetcher: Option<Fetcher>,
    /// One permit a processor: a picture that is decoded takes memory.
    pub(crate) decoding: Arc<Semaphore>,
    /// Pictures that are fetched at the same time.
    pub(crate) fetching: Arc<Semaphore>,
}

impl Pictures {
    /// The pictures at some addresses, in this order; those that the model has seen before are not decoded.
    pub(crate) async fn images(self: &Arc<Self>, urls: Vec<String>) -> Result<Vec<Image>, Refusal> {
        let mut known: HashMap<Key, Image> = HashMap::new();
        let mut images = Vec::with_capacity(urls.len());
        for (place, url) in urls.into_iter().enumerate() {
            let (bytes, key) = self.bytes(url).await?;
            // What is remembered of a picture belongs to its place, in models that tell places.
            let image = match known.get(&key).filter(|_| !self.tells_places) {
                Some(image) => image.clone(),
                None => {
                    let image = self.image(bytes, key, if self.tells_places { place } else { 0 }).await?;
                    known.insert(key, image.clone());
                    image
                }
            };
            images.push(image);
        }
        Ok(images)
    }

    /// The same, all prepared to be looked at.
    pub(crate) async fn views(self: &Arc<Self>, urls: Vec<String>) -> Result<Vec<View>, Refusal> {
        let mut views = Vec::with_capacity(urls.len());
        for url in urls {
            let (bytes, _) = self.bytes(url).await?;
            views.push(self.view(bytes).await?);
        }
        Ok(views)
    }

    async fn image(self: &Arc<Self>, bytes: Vec<u8>, key: Key, place: usize) -> Result<Image, Refusal> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(&(key, place)).cloned();
        let content = match seen {
            Some(latents) => Content::Seen(latents),
            None => Content::New(self.view(bytes).await?),
        };
        Ok(Image { key, content })
    }

    async fn view(self: &Arc<Self>, bytes: Vec<u8>) -> Result<View, Refusal> {
        let own = self.clone();
        work(&self.decoding, move || {
            let picture = Picture::decode_within(&bytes, own.max_pixels)
                .map_err(|e| Refusal::invalid(format!("a picture cannot be used: {e}")).coded("invalid_image"))?;
            Ok(View::new(&own.transform, &picture))
        })
        .await
    }

    /// What is at an address, and its hash.
    async fn bytes(self: &Arc<Self>, url: String) -> Result<(Vec<u8>, Key), Refusal> {
        let data = url.starts_with("data:");
        if data && url.len() <= AT_ONCE {
            consume_budget().await;
            return self.bytes_at(&url);
        }
        let own = self.clone();
        work(if data { &self.decoding } else { &self.fetching }, move || own.bytes_at(&url)).await
    }

    fn bytes_at(&self, url: &str) -> Result<(Vec<u8>, Key), Refusal> {
        let bytes = match (url.strip_prefix("data:"), &self.fetcher) {
            (Some(data), _) => decode(data),
            (None, Some(fetcher)) => fetcher.fetch(url),
            (None, None) => Err("pictures come as data: URLs here: fetching from other servers is off".to_string()),
        };
        let bytes = bytes.map_err(|why| Refusal::invalid(why).coded("invalid_image_url"))?;
        let key = Sha256::digest(&bytes).into();
        Ok((bytes, key))
    }
}

/// Does work on a thread that may wait, as much of it at once as there are permits.
async fn work<T: Send + 'static>(
    permits: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let permit = permits.clone().acquire_owned().await;
    let permit = permit.map_err(|_| Refusal::unavailable("the server ends"))?;
    let done = tokio::task::spawn_blocking(move || {
        // Held for as long as the work takes, even if nobody waits for it any more.
        let _permit = permit;
        work()
    });
    done.await.unwrap_or_else(|_| Err(Refusal::invalid("a picture cannot be used: decoding it failed")))
}

/// The bytes of a data URL, `data:` taken off.
fn decode(data: &str) -> Result<Vec<u8>, String> {
    let (kind, data) = data.split_once(',').ok_or("a data: URL has no comma before its data")?;
    if !kind.ends_with(";base64") {
        return Err("a data: URL of a picture is base64: data:image/png;base64,…".into());
    }
    BASE64.decode(data.trim()).map_err(|e| format!("the base64 of a data: URL is damaged: {e}"))
}
