//! What processes tell each other beside tensors: that they are there, that they are alive, and small values.
//!
//! Process 0 coordinates. Every process, itself included, keeps one connection to it, over which go messages of JSON,
//! each after its length:
//!
//! ```text
//! member → coordinator   Hello · Gather · Beat · Failed · Leave
//! coordinator → member   Welcome | Refused · Gathered · Beat · Abort
//! ```
//!
//! The coordinator alone decides that a worker is lost, so that everybody names the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Patience;

/// How often everybody says that it is alive.
const BEAT: Duration = Duration::from_secs(1);

/// How often the coordinator looks around.
const GLANCE: Duration = Duration::from_millis(100);

/// How long the coordinator waits for the others to hear that a worker is lost.
const FAREWELL: Duration = Duration::from_secs(2);

/// Longest message: a step's report of some kilobytes for each worker, a position of each reader of the data.
const LONGEST: usize = 64 << 20;

/// Longest greeting, of whoever connects: a recipe.
const LONGEST_HELLO: usize = 64 << 10;

/// Workers that a process may have.
const MOST_WORKERS: usize = 1024;

/// What members say.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromMember {
    Hello(Hello),
    /// The values of this process's workers for a gathering.
    Gather {
        number: u64,
        values: Vec<String>,
    },
    Beat,
    /// This process ends because of that.
    Failed(String),
    Leave,
}

/// How a process introduces itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) node: usize,
    pub(crate) nodes: usize,
    /// Workers of this process.
    pub(crate) workers: usize,
    /// Where it hands out tensors.
    pub(crate) port: u16,
    /// What it trains: all must train the same.
    pub(crate) purpose: String,
}

/// What the coordinator says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromCoordinator {
    Welcome(Vec<Member>),
    Refused(String),
    /// The values of all workers, in the order of their ranks.
    Gathered {
        number: u64,
        values: Vec<String>,
    },
    Beat,
    Abort(String),
}

/// A process of the world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its address as the coordinator sees it; for process 0, as it was given.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The rank of its first worker.
    pub(crate) first: usize,
    pub(crate) workers: usize,
}

impl Member {
    /// Its workers, in words.
    fn named(&self, node: usize) -> String {
        let last = self.first + self.workers - 1;
        let ranks = if self.workers == 1 { format!("rank {last}") } else { format!("ranks {} to {last}", self.first) };
        format!("{ranks} (process {node} at {})", self.host)
    }
}

/// A connection between a process and the coordinator.
pub(crate) struct Line {
    stream: TcpStream,
    /// One message at a time.
    writing: Mutex<()>,
}

impl Line {
    /// A peer that says nothing for so long is gone.
    pub(crate) fn new(stream: TcpStream, silence: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        Ok(Self { stream, writing: Mutex::new(()) })
    }

    pub(crate) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        let body = serde_json::to_vec(message)?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        (&self.stream).write_all(&(body.len() as u32).to_le_bytes())?;
        (&self.stream).write_all(&body)
    }

    /// For one thread.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<T> {
        self.receive_up_to(LONGEST)
    }

    fn receive_up_to<T: DeserializeOwned>(&self, longest: usize) -> io::Result<T> {
        let mut length = [0; 4];
        (&self.stream).read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > longest {
            return Err(io::Error::other("a message that is too long"));
        }
        let mut body = vec![0; length];
        (&self.stream).read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Says every second that this side is alive, until the connection ends.
    pub(crate) fn beat(self: Arc<Self>, message: impl Serialize + Send + 'static) {
        std::thread::spawn(move || {
            while self.send(&message).is_ok() {
                std::thread::sleep(BEAT);
            }
        });
    }

    /// Ends the connection for both sides.
    pub(crate) fn close(&self) {
        self.stream.shutdown(Shutdown::Both).ok();
    }
}

/// What the coordinator hears.
enum Event {
    Came(Hello, Arc<Line>, IpAddr),
    Said(usize, FromMember),
    Gone(usize, String),
}

/// Waits for all processes, then serves them until all have left or one is lost.
pub(crate) fn coordinate(listener: TcpListener, host: String, nodes: usize, patience: Patience) {
    let (events, heard) = channel();
    accept(listener, events.clone(), patience);
    let Some((members, lines)) = assemble(&heard, &events, host, nodes, patience) else { return };
    Coordinator { members, lines, patience }.serve(&heard);
}

/// Takes connections, and what their first message says.
fn accept(listener: TcpListener, events: Sender<Event>, patience: Patience) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // No more connections: let some end.
                std::thread::sleep(GLANCE);
                continue;
            };
            let events = events.clone();
            // Whoever connects and says nothing keeps nobody waiting.
            let greeting = std::thread::Builder::new().spawn(move || {
                let greeted = || {
                    let address = stream.peer_addr()?.ip();
                    let line = Line::new(stream, patience.silence)?;
                    match line.receive_up_to(LONGEST_HELLO)? {
                        FromMember::Hello(hello) if (1..=MOST_WORKERS).contains(&hello.workers) => {
                            Ok(Event::Came(hello, Arc::new(line), address))
                        }
                        _ => Err(io::Error::from(io::ErrorKind::InvalidData)),
                    }
                };
                match greeted() {
                    // If nobody listens any more, the connection closes, which says enough.
                    Ok(event) => drop(events.send(event)),
                    Err(reason) => tracing::warn!(%reason, "something connected that is no process of this training"),
                }
            });
            if greeting.is_err() {
                // No more threads: let some end.
                std::thread::sleep(GLANCE);
            }
        }
    });
}

/// The processes in their order, once all are there. `None` if they did not come or do not belong together, which they
/// have been told.
fn assemble(
    heard: &Receiver<Event>,
    events: &Sender<Event>,
    host: String,
    nodes: usize,
    patience: Patience,
) -> Option<(Vec<Member>, Vec<Arc<Line>>)> {
    let deadline = Instant::now() + patience.rendezvous;
    let mut came: BTreeMap<usize, (Hello, Arc<Line>, IpAddr)> = BTreeMap::new();
    let refuse = |came: &BTreeMap<usize, (Hello, Arc<Line>, IpAddr)>, why: String| {
        for (_, line, _) in came.values() {
            line.send(&FromCoordinator::Refused(why.clone())).ok();
        }
    };
    while came.len() < nodes {
        let left = deadline.saturating_duration_since(Instant::now());
        match heard.recv_timeout(left.min(GLANCE)) {
            Ok(Event::Came(hello, line, address)) => {
                let node = hello.node;
                let wrong = if hello.nodes != nodes || node >= nodes {
                    Some(format!("process {node} counts {} processes, process 0 counts {nodes}", hello.nodes))
                } else if came.contains_key(&node) {
                    Some(format!("two processes say that they are number {node} of {nodes}"))
                } else {
                    let other = came.values().map(|(other, ..)| other).find(|other| other.purpose != hello.purpose);
                    other.map(|other| {
                        format!("processes {} and {node} train with different settings: give all the same", other.node)
                    })
                };
                if let Some(wrong) = wrong {
                    line.send(&FromCoordinator::Refused(wrong.clone())).ok();
                    refuse(&came, wrong);
                    return None;
                }
                listen(node, line.clone(), events.clone());
                came.insert(node, (hello, line, address));
            }
            // It may come again.
            Ok(Event::Gone(node, _)) => drop(came.remove(&node)),
            Err(_) if left.is_zero() => {
                let missing: Vec<String> =
                    (0..nodes).filter(|node| !came.contains_key(node)).map(|node| node.to_string()).collect();
                refuse(
                    &came,
                    format!(
                        "of {nodes} processes these did not come within {} seconds: {}",
                        patience.rendezvous.as_secs(),
                        missing.join(", ")
                    ),
                );
                return None;
            }
            _ => {}
        }
    }
    let (mut members, mut lines, mut first) = (Vec::new(), Vec::new(), 0);
    for (node, (hello, line, address)) in came {
        // What is near process 0 is where it is.
        let host = if node == 0 || address.is_loopback() { host.clone() } else { address.to_string() };
        members.push(Member { host, port: hello.port, first, workers: hello.workers });
        first += hello.workers;
        lines.push(line);
    }
    for line in &lines {
        line.send(&FromCoordinator::Welcome(members.clone())).ok();
        line.clone().beat(FromCoordinator::Beat);
    }
    Some((members, lines))
}

/// Hears a member until it is silent for too long.
fn listen(node: usize, line: Arc<Line>, events: Sender<Event>) {
    std::thread::spawn(move || {
        loop {
            let event = match line.receive() {
                Ok(FromMember::Beat) => continue,
                Ok(message) => Event::Said(node, message),
                Err(e) => Event::Gone(node, gone(&e)),
            };
            let last = matches!(event, Event::Gone(..));
            if events.send(event).is_err() || last {
                return;
            }
        }
    });
}

/// Why a connection ended, in words.
pub(crate) fn gone(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "nothing was heard of it for too long".into(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => "its connection is closed".into(),
        _ => error.to_string(),
    }
}

struct Coordinator {
    members: Vec<Member>,
    lines: Vec<Arc<Line>>,
    patience: Patience,
}

/// A gathering that waits for values.
struct Open {
    since: Instant,
    values: BTreeMap<usize, Vec<String>>,
}

impl Coordinator {
    fn serve(&self, heard: &Receiver<Event>) {
        let mut open: BTreeMap<u64, Open> = BTreeMap::new();
        let mut here = vec![true; self.members.len()];
        while here.contains(&true) {
            match heard.recv_timeout(GLANCE) {
                Ok(Event::Said(node, FromMember::Gather { number, values })) => {
                    let gathering =
                        open.entry(number).or_insert_with(|| Open { since: Instant::now(), values: BTreeMap::new() });
                    gathering.values.insert(node, values);
                    if gathering.values.len() == self.members.len() {
                        let values = open.remove(&number).into_iter().flat_map(|open| open.values.into_values());
                        self.tell(&FromCoordinator::Gathered { number, values: values.flatten().collect() });
                    }
                }
                Ok(Event::Said(node, FromMember::Failed(why))) => {
                    return self.abort(heard, None, format!("{} gave up: {why}", self.members[node].named(node)));
                }
                Ok(Event::Said(node, FromMember::Leave)) => here[node] = false,
                Ok(Event::Gone(node, why)) if here[node] => {
                    let why = format!("{} is gone: {why}", self.members[node].named(node));
                    return self.abort(heard, Some(node), why);
                }
                Err(RecvTimeoutError::Disconnected) => return,
                _ => {}
            }
            let late = open.values().find(|open| open.since.elapsed() > self.patience.worker);
            if let Some(late) = late {
                let missing = (0..self.members.len()).filter(|node| !late.values.contains_key(node));
                let missing: Vec<String> = missing.map(|node| self.members[node].named(node)).collect();
                let seconds = self.patience.worker.as_secs();
                let why = format!("{} kept the others waiting for {seconds} seconds", missing.join(" and "));
                return self.abort(heard, None, why);
            }
        }
        self.lines.iter().for_each(|line| line.close());
    }

    fn tell(&self, message: &FromCoordinator) {
        for line in &self.lines {
            // Whoever cannot be told is found to be gone.
            line.send(message).ok();
        }
    }

    /// Tells everybody, and waits a moment until they have heard it: this process may end next.
    fn abort(&self, heard: &Receiver<Event>, dead: Option<usize>, why: String) {
        self.tell(&FromCoordinator::Abort(why));
        let deadline = Instant::now() + FAREWELL;
        // This process ends last.
        let mut gone: BTreeSet<usize> = dead.into_iter().chain([0]).collect();
        while gone.len() < self.members.len() && Instant::now() < deadline {
            if let Ok(Event::Gone(node, _)) = heard.recv_timeout(GLANCE) {
                gone.insert(node);
            }
        }
        self.lines.iter().for_each(|line| line.close());
    }
}
