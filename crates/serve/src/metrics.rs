//! What happens, for Prometheus.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::job::Stats;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: String,
}

/// Counters of a server.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    latency: Family<Route, Histogram, fn() -> Histogram>,
    connections: Gauge,
    queue: Gauge,
    held: AtomicBool,
    running: Gauge,
    queue_time: Histogram,
    step_time: Histogram,
    step_texts: Histogram,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    new_tokens: Counter,
    pictures: Counter,
    cached_pictures: Counter,
    cancelled: Counter,
    late: Counter,
    prefix_bytes: Gauge,
    picture_bytes: Gauge,
    memory: Gauge,
}

/// From a tenth of a millisecond to half a minute.
fn times() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.5, 14))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("flamingo");
        let seconds = Unit::Seconds;
        let metrics = Self {
            requests: Family::default(),
            latency: Family::new_with_constructor(times as fn() -> Histogram),
            connections: Gauge::default(),
            queue: Gauge::default(),
            held: AtomicBool::new(false),
            running: Gauge::default(),
            queue_time: times(),
            step_time: times(),
            step_texts: Histogram::new(exponential_buckets(1.0, 2.0, 8)),
            prompt_tokens: Counter::default(),
            cached_tokens: Counter::default(),
            new_tokens: Counter::default(),
            pictures: Counter::default(),
            cached_pictures: Counter::default(),
            cancelled: Counter::default(),
            late: Counter::default(),
            prefix_bytes: Gauge::default(),
            picture_bytes: Gauge::default(),
            memory: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register("requests", "Requests answered", metrics.requests.clone());
        registry.register_with_unit("latency", "Time until an answer began", seconds.clone(), metrics.latency.clone());
        registry.register("connections", "Open connections", metrics.connections.clone());
        registry.register("queue", "Requests that wait for the model", metrics.queue.clone());
        registry.register("running", "Texts that are being written, or about to be", metrics.running.clone());
        registry.register_with_unit("queue_time", "Wait for the model", seconds.clone(), metrics.queue_time.clone());
        registry.register_with_unit(
            "step_time",
            "One token for all texts, and the last of prompts",
            seconds,
            metrics.step_time.clone(),
        );
        registry.register("step_texts", "Texts that got a token together", metrics.step_texts.clone());
        registry.register("prompt_tokens", "Tokens of prompts", metrics.prompt_tokens.clone());
        registry.register("cached_tokens", "Tokens of prompts that were read before", metrics.cached_tokens.clone());
        registry.register("new_tokens", "Tokens written", metrics.new_tokens.clone());
        registry.register("pictures", "Pictures of prompts", metrics.pictures.clone());
        registry.register("cached_pictures", "Pictures that were seen before", metrics.cached_pictures.clone());
        registry.register("cancelled", "Requests whose client went away", metrics.cancelled.clone());
        registry.register("late", "Requests that the model left as too late", metrics.late.clone());
        let bytes = Unit::Bytes;
        registry.register_with_unit("prefix_cache", "Beginnings kept", bytes.clone(), metrics.prefix_bytes.clone());
        registry.register_with_unit("picture_cache", "Pictures kept", bytes.clone(), metrics.picture_bytes.clone());
        registry.register_with_unit("memory_resident", "Memory of the process", bytes, metrics.memory.clone());
        Self { registry, ..metrics }
    }

    pub(crate) fn answered(&self, route: &str, status: u16, after: Duration) {
        self.requests.get_or_create(&Answered { route: route.into(), status }).inc();
        self.latency.get_or_create(&Route { route: route.into() }).observe(after.as_secs_f64());
    }

    pub(crate) fn connected(&self) {
        self.connections.inc();
    }

    pub(crate) fn disconnected(&self) {
        self.connections.dec();
    }

    /// Whether the model's thread holds a request for which there is no room yet.
    pub(crate) fn held(&self, holds: bool) {
        self.held.store(holds, Ordering::Relaxed);
    }

    pub(crate) fn running(&self, texts: usize) {
        self.running.set(texts as i64);
    }

    pub(crate) fn waited(&self, time: Duration) {
        self.queue_time.observe(time.as_secs_f64());
    }

    /// A prompt was read.
    pub(crate) fn read(&self, stats: &Stats) {
        self.prompt_tokens.inc_by(stats.prompt_tokens as u64);
        self.cached_tokens.inc_by(stats.cached_tokens as u64);
        self.pictures.inc_by(stats.pictures as u64);
        self.cached_pictures.inc_by(stats.cached_pictures as u64);
    }

    pub(crate) fn stepped(&self, texts: usize, time: Duration) {
        self.step_texts.observe(texts as f64);
        self.step_time.observe(time.as_secs_f64());
    }

    pub(crate) fn wrote(&self, tokens: usize) {
        self.new_tokens.inc_by(tokens as u64);
    }

    pub(crate) fn cancelled(&self) {
        self.cancelled.inc();
    }

    pub(crate) fn late(&self) {
        self.late.inc();
    }

    pub(crate) fn prefixes(&self, bytes: usize) {
        self.prefix_bytes.set(bytes as i64);
    }

    /// All of it in Prometheus' text format; so many requests are in the queue.
    pub(crate) fn text(&self, queue: usize, picture_bytes: usize) -> Result<String, std::fmt::Error> {
        self.queue.set((queue + usize::from(self.held.load(Ordering::Relaxed))) as i64);
        self.picture_bytes.set(picture_bytes as i64);
        self.memory.set(resident().unwrap_or(0) as i64);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Memory of this process, where the system tells it.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
