//! Connections: how many, for how long, and how they end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use flamingo_zoo::{Model, parts};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::api::more::{ModelDetails, ModelInfo};
use crate::app::{App, now};
use crate::body::Bodies;
use crate::bounded::Bounded;
use crate::fetch::Fetcher;
use crate::metrics::Metrics;
use crate::pictures::Pictures;
use crate::routes::GRACE;
use crate::scheduler::{self, Scheduling};
use crate::{Options, ServeError, routes};

/// Headers of a request, and their bytes.
const MAX_HEADERS: usize = 64;
const MAX_HEAD: usize = 64 << 10;

/// Pictures that are fetched from other servers at the same time.
const FETCHES: usize = 8;

/// The wait after a connection could not be accepted: as a rule the process has too many files open.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// A server that listens and does not answer yet.
pub struct Server {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Begins to listen; port 0 is any that is free.
    ///
    /// # Errors
    /// [`ServeError::Listen`] if the address cannot be had, [`ServeError::Start`] without threads.
    pub fn bind(host: &str, port: u16) -> Result<Self, ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let failed = |source| ServeError::Listen { address: format!("{host}, port {port}"), source };
        let listener = runtime.block_on(TcpListener::bind((host, port))).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { runtime, listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `end`, then finishes what was begun, unless `end` comes a second time.
    ///
    /// # Errors
    /// [`ServeError::Start`] if the model's thread cannot be had.
    pub fn run(self, model: Model, options: Options, end: impl AsyncFn()) -> Result<(), ServeError> {
        let Self { runtime, listener, .. } = self;
        let metrics = Arc::new(Metrics::new());
        let seen = Arc::new(Mutex::new(Bounded::new(options.cache_bytes)));
        let (sender, jobs) = mpsc::channel(options.max_queue.max(1));
        let config = model.config().clone();
        let side = config.vision.image_size / config.vision.patch_size;
        let fetcher = options.remote.as_ref().map(|remote| Fetcher::new(remote, options.max_body as u64));
        let app = App {
            info: ModelInfo {
                id: options.name.clone(),
                object: "model",
                created: now(),
                owned_by: "openflamingo",
                flamingo: ModelDetails {
                    device: model.engine().device().to_string(),
                    precision: model.engine().precision().to_string(),
                    parameters: parts(&config).iter().map(|part| part.parameters).sum(),
                    image_size: config.vision.image_size,
                    grid: [side, side],
                    caption_prompt: config.caption_prompt.clone(),
                    max_tokens: options.max_context_of(&config),
                    max_images: options.max_images_of(&config),
                },
            },
            tokenizer: Arc::new(model.tokenizer().clone()),
            pictures: Arc::new(Pictures {
                transform: model.transform().clone(),
                max_pixels: options.max_pixels,
                seen: seen.clone(),
                tells_places: model.tells_places(),
                fetcher,
                decoding: Arc::new(Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from))),
                fetching: Arc::new(Semaphore::new(FETCHES)),
            }),
            bodies: Bodies::new(options.max_body, options.max_bodies, options.read_timeout),
            jobs: sender,
            metrics: metrics.clone(),
            closing: AtomicBool::new(false),
            answers: AtomicU64::new(0),
            config,
            options,
        };
        let scheduling =
            Scheduling { max_batch: app.options.max_batch, cache_bytes: app.options.cache_bytes, seen, metrics };
        let worker =
            std::thread::Builder::new().name("model".into()).spawn(move || scheduler::run(&model, jobs, scheduling))?;
        runtime.block_on(answer(listener, Arc::new(app), end));
        // What still runs there belongs to requests that were given up.
        runtime.shutdown_background();
        if worker.join().is_err() {
            tracing::error!("the model's thread had failed");
        }
        Ok(())
    }
}

/// Until the process is asked to end: Ctrl-C, or a manager's signal.
pub async fn signals() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminated) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

async fn answer(listener: TcpListener, app: Arc<App>, end: impl AsyncFn()) {
    let router = routes::router(app.clone());
    let room = Arc::new(Semaphore::new(app.options.max_connections));
    let connections = GracefulShutdown::new();
    let ended = end();
    tokio::pin!(ended);
    loop {
        let accepted = async {
            let place = room.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = &mut ended => break,
            accepted = accepted => accepted,
        };
        match (place, accepted) {
            (Ok(place), Ok((stream, _))) => {
                let connection = connections.watch(connection(stream, router.clone(), app.options.read_timeout));
                let metrics = app.metrics.clone();
                metrics.connected();
                tokio::spawn(async move {
                    // A client that breaks off, or is too slow, is no event worth a line.
                    let _ = connection.await;
                    metrics.disconnected();
                    drop(place);
                });
            }
            (_, Err(e)) => {
                tracing::warn!(error = %e, "a connection could not be accepted");
                sleep(ACCEPT_AGAIN).await;
            }
            (Err(_), _) => break,
        }
    }
    drop(listener);
    app.closing.store(true, Ordering::Relaxed);
    tracing::info!("finishing what was begun");
    tokio::select! {
        done = timeout(app.options.timeout + 2 * GRACE, connections.shutdown()) => {
            if done.is_err() {
                tracing::warn!("some requests did not end in time");
            }
        }
        () = end() => tracing::warn!("some requests were broken off"),
    }
}

type Connection = http1::Connection<TokioIo<std::pin::Pin<Box<TimeoutStream<TcpStream>>>>, TowerToHyperService<Router>>;

/// A connection whose heads must arrive in time, and whose client must read what it asked for.
fn connection(stream: TcpStream, router: Router, time: Duration) -> Connection {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(time));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(time)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
}
