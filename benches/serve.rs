//! A server under load: how long clients wait, how much more it does for several than for one after the other, and whether any
//! answer is wrong or lost.
//!
//!     cargo bench --bench serve -- --clients 64 --seconds 300
//!     cargo bench --bench serve -- --clients 1 --clients 16 --seconds 20 --tokens 64

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use clap::Parser;
use serde_json::{Value, json};

#[derive(Parser)]
struct Args {
    /// Clients that ask at the same time, each one request after the other. Several numbers give several lines.
    #[arg(long, default_value = "16")]
    clients: Vec<usize>,
    /// How long they ask.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// New tokens of each answer; without it the model ends its answers by itself.
    #[arg(long)]
    tokens: Option<usize>,
    /// Different prompts: each is asked once beforehand.
    #[arg(long, default_value_t = 30)]
    prompts: usize,
    /// A model folder, or the name of one in the zoo.
    #[arg(long, default_value = "flamingo-tiny-neox")]
    model: String,
    /// What the server computes on.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Further options of `flamingo serve`.
    #[arg(long = "serve", allow_hyphen_values = true)]
    options: Vec<String>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A server that ends with this program.
struct Server {
    process: Child,
    address: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(args: &Args) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_flamingo"))
            .args(["serve", "--port", "0", "--device", &args.device, "--model", &args.model])
            .args(&args.options)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("http://").expect("an address").to_string();
        Self { process, address }
    }

    /// Megabytes of memory: what the system calls `VmRSS`, or `VmHWM`, the most so far.
    fn memory(&self, which: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(which)?.trim_matches([':', '\t', ' ']).strip_suffix(" kB"));
        line.and_then(|kilobytes| kilobytes.trim().parse::<f64>().ok()).map_or(f64::NAN, |kilobytes| kilobytes / 1024.0)
    }
}

/// A connection that is kept.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        Self(BufReader::new(stream))
    }

    /// The status of an answer, and what it says.
    fn ask(&mut self, request: &[u8]) -> std::io::Result<(u16, Value)> {
        self.0.get_mut().write_all(request)?;
        let (mut status, mut length) = (0, 0);
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("http/1.1 ") {
                status = rest[..3].parse().unwrap_or(0);
            } else if let Some(rest) = line.strip_prefix("content-length: ") {
                length = rest.parse().unwrap_or(0);
            } else if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok((status, serde_json::from_slice(&body)?))
    }
}

fn request(body: &Value) -> Vec<u8> {
    let body = body.to_string();
    let length = body.len();
    format!("POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
}

/// Few-shot prompts: two demonstrations of categories, of colours or of names, and a question, over the drawings of the tests.
fn requests(tokens: Option<usize>) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/emoji");
    let picture = |name: &str| {
        let bytes = std::fs::read(folder.join(name).with_extension("png")).expect("a drawing");
        let data = base64::prelude::BASE64_STANDARD.encode(bytes);
        json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}})
    };
    let names =
        ["banana", "bicycle", "carrot", "cherries", "crab", "guitar", "hamburger", "octopus", "penguin", "pizza"];
    let tasks = [
        ("Output:nature", "Output:object", "Output:"),
        ("Output:red", "Output:yellow", "Output:"),
        ("A picture of a crab", "A picture of a light bulb", "A picture of"),
    ];
    let mut requests = Vec::new();
    for (first, second, question) in tasks {
        for name in names {
            let text = |text: &str| json!({"type": "text", "text": text});
            let shot = |words: &str| text(&format!("{words}<|endofchunk|>"));
            let prompt = json!([
                picture("crab"),
                shot(first),
                picture("light-bulb"),
                shot(second),
                picture(name),
                text(question)
            ]);
            requests.push(request(&match tokens {
                Some(tokens) => json!({"prompt": prompt, "max_tokens": tokens, "min_tokens": tokens}),
                None => json!({"prompt": prompt}),
            }));
        }
    }
    requests
}

#[derive(Default)]
struct Counts {
    times: Vec<f64>,
    tokens: u64,
    wrong: usize,
    refused: usize,
    lost: usize,
}

fn main() {
    let args = Args::parse();
    let mut requests = requests(args.tokens);
    requests.truncate(args.prompts.max(1));
    println!(
        "| clients | seconds | answers | a second | tokens a second | 50 % ms | 90 % | 99 % | longest | refused | wrong | lost | memory MB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for &clients in &args.clients {
        let server = Server::start(&args);
        // What each is answered when nobody else asks; the pictures are remembered from here on.
        let mut client = Client::new(&server.address);
        let wanted: Vec<Value> = requests
            .iter()
            .map(|request| {
                let (status, answer) = client.ask(request).expect("an answer");
                assert_eq!(status, 200, "{answer}");
                answer["choices"].clone()
            })
            .collect();
        let before = server.memory("VmRSS");
        let started = Instant::now();
        let end = started + Duration::from_secs_f64(args.seconds);
        let counts: Vec<Counts> = std::thread::scope(|scope| {
            let ask = |number: usize| {
                let (requests, wanted, address) = (&requests, &wanted, &server.address);
                move || {
                    let mut counts = Counts::default();
                    let mut client = Client::new(address);
                    let mut at = number * 7;
                    while Instant::now() < end {
                        at = (at + 11) % requests.len();
                        let asked = Instant::now();
                        match client.ask(&requests[at]) {
                            Ok((200, answer)) => {
                                counts.times.push(asked.elapsed().as_secs_f64() * 1e3);
                                counts.tokens += answer["usage"]["completion_tokens"].as_u64().unwrap_or(0);
                                counts.wrong += usize::from(answer["choices"] != wanted[at]);
                            }
                            Ok((429, _)) => {
                                counts.refused += 1;
                                std::thread::sleep(Duration::from_millis(50));
                            }
                            _ => {
                                counts.lost += 1;
                                client = Client::new(address);
                            }
                        }
                    }
                    counts
                }
            };
            let all: Vec<_> = (0..clients).map(|number| scope.spawn(ask(number))).collect();
            all.into_iter().map(|client| client.join().expect("a client")).collect()
        });
        let seconds = started.elapsed().as_secs_f64();
        let mut times: Vec<f64> = counts.iter().flat_map(|counts| &counts.times).copied().collect();
        times.sort_by(f64::total_cmp);
        let percentile = |share: f64| {
            times
                .get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)))
                .copied()
                .unwrap_or(f64::NAN)
        };
        let sum = |of: fn(&Counts) -> usize| counts.iter().map(of).sum::<usize>();
        let tokens: u64 = counts.iter().map(|counts| counts.tokens).sum();
        println!(
            "| {clients} | {seconds:.0} | {} | {:.1} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} | {} | {before:.0} → {:.0}, most {:.0} |",
            times.len(),
            times.len() as f64 / seconds,
            tokens as f64 / seconds,
            percentile(0.5),
            percentile(0.9),
            percentile(0.99),
            times.last().copied().unwrap_or(f64::NAN),
            sum(|counts| counts.refused),
            sum(|counts| counts.wrong),
            sum(|counts| counts.lost),
            server.memory("VmRSS"),
            server.memory("VmHWM"),
        );
    }
}
