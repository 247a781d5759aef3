//! Tensors between processes, over Burn's tensor data service.
//!
//! `burn-collective` 0.21 has an all-reduce over several machines on the same service, but its second call never
//! returns (each ends with a barrier that keeps those who came to the one before), it waits for ever for a process that is
//! gone, and which order it adds in depends on who came first. So what moves here are single tensors, and
//! [`crate::Group`] says what is added to what.

use std::future::Future;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use burn::tensor::{DType, TensorData};
use burn_communication::data_service::{TensorDataServer, TensorDataService};
use burn_communication::websocket::{WebSocket, WsServer};
use burn_communication::{Address, ProtocolServer};
use burn_flex::Flex;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::GroupError;

/// Values in a message: 16 MiB of f32, so that adding up and sending overlap.
pub(crate) const BUCKET: usize = 4 << 20;

/// How often those who wait for a tensor look again.
const REMINDER: Duration = Duration::from_millis(50);

/// The service is generic over the backend of tensors; what goes through here is plain data.
type Service = TensorDataService<Flex, WebSocket>;

/// Hands out tensors to other processes, and fetches theirs.
pub(crate) struct Post {
    service: Arc<Service>,
    runtime: Option<Runtime>,
    ended: CancellationToken,
    /// Turns true when a worker is lost.
    lost: watch::Sender<bool>,
    bytes: AtomicU64,
}

impl Post {
    /// Begins to serve; returns its port as well.
    pub(crate) fn open() -> Result<(Self, u16), GroupError> {
        let wrong = |e: std::io::Error| GroupError::Place(format!("cannot serve tensors to other processes: {e}"));
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("tensors").enable_all().build();
        let runtime = runtime.map_err(wrong)?;
        // The service binds by number alone: let the system choose one that is free now.
        let port = TcpListener::bind(("0.0.0.0", 0)).and_then(|listener| listener.local_addr()).map_err(wrong)?.port();
        let ended = CancellationToken::new();
        let service = Arc::new(Service::new(ended.clone()));
        let until = ended.clone().cancelled_owned();
        let server = WsServer::new(port).route_tensor_data_service(service.clone()).serve(until);
        runtime.spawn(async move {
            if let Err(reason) = server.await {
                tracing::error!(port, ?reason, "tensors cannot be handed out");
            }
        });
        // Whoever asks for a tensor that is not there yet waits to be told of new ones, but is told only once it waits: a tensor that
        // comes between its look and its waiting would be missed.
        let (told, until) = (service.new_tensor_notify.clone(), ended.clone());
        runtime.spawn(async move {
            while !until.is_cancelled() {
                tokio::time::sleep(REMINDER).await;
                told.notify_waiters();
            }
        });
        Ok((Self { service, runtime: Some(runtime), ended, lost: watch::Sender::new(false), bytes: 0.into() }, port))
    }

    /// Bytes of tensors that were sent and fetched.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whoever waits for a tensor need not any more.
    pub(crate) fn give_up(&self) {
        self.lost.send_replace(true);
    }

    /// Offers values to so many readers, in buckets. `half`: as bf16.
    pub(crate) fn offer(&self, letter: u64, values: &[f32], readers: usize, half: bool) {
        for (bucket, values) in values.chunks(BUCKET).enumerate() {
            let mut data = TensorData::new(values.to_vec(), [values.len()]);
            if half {
                data = data.convert_dtype(DType::BF16);
            }
            self.bytes.fetch_add((data.bytes.len() * readers) as u64, Ordering::Relaxed);
            let id = (letter + bucket as u64).into();
            self.wait(self.service.expose_data(data, readers as u32, id));
        }
    }

    /// Begins to fetch so many values; [`Fetching::next`] gives them bucket by bucket.
    pub(crate) fn fetch(&self, from: &str, letter: u64, count: usize) -> Fetching<'_> {
        // An address is any string.
        let address: Address = from.parse().unwrap_or_else(|e: String| unreachable!("{e}"));
        let buckets = (0..count.div_ceil(BUCKET) as u64).map(|bucket| {
            let (service, address) = (self.service.clone(), address.clone());
            self.spawn(async move { service.download_tensor(address, (letter + bucket).into()).await })
        });
        Fetching { post: self, buckets: buckets.collect::<Vec<_>>().into_iter() }
    }

    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<JoinHandle<T>> {
        Some(self.runtime.as_ref()?.spawn(work))
    }

    fn wait<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        Some(self.runtime.as_ref()?.block_on(work))
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.ended.cancel();
        if let Some(runtime) = self.runtime.take() {
            // What others still fetch is in flight: they say that they leave when they have it all.
            runtime.shutdown_timeout(Duration::from_millis(100));
        }
    }
}

/// Values on their way here.
pub(crate) struct Fetching<'a> {
    post: &'a Post,
    buckets: std::vec::IntoIter<Option<JoinHandle<Option<TensorData>>>>,
}

impl Fetching<'_> {
    /// The next bucket; `None` if the connection broke or a worker is lost.
    pub(crate) fn next(&mut self, within: Duration) -> Option<Vec<f32>> {
        let bucket = self.buckets.next()??;
        let mut lost = self.post.lost.subscribe();
        let data = self.post.wait(async {
            tokio::select! {
                fetched = bucket => fetched.ok().flatten(),
                _ = lost.wait_for(|lost| *lost) => None,
                () = tokio::time::sleep(within) => None,
            }
        })??;
        self.post.bytes.fetch_add(data.bytes.len() as u64, Ordering::Relaxed);
        data.convert_dtype(DType::F32).into_vec().ok()
    }
}
