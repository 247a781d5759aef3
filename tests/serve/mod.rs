//! The real server, through real connections.

mod abuse;
mod api;
mod load;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A server that ends with the test.
pub struct Server {
    process: Child,
    pub address: String,
}

impl Server {
    pub fn start(options: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_flamingo"))
            .args(["serve", "--port", "0", "--device", "flex"])
            .args(options)
            .current_dir(root())
            .env_remove("FLAMINGO_MODELS")
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("http://").expect("an address").to_string();
        Self { process, address }
    }

    pub fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.post(path, &body.to_string());
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    }

    /// The answer, which must be a success.
    pub fn answer(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(path, &body);
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// The refusal's status and sentence.
    pub fn refused(&self, path: &str, body: Value) -> (u16, String) {
        let (status, answer) = self.ask(path, &body);
        assert!(status >= 400, "{answer}");
        (status, answer["error"]["message"].as_str().unwrap_or_else(|| panic!("no sentence: {answer}")).to_string())
    }

    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let request = agent().post(&url).header("content-type", "application/json");
        let mut response = request.send(body).expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(format!("http://{}{path}", self.address)).call().expect("an answer");
        (response.status().as_u16(), response.body_mut().read_to_string().expect("text"))
    }

    /// What arrives after sending these very bytes, until the server ends the connection or stays silent.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect();
        // A server may refuse before it has read everything.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A client that has asked and does not read yet.
    pub fn asking(&self, path: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n",
            body.len()
        );
        let mut client = self.connect();
        client.write_all(head.as_bytes()).and_then(|()| client.write_all(body.as_bytes())).expect("a connection");
        client
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream
    }

    /// A number of `/metrics`.
    pub fn metric(&self, name: &str) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).parse().expect("a number")
    }

    pub fn waits_for(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.waits_long_for(what, Duration::from_secs(30), holds);
    }

    pub fn waits_long_for(&self, what: &str, time: Duration, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < time, "{what} did not come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn alive(&self) {
        let (status, answer) = self.get("/health");
        assert_eq!((status, answer.as_str()), (200, r#"{"status":"ok"}"#));
        let (status, _) = self.get("/ready");
        assert_eq!(status, 200);
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits for it to end by itself.
    pub fn ended(mut self) -> bool {
        self.process.wait().expect("a process").success()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(Duration::from_secs(120)))
        .build();
    ureq::Agent::new_with_config(config)
}

pub fn drawing(name: &str) -> PathBuf {
    root().join("tests/fixtures/emoji").join(name).with_extension("png")
}

pub fn data_url(bytes: &[u8]) -> String {
    format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))
}

/// A picture as a part of a prompt.
pub fn picture(name: &str) -> Value {
    let bytes = std::fs::read(drawing(name)).expect("a drawing");
    json!({"type": "image_url", "image_url": {"url": data_url(&bytes)}})
}

pub fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

/// Two demonstrations of categories, and a question.
pub fn categories(query: &str) -> Value {
    json!([
        picture("crab"),
        text("Output:nature<|endofchunk|>"),
        picture("light-bulb"),
        text("Output:object<|endofchunk|>"),
        picture(query),
        text("Output:"),
    ])
}

/// The data of server-sent events.
pub fn events(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_string).collect()
}
