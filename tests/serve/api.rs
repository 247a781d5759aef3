//! What the routes answer.

use serde_json::{Value, json};

use super::{Server, categories, data_url, drawing, events, picture, root, text};
use crate::cli::{flamingo, stdout};

fn generated(args: &[&str]) -> Value {
    let output = flamingo(&[&["generate", "--device", "flex", "--json"], args].concat());
    serde_json::from_str(&stdout(&output)).expect("JSON")
}

#[test]
fn a_few_shot_prompt_is_continued_as_at_the_command_line() {
    let server = Server::start(&[]);
    let [crab, bulb, carrot] = ["crab", "light-bulb", "carrot"].map(|name| drawing(name).display().to_string());
    let shots = ["--shot", &crab, "Output:nature", "--shot", &bulb, "Output:object"];
    let wanted = generated(&[&shots[..], &["--image", &carrot, "--prompt", "Output:"]].concat());
    let wanted = wanted["sequences"][0]["text"].as_str().expect("a text");

    let body = json!({"model": "flamingo-tiny-neox", "prompt": categories("carrot")});
    // The second time all of it is remembered, and nothing else changes.
    for cached in [0, 3] {
        let answer = server.answer("/v1/completions", body.clone());
        assert_eq!(answer["choices"][0]["text"], wanted);
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(
            answer["flamingo"]["prompt"],
            "<image>Output:nature<|endofchunk|><image>Output:object<|endofchunk|><image>Output:"
        );
        assert_eq!(answer["flamingo"]["images"], json!({"seen": 3, "cached": cached}));
        let (usage, tokens) = (&answer["usage"], &answer["flamingo"]["tokens"]);
        assert_eq!(usage["prompt_tokens"], tokens["prompt"]);
        assert_eq!(tokens["cached"].as_u64().expect("a number") > 0, cached > 0);
        let sum =
            usage["prompt_tokens"].as_u64().expect("a number") + usage["completion_tokens"].as_u64().expect("a number");
        assert_eq!(usage["total_tokens"], sum);
    }
}

#[test]
fn a_stream_has_the_same_text() {
    let server = Server::start(&[]);
    let whole = server.answer("/v1/completions", json!({"prompt": [picture("octopus"), text("A picture of")]}));
    let body = json!({
        "prompt": [picture("octopus"), text("A picture of")], "stream": true, "stream_options": {"include_usage": true},
    });
    let (status, streamed) = server.post("/v1/completions", &body.to_string());
    assert_eq!(status, 200);
    let mut events = events(&streamed);
    assert_eq!(events.pop().expect("an end"), "[DONE]");
    let chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
    let pieces: Vec<&str> = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(pieces.concat(), whole["choices"][0]["text"]);
    assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 1, "{pieces:?}");
    let last = &chunks[chunks.len() - 2];
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["flamingo"]["images"], json!({"seen": 1, "cached": 1}));
    assert_eq!(chunks.last().expect("usage")["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(chunks.last().expect("usage")["choices"], json!([]));
}

#[test]
fn messages_become_demonstrations() {
    let server = Server::start(&[]);
    let user = |name: &str, prompt: &str| json!({"role": "user", "content": [picture(name), text(prompt)]});
    let answer = |text: &str| json!({"role": "assistant", "content": text});
    let messages = json!([
        user("crab", "Output:"),
        answer("nature"),
        user("light-bulb", "Output:"),
        answer("object"),
        user("carrot", "Output:"),
    ]);
    let chat = server.answer("/v1/chat/completions", json!({"messages": messages}));
    let message = &chat["choices"][0]["message"];
    assert_eq!((&message["role"], &message["content"]), (&json!("assistant"), &json!("food")));
    let completion = server.answer("/v1/completions", json!({"prompt": categories("carrot")}));
    assert_eq!(chat["flamingo"]["prompt"], completion["flamingo"]["prompt"]);

    // An answer can be sent back as it came, and as OpenAI's client writes it out.
    let mut dumped = message.clone();
    for field in ["annotations", "audio", "function_call", "parsed", "tool_calls"] {
        dumped[field] = Value::Null;
    }
    for answer in [message.clone(), dumped] {
        let further = json!([user("carrot", "Output:"), answer, user("crab", "Output:")]);
        let chat = server.answer("/v1/chat/completions", json!({"messages": further}));
        assert_eq!(chat["flamingo"]["prompt"], "<image>Output:food<|endofchunk|><image>Output:");
    }

    // A picture alone is named; the space before the name is the prompt's.
    let named =
        server.answer("/v1/chat/completions", json!({"messages": [{"role": "user", "content": [picture("pizza")]}]}));
    assert_eq!(named["choices"][0]["message"]["content"], "a pizza");
    assert_eq!(named["flamingo"]["prompt"], "<image>A picture of");

    let body = json!({"messages": messages, "stream": true, "logprobs": true, "top_logprobs": 2});
    let (_, streamed) = server.post("/v1/chat/completions", &body.to_string());
    let chunks = events(&streamed);
    let chunks: Vec<Value> = chunks.iter().filter_map(|chunk| serde_json::from_str(chunk).ok()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let content: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(content, "food");
    let likely: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
    assert!(!likely.is_empty());
    for token in likely {
        assert_eq!(token["top_logprobs"].as_array().expect("a list").len(), 2);
        assert_eq!(token["token"], token["top_logprobs"][0]["token"], "greedy search takes the likeliest");
    }
}

#[test]
fn log_probabilities_are_those_of_scores() {
    let server = Server::start(&[]);
    let answer = server.answer("/v1/completions", json!({"prompt": categories("carrot"), "logprobs": 3}));
    let told = &answer["choices"][0]["logprobs"];
    let sum: f64 = told["token_logprobs"].as_array().expect("a list").iter().filter_map(Value::as_f64).sum();
    let tokens: String = told["tokens"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(tokens, answer["choices"][0]["text"]);
    assert_eq!(told["text_offset"][0], 0);
    assert_eq!(told["top_logprobs"][0].as_object().expect("a map").len(), 3);

    let candidates = ["food", "object", "nature"];
    let scores = server.answer("/v1/score", json!({"prompt": categories("carrot"), "candidates": candidates}));
    let scores = scores["data"].as_array().expect("a list");
    let log_prob = scores[0]["log_prob"].as_f64().expect("a number");
    assert!((log_prob - sum).abs() < 1e-4, "{log_prob} and {sum}");
    let all: f64 = scores.iter().filter_map(|score| score["probability"].as_f64()).sum();
    assert!((all - 1.0).abs() < 1e-9);
    for (i, (score, candidate)) in scores.iter().zip(candidates).enumerate() {
        assert_eq!((&score["index"], &score["candidate"]), (&json!(i), &json!(candidate)));
    }
    assert!(scores[0]["probability"].as_f64() > scores[1]["probability"].as_f64());
}

/// Prompts that are read in several pieces of 256 tokens, with pictures in more than one of them, on both sides of the last
/// demonstration's end: the numbers are those of the command line, which reads them whole. Remembered, and beside a text that is
/// being written, they are the same to the last digit.
#[test]
fn long_prompts_have_the_numbers_of_short_ones() {
    let words = "red and blue ".repeat(120);
    let server = Server::start(&["--max-context", "10000000"]);
    let [crab, bulb, carrot] = ["crab", "light-bulb", "carrot"].map(|name| drawing(name).display().to_string());
    let candidates = ["red", "orange", "blue circle"];
    let question = format!("{words} Output:");
    let mut args = vec!["score", "--device", "flex", "--json", "--image", &carrot, "--prompt", &question];
    args.extend(["--shot", &crab, &words, "--shot", &bulb, &words]);
    args.extend(candidates.iter().flat_map(|candidate| ["--candidate", candidate]));
    let wanted: Value = serde_json::from_str(&stdout(&flamingo(&args))).expect("JSON");

    let shot = text(&format!("{words}<|endofchunk|>"));
    let prompt = json!([picture("crab"), shot, picture("light-bulb"), shot, picture("carrot"), text(&question)]);
    let body = json!({"prompt": prompt, "candidates": candidates});
    let scores = |answer: &Value| answer["data"].clone();
    let cold = server.answer("/v1/score", body.clone());
    assert!(cold["flamingo"]["tokens"]["prompt"].as_u64().expect("a number") > 3 * 256);
    assert_eq!(cold["flamingo"]["tokens"]["cached"], 0);
    for (i, candidate) in candidates.iter().enumerate() {
        let [ours, theirs] = [&cold["data"][i]["log_prob"], &wanted["candidates"][i]["log_likelihood"]]
            .map(|x| x.as_f64().expect("a number"));
        assert!((ours - theirs).abs() < 1e-3, "{candidate}: {ours} and {theirs}");
    }
    let warm = server.answer("/v1/score", body.clone());
    assert!(warm["flamingo"]["tokens"]["cached"].as_u64().expect("a number") > 2 * 256);
    assert_eq!(scores(&warm), scores(&cold));

    let other = Server::start(&["--max-context", "10000000"]);
    let written = json!({"prompt": "a", "max_tokens": 9_000_000, "min_tokens": 9_000_000});
    let written = other.asking("/v1/completions", &written);
    other.waits_for("the beginning", |server| server.metric("flamingo_running") == 1.0);
    assert_eq!(scores(&other.answer("/v1/score", body)), scores(&cold));
    drop(written);
}

/// More candidates than are scored together, of different lengths: each has the score that it has alone.
#[test]
fn many_candidates_are_scored_as_each_alone() {
    let server = Server::start(&[]);
    let colours = ["red", "blue", "orange", "green", "yellow"];
    let candidates: Vec<String> = (0..150)
        .map(|i| (0..=i % 4).map(|word| colours[(i / 4 + word * (i % 7)) % 5]).collect::<Vec<_>>().join(" and "))
        .collect();
    let ask = |candidates: &[String]| {
        let answer = server.answer("/v1/score", json!({"prompt": categories("carrot"), "candidates": candidates}));
        answer["data"].as_array().expect("a list").clone()
    };
    let all = ask(&candidates);
    assert_eq!(all.len(), candidates.len());
    for i in (0..candidates.len()).step_by(7) {
        assert_eq!((&all[i]["index"], &all[i]["candidate"]), (&json!(i), &json!(candidates[i])));
        let alone = &ask(&candidates[i..=i])[0];
        assert_eq!(all[i]["tokens"], alone["tokens"]);
        let [ours, theirs] = [&all[i], alone].map(|score| score["log_prob"].as_f64().expect("a number"));
        assert!((ours - theirs).abs() < 1e-3, "{}: {ours} and {theirs}", candidates[i]);
    }
}

#[test]
fn samples_follow_from_their_seed() {
    let server = Server::start(&[]);
    let body = |seed: i64| {
        json!({
            "prompt": [picture("banana"), text("A picture of")], "temperature": 1.5, "top_p": 0.95, "seed": seed, "n": 6,
        })
    };
    let texts = |seed| -> Vec<String> {
        let answer = server.answer("/v1/completions", body(seed));
        let choices = answer["choices"].as_array().expect("a list").clone();
        assert!(choices.iter().enumerate().all(|(i, choice)| choice["index"] == i));
        choices.iter().map(|choice| choice["text"].as_str().expect("a text").to_string()).collect()
    };
    let first = texts(7);
    assert_eq!(first.len(), 6);
    assert_eq!(first, texts(7));
    assert_ne!(first, texts(-8));
    assert!(first.iter().any(|text| *text != first[0]), "six samples are alike: {first:?}");
}

#[test]
fn texts_end_where_they_are_told_to() {
    let server = Server::start(&[]);
    let body = |more: Value| {
        let mut body = json!({"prompt": [picture("octopus"), text("A picture of")]});
        body.as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
        server.answer("/v1/completions", body)["choices"][0].clone()
    };
    let whole = body(json!({}));
    assert_eq!(whole["text"], " an octopus");
    let stopped = body(json!({"stop": ["top", "zzz"]}));
    assert_eq!((&stopped["text"], &stopped["finish_reason"]), (&json!(" an oc"), &json!("stop")));
    let short = body(json!({"max_tokens": 1}));
    assert_eq!(short["finish_reason"], "length");
    assert!(whole["text"].as_str().expect("a text").starts_with(short["text"].as_str().expect("a text")));
}

#[test]
fn several_prompts_are_continued_in_order() {
    let server = Server::start(&[]);
    let prompts = ["A picture of", "Output:", "Question:what"];
    let answer =
        server.answer("/v1/completions", json!({"prompt": prompts, "max_tokens": 5, "n": 2, "temperature": 0}));
    let choices = answer["choices"].as_array().expect("a list");
    assert_eq!(choices.len(), 6);
    for (i, prompt) in prompts.iter().enumerate() {
        let alone = server.answer("/v1/completions", json!({"prompt": prompt, "max_tokens": 5}));
        for j in 0..2 {
            assert_eq!(choices[2 * i + j]["text"], alone["choices"][0]["text"], "{prompt}");
            assert_eq!(choices[2 * i + j]["index"], 2 * i + j);
        }
    }
}

#[test]
fn features_have_length_one_in_either_form() {
    use base64::Engine as _;
    let server = Server::start(&[]);
    let urls: Vec<String> =
        ["crab", "pizza"].iter().map(|name| data_url(&std::fs::read(drawing(name)).expect("a drawing"))).collect();
    let numbers = server.answer("/v1/embeddings", json!({"input": urls}));
    let coded =
        server.answer("/v1/embeddings", json!({"input": [picture("crab"), urls[1]], "encoding_format": "base64"}));
    for i in 0..2 {
        let features: Vec<f32> = numbers["data"][i]["embedding"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|x| x.as_f64().expect("a number") as f32)
            .collect();
        assert!((features.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        let bytes = base64::prelude::BASE64_STANDARD.decode(coded["data"][i]["embedding"].as_str().expect("a text"));
        let same: Vec<f32> =
            bytes.expect("base64").chunks(4).map(|x| f32::from_le_bytes(x.try_into().expect("four bytes"))).collect();
        assert_eq!(features, same);
    }
    assert_ne!(numbers["data"][0]["embedding"], numbers["data"][1]["embedding"]);
    let one = server.answer("/v1/embeddings", json!({"input": urls[0]}));
    assert_eq!(one["data"][0], numbers["data"][0]);
}

#[test]
fn it_is_told_where_text_looked() {
    let server = Server::start(&[]);
    let answer = server.answer("/v1/attention", json!({"prompt": categories("carrot"), "completion": "food"}));
    assert_eq!(answer["grid"], json!([8, 8]));
    let tokens = answer["tokens"].as_array().expect("a list");
    let marks: Vec<&Value> = tokens.iter().filter(|token| !token["image"].is_null()).collect();
    assert_eq!(marks.len(), 3);
    assert!(marks.iter().enumerate().all(|(i, mark)| mark["image"] == i && mark["text"] == "<image>"));
    let spoken: String =
        tokens.iter().filter(|token| token["completion"] == true).filter_map(|token| token["text"].as_str()).collect();
    assert_eq!(spoken, "food");
    let mut image = Value::Null;
    let mut maps = Vec::new();
    for token in tokens {
        if !token["image"].is_null() {
            image = token["image"].clone();
        }
        // This model's text sees the picture of the last mark alone, and all its attention is on it.
        let looks = token["looks"].as_array().expect("a list");
        assert_eq!(looks.len(), 1, "{token}");
        assert_eq!(looks[0]["image"], image);
        let map: Vec<f64> = looks[0]["map"].as_array().expect("a map").iter().filter_map(Value::as_f64).collect();
        assert_eq!(map.len(), 64);
        assert!(map.iter().all(|share| *share >= 0.0));
        assert!((map.iter().sum::<f64>() - 1.0).abs() < 1e-4, "{}", map.iter().sum::<f64>());
        maps.push(map);
    }
    // A banana's corner is empty: what text looks at depends on the picture.
    let other = server.answer("/v1/attention", json!({"prompt": categories("banana"), "completion": "food"}));
    assert_ne!(other["tokens"].as_array().expect("a list").last(), tokens.last());
    let halves = json!([picture("crab"), text("<ima"), text("ge>A")]);
    for path in ["/v1/attention", "/v1/completions"] {
        let (_, why) = server.refused(path, json!({"prompt": halves}));
        assert!(why.contains("2 places for 1 pictures"), "{why}");
    }
    let (_, why) = server.refused("/v1/attention", json!({"prompt": "A picture of"}));
    assert!(why.contains("no picture"), "{why}");
}

#[test]
fn the_model_and_the_api_are_described() {
    let server = Server::start(&["--name", "small"]);
    let (_, models) = server.get("/v1/models");
    let models: Value = serde_json::from_str(&models).expect("JSON");
    assert_eq!(models["data"][0]["id"], "small");
    assert_eq!(models["data"][0]["flamingo"]["grid"], json!([8, 8]));
    assert_eq!(models["data"][0]["flamingo"]["max_tokens"], 512);
    assert_eq!(server.get("/v1/models/small").0, 200);
    assert_eq!(server.get("/v1/models/large").0, 404);
    let (status, why) = server.refused("/v1/completions", json!({"model": "large", "prompt": "A"}));
    assert_eq!(status, 404);
    assert!(why.contains("\"small\""), "{why}");

    let (_, document) = server.get("/openapi.json");
    let document: Value = serde_json::from_str(&document).expect("JSON");
    for path in ["/v1/completions", "/v1/chat/completions", "/v1/score", "/v1/embeddings", "/v1/attention"] {
        let post = &document["paths"][path]["post"];
        for status in ["200", "400", "404", "408", "413", "415", "429", "500", "503"] {
            assert!(post["responses"][status].is_object(), "{path} {status}");
        }
        let schema = post["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str().expect("a schema");
        let name = schema.rsplit('/').next().expect("a name");
        assert_eq!(document["components"]["schemas"][name]["additionalProperties"], false, "{name}");
    }
    assert_eq!(stdout(&flamingo(&["serve", "--print-openapi"])).trim(), server.get("/openapi.json").1);
}

/// What a monitor reads: each number follows from what was asked.
#[test]
fn the_metrics_count_what_was_done() {
    let server = Server::start(&[]);
    let body = json!({"prompt": categories("carrot"), "max_tokens": 3, "min_tokens": 3, "n": 2});
    for _ in 0..2 {
        server.answer("/v1/completions", body.clone());
    }
    server.refused("/v1/completions", json!({"prompt": ""}));
    let answer = server.answer("/v1/score", json!({"prompt": categories("carrot"), "candidates": ["food"]}));
    let prompt = answer["flamingo"]["tokens"]["prompt"].as_f64().expect("a number");

    let route = |status: u16| format!("flamingo_requests_total{{route=\"/v1/completions\",status=\"{status}\"}}");
    assert_eq!((server.metric(&route(200)), server.metric(&route(400))), (2.0, 1.0));
    assert_eq!(server.metric("flamingo_latency_seconds_count{route=\"/v1/completions\"}"), 3.0);
    assert!(server.metric("flamingo_latency_seconds_sum{route=\"/v1/completions\"}") > 0.0);
    assert_eq!(server.metric("flamingo_queue_time_seconds_count"), 3.0);
    assert_eq!(server.metric("flamingo_new_tokens_total"), 12.0);
    assert_eq!(server.metric("flamingo_prompt_tokens_total"), 3.0 * prompt);
    assert_eq!(server.metric("flamingo_pictures_total"), 9.0);
    assert_eq!(server.metric("flamingo_cached_pictures_total"), 6.0);
    // Twice what comes before the question was remembered.
    let cached = server.metric("flamingo_cached_tokens_total");
    assert!(cached > 0.0 && cached < 2.0 * prompt, "{cached}");
    // The first token of each text is chosen where its prompt ends; a prompt's end is a step, too.
    assert!(server.metric("flamingo_step_time_seconds_count") >= 6.0);
    assert!(server.metric("flamingo_step_texts_sum") >= 8.0);
    for memory in ["prefix_cache", "picture_cache", "memory_resident"] {
        assert!(server.metric(&format!("flamingo_{memory}_bytes")) > 0.0, "{memory}");
    }
    for gauge in ["running", "queue", "cancelled_total"] {
        assert_eq!(server.metric(&format!("flamingo_{gauge}")), 0.0, "{gauge}");
    }
}

#[test]
fn templates_can_be_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("template.jinja");
    let source =
        "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<|endofchunk|>{% endif %}{% endfor %}!";
    std::fs::write(&file, source).expect("a file");
    let server = Server::start(&["--chat-template", &file.display().to_string()]);
    let messages =
        json!([{"role": "user", "content": [picture("crab"), text("X")]}, {"role": "assistant", "content": "Y"}]);
    let answer = server.answer("/v1/chat/completions", json!({"messages": messages, "max_tokens": 1}));
    assert_eq!(answer["flamingo"]["prompt"], "<image>XY<|endofchunk|>!");

    // A model may bring its own, which the option replaces.
    let model = folder.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    for file in std::fs::read_dir(root().join("models/golden-tiny")).expect("a folder") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), model.join(file.file_name())).expect("a copy");
    }
    std::fs::write(model.join("chat_template.jinja"), "{{ messages|length }} of them").expect("a file");
    let (path, file) = (model.display().to_string(), file.display().to_string());
    let body = json!({"messages": [{"role": "user", "content": "X"}], "max_tokens": 1});
    for (options, prompt) in [(vec![], "1 of them"), (vec!["--chat-template", file.as_str()], "X!")] {
        let server = Server::start(&[&["--model", path.as_str()], &options[..]].concat());
        let answer = server.answer("/v1/chat/completions", body.clone());
        assert_eq!(answer["flamingo"]["prompt"], prompt);
    }

    std::fs::write(&file, "{% nothing %}").expect("a file");
    let error = crate::cli::fails(&["serve", "--chat-template", &file]);
    assert!(error.contains("template"), "{error}");
}

#[test]
fn the_page_comes_with_all_it_needs() {
    let server = Server::start(&[]);
    let (status, page) = server.get("/");
    assert_eq!(status, 200);
    let mut files = 0;
    for part in page.split(['"', '\'']).filter(|part| part.starts_with("assets/")) {
        let (status, _) = server.get(&format!("/{part}"));
        assert_eq!(status, 200, "{part}");
        files += 1;
    }
    assert!(files >= 2, "{files} files");
    assert!(!page.contains("http://") && !page.contains("https://"), "the page names another host");
    assert_eq!(server.get("/assets/../Cargo.toml").0, 404);
    assert_eq!(server.get("/nothing").0, 404);
}

#[test]
fn an_address_that_is_taken_is_named_once() {
    let server = Server::start(&[]);
    let port = server.address.rsplit(':').next().expect("a port");
    let error = crate::cli::fails(&["serve", "--port", port]);
    assert!(error.contains(port) && error.contains("--port"), "{error}");
    assert_eq!(error.matches("os error").count(), 1, "{error}");
}
