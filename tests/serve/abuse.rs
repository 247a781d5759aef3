//! What must not bring a server down, each tried on a server that has to be alive after it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Server, categories, data_url, drawing, picture, text};

fn small(more: &[&str]) -> Server {
    Server::start(&[&["--read-timeout", "2"], more].concat())
}

/// A PNG that says how large it is and holds nothing.
fn bomb(side: u32) -> Vec<u8> {
    let mut file = vec![0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
    let mut chunk = |kind: &[u8], data: &[u8]| {
        file.extend((data.len() as u32).to_be_bytes());
        let content = [kind, data].concat();
        file.extend(&content);
        file.extend(crc(&content).to_be_bytes());
    };
    let mut head = [side.to_be_bytes(), side.to_be_bytes()].concat();
    head.extend([8, 2, 0, 0, 0]);
    chunk(b"IHDR", &head);
    chunk(b"IDAT", &[0x78, 0x9c, 0x03, 0x00, 0x00, 0x00, 0x00, 0x01]);
    chunk(b"IEND", &[]);
    file
}

/// PNG's checksum.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

fn image(bytes: &[u8]) -> Value {
    json!({"prompt": [{"type": "image_url", "image_url": {"url": data_url(bytes)}}, {"type": "text", "text": "A"}]})
}

#[test]
fn large_requests_are_refused() {
    let server = small(&["--max-body", "4"]);
    let body = json!({"prompt": "a".repeat(10 << 20)}).to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // Told how large it is, the server refuses it, whether it comes or not.
    let answer = server.raw(head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // Not told, it stops reading in time.
    let mut chunked = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    for piece in body.as_bytes().chunks(1 << 16) {
        chunked.extend(format!("{:x}\r\n", piece.len()).bytes());
        chunked.extend(piece);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    let answer = server.raw(&chunked);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    server.alive();
    // 10 MB that are allowed are ten million characters of a prompt: too long for any model.
    let server = small(&[]);
    let (status, why) = server.refused("/v1/completions", json!({"prompt": "word ".repeat(2 << 20)}));
    assert_eq!(status, 400);
    assert!(why.contains("tokens"), "{why}");
    server.alive();
}

#[test]
fn pictures_that_are_none_are_refused() {
    let server = small(&[]);
    let whole = std::fs::read(drawing("crab")).expect("a drawing");
    for side in [10_000, u32::MAX >> 1] {
        let started = Instant::now();
        let (status, why) = server.refused("/v1/completions", image(&bomb(side)));
        assert_eq!(status, 400, "{side}");
        // By its size alone, not by what is missing in it.
        assert!(
            why.contains("pixels") && !server.refused("/v1/completions", image(&bomb(100))).1.contains("pixels"),
            "{why}"
        );
        assert!(started.elapsed() < Duration::from_secs(5), "{side} took {:?}", started.elapsed());
    }
    for (bytes, what) in [
        (bomb(100), "without its pixels"),
        (whole[..whole.len() / 2].to_vec(), "half of one"),
        (whole[..8].to_vec(), "the beginning of one"),
        (Vec::new(), "nothing"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "an SVG"),
    ] {
        let started = Instant::now();
        let (status, why) = server.refused("/v1/completions", image(&bytes));
        assert_eq!(status, 400, "{what}");
        assert!(why.contains("picture"), "{what}: {why}");
        assert!(started.elapsed() < Duration::from_secs(5), "{what} took {:?}", started.elapsed());
    }
    for url in
        ["data:image/png;base64,§§§§", "data:image/png,abc", "data:", "file:///etc/passwd", "", "javascript:alert(1)"]
    {
        let part = json!({"type": "image_url", "image_url": {"url": url}});
        let (status, _) = server.refused("/v1/completions", json!({"prompt": [part]}));
        assert_eq!(status, 400, "{url}");
    }
    server.alive();
    assert_eq!(server.answer("/v1/completions", json!({"prompt": categories("carrot")}))["choices"][0]["text"], "food");
}

#[test]
fn ten_thousand_pictures_are_too_many() {
    let server = small(&[]);
    let parts: Vec<Value> = std::iter::repeat_n(picture("crab"), 10_000).collect();
    let (status, answer) = server.ask("/v1/completions", &json!({"prompt": parts}));
    assert!(status == 400 || status == 413, "{answer}");
    let tiny: Vec<Value> =
        std::iter::repeat_n(json!({"type": "image_url", "image_url": {"url": "data:;base64,"}}), 10_000).collect();
    for (path, body) in [("/v1/completions", json!({"prompt": tiny})), ("/v1/embeddings", json!({"input": tiny}))] {
        let (status, why) = server.refused(path, body);
        assert_eq!(status, 400);
        assert!(why.contains("10000 pictures"), "{why}");
    }
    server.alive();
}

#[test]
fn wrong_fields_are_named() {
    let server = small(&[]);
    let refusals = [
        (json!({"prompt": "A", "max_tokens": -1}), "-1"),
        (json!({"prompt": "A", "max_tokens": 0}), "max_tokens"),
        (json!({"prompt": "A", "max_tokens": 4_000_000_000u32}), "tokens"),
        (json!({"prompt": "A", "max_tokens": 1e30}), "1e+30"),
        (json!({"prompt": "A", "min_tokens": 65}), "min_tokens"),
        (json!({"prompt": "A", "n": 0}), "n is 0"),
        (json!({"prompt": "A", "n": 100_000}), "n is 100000"),
        (json!({"prompt": "A", "temperature": -0.1}), "temperature"),
        (json!({"prompt": "A", "temperature": "hot"}), "temperature"),
        (json!({"prompt": "A", "top_p": 0}), "top_p"),
        (json!({"prompt": "A", "logprobs": 6}), "logprobs"),
        (json!({"prompt": "A", "stop": ["a", "b", "c", "d", "e"]}), "stop"),
        (json!({"prompt": "A", "stop": ""}), "stop"),
        (json!({"prompt": "A", "frequency_penalty": 1}), "frequency_penalty"),
        (json!({"prompt": "A", "unknown": 1}), "unknown"),
        (json!({"prompt": ""}), "empty"),
        (json!({"prompt": []}), "empty"),
        (json!({"prompt": [[1, 2]]}), "prompt"),
        (json!({"prompt": 5}), "prompt"),
        (json!({"prompt": "<image>A"}), "<image>"),
        (json!({"prompt": [{"type": "audio"}]}), "audio"),
        (json!({"prompt": [{"type": "text", "text": "A", "more": 1}]}), "more"),
        (json!({}), "prompt"),
    ];
    for (body, word) in refusals {
        let (status, why) = server.refused("/v1/completions", body.clone());
        assert_eq!(status, 400, "{body}");
        assert!(why.contains(word), "{body}: {why}");
    }
    for (path, body, word) in [
        ("/v1/chat/completions", json!({"messages": []}), "no message"),
        ("/v1/chat/completions", json!({"messages": [{"role": "king", "content": "A"}]}), "king"),
        (
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "A"}], "top_logprobs": 2}),
            "logprobs",
        ),
        ("/v1/chat/completions", json!({"messages": [{"role": "user", "content": "A"}], "tools": []}), "tools"),
        ("/v1/score", json!({"prompt": "A", "candidates": []}), "candidates"),
        ("/v1/score", json!({"prompt": "A", "candidates": ["a", ""]}), "candidate 1"),
        ("/v1/embeddings", json!({"input": []}), "no picture"),
        ("/v1/embeddings", json!({"input": "a cat"}), "data"),
    ] {
        let (status, why) = server.refused(path, body.clone());
        assert_eq!(status, 400, "{body}");
        assert!(why.contains(word), "{body}: {why}");
    }
    for body in ["", "{", "null", "[]", "{\"prompt\": \"\\ud800\"}", &"[".repeat(100_000)] {
        assert_eq!(server.post("/v1/completions", body).0, 400);
    }
    server.alive();
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let server = small(&[]);
    let post = |body: &[u8], more: &str| {
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{more}\r\n",
            body.len()
        );
        server.raw(&[head.as_bytes(), body].concat())
    };
    assert!(post(b"{\"prompt\": \"\xff\xfe\xc0\"}", "content-type: application/json\r\n").starts_with("HTTP/1.1 400"));
    assert!(post(b"prompt=A", "content-type: application/x-www-form-urlencoded\r\n").starts_with("HTTP/1.1 415"));
    assert!(post(b"{}", "").starts_with("HTTP/1.1 415"), "a page in a browser can send that");
    assert!(server.raw(b"\xff\xff\xff\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(server.raw(b"GET / HTTP/9.9\r\n\r\n").starts_with("HTTP/1.1 400"));
    assert!(
        server
            .raw(b"DELETE /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            .starts_with("HTTP/1.1 405")
    );
    server.alive();
}

#[test]
fn floods_of_headers_are_refused() {
    let server = small(&[]);
    let many: String = (0..1000).map(|i| format!("x-{i}: 1\r\n")).collect();
    let answer = server.raw(format!("GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let long = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let answer = server.raw(long.as_bytes());
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    server.alive();
}

/// Clients that send nothing, half a head, or half a body hold no place for long, and none that others need.
#[test]
fn slow_clients_are_left() {
    let server = small(&[]);
    let bodies = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"prompt\"";
    let beginnings: [&[u8]; 3] = [b"", b"GET /health HTTP/1.1\r\nho", bodies];
    let slow: Vec<TcpStream> = beginnings
        .iter()
        .cycle()
        .take(60)
        .map(|beginning| {
            let mut stream = server.connect();
            stream.write_all(beginning).expect("a connection that is open");
            stream
        })
        .collect();
    server.alive();
    let started = Instant::now();
    for mut stream in slow {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    server.waits_for("the end of their connections", |server| server.metric("flamingo_connections") <= 1.0);
    server.alive();
}

/// A client that goes away in the middle of a stream: its work stops.
#[test]
fn work_for_nobody_stops() {
    let server = Server::start(&["--model", "golden-tiny", "--max-context", "10000000"]);
    for stream in [true, false] {
        let body = json!({"prompt": "a", "max_tokens": 9_000_000, "min_tokens": 9_000_000, "stream": stream});
        let mut client = server.asking("/v1/completions", &body);
        server.waits_for("the beginning", |server| server.metric("flamingo_running") == 1.0);
        if stream {
            let mut some = [0; 256];
            assert!(client.read(&mut some).expect("an answer") > 0);
        }
        drop(client);
        server.waits_for("the end", |server| server.metric("flamingo_running") == 0.0);
    }
    assert!(server.metric("flamingo_cancelled_total") >= 2.0);
    let written = server.metric("flamingo_new_tokens_total");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.metric("flamingo_new_tokens_total"), written);
    server.alive();
}

/// A prompt that takes minutes to read, and what may be asked about it.
fn long() -> [(&'static str, Value); 2] {
    let prompt = "a ".repeat(LONG);
    [
        ("/v1/completions", json!({"prompt": prompt, "max_tokens": 1})),
        ("/v1/score", json!({"prompt": prompt, "candidates": ["a", "b"]})),
    ]
}

/// Words of it.
const LONG: usize = 100_000;

/// Requests that the model has taken up.
fn begun(server: &Server) -> f64 {
    server.metric("flamingo_queue_time_seconds_count")
}

/// A client that goes away while its prompt is read: the rest is not. Texts that are being written go on meanwhile.
#[test]
fn long_prompts_are_read_beside_texts_and_for_somebody() {
    let server = Server::start(&["--model", "golden-tiny", "--max-context", "10000000"]);
    let written =
        server.asking("/v1/completions", &json!({"prompt": "a", "max_tokens": 9_000_000, "min_tokens": 9_000_000}));
    server.waits_for("the beginning", |server| server.metric("flamingo_running") == 1.0);
    for (path, body) in long() {
        let (before, cancelled) = (begun(&server), server.metric("flamingo_cancelled_total"));
        let client = server.asking(path, &body);
        server.waits_for("the beginning", |server| begun(server) > before);
        let (tokens, read) =
            (server.metric("flamingo_new_tokens_total"), server.metric("flamingo_prompt_tokens_total"));
        server.waits_for("more text", |server| server.metric("flamingo_new_tokens_total") > tokens + 5.0);
        drop(client);
        server.waits_for("the end", |server| server.metric("flamingo_cancelled_total") > cancelled);
        assert_eq!(server.metric("flamingo_prompt_tokens_total"), read, "the prompt was read to its end");
    }
    drop(written);
    server.alive();
}

/// A prompt that takes longer to read than a request may take is not read on, and the next is answered.
#[test]
fn late_prompts_are_not_read_on() {
    let server = Server::start(&["--model", "golden-tiny", "--max-context", "10000000", "--timeout", "15"]);
    for (path, body) in long() {
        let (before, late) = (begun(&server), server.metric("flamingo_late_total"));
        let (status, message) = server.refused(path, body);
        assert_eq!(status, 408, "{message}");
        assert!(begun(&server) > before, "it never came to the model");
        server.waits_for("an answer", |server| {
            server.ask("/v1/completions", &json!({"prompt": "a", "max_tokens": 2})).0 == 200
        });
        assert!(server.metric("flamingo_prompt_tokens_total") < LONG as f64, "the prompt was read to its end");
        // Nobody went away: the model's thread saw that it is late.
        assert!(server.metric("flamingo_late_total") > late);
        assert_eq!(server.metric("flamingo_cancelled_total"), 0.0);
    }
    server.alive();
}

/// A client that asks for a stream and never reads it: its work stops, though it stays.
#[test]
fn clients_that_never_read_are_left() {
    let server = Server::start(&["--model", "golden-tiny", "--max-context", "10000000", "--read-timeout", "1"]);
    // As much text as possible: the system takes megabytes of it before a write has to wait.
    let body = json!({
        "prompt": "a", "max_tokens": 9_000_000, "min_tokens": 9_000_000, "n": 8, "logprobs": 5, "stream": true,
    });
    let client = server.asking("/v1/completions", &body);
    server.waits_for("the beginning", |server| server.metric("flamingo_running") == 8.0);
    // The text has to be written first, beside other tests.
    server.waits_long_for("the end", Duration::from_secs(180), |server| server.metric("flamingo_running") == 0.0);
    assert_eq!(server.metric("flamingo_cancelled_total"), 1.0);
    server.alive();
    drop(client);
}

#[test]
fn requests_beyond_the_queue_are_refused() {
    let server = Server::start(&[
        "--model",
        "golden-tiny",
        "--max-context",
        "10000000",
        "--max-batch",
        "1",
        "--max-queue",
        "1",
        "--timeout",
        "10",
    ]);
    let long = json!({"prompt": "a", "max_tokens": 9_000_000, "min_tokens": 9_000_000});
    std::thread::scope(|scope| {
        // One is written, one waits in the scheduler's hand, one in the queue.
        let ask = || server.ask("/v1/completions", &long);
        let mut first = Vec::new();
        first.push(scope.spawn(ask));
        server.waits_for("the first", |server| server.metric("flamingo_running") == 1.0);
        for waiting in [1.0, 2.0] {
            first.push(scope.spawn(ask));
            server.waits_for("the next", |server| server.metric("flamingo_queue") == waiting);
        }
        let mut client = server.asking("/v1/completions", &long);
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
        assert!(answer.contains("retry-after: 1"), "{answer}");
        server.alive();
        for request in first {
            let (status, answer) = request.join().expect("an answer");
            assert_eq!(status, 408, "{answer}");
        }
    });
    assert_eq!(
        server.answer("/v1/completions", json!({"prompt": "a", "max_tokens": 2}))["choices"][0]["finish_reason"],
        "length"
    );
}

/// A server of pictures on this machine, which counts how often it is asked.
fn pictures() -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (asked, requests) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let file = std::fs::read(drawing("crab")).expect("a drawing");
            let answer = match request.split(' ').nth(1).unwrap_or_default() {
                "/crab.png" => {
                    [format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", file.len()).into_bytes(), file].concat()
                }
                "/redirect" => b"HTTP/1.1 302 Found\r\nlocation: /crab.png\r\ncontent-length: 0\r\n\r\n".to_vec(),
                "/large" => [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'x'; 8 << 20]].concat(),
                "/silent" => Vec::new(),
                "/slow" => b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nx".to_vec(),
                _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
            };
            let stays = ["GET /silent", "GET /slow"].iter().any(|path| request.starts_with(path));
            let _ = asked.send(request);
            let _ = stream.write_all(&answer);
            if stays {
                // For good: nothing more comes, and nothing ends.
                std::mem::forget(stream);
            }
        }
    });
    (port, requests)
}

#[test]
fn pictures_are_fetched_from_where_it_is_allowed() {
    let (port, requests) = pictures();
    let ask = |server: &Server, url: &str| {
        let part = json!({"type": "image_url", "image_url": {"url": url}});
        let (status, answer) = server.ask("/v1/completions", &json!({"prompt": [part, text("A picture of")]}));
        let text = answer["choices"][0]["text"].as_str().or(answer["error"]["message"].as_str()).unwrap_or_default();
        (status, text.to_string())
    };

    // Off.
    let server = small(&[]);
    let (status, why) = ask(&server, &format!("http://127.0.0.1:{port}/crab.png"));
    assert!(status == 400 && why.contains("off"), "{why}");

    // On, for hosts whose addresses are this machine's: names and addresses in every way of writing.
    let names =
        ["localhost", "127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]"];
    let allow: Vec<&str> = names.iter().flat_map(|name| ["--allow-host", name]).collect();
    let server = small(&allow);
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]"] {
        let (status, why) = ask(&server, &format!("http://{host}:{port}/crab.png"));
        assert_eq!(status, 400, "{host}");
        assert!(why.contains("not public") || why.contains("may not be fetched"), "{host}: {why}");
    }
    for url in [
        format!("http://169.254.169.254:{port}/latest/meta-data"),
        format!("http://10.0.0.1:{port}/"),
        format!("http://2130706433:{port}/crab.png"),
        format!("http://127.1:{port}/crab.png"),
        format!("http://evil@127.0.0.1:{port}/crab.png"),
        format!("http://localhost@example.com:{port}/crab.png"),
        format!("ftp://localhost:{port}/crab.png"),
        format!("http://example.com:{port}/crab.png"),
        "http://".into(),
    ] {
        assert_eq!(ask(&server, &url).0, 400, "{url}");
    }
    assert!(requests.try_recv().is_err(), "this machine was asked for something");
    server.alive();

    // Where this network's addresses are allowed, too.
    let allowed = ["--allow-host", "localhost", "--allow-private-addresses", "--max-body", "4"];
    let server = Server::start(&allowed);
    let (status, caption) = ask(&server, &format!("http://localhost:{port}/crab.png"));
    let direct = server.answer("/v1/completions", json!({"prompt": [picture("crab"), text("A picture of")]}));
    assert_eq!((status, caption.as_str()), (200, direct["choices"][0]["text"].as_str().expect("a text")));
    assert!(requests.recv().expect("a request").starts_with("GET /crab.png"));
    // A redirect is not followed, whatever it leads to.
    let (status, why) = ask(&server, &format!("http://localhost:{port}/redirect"));
    assert!(status == 400 && why.contains("302"), "{why}");
    let (status, why) = ask(&server, &format!("http://localhost:{port}/large"));
    assert!(status == 400 && why.contains("bytes"), "{why}");
    let (status, _) = ask(&server, &format!("http://127.0.0.1:{port}/crab.png"));
    assert_eq!(status, 400, "a host that was not named");
    server.alive();

    let server = Server::start(&[&allowed[..], &["--fetch-timeout", "1"]].concat());
    for path in ["silent", "slow"] {
        let started = Instant::now();
        let (status, why) = ask(&server, &format!("http://localhost:{port}/{path}"));
        assert!(status == 400 && why.contains("too long"), "{why}");
        assert!(started.elapsed() < Duration::from_secs(8), "{path}: {:?}", started.elapsed());
    }
    server.alive();
}
