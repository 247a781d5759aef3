//! Fetching a model's parts from a hub: a local server that speaks its protocol.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use flamingo_config::{HubFile, Source};
use sha2::{Digest, Sha256};
use xtask::hub::Hub;

/// The revision of every listed repository.
const REVISION: &str = "0123abcd";

/// What the server does wrong, and what it was asked.
#[derive(Default)]
struct State {
    files: HashMap<String, Vec<u8>>,
    /// Breaks each answer off after so many bytes.
    break_after: Option<usize>,
    /// Flips a bit of what it sends.
    damage: bool,
    requests: Vec<String>,
    ranges: usize,
}

struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start(files: HashMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &shared);
            }
        });
        Self { address, state }
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().expect("the state"));
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().expect("a stream")).lines();
    let Some(Ok(first)) = lines.next() else { return };
    let mut from = None;
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        if let Some(range) = line.to_lowercase().strip_prefix("range: bytes=") {
            from = range.trim_end_matches('-').parse::<usize>().ok();
        }
    }
    let mut state = state.lock().expect("the state");
    state.requests.push(first.clone());
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if let Some(repo) = path.strip_prefix("/api/models/") {
        let prefix = format!("/{repo}/resolve/{REVISION}/");
        let names = state.files.keys().filter_map(|f| f.strip_prefix(&prefix));
        let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
        let body = serde_json::json!({"sha": REVISION, "siblings": siblings}).to_string();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok();
        return;
    }
    let Some(file) = state.files.get(path).cloned() else {
        stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").ok();
        return;
    };
    let hash: String = Sha256::digest(&file).iter().map(|b| format!("{b:02x}")).collect();
    let mut body = file.clone();
    if state.damage {
        body[0] ^= 1;
    }
    let status = match from {
        Some(from) => {
            state.ranges += 1;
            body.drain(..from);
            "206 Partial Content"
        }
        None => "200 OK",
    };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nx-linked-size: {}\r\nx-linked-etag: \"{hash}\"\r\nconnection: \
         close\r\n\r\n",
        body.len(),
        file.len()
    );
    stream.write_all(head.as_bytes()).ok();
    if method == "GET" {
        let end = state.break_after.map_or(body.len(), |n| n.min(body.len()));
        stream.write_all(&body[..end]).ok();
    }
}

fn source() -> Source {
    Source {
        clip: HubFile { repo: "openai/clip".into(), file: "model.safetensors".into() },
        language_model: "someone/lm".into(),
        checkpoint: HubFile { repo: "openflamingo/model".into(), file: "checkpoint.pt".into() },
    }
}

fn files() -> HashMap<String, Vec<u8>> {
    let bytes = |n: usize| (0..n).map(|i| (i * 31 % 251) as u8).collect::<Vec<u8>>();
    HashMap::from([
        ("/openai/clip/resolve/main/model.safetensors".into(), bytes(5000)),
        ("/openflamingo/model/resolve/main/checkpoint.pt".into(), bytes(70_000)),
        ("/someone/lm/resolve/0123abcd/config.json".into(), b"{}".to_vec()),
        ("/someone/lm/resolve/0123abcd/pytorch_model.bin".into(), bytes(300)),
        ("/someone/lm/resolve/0123abcd/model-00001-of-00002.safetensors".into(), bytes(100)),
        ("/someone/lm/resolve/0123abcd/model-00002-of-00002.safetensors".into(), bytes(200)),
        ("/someone/lm/resolve/0123abcd/model.safetensors.index.json".into(), b"{}".to_vec()),
        ("/someone/lm/resolve/0123abcd/README.md".into(), b"a card".to_vec()),
    ])
}

fn fetch(server: &Server, folder: &Path) -> anyhow::Result<flamingo_weights::Inputs> {
    Hub::new(&server.address, None).fetch(&source(), folder, &mut |_, _, _| {})
}

#[test]
fn the_parts_of_a_model_arrive_and_are_not_fetched_twice() {
    let server = Server::start(files());
    let work = tempfile::tempdir().expect("a temporary folder");
    let inputs = fetch(&server, work.path()).expect("the parts");
    assert_eq!(std::fs::read(&inputs.checkpoint).expect("a file").len(), 70_000);
    assert_eq!(std::fs::read(&inputs.clip).expect("a file").len(), 5000);
    let mut names: Vec<String> = std::fs::read_dir(&inputs.language_model)
        .expect("a folder")
        .map(|entry| entry.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    // One form of the weights, and nothing that a model does not need.
    let expected = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names, expected);
    server.set(|state| state.requests.clear());
    fetch(&server, work.path()).expect("the parts");
    server.set(|state| {
        let fetched = state.requests.iter().filter(|r| r.starts_with("GET") && !r.contains("/api/")).count();
        assert_eq!(fetched, 0, "{:?}", state.requests);
    });
}

#[test]
fn a_line_that_breaks_is_taken_up_again_where_it_broke() {
    let server = Server::start(files());
    let work = tempfile::tempdir().expect("a temporary folder");
    server.set(|state| state.break_after = Some(4000));
    let inputs = fetch(&server, work.path()).expect("the parts");
    let expected = files();
    assert!(std::fs::read(&inputs.clip).expect("a file") == expected["/openai/clip/resolve/main/model.safetensors"]);
    let checkpoint = &expected["/openflamingo/model/resolve/main/checkpoint.pt"];
    assert!(std::fs::read(&inputs.checkpoint).expect("a file") == *checkpoint);
    server.set(|state| assert_eq!(state.ranges, 1 + 17));
}

#[test]
fn a_dead_line_is_an_error_and_a_later_run_goes_on() {
    let server = Server::start(files());
    let work = tempfile::tempdir().expect("a temporary folder");
    let file = work.path().join("clip/model.safetensors");
    let partial = work.path().join("clip/model.safetensors.incomplete");
    std::fs::create_dir(work.path().join("clip")).expect("a folder");
    let whole = &files()["/openai/clip/resolve/main/model.safetensors"];
    std::fs::write(&partial, &whole[..4000]).expect("what a killed run left");
    server.set(|state| state.break_after = Some(0));
    assert!(fetch(&server, work.path()).is_err());
    assert!(!file.exists(), "half a file has the whole one's name");
    assert_eq!(std::fs::metadata(&partial).expect("a partial file").len(), 4000);
    server.set(|state| (state.break_after, state.ranges) = (None, 0));
    fetch(&server, work.path()).expect("the parts");
    server.set(|state| assert_eq!(state.ranges, 1));
    assert!(std::fs::read(&file).expect("a file") == *whole && !partial.exists());
}

#[test]
fn damaged_and_missing_files_are_errors() {
    let server = Server::start(files());
    let work = tempfile::tempdir().expect("a temporary folder");
    server.set(|state| state.damage = true);
    let error = format!("{:#}", fetch(&server, work.path()).expect_err("an error"));
    assert!(error.contains("damaged") && error.contains("hash"), "{error}");
    assert_eq!(std::fs::read_dir(work.path().join("clip")).expect("a folder").count(), 0);
    server.set(|state| {
        state.damage = false;
        state.files.remove("/openflamingo/model/resolve/main/checkpoint.pt");
    });
    let error = format!("{:#}", fetch(&server, work.path()).expect_err("an error"));
    assert!(error.contains("checkpoint.pt") && error.contains("404"), "{error}");
    let nobody = Hub::new("http://127.0.0.1:9", None).fetch(&source(), work.path(), &mut |_, _, _| {});
    assert!(format!("{:#}", nobody.expect_err("an error")).contains("cannot reach"));
}
