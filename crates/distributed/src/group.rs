//! Workers that train together.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::{FromCoordinator, FromMember, Hello, Line, Member, coordinate, gone};
use crate::post::{BUCKET, Fetching, Post};
use crate::{GroupError, Place};

/// How long to wait before process 0 is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long others are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Until all processes have come.
    pub rendezvous: Duration,
    /// For a worker that others wait for while its process is alive: longer than the longest step.
    pub worker: Duration,
    /// For a sign of life from a process, which gives one every second.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let [rendezvous, worker, silence] = [300, 600, 15].map(Duration::from_secs);
        Self { rendezvous, worker, silence }
    }
}

/// Who receives what is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    /// Every worker.
    All,
    /// Rank 0.
    First,
}

/// One worker of a group. All workers call the same methods in the same order; each returns when the others have called
/// it as well, or with an error when one is lost.
pub struct Group {
    process: Option<Arc<Process>>,
    /// Which of the process's workers this is.
    local: usize,
    /// Calls so far, which are numbered alike in all workers.
    calls: u64,
}

/// What the workers of a process have in common.
struct Process {
    node: usize,
    members: Vec<Member>,
    network: Option<Network>,
    state: Mutex<State>,
    changed: Condvar,
    patience: Patience,
}

/// The other processes.
struct Network {
    line: Arc<Line>,
    post: Post,
    coordinator: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    /// Why the group is at its end.
    lost: Option<String>,
    /// Values of this process's workers, by gathering and worker.
    gathering: BTreeMap<u64, BTreeMap<usize, String>>,
    /// Values of all workers, and how many workers of this process have yet to read them.
    gathered: BTreeMap<u64, (Arc<Vec<String>>, usize)>,
    /// Tensors for the workers of this process, and how many have yet to take them.
    shelf: BTreeMap<Key, (Tensors, usize)>,
    /// Workers that are through.
    left: usize,
}

/// The call, and whose tensors they are.
type Key = (u64, usize);

/// Tensors that several workers read.
type Tensors = Arc<Vec<Vec<f32>>>;

impl Group {
    /// A worker without others.
    pub fn alone() -> Self {
        Self { process: None, local: 0, calls: 0 }
    }

    /// The workers of this process, once all processes are there. `purpose` says what is trained; it must be the same in
    /// all of them.
    ///
    /// # Errors
    /// [`GroupError::Rendezvous`] if the processes do not come or do not belong together, [`GroupError::Place`] if
    /// this one cannot be reached.
    pub fn join(
        place: Option<&Place>,
        workers: usize,
        purpose: &str,
        patience: Patience,
    ) -> Result<Vec<Self>, GroupError> {
        let process = match place {
            None if workers <= 1 => return Ok(vec![Self::alone()]),
            None => Arc::new(Process {
                node: 0,
                members: vec![Member { host: "this machine".into(), port: 0, first: 0, workers }],
                network: None,
                state: Mutex::default(),
                changed: Condvar::new(),
                patience,
            }),
            Some(place) => Process::join(place, workers, purpose, patience)?,
        };
        let worker = |local| Self { process: Some(process.clone()), local, calls: 0 };
        Ok((0..workers).map(worker).collect())
    }

    /// Which of all workers this is, from 0.
    pub fn rank(&self) -> usize {
        self.process.as_ref().map_or(0, |process| process.member().first + self.local)
    }

    /// How many workers there are.
    pub fn world(&self) -> usize {
        self.process.as_ref().map_or(1, |process| process.world())
    }

    /// Bytes of tensors that this process has sent to and fetched from others.
    pub fn wire_bytes(&self) -> u64 {
        let network = self.process.as_ref().and_then(|process| process.network.as_ref());
        network.map_or(0, |network| network.post.bytes())
    }

    /// Everybody's values, in the order of ranks.
    ///
    /// # Errors
    /// [`GroupError::Lost`] if a worker is lost.
    pub fn gather<T: Serialize + DeserializeOwned>(&mut self, mine: &T) -> Result<Vec<T>, GroupError> {
        let wrong = |e: serde_json::Error| GroupError::Lost(format!("a value cannot be passed on: {e}"));
        let mine = serde_json::to_string(mine).map_err(wrong)?;
        let number = self.next();
        let Some(process) = &self.process else { return Ok(vec![serde_json::from_str(&mine).map_err(wrong)?]) };
        let values = process.gather(number, self.local, mine)?;
        values.iter().map(|value| serde_json::from_str(value).map_err(wrong)).collect()
    }

    /// The sum of what all workers give for this one: `shards[rank]` is for the worker of that rank, and as long in
    /// every worker. Sums are made in the order of ranks, first within each process, whoever comes first.
    /// `half`: between processes, numbers go as bf16.
    ///
    /// # Errors
    /// [`GroupError::Lost`] if a worker is lost.
    pub fn reduce(&mut self, mut shards: Vec<Vec<f32>>, half: bool) -> Result<Vec<f32>, GroupError> {
        let (number, rank) = (self.next(), self.rank());
        let Some(process) = &self.process else { return Ok(shards.pop().unwrap_or_default()) };
        let workers = process.member().workers;
        // What the workers of this process give, one of them after the other.
        let shards = Arc::new(shards);
        let given = if workers == 1 {
            vec![shards]
        } else {
            process.put((number, self.local), shards, workers);
            (0..workers)
                .map(|local| process.take((number, local), process.member().first + local))
                .collect::<Result<_, _>>()?
        };
        let partial = |owner: usize| {
            let mut sum = given[0][owner].clone();
            given[1..].iter().for_each(|shards| add(&mut sum, &shards[owner]));
            sum
        };
        let Some(network) = &process.network else { return Ok(partial(rank)) };
        for owner in (0..process.world()).filter(|&owner| process.node_of(owner) != process.node) {
            if owner % workers == self.local {
                network.post.offer(letter(number, process.node, owner), &partial(owner), 1, half);
            }
        }
        let mut mine = partial(rank);
        let nodes = 0..process.members.len();
        let mut fetching: Vec<Option<Fetching>> = nodes
            .map(|node| {
                let theirs = letter(number, node, rank);
                (node != process.node).then(|| network.post.fetch(&process.address(node), theirs, mine.len()))
            })
            .collect();
        for sum in mine.chunks_mut(BUCKET) {
            let own = sum.to_vec();
            for (node, fetching) in fetching.iter_mut().enumerate() {
                let fetched = match fetching {
                    Some(fetching) => Some(process.bucket(fetching, node)?),
                    None => None,
                };
                let part = fetched.as_ref().unwrap_or(&own);
                if part.len() != sum.len() {
                    return Err(process.unreachable(node));
                }
                if node == 0 { sum.copy_from_slice(part) } else { add(sum, part) }
            }
        }
        Ok(mine)
    }

    /// What each worker has, in the order of ranks; `lengths` says how long it is. Nothing for those who do not read.
    ///
    /// # Errors
    /// [`GroupError::Lost`] if a worker is lost.
    pub fn share(&mut self, mine: Vec<f32>, lengths: &[usize], readers: Readers) -> Result<Vec<Vec<f32>>, GroupError> {
        let (number, rank) = (self.next(), self.rank());
        let Some(process) = &self.process else { return Ok(vec![mine]) };
        let workers = process.member().workers;
        let reads = readers == Readers::All || rank == 0;
        // Workers of this process that read, and other processes that do.
        let (here, elsewhere) = match readers {
            Readers::All => (workers, process.members.len() - 1),
            Readers::First => (usize::from(process.node == 0), usize::from(process.node != 0)),
        };
        let mine = Arc::new(vec![mine]);
        if let Some(network) = process.network.as_ref().filter(|_| elsewhere > 0) {
            network.post.offer(letter(number, process.node, rank), &mine[0], elsewhere, false);
        }
        process.put((number, rank), mine, here);
        if let Some(network) = process.network.as_ref().filter(|_| here > 0) {
            // Each worker fetches a part of what comes from elsewhere, for all of this process that read.
            let fetches = |owner: usize| match readers {
                Readers::All => owner % workers == self.local,
                Readers::First => rank == 0,
            };
            let theirs = (0..process.world()).filter(|&owner| process.node_of(owner) != process.node && fetches(owner));
            let mut fetching: Vec<(usize, Fetching)> = theirs
                .map(|owner| {
                    let node = process.node_of(owner);
                    let letter = letter(number, node, owner);
                    (owner, network.post.fetch(&process.address(node), letter, lengths[owner]))
                })
                .collect();
            for (owner, fetching) in &mut fetching {
                let mut whole = Vec::with_capacity(lengths[*owner]);
                for _ in 0..lengths[*owner].div_ceil(BUCKET) {
                    whole.extend(process.bucket(fetching, process.node_of(*owner))?);
                }
                process.put((number, *owner), Arc::new(vec![whole]), here);
            }
        }
        if !reads {
            return Ok(Vec::new());
        }
        let taken = |owner| process.take((number, owner), owner).map(|values| values[0].clone());
        (0..process.world()).map(taken).collect()
    }

    /// What tells when the group is at its end.
    pub fn watch(&self) -> Watch {
        Watch(self.process.as_ref().map(Arc::downgrade))
    }

    /// What ends the training of all workers, also while this one waits for others.
    pub fn alarm(&self) -> Alarm {
        Alarm { process: self.process.as_ref().map(Arc::downgrade), rank: self.rank() }
    }

    /// Ends the training of all workers: this one cannot go on.
    pub fn fail(&self, why: &str) {
        self.alarm().fail(why);
    }

    fn next(&mut self) -> u64 {
        self.calls += 1;
        self.calls
    }
}

/// Ends a group for a worker, whose [`Group`] is with another thread.
pub struct Alarm {
    process: Option<Weak<Process>>,
    rank: usize,
}

impl Alarm {
    /// As [`Group::fail`].
    pub fn fail(&self, why: &str) {
        if let Some(process) = self.process.as_ref().and_then(Weak::upgrade) {
            process.fail(&format!("rank {}: {why}", self.rank));
        }
    }
}

/// Sees when a group is at its end, also while its workers hang.
pub struct Watch(Option<Weak<Process>>);

impl Watch {
    /// Why a worker is lost, once one is.
    pub fn lost(&self) -> Option<String> {
        self.0.as_ref()?.upgrade()?.state().lost.clone()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else { return };
        if std::thread::panicking() {
            process.fail(&format!("rank {}: it panicked", process.member().first + self.local));
        }
        process.leave();
    }
}

/// Marks the tensors of a call that go from a process to a rank, or from a rank to all; buckets are added to it.
fn letter(number: u64, node: usize, rank: usize) -> u64 {
    (number << 40) | ((node as u64) << 26) | ((rank as u64) << 12)
}

fn add(sum: &mut [f32], other: &[f32]) {
    sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other);
}

impl Process {
    fn join(place: &Place, workers: usize, purpose: &str, patience: Patience) -> Result<Arc<Self>, GroupError> {
        let Place { node, nodes, rendezvous, .. } = place;
        let (post, port) = Post::open()?;
        let coordinator = if *node == 0 { Some(wait_for_others(rendezvous, *nodes, patience)?) } else { None };
        let hello = Hello { node: *node, nodes: *nodes, workers, port, purpose: purpose.to_string() };
        let deadline = Instant::now() + patience.rendezvous;
        let (line, members) = loop {
            match greet(rendezvous, &hello, deadline, patience)? {
                Some(welcomed) => break welcomed,
                // What is there ends or serves others, a training before this one perhaps.
                None => std::thread::sleep(AGAIN),
            }
        };
        let process = Arc::new(Self {
            node: *node,
            members,
            network: Some(Network { line: line.clone(), post, coordinator: Mutex::new(coordinator) }),
            state: Mutex::default(),
            changed: Condvar::new(),
            patience,
        });
        let listening = Arc::downgrade(&process);
        std::thread::spawn(move || {
            loop {
                let message = line.receive();
                let Some(process) = listening.upgrade() else { return };
                match message {
                    Ok(FromCoordinator::Gathered { number, values }) => process.gathered(number, values),
                    Ok(FromCoordinator::Abort(why)) => return process.lose(why),
                    Ok(_) => {}
                    Err(e) => {
                        return process.lose(format!("rank 0 (process 0, which coordinates) is gone: {}", gone(&e)));
                    }
                }
            }
        });
        Ok(process)
    }

    fn member(&self) -> &Member {
        &self.members[self.node]
    }

    fn world(&self) -> usize {
        self.members.iter().map(|member| member.workers).sum()
    }

    /// The process of a worker.
    fn node_of(&self, rank: usize) -> usize {
        self.members.iter().rposition(|member| member.first <= rank).unwrap_or(0)
    }

    fn address(&self, node: usize) -> String {
        format!("ws://{}:{}", self.members[node].host, self.members[node].port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something.
    fn wait<T>(
        &self,
        mut look: impl FnMut(&mut State) -> Option<T>,
        late: impl Fn(&State) -> String,
    ) -> Result<T, GroupError> {
        // The coordinator knows better who is late, and comes first.
        let deadline = Instant::now() + self.patience.worker + self.patience.silence;
        let mut state = self.state();
        loop {
            if let Some(why) = &state.lost {
                return Err(GroupError::Lost(why.clone()));
            }
            if let Some(found) = look(&mut state) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(GroupError::Lost(late(&state)));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn gather(&self, number: u64, local: usize, mine: String) -> Result<Arc<Vec<String>>, GroupError> {
        let workers = self.member().workers;
        let complete = {
            let mut state = self.state();
            let values = state.gathering.entry(number).or_default();
            values.insert(local, mine);
            if values.len() == workers { state.gathering.remove(&number) } else { None }
        };
        if let Some(values) = complete {
            let values: Vec<String> = values.into_values().collect();
            match &self.network {
                // A broken line is found by whoever listens to it.
                Some(network) => drop(network.line.send(&FromMember::Gather { number, values })),
                None => self.gathered(number, values),
            }
        }
        let late = |state: &State| {
            let here = state.gathering.get(&number);
            let missing = (0..workers).filter(|local| here.is_some_and(|here| !here.contains_key(local)));
            let missing: Vec<String> = missing.map(|local| format!("rank {}", self.member().first + local)).collect();
            // All of this process are there: others are late, of whom the coordinator knows.
            let who = if missing.is_empty() { "a worker of another process".into() } else { missing.join(" and ") };
            format!("{who} kept the others waiting for {} seconds", self.patience.worker.as_secs())
        };
        self.wait(|state| take_once(&mut state.gathered, number), late)
    }

    fn gathered(&self, number: u64, values: Vec<String>) {
        self.state().gathered.insert(number, (Arc::new(values), self.member().workers));
        self.changed.notify_all();
    }

    /// Puts tensors where so many workers of this process take them.
    fn put(&self, key: Key, tensors: Tensors, readers: usize) {
        if readers > 0 {
            self.state().shelf.insert(key, (tensors, readers));
            self.changed.notify_all();
        }
    }

    /// Takes tensors that the worker of that rank puts there.
    fn take(&self, key: Key, rank: usize) -> Result<Tensors, GroupError> {
        let seconds = self.patience.worker.as_secs();
        self.wait(
            |state| take_once(&mut state.shelf, key),
            |_| format!("rank {rank} kept the others waiting for {seconds} seconds"),
        )
    }

    fn bucket(&self, fetching: &mut Fetching, node: usize) -> Result<Vec<f32>, GroupError> {
        fetching.next(self.patience.worker).ok_or_else(|| self.unreachable(node))
    }

    /// What to say when a tensor does not come. If its sender is gone, the coordinator says so in a moment.
    fn unreachable(&self, node: usize) -> GroupError {
        let member = &self.members[node];
        let reason = format!("no tensor comes from rank {} (process {node} at {})", member.first, member.host);
        let deadline = Instant::now() + self.patience.silence;
        let mut state = self.state();
        while state.lost.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        GroupError::Lost(state.lost.clone().unwrap_or(reason))
    }

    /// The group is at its end: wakes whoever waits.
    fn lose(&self, why: String) {
        self.state().lost.get_or_insert(why);
        self.changed.notify_all();
        if let Some(network) = &self.network {
            network.post.give_up();
        }
    }

    fn fail(&self, why: &str) {
        let first = self.state().lost.is_none();
        if first && let Some(network) = &self.network {
            network.line.send(&FromMember::Failed(why.to_string())).ok();
        }
        self.lose(why.to_string());
    }

    /// A worker is through; after the last the others are told.
    fn leave(&self) {
        let last = {
            let mut state = self.state();
            state.left += 1;
            state.left == self.member().workers
        };
        let Some(network) = self.network.as_ref().filter(|_| last) else { return };
        let lost = self.state().lost.clone();
        network.line.send(&lost.map_or(FromMember::Leave, FromMember::Failed)).ok();
        // Others may yet fetch what this process offers. The coordinator ends when all have left.
        let all_have_left = self.wait(|_| None::<()>, |_| String::new());
        tracing::debug!(?all_have_left, "through");
        let coordinator = network.coordinator.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(coordinator) = coordinator {
            coordinator.join().ok();
        }
        network.line.close();
    }
}

/// Something that so many are yet to take, for one of them; the last takes it away.
fn take_once<K: Ord, T>(things: &mut BTreeMap<K, (Arc<T>, usize)>, key: K) -> Option<Arc<T>> {
    let (thing, takers) = things.get_mut(&key)?;
    let thing = thing.clone();
    *takers -= 1;
    if *takers == 0 {
        things.remove(&key);
    }
    Some(thing)
}

/// Begins to coordinate, on the port of the rendezvous.
fn wait_for_others(rendezvous: &str, nodes: usize, patience: Patience) -> Result<JoinHandle<()>, GroupError> {
    let (host, port) = rendezvous.rsplit_once(':').unwrap_or((rendezvous, ""));
    let wrong = |e: &dyn std::fmt::Display| {
        GroupError::Rendezvous(format!("process 0 cannot wait for the others on port {port}: {e}; choose another port"))
    };
    let number: u16 = port.parse().map_err(|e| wrong(&e))?;
    let listener = TcpListener::bind(("0.0.0.0", number)).map_err(|e| wrong(&e))?;
    let host = host.to_string();
    std::thread::Builder::new()
        .name("coordinator".into())
        .spawn(move || coordinate(listener, host, nodes, patience))
        .map_err(|e| wrong(&e))
}

/// A connection to process 0, and the processes of the world.
type Welcome = (Arc<Line>, Vec<Member>);

/// Greets process 0, which may begin later than this one, and waits until all are there; `None` if it closes the connection.
fn greet(
    rendezvous: &str,
    hello: &Hello,
    deadline: Instant,
    patience: Patience,
) -> Result<Option<Welcome>, GroupError> {
    let unreachable = |e: &std::io::Error| {
        let seconds = patience.rendezvous.as_secs();
        GroupError::Rendezvous(format!(
            "process 0 cannot be reached at {rendezvous} within {seconds} seconds: {}",
            gone(e)
        ))
    };
    let addresses = rendezvous.to_socket_addrs();
    let try_all = |addresses: std::vec::IntoIter<std::net::SocketAddr>| {
        let mut last = std::io::ErrorKind::NotFound.into();
        for address in addresses {
            match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
                Ok(stream) => return Ok(stream),
                Err(e) => last = e,
            }
        }
        Err(last)
    };
    let line = addresses.and_then(try_all).and_then(|stream| Line::new(stream, patience.silence)).map(Arc::new);
    let greeted = line.and_then(|line| line.send(&FromMember::Hello(hello.clone())).map(|()| line));
    let line = match greeted {
        Ok(line) => line,
        Err(e) if Instant::now() >= deadline => return Err(unreachable(&e)),
        Err(_) => return Ok(None),
    };
    line.clone().beat(FromMember::Beat);
    loop {
        match line.receive() {
            Ok(FromCoordinator::Welcome(members)) => return Ok(Some((line, members))),
            Ok(FromCoordinator::Refused(why)) => return Err(GroupError::Rendezvous(why)),
            Ok(_) => {}
            // The answer comes when all are there, and process 0 has a limit of its own.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock && Instant::now() < deadline + patience.silence => {}
            Err(e) if Instant::now() >= deadline => return Err(unreachable(&e)),
            Err(_) => {
                line.close();
                return Ok(None);
            }
        }
    }
}
