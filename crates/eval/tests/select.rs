//! Random choices against those of NumPy, Python and PyTorch, and of upstream's evaluation.

use std::path::Path;

use flamingo_eval::{Choose, Features, Numpy, Python, Selection, torch_permutation};
use serde_json::Value;

fn recorded(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&std::fs::read_to_string(path).expect("a recording")).expect("JSON")
}

fn list(value: &Value) -> Vec<usize> {
    value.as_array().expect("a list").iter().map(number).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("a number") as usize
}

#[test]
fn generators_are_those_of_python() {
    let recorded = recorded("tests/random.json");
    for case in recorded["samples"].as_array().expect("cases") {
        let [seed, n, count] = [0, 1, 2].map(|i| number(&case[i]));
        let mut python = Python::new(seed as u32);
        assert_eq!(python.sample(n, count), list(&case[3]), "{case}");
        assert_eq!(python.sample(n, count), list(&case[4]), "{case}");
        let mut shuffled: Vec<usize> = (0..9).collect();
        python.shuffle(&mut shuffled);
        assert_eq!(shuffled, list(&case[5]), "{case}");
    }
    for case in recorded["choice"].as_array().expect("cases") {
        let [seed, n, count] = [0, 1, 2].map(|i| number(&case[i]));
        let mut numpy = Numpy::new(seed as u32);
        assert_eq!(numpy.choice(n, count), list(&case[3]), "{case}");
        assert_eq!(numpy.choice(n, count), list(&case[4]), "{case}");
    }
    for (n, order) in recorded["randperm"].as_object().expect("cases") {
        assert_eq!(torch_permutation(n.parse().expect("a number"), 0), list(order), "{n}");
    }
}

#[test]
fn seeds_pick_what_upstream_picks() {
    for run in recorded("../../tests/fixtures/golden/eval/sampling.json")["runs"].as_array().expect("runs") {
        let n = number(&run["n"]);
        let mut numpy = Numpy::new(number(&run["seed"]) as u32);
        assert_eq!(numpy.choice(n, number(&run["num_samples"])), list(&run["sample_indices"]));
        let query_set = numpy.choice(n, number(&run["query_set_size"]));
        assert_eq!(query_set, list(&run["query_set"]));
        let positions: Vec<Vec<usize>> = run["demo_positions"].as_array().expect("a list").iter().map(list).collect();

        // The whole rule: the samples in the order of upstream's loader, each with its demonstrations.
        let selection = Selection {
            test: n,
            demonstrations: Some(n),
            num_samples: Some(number(&run["num_samples"])),
            query_set_size: number(&run["query_set_size"]),
            shots: positions[0].len(),
            seed: number(&run["seed"]) as u32,
            bare_zero_shot: false,
            batch_size: 3,
            ensemble: false,
        };
        let queries = selection.select(&Choose::Random).expect("a selection");
        let order = torch_permutation(number(&run["num_samples"]), 0);
        let samples = list(&run["sample_indices"]);
        assert_eq!(
            queries.iter().map(|q| q.sample).collect::<Vec<_>>(),
            order.iter().map(|&i| samples[i]).collect::<Vec<_>>()
        );
        for (query, positions) in queries.iter().zip(&positions) {
            assert_eq!(query.orders, [positions.iter().map(|&i| query_set[i]).collect::<Vec<_>>()]);
        }
    }
}

fn selection() -> Selection {
    Selection {
        test: 30,
        demonstrations: None,
        num_samples: None,
        query_set_size: 2048,
        shots: 4,
        bare_zero_shot: false,
        seed: 7,
        batch_size: 8,
        ensemble: false,
    }
}

#[test]
fn no_sample_demonstrates_itself() {
    for query_set_size in [2048, 5] {
        let queries = Selection { query_set_size, ..selection() }.select(&Choose::Random).expect("a selection");
        assert_eq!(queries.len(), 30);
        for query in queries {
            let [order] = &query.orders[..] else { panic!("one order") };
            assert!(order.len() == 4 && !order.contains(&query.sample), "{query:?}");
        }
    }
    let too_few =
        Selection { test: 4, ..selection() }.select(&Choose::Random).expect_err("three others for four shots");
    assert_eq!(too_few.to_string(), "4 shots want 4 demonstrations, and there are 3 to choose from");
    let too_few = Selection { test: 0, ..selection() }.select(&Choose::Random).expect_err("nothing");
    assert!(too_few.to_string().contains("there are 0"), "{too_few}");
}

#[test]
fn zero_shots_are_two_demonstrations_unless_they_are_to_be_none() {
    for (bare_zero_shot, expected) in [(false, 2), (true, 0)] {
        let selection = Selection { bare_zero_shot, shots: 0, ..selection() };
        let queries = selection.select(&Choose::Random).expect("a selection");
        assert!(queries.iter().all(|query| query.orders.len() == 1 && query.orders[0].len() == expected));
    }
}

#[test]
fn fixed_demonstrations_are_the_same_for_all_and_not_asked_about() {
    let queries = selection().select(&Choose::Fixed).expect("a selection");
    let fixed = queries[0].orders.clone();
    assert_eq!((queries.len(), fixed[0].len()), (26, 4));
    assert!(queries.iter().all(|query| query.orders == fixed && !fixed[0].contains(&query.sample)));
    let apart = Selection { demonstrations: Some(40), ..selection() }.select(&Choose::Fixed).expect("a selection");
    assert_eq!(apart.len(), 30);
}

#[test]
fn an_ensemble_has_up_to_six_orders_of_the_same_demonstrations() {
    for (shots, orders) in [(0, 2), (1, 1), (2, 2), (3, 6), (8, 6)] {
        let plain = Selection { shots, demonstrations: Some(40), ..selection() };
        let queries = Selection { ensemble: true, ..plain }.select(&Choose::Random).expect("a selection");
        for (i, query) in queries.iter().enumerate() {
            assert_eq!(query.orders.len(), orders);
            let sorted = |order: &[usize]| {
                let mut sorted = order.to_vec();
                sorted.sort_unstable();
                sorted
            };
            assert!(query.orders.iter().all(|order| sorted(order) == sorted(&query.orders[0])), "{i}");
        }
    }
}

#[test]
fn similar_pictures_come_last() {
    // Samples 0 and 3 are of one picture.
    let among = Features { distinct: vec![vec![1.0, 0.0], vec![0.0, 1.0], vec![0.6, 0.8]], of: vec![0, 1, 2, 0] };
    let found = |count, without| among.most_similar(&[1.0, 0.0], count, without);
    assert_eq!(found(3, None), [2, 3, 0]);
    assert_eq!(found(3, Some(0)), [1, 2, 3]);
    assert_eq!((found(1, None), found(9, None).len(), found(0, None).len()), (vec![0], 4, 0));
    let rices = |sample: usize, count: usize| (0..count).map(|i| (sample + i) % 30).collect::<Vec<_>>();
    let queries =
        Selection { demonstrations: Some(30), ..selection() }.select(&Choose::Similar(&rices)).expect("a selection");
    for query in queries {
        assert_eq!(query.orders, [rices(query.sample, 4)]);
    }
}
