//! Shards on other machines: `http(s)://` and `s3://`.

use std::io::{Error, ErrorKind, Read};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use glob::{MatchOptions, Pattern};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, ObjectStoreExt, RetryConfig};
use tokio::runtime::Runtime;

use super::source::shown;
use crate::DataError;

/// How often a waiting thread looks whether anybody still wants what it waits for.
const GLANCE: Duration = Duration::from_millis(100);

/// How long nothing may come before a shard is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longest time for a whole shard: the default of 30 seconds would cut large ones, and `PATIENCE` finds dead ones.
const WHOLE: &str = "1 day";

/// Begins to read a shard.
pub(super) fn open(url: &str, stop: Arc<AtomicBool>) -> Result<Box<dyn Read>, DataError> {
    let (store, path): (Box<dyn ObjectStore>, Path) = match s3(url)? {
        Some((store, key)) => (Box::new(store), Path::parse(key).map_err(|e| wrong(url, &e))?),
        None => {
            let store = HttpBuilder::new()
                .with_config(ClientConfigKey::AllowHttp, "true")
                .with_config(ClientConfigKey::Timeout, WHOLE)
                .with_retry(retry())
                .with_url(url);
            // The whole URL is the store's: a path beside it would lose the query.
            (Box::new(store.build().map_err(|e| wrong(url, &e))?), Path::default())
        }
    };
    let network = Network::new(stop).map_err(|e| wrong(url, &e))?;
    let found = network.wait(store.get(&path)).map_err(|e| wrong(url, &e))?;
    let chunks = found.map_err(|e| wrong(url, &e))?.into_stream();
    Ok(Box::new(Shard { chunks, chunk: Bytes::new(), network }))
}

/// The shards that an `s3://` pattern with `*` or `?` stands for; neither crosses a `/`.
pub(super) fn list(pattern: &str) -> Result<Vec<String>, DataError> {
    let Some((store, key)) = s3(pattern)? else {
        return Err(wrong(pattern, &"an http server does not list its files: write the names out, {000..999}"));
    };
    let matcher = Pattern::new(key).map_err(|e| wrong(pattern, &e))?;
    let plain = key.find(['*', '?', '[']).unwrap_or(key.len());
    let folder = key[..plain].rfind('/').map_or("", |slash| &key[..slash]);
    let folder = Path::parse(folder).map_err(|e| wrong(pattern, &e))?;
    let network = Network::new(Arc::default()).map_err(|e| wrong(pattern, &e))?;
    let listed = store.list(Some(&folder)).map_ok(|object| object.location).try_collect::<Vec<Path>>();
    let listed = network.wait(listed).map_err(|e| wrong(pattern, &e))?.map_err(|e| wrong(pattern, &e))?;
    let options = MatchOptions { require_literal_separator: true, ..MatchOptions::default() };
    let bucket = &pattern[..pattern.len() - key.len()];
    let matching = listed.iter().filter(|path| matcher.matches_with(path.as_ref(), options));
    Ok(matching.map(|path| format!("{bucket}{path}")).collect())
}

fn wrong(url: &str, reason: &dyn std::fmt::Display) -> DataError {
    let shown = shown(url);
    DataError::Shards(format!("cannot read {shown}: {}", reason.to_string().replace(url, &shown)))
}

/// The bucket of an `s3://` URL, as `AWS_…` variables describe it, and the rest of the URL; `None` for other URLs.
fn s3(url: &str) -> Result<Option<(AmazonS3, &str)>, DataError> {
    let Some(rest) = url.strip_prefix("s3://") else { return Ok(None) };
    let (bucket, key) = rest.split_once('/').ok_or_else(|| wrong(url, &"it names no file of the bucket"))?;
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), WHOLE)
        .with_retry(retry());
    Ok(Some((store.build().map_err(|e| wrong(url, &e))?, key)))
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: 4, retry_timeout: PATIENCE, ..RetryConfig::default() }
}

/// Waits for the network, but no longer than anybody wants it to.
struct Network {
    /// There until it is dropped.
    runtime: Option<Runtime>,
    stop: Arc<AtomicBool>,
}

impl Network {
    fn new(stop: Arc<AtomicBool>) -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { runtime: Some(runtime), stop })
    }

    fn wait<F: Future>(&self, future: F) -> Result<F::Output, Error> {
        let Some(runtime) = &self.runtime else { return Err(ErrorKind::NotConnected.into()) };
        let mut future = pin!(future);
        let since = Instant::now();
        runtime.block_on(async {
            loop {
                if let Ok(output) = tokio::time::timeout(GLANCE, future.as_mut()).await {
                    return Ok(output);
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                if since.elapsed() > PATIENCE {
                    return Err(ErrorKind::TimedOut.into());
                }
            }
        })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Otherwise it waits for the look-up of a name, which may take minutes.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// A shard on its way here.
struct Shard {
    chunks: BoxStream<'static, object_store::Result<Bytes>>,
    chunk: Bytes,
    network: Network,
}

impl Read for Shard {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        while self.chunk.is_empty() {
            match self.network.wait(self.chunks.next())? {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let count = out.len().min(self.chunk.len());
        out[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
