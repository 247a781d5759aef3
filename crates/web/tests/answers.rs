//! Requests of the page, answered on this machine by what a browser runs.

use std::path::PathBuf;

use flamingo_web::{Files, Flamingo, Pictures};
use serde_json::{Value, json};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn flamingo() -> Flamingo {
    let folder = root().join("models/flamingo-tiny-neox");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a file of the model");
    let files = Files {
        config: String::from_utf8(read("model.toml")).expect("text"),
        tensors: read("model.safetensors"),
        tokenizer: read("tokenizer.json"),
        special_tokens_map: None,
        tokenizer_config: Some(read("tokenizer_config.json")),
    };
    Flamingo::new(files).expect("a model")
}

fn pictures(names: &[&str]) -> Pictures {
    let mut pictures = Pictures::new();
    for name in names {
        let file = root().join("tests/fixtures/emoji").join(name).with_extension("png");
        assert!(pictures.add_file(&std::fs::read(file).expect("a drawing")).expect("a picture"));
    }
    pictures
}

/// A prompt of texts, each behind a picture.
fn prompt(texts: &[&str]) -> Value {
    let picture = json!({"type": "image_url", "image_url": {"url": "data:"}});
    texts.iter().flat_map(|text| [picture.clone(), json!({"type": "text", "text": text})]).collect()
}

/// The pieces of an answer and the answer.
fn complete(flamingo: &Flamingo, request: &Value, shown: &[&str]) -> (Vec<Value>, Value) {
    let mut completion = flamingo.complete(&request.to_string(), pictures(shown)).expect("a request that makes sense");
    let mut pieces = Vec::new();
    while let Some(more) = completion.step().expect("a token") {
        pieces.extend(more.iter().map(|piece| serde_json::from_str::<Value>(piece).expect("JSON")));
    }
    (pieces, serde_json::from_str(&completion.finish().expect("an answer")).expect("JSON"))
}

const SHOWN: [&str; 3] = ["crab", "light-bulb", "carrot"];

fn categories() -> Value {
    prompt(&["Output:nature<|endofchunk|>", "Output:object<|endofchunk|>", "Output:"])
}

#[test]
fn prompts_are_continued_piece_by_piece() {
    let flamingo = flamingo();
    let request = json!({"prompt": categories(), "max_tokens": 12, "temperature": 0, "stream": true});
    let (pieces, answer) = complete(&flamingo, &request, &SHOWN);
    assert_eq!(answer["choices"][0]["text"], "food");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_eq!(answer["flamingo"]["images"], json!({"seen": 3, "cached": 0}));
    assert_eq!(
        answer["flamingo"]["prompt"],
        "<image>Output:nature<|endofchunk|><image>Output:object<|endofchunk|><image>Output:"
    );
    let text: String = pieces.iter().filter_map(|piece| piece["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "food");

    // Pictures are known by now.
    let (_, again) = complete(&flamingo, &request, &SHOWN);
    assert_eq!(again["choices"], answer["choices"]);
    assert_eq!(again["flamingo"]["images"], json!({"seen": 3, "cached": 3}));
    assert_eq!(again["usage"], answer["usage"]);
}

#[test]
fn continuations_end_where_they_are_told_to() {
    let flamingo = flamingo();
    let request = |more: Value| {
        let mut request = json!({"prompt": prompt(&["A picture of"]), "max_tokens": 12, "temperature": 0});
        request.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        request
    };
    let (_, whole) = complete(&flamingo, &request(json!({})), &["pizza"]);
    assert_eq!(whole["choices"][0]["text"], " a pizza");
    let (pieces, stopped) = complete(&flamingo, &request(json!({"stop": ["izz"]})), &["pizza"]);
    assert_eq!(stopped["choices"][0]["text"], " a p");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(pieces.iter().all(|piece| piece["choices"][0]["finish_reason"].is_null()));
    let (_, short) = complete(&flamingo, &request(json!({"max_tokens": 1, "logprobs": 2})), &["pizza"]);
    assert_eq!(short["choices"][0]["finish_reason"], "length");
    assert_eq!(short["usage"]["completion_tokens"], 1);
    assert_eq!(short["choices"][0]["logprobs"]["top_logprobs"][0].as_object().map(|top| top.len()), Some(2));
}

#[test]
fn samples_follow_from_their_seed() {
    let flamingo = flamingo();
    let request = json!({"prompt": prompt(&["A picture of"]), "temperature": 1.5, "seed": 3, "n": 3, "max_tokens": 6});
    let (pieces, answer) = complete(&flamingo, &request, &["pizza"]);
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(3));
    for (index, choice) in answer["choices"].as_array().into_iter().flatten().enumerate() {
        let own = pieces.iter().map(|piece| &piece["choices"][0]).filter(|piece| piece["index"] == index);
        let text: String = own.filter_map(|piece| piece["text"].as_str()).collect();
        assert_eq!(choice["text"], text.as_str());
    }
    assert_eq!(complete(&flamingo, &request, &["pizza"]).1["choices"], answer["choices"]);
}

#[test]
fn candidates_are_scored() {
    let flamingo = flamingo();
    let request = json!({
        "model": "flamingo-tiny-neox",
        "prompt": prompt(&["Output:red<|endofchunk|>", "Output:yellow<|endofchunk|>", "Output:"]),
        "candidates": ["orange", "green", "blue"],
    });
    let answer = flamingo.score(&request.to_string(), pictures(&SHOWN)).expect("scores");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let probabilities: Vec<f64> =
        answer["data"].as_array().into_iter().flatten().filter_map(|score| score["probability"].as_f64()).collect();
    assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{probabilities:?}");
    assert!(probabilities[0] > probabilities[1] && probabilities[0] > probabilities[2], "{probabilities:?}");
}

#[test]
fn tokens_look_at_the_pictures_before_them() {
    let request = json!({"prompt": categories(), "completion": "food"});
    let answer = flamingo().attention(&request.to_string(), pictures(&SHOWN)).expect("maps");
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let tokens = answer["tokens"].as_array().expect("tokens");
    let marks: Vec<u64> = tokens.iter().filter_map(|token| token["image"].as_u64()).collect();
    assert_eq!(marks, [0, 1, 2]);
    let last = tokens.last().expect("a token");
    assert_eq!((&last["text"], &last["completion"]), (&json!("food"), &json!(true)));
    let looks = last["looks"].as_array().expect("looks");
    assert_eq!(looks.len(), 1);
    assert_eq!(looks[0]["image"], 2);
    let map: Vec<f64> = looks[0]["map"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    assert_eq!(map.len(), 64);
    assert!((map.iter().sum::<f64>() - 1.0).abs() < 1e-3, "{map:?}");
}

#[test]
fn the_model_says_what_it_is() {
    let models: Value = serde_json::from_str(&flamingo().models().expect("an answer")).expect("JSON");
    assert_eq!(models["data"][0]["id"], "flamingo-tiny-neox");
    assert_eq!(models["data"][0]["flamingo"]["grid"], json!([8, 8]));
    assert_eq!(models["data"][0]["flamingo"]["caption_prompt"], "A picture of");
}

#[test]
fn senseless_requests_are_refused() {
    let flamingo = flamingo();
    let prompt = prompt(&["Output:"]);
    for (request, why) in [
        (json!({"prompt": prompt, "colour": "red"}), "unknown field `colour`"),
        (json!({"prompt": prompt, "model": "another"}), "no model another"),
        (json!({"prompt": prompt, "max_tokens": 0}), "max_new_tokens"),
        (json!({"prompt": prompt, "max_tokens": 100_000}), "more than the 512"),
        (json!({"prompt": prompt, "n": 0}), "n is 0"),
        (json!({"prompt": prompt, "stop": ""}), "1 to 256 bytes"),
        (json!({"prompt": prompt, "logprobs": 6}), "logprobs is 6"),
        (json!({"prompt": prompt, "temperature": -1}), "temperature"),
        (json!({"prompt": prompt, "top_p": 0}), "top_p"),
        (json!({"prompt": prompt, "presence_penalty": 1}), "penalties"),
        (json!({"prompt": "<image>Output:"}), "picture"),
        (json!({"prompt": [{"type": "text", "text": "<image>"}, prompt[0]]}), "mark"),
    ] {
        let shown: &[&str] = &["crab"];
        let refused = flamingo.complete(&request.to_string(), pictures(shown)).err().map(|error| error.to_string());
        let refused = refused.unwrap_or_else(|| panic!("{request} was taken"));
        assert!(refused.contains(why), "{request}: {refused}");
    }
}

#[test]
fn damaged_files_are_refused() {
    let cut = Files { config: "name = 3".into(), ..Files::default() };
    assert!(Flamingo::new(cut).is_err());
    let folder = root().join("models/flamingo-tiny-neox");
    let read = |name: &str| std::fs::read(folder.join(name)).expect("a file of the model");
    let mut tensors = read("model.safetensors");
    tensors.truncate(tensors.len() / 2);
    let config = String::from_utf8(read("model.toml")).expect("text");
    let files = Files { config, tensors, tokenizer: read("tokenizer.json"), ..Files::default() };
    let error = Flamingo::new(files).err().expect("half a file").to_string();
    assert!(error.contains("model.safetensors"), "{error}");
}
