//! Many at once.

use std::collections::HashMap;
use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Server, categories, data_url, drawing, picture, text};

/// Prompts that share demonstrations with some others and nothing with the rest.
fn prompts() -> Vec<Value> {
    let mut prompts = Vec::new();
    for name in ["banana", "bicycle", "carrot", "cherries", "crab", "guitar"] {
        prompts.push(json!({"prompt": categories(name)}));
        prompts.push(json!({"prompt": [picture(name), text("A picture of")], "logprobs": 2}));
        prompts.push(json!({
            "prompt": [picture("octopus"), text("Output:red<|endofchunk|>"), picture(name), text("Output:")],
            "temperature": 1.3, "seed": 5, "n": 3, "logprobs": 1,
        }));
    }
    prompts
}

/// What does not depend on time or on what is remembered.
fn essence(answer: &Value) -> String {
    json!([answer["choices"], answer["usage"]["completion_tokens"], answer["usage"]["prompt_tokens"]]).to_string()
}

/// Asked by 12 clients at once, in different orders, each prompt has the answer that it has alone, to the last digit of its
/// log-probabilities.
#[test]
fn answers_do_not_depend_on_other_requests() {
    let prompts = prompts();
    let alone: HashMap<String, String> = prompts
        .iter()
        .map(|prompt| {
            // Each by a server that knows nothing yet.
            let server = Server::start(&["--cache", "0"]);
            (prompt.to_string(), essence(&server.answer("/v1/completions", prompt.clone())))
        })
        .collect();
    let server = Server::start(&[]);
    std::thread::scope(|scope| {
        for client in 0..12 {
            let (server, prompts, alone) = (&server, &prompts, &alone);
            scope.spawn(move || {
                for i in 0..prompts.len() {
                    let prompt = &prompts[(i * 5 + client * 7) % prompts.len()];
                    let answer = server.answer("/v1/completions", prompt.clone());
                    assert_eq!(essence(&answer), alone[&prompt.to_string()], "client {client}");
                }
            });
        }
    });
    assert!(server.metric("flamingo_cached_pictures_total") > 0.0);
    assert!(server.metric("flamingo_cached_tokens_total") > 0.0);
}

/// More pictures and beginnings than fit: what is kept stays within its bounds, and answers are those of a server that keeps
/// nothing.
#[test]
fn what_is_remembered_is_bounded() {
    const BOUND: f64 = (1 << 20) as f64;
    let crab = std::fs::read(drawing("crab")).expect("a drawing");
    // What follows the end of a PNG is not looked at, but makes another file of it.
    let copy = |i: usize| data_url(&[&crab[..], i.to_string().as_bytes()].concat());
    let prompt = |i: usize| {
        json!([
            {"type": "image_url", "image_url": {"url": copy(i)}},
            text("Output:nature<|endofchunk|>"),
            picture("carrot"),
            text("Output:"),
        ])
    };
    let ask = |server: &Server, i: usize| server.answer("/v1/completions", json!({"prompt": prompt(i), "logprobs": 1}));
    let wanted = essence(&ask(&Server::start(&["--cache", "0"]), 0));
    let server = Server::start(&["--cache", "1"]);
    let kept = || ["picture", "prefix"].map(|what| server.metric(&format!("flamingo_{what}_cache_bytes")));
    const COPIES: usize = 100;
    for i in 0..COPIES {
        assert_eq!(essence(&ask(&server, i)), wanted, "{i}");
        assert!(kept().iter().all(|&bytes| bytes <= BOUND), "{:?}", kept());
    }
    assert!(kept().iter().all(|&bytes| bytes > BOUND / 2.0), "{:?}", kept());
    // The last is remembered, the first is forgotten, the carrot was in use all the time.
    for (i, pictures, beginning) in [(COPIES - 1, 2, true), (0, 1, false)] {
        let answer = ask(&server, i);
        assert_eq!(answer["flamingo"]["images"]["cached"], pictures, "{i}");
        assert_eq!(answer["flamingo"]["tokens"]["cached"] != 0, beginning, "{i}");
        assert_eq!(essence(&answer), wanted, "{i}");
    }
}

/// Asked to end, a server finishes what it has begun and takes nothing new.
#[test]
fn what_was_begun_is_finished() {
    let server = Server::start(&["--model", "golden-tiny", "--max-context", "100000"]);
    let body = json!({"prompt": "a", "max_tokens": 4000, "min_tokens": 4000, "stream": true});
    let mut client = server.asking("/v1/completions", &body);
    let mut answer = vec![0; 64];
    client.read_exact(&mut answer).expect("a beginning");
    let killed = Command::new("kill").args(["-TERM", &server.id().to_string()]).status().expect("kill");
    assert!(killed.success());
    let asked = Instant::now();
    while std::net::TcpStream::connect(&server.address).is_ok() {
        assert!(asked.elapsed() < Duration::from_secs(20), "it still takes connections");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.read_to_end(&mut answer).expect("the rest");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("data: [DONE]"), "the stream broke off");
    assert!(server.ended(), "it did not end well");
}
