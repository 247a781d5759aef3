//! Greedy search, beam search and sampling's filters against transformers 4.33.3 (`fixtures/make.py`).

use crate::toy::{Toy, fixture, ids, list, toys};
use flamingo_generate::{EarlyStopping, GenerationConfig, Strategy, padded, sampling_distribution};
use serde_json::Value;

fn config(toy: &Toy, kwargs: &Value) -> GenerationConfig {
    let known = [
        "num_beams",
        "max_new_tokens",
        "min_new_tokens",
        "length_penalty",
        "early_stopping",
        "no_repeat_ngram_size",
        "num_return_sequences",
    ];
    assert!(kwargs.as_object().expect("settings").keys().all(|k| known.contains(&k.as_str())));
    let size = |name: &str, default: u64| kwargs[name].as_u64().unwrap_or(default) as usize;
    GenerationConfig {
        min_new_tokens: size("min_new_tokens", 0),
        no_repeat_ngram_size: size("no_repeat_ngram_size", 0),
        num_return_sequences: size("num_return_sequences", 1),
        strategy: match size("num_beams", 1) {
            1 => Strategy::Greedy,
            num_beams => Strategy::Beam {
                num_beams,
                length_penalty: kwargs["length_penalty"].as_f64().expect("a penalty"),
                early_stopping: match &kwargs["early_stopping"] {
                    Value::Bool(true) => EarlyStopping::True,
                    Value::String(_) => EarlyStopping::Never,
                    _ => EarlyStopping::False,
                },
            },
        },
        ..toy.greedy(size("max_new_tokens", 0))
    }
}

#[test]
fn every_setting_gives_the_same_sequences_and_scores() {
    let fixture = fixture();
    let mut toys = toys(&fixture);
    let cases = list(&fixture["cases"]);
    assert!(cases.len() > 500, "{} settings", cases.len());
    for case in cases {
        let toy = &mut toys[case["toy"].as_u64().expect("an index") as usize];
        let prompts: Vec<Vec<u32>> = list(&case["prompts"]).iter().map(ids).collect();
        let config = config(toy, &case["kwargs"]);
        let out = toy.run(&prompts, &config);

        let new: Vec<Vec<u32>> = list(&case["new"]).iter().map(ids).collect();
        let each = config.num_return_sequences;
        let expected: Vec<Vec<u32>> =
            new.iter().enumerate().map(|(i, new)| [&prompts[i / each][..], new].concat()).collect();
        assert_eq!(padded(&prompts, &out, config.pad), expected, "{case}");
        for (generated, new) in out.iter().zip(&new) {
            assert_eq!(generated.finished, new.contains(&config.stop), "{case}");
            assert_eq!(generated.finished, generated.ids.last() == Some(&config.stop), "{case}");
        }

        let scores: Vec<f64> = out.iter().filter_map(|g| g.score).collect();
        let expected: Vec<f64> =
            case["scores"].as_array().into_iter().flatten().map(|s| s.as_f64().expect("a score")).collect();
        assert_eq!(scores.len(), expected.len(), "{case}");
        for (ours, theirs) in scores.iter().zip(&expected) {
            assert!((ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0), "{ours} {theirs} {case}");
        }
    }
}

#[test]
fn one_beam_is_greedy_search() {
    let mut toys = toys(&fixture());
    let toy = &mut toys[0];
    let prompts = [vec![1, 2, 3], vec![4, 5, 6]];
    let greedy = toy.greedy(9);
    let strategy = Strategy::Beam { num_beams: 1, length_penalty: 1.0, early_stopping: EarlyStopping::False };
    let beam = GenerationConfig { strategy, ..greedy.clone() };
    assert_eq!(toy.run(&prompts, &greedy), toy.run(&prompts, &beam));
}

#[test]
fn filters_leave_the_same_tokens_with_the_same_probabilities() {
    let fixture = fixture();
    let unit = fixture["unit"].as_f64().expect("a unit") as f32;
    let filters = list(&fixture["filters"]);
    assert!(filters.len() >= 75);
    for filter in filters {
        let logit = |x: &Value| x.as_f64().map_or(f32::NEG_INFINITY, |x| x as f32 / unit);
        let logits: Vec<f32> = list(&filter["logits"]).iter().map(logit).collect();
        let temperature = filter["temperature"].as_f64().expect("a temperature") as f32;
        let top_k = filter["top_k"].as_u64().map(|k| k as usize);
        let top_p = filter["top_p"].as_f64().map(|p| p as f32);
        let ours = sampling_distribution(&logits, temperature, top_k, top_p).expect("tokens");
        let theirs: Vec<(u32, f64)> = list(&filter["kept"])
            .iter()
            .map(|pair| (pair[0].as_u64().expect("a token") as u32, pair[1].as_f64().expect("a probability")))
            .collect();
        // Which of equal logits is on which side of top_p's bound is up to torch's sort: their values decide.
        let sorted = |pairs: &[(u32, f64)]| {
            let mut kept: Vec<(f32, f64)> = pairs.iter().map(|&(token, p)| (logits[token as usize], p)).collect();
            kept.sort_by(|a, b| a.0.total_cmp(&b.0));
            kept
        };
        assert_eq!(ours.len(), theirs.len(), "{filter}");
        for (ours, theirs) in sorted(&ours).iter().zip(sorted(&theirs)) {
            assert_eq!(ours.0, theirs.0, "{filter}");
            assert!((ours.1 - theirs.1).abs() < 1e-6, "{filter}");
        }
    }
}
