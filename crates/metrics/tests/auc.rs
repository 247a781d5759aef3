//! Areas under the curve against upstream's recordings, intervals against what is known of them.

use std::path::Path;

use flamingo_metrics::auc::{probability_of_second, roc_auc};
use flamingo_metrics::interval::{bootstrap, interval_of_mean};
use serde_json::Value;

fn recorded() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/eval/roc_auc.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect("a recording")).expect("a list")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

#[test]
fn areas_agree_with_upstream() {
    let cases = recorded();
    assert!(!cases.is_empty());
    for case in cases {
        let positive: Vec<bool> = case["gt"].as_array().expect("labels").iter().map(|label| label == "yes").collect();
        let log_probs = case["logprobs"].as_array().expect("a list").iter().map(numbers);
        let scores: Vec<f64> = log_probs.map(|pair| probability_of_second([pair[0], pair[1]])).collect();
        for (ours, theirs) in scores.iter().zip(numbers(&case["yes_scores"])) {
            assert!((ours - theirs).abs() < 1e-7, "{ours} {theirs}");
        }
        let area = roc_auc(&positive, &scores).expect("both labels");
        let expected = case["roc_auc"].as_f64().expect("an area");
        assert!((area - expected).abs() < 1e-12, "{area} {expected}");
    }
}

#[test]
fn areas_that_are_known() {
    assert_eq!(roc_auc(&[false, false, true, true], &[0.1, 0.4, 0.35, 0.8]), Some(0.75));
    assert_eq!(roc_auc(&[true, false], &[0.0, -0.0]), Some(0.5));
    assert_eq!(roc_auc(&[true, false], &[f64::INFINITY, 0.0]), Some(1.0));
    assert_eq!(roc_auc(&[true, true], &[0.1, 0.4]), None);
    assert_eq!(roc_auc(&[], &[]), None);
    assert_eq!(roc_auc(&[true, false], &[f64::NAN, 0.0]), None);
    assert_eq!(probability_of_second([f64::NEG_INFINITY, 0.0]), 1.0);
}

#[test]
fn intervals_hold_the_mean_and_shrink_with_more_samples() {
    let scores = |n: usize| (0..n).map(|i| f64::from(u8::from(i % 4 == 0))).collect::<Vec<_>>();
    let [low, high] = interval_of_mean(&scores(400)).expect("an interval");
    // The normal approximation: 0.25 ± 1.96 * sqrt(0.25 * 0.75 / 400).
    assert!((low - 0.2076).abs() < 0.01 && (high - 0.2924).abs() < 0.01, "{low} {high}");
    let [few_low, few_high] = interval_of_mean(&scores(40)).expect("an interval");
    assert!(few_high - few_low > 2.0 * (high - low));
    assert_eq!(interval_of_mean(&scores(400)), Some([low, high]));
    assert_eq!(interval_of_mean(&[0.5]), Some([0.5, 0.5]));
    assert_eq!(interval_of_mean(&[]), None);
    assert_eq!(bootstrap(3, 100, 0.95, |_| None), None);
}
