//! What holds for every model: seeds, independence of rows, cancellation, errors.

use std::ops::ControlFlow;

use crate::toy::{Constant, Toy, fixture, toys};
use flamingo_generate::{
    ConfigError, EarlyStopping, GenerateError, Generated, GenerationConfig, InputError, SequenceScore, Strategy,
    generate, padded, sampling_distribution, sequence_log_prob,
};

fn first_toy() -> Toy {
    toys(&fixture()).swap_remove(0)
}

fn prompts() -> Vec<Vec<u32>> {
    vec![vec![39, 3, 4], vec![1, 2, 3], vec![7, 8, 9]]
}

fn sample(temperature: f32, top_k: Option<usize>, top_p: Option<f32>, seed: u64) -> Strategy {
    Strategy::Sample { temperature, top_k, top_p, seed }
}

fn beam(num_beams: usize, length_penalty: f64) -> Strategy {
    Strategy::Beam { num_beams, length_penalty, early_stopping: EarlyStopping::False }
}

fn ids(out: &[Generated]) -> Vec<Vec<u32>> {
    out.iter().map(|g| g.ids.clone()).collect()
}

fn reached(logits: &[f32], top_k: Option<usize>, top_p: Option<f32>) -> Vec<u32> {
    let pairs = sampling_distribution(logits, 1.0, top_k, top_p).expect("tokens");
    pairs.into_iter().map(|(token, _)| token).collect()
}

#[test]
fn filters_keep_exactly_the_right_tokens() {
    let logits: Vec<f32> = [0.125f32, 0.5, 0.0, 0.25, 0.125].iter().map(|p| p.ln()).collect();
    assert_eq!(reached(&logits, None, None), [0, 1, 3, 4]);
    assert_eq!(reached(&logits, Some(1), None), [1]);
    assert_eq!(reached(&logits, Some(2), None), [1, 3]);
    // What equals the last of the kept is kept.
    assert_eq!(reached(&logits, Some(3), None), [0, 1, 3, 4]);
    assert_eq!(reached(&logits, Some(usize::MAX), None), [0, 1, 3, 4]);
    assert_eq!(reached(&logits, None, Some(1e-6)), [1]);
    assert_eq!(reached(&logits, None, Some(0.5)), [1]);
    assert_eq!(reached(&logits, None, Some(0.51)), [1, 3]);
    // Of equals at the bound the first.
    assert_eq!(reached(&logits, None, Some(0.76)), [0, 1, 3]);
    assert_eq!(reached(&logits, None, Some(0.95)), [0, 1, 3, 4]);
    // Of the two kept by top_k the first has 2/3 of the probability.
    assert_eq!(reached(&logits, Some(2), Some(0.66)), [1]);
    assert_eq!(reached(&logits, Some(2), Some(0.67)), [1, 3]);
    // A wide nucleus: 90 % of 1000 equal tokens.
    assert_eq!(reached(&[0.5; 1000], None, Some(0.9)).len(), 900);
}

#[test]
fn tiny_temperatures_are_greedy() {
    for temperature in [f32::MIN_POSITIVE, 1e-42, 1e-30] {
        let pairs = sampling_distribution(&[3.0, -5.0, 3.5, f32::NEG_INFINITY], temperature, None, Some(0.99));
        assert_eq!(pairs, Ok(vec![(2, 1.0)]));
    }
}

#[test]
fn frequencies_approach_the_probabilities() {
    let logits = [0.5, -1.0, 2.0, f32::NEG_INFINITY, 1.0, 0.0, -3.0];
    let (rows, steps) = (16, 1000);
    for (temperature, top_k, top_p) in
        [(1.0, None, None), (0.7, Some(4), None), (2.0, None, Some(0.8)), (1.5, Some(5), Some(0.9))]
    {
        // The stop token lies outside the vocabulary: all rows go on to the end.
        let strategy = sample(temperature, top_k, top_p, 11);
        let config = GenerationConfig { strategy, ..GenerationConfig::greedy(steps, 99, 0) };
        let out = Constant::new(&logits).run(&vec![vec![0]; rows], &config).expect("continuations");
        let mut counts = [0.0; 7];
        for &id in out.iter().flat_map(|g| &g.ids) {
            counts[id as usize] += 1.0;
        }
        let total = (rows * steps) as f64;
        assert_eq!(counts.iter().sum::<f64>(), total);
        let mut expected = [0.0; 7];
        for (token, p) in sampling_distribution(&logits, temperature, top_k, top_p).expect("tokens") {
            expected[token as usize] = p;
        }
        for (count, p) in counts.iter().zip(expected) {
            // Five standard deviations.
            let bound = 5.0 * (p * (1.0 - p) / total).sqrt();
            assert!((count / total - p).abs() <= bound, "{counts:?} {expected:?}");
        }
    }
}

#[test]
fn sampling_repeats_with_its_seed() {
    let mut toy = first_toy();
    let mut run = |seed| {
        let strategy = sample(1.2, Some(20), Some(0.95), seed);
        let config = GenerationConfig { strategy, min_new_tokens: 20, ..toy.greedy(20) };
        ids(&toy.run(&prompts(), &config))
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}

#[test]
fn rows_do_not_depend_on_their_neighbours() {
    let mut toy = first_toy();
    let all = prompts();
    for strategy in [Strategy::Greedy, sample(1.3, None, Some(0.9), 5), beam(3, 0.5)] {
        let config = GenerationConfig { strategy, ..toy.greedy(15) };
        let together = toy.run(&all, &config);
        assert_eq!(toy.run(&all[..1], &config), together[..1]);
        assert_eq!(toy.run(&all[..2], &config), together[..2]);
        // Another neighbour that ends at another time.
        let others = [all[0].clone(), vec![20, 21, 22], vec![11, 12, 13]];
        assert_eq!(toy.run(&others, &config)[0], together[0]);
    }
}

#[test]
fn several_samples_of_one_prompt_differ_and_are_grouped_by_prompt() {
    let mut toy = first_toy();
    let strategy = sample(2.0, None, None, 3);
    let config = GenerationConfig { strategy, num_return_sequences: 3, min_new_tokens: 12, ..toy.greedy(12) };
    let prompts = &prompts()[..2];
    let out = toy.run(prompts, &config);
    assert_eq!(out.len(), 6);
    assert!(out[0].ids != out[1].ids && out[1].ids != out[2].ids && out[0].ids != out[2].ids);
    // Rows 0 to 2 are the first prompt's: alone it gives the same.
    assert_eq!(toy.run(&prompts[..1], &config), out[..3]);
    let sequences = padded(prompts, &out, toy.pad);
    assert!(sequences[..3].iter().all(|row| row.starts_with(&prompts[0])));
    assert!(sequences[3..].iter().all(|row| row.starts_with(&prompts[1])));
}

#[test]
fn the_best_beam_comes_first() {
    let mut toy = first_toy();
    let strategy = beam(5, 0.0);
    // No end: with equal lengths scores are sums of log-probabilities.
    let config = GenerationConfig { strategy, num_return_sequences: 5, min_new_tokens: 8, ..toy.greedy(8) };
    let out = toy.run(&prompts(), &config);
    for results in out.chunks(5) {
        assert!(results.is_sorted_by(|a, b| a.score >= b.score));
    }
}

#[test]
fn a_search_stops_when_all_rows_have_ended() {
    let stop_at_once = [0.0, 9.0, 0.0];
    let config = GenerationConfig::greedy(1000, 1, 2);
    let out = Constant::new(&stop_at_once).run(&[vec![0], vec![2]], &config).expect("continuations");
    assert!(out.iter().all(|g| g.ids == [1] && g.finished));

    let mut toy = first_toy();
    let prompts = prompts();
    // No token twice: the stop token comes when others are used up, if not before.
    let config = GenerationConfig { no_repeat_ngram_size: 1, ..toy.greedy(500) };
    let out = toy.run(&prompts, &config);
    assert!(out.iter().all(|g| g.finished));
    let longest = out.iter().map(|g| g.ids.len()).max().expect("rows");
    assert_eq!(toy.steps, longest - 1);
    assert_eq!(padded(&prompts, &out, toy.pad)[0].len(), 3 + longest);
}

#[test]
fn tokens_are_seen_as_they_are_chosen() {
    let mut toy = first_toy();
    let prompts = prompts();
    for strategy in [Strategy::Greedy, sample(1.0, None, None, 1), beam(2, 1.0)] {
        let config = GenerationConfig { strategy, ..toy.greedy(9) };
        let first = toy.read(&prompts);
        let mut seen = vec![Vec::new(); prompts.len()];
        let out = generate(&mut toy, &prompts, first, &config, &mut |row, token| {
            seen[row].push(token);
            ControlFlow::Continue(())
        });
        assert_eq!(ids(&out.expect("continuations")), seen);
    }
}

#[test]
fn breaking_off_returns_what_there_is() {
    let mut toy = first_toy();
    let prompts = &prompts()[..2];
    let config = GenerationConfig { min_new_tokens: 8, ..toy.greedy(8) };
    let mut until = |strategy, most: usize| {
        let config = GenerationConfig { strategy, ..config.clone() };
        let first = toy.read(prompts);
        let mut seen = Vec::new();
        let out = generate(&mut toy, prompts, first, &config, &mut |row, token| {
            seen.push((row, token));
            if seen.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        (out.expect("continuations"), seen)
    };
    for strategy in [Strategy::Greedy, sample(1.0, None, None, 1)] {
        let (out, seen) = until(strategy, 3);
        assert_eq!((out[0].ids.len(), out[1].ids.len()), (2, 1));
        assert_eq!(seen, [(0, out[0].ids[0]), (1, out[1].ids[0]), (0, out[0].ids[1])]);
    }
    // Beams are reported when the search has ended.
    let (out, seen) = until(beam(2, 1.0), 3);
    assert_eq!((out[0].ids.len(), out[1].ids.len(), seen.len()), (8, 8, 3));
}

#[test]
fn senseless_settings_are_errors() {
    let greedy = GenerationConfig::greedy(4, 1, 2);
    let with = |strategy| GenerationConfig { strategy, ..greedy.clone() };
    let cases = [
        (GenerationConfig::greedy(0, 1, 2), ConfigError::NoNewTokens),
        (GenerationConfig { min_new_tokens: 5, ..greedy.clone() }, ConfigError::MinAboveMax { min: 5, max: 4 }),
        (GenerationConfig { num_return_sequences: 0, ..greedy.clone() }, ConfigError::NoSequences),
        (GenerationConfig { num_return_sequences: 2, ..greedy.clone() }, ConfigError::GreedySequences(2)),
        (with(beam(0, 1.0)), ConfigError::NoBeams),
        (with(beam(3, f64::INFINITY)), ConfigError::LengthPenalty(f64::INFINITY)),
        (with(beam(3, -1e9)), ConfigError::LengthPenalty(-1e9)),
        (
            GenerationConfig { num_return_sequences: 4, ..with(beam(3, 1.0)) },
            ConfigError::SequencesAboveBeams { sequences: 4, beams: 3 },
        ),
        (with(sample(0.0, None, None, 0)), ConfigError::Temperature(0.0)),
        (with(sample(f32::INFINITY, None, None, 0)), ConfigError::Temperature(f32::INFINITY)),
        (with(sample(1.0, Some(0), None, 0)), ConfigError::TopK),
        (with(sample(1.0, None, Some(0.0), 0)), ConfigError::TopP(0.0)),
        (with(sample(1.0, None, Some(1.5), 0)), ConfigError::TopP(1.5)),
    ];
    for (config, error) in cases {
        let found = Constant::new(&[0.0; 4]).run(&[vec![0]], &config);
        assert_eq!(found, Err(GenerateError::Config(error.clone())));
        assert!(!error.to_string().is_empty());
    }
    for strategy in [beam(3, f64::NAN), sample(f32::NAN, None, None, 0), sample(1.0, None, Some(f32::NAN), 0)] {
        assert!(with(strategy).validate().is_err());
    }
    assert!(sampling_distribution(&[0.0], 0.0, None, None).is_err());
}

#[test]
fn unusable_inputs_are_errors() {
    const STRATEGIES: [Strategy; 3] = [
        Strategy::Greedy,
        Strategy::Beam { num_beams: 3, length_penalty: 1.0, early_stopping: EarlyStopping::False },
        Strategy::Sample { temperature: 1.0, top_k: Some(2), top_p: Some(0.9), seed: 0 },
    ];
    let two = [vec![0], vec![1]];
    for strategy in STRATEGIES {
        let config = GenerationConfig { strategy, ..GenerationConfig::greedy(4, 9, 2) };
        let run = |prompts: &[Vec<u32>], first: &[f32]| {
            let mut model = Constant::new(&first[..first.len() / 2]);
            model.rows = prompts.len();
            generate(&mut model, prompts, first.to_vec(), &config, &mut |_, _| ControlFlow::Continue(()))
        };
        let wrong = |error| Err(GenerateError::Input(error));
        assert_eq!(run(&[], &[0.0; 8]), wrong(InputError::NoPrompt));
        assert_eq!(run(&[vec![1], vec![]], &[0.0; 8]), wrong(InputError::EmptyPrompt { row: 1 }));
        assert_eq!(
            run(&[vec![1], vec![1, 2]], &[0.0; 8]),
            wrong(InputError::PromptWidth { row: 1, found: 2, expected: 1 })
        );
        assert_eq!(run(&two, &[]), wrong(InputError::FirstLogits { found: 0, prompts: 2 }));
        assert_eq!(run(&two, &[0.0; 7]), wrong(InputError::FirstLogits { found: 7, prompts: 2 }));
        let mut nan = [0.0; 8];
        nan[6] = f32::NAN;
        assert_eq!(run(&two, &nan), wrong(InputError::NotANumber));
        assert!(run(&two, &[0.0; 8]).is_ok());

        // A model whose later logits are of the wrong number, and one that fails.
        let mut model = Constant::new(&[0.0; 5]);
        model.rows = 1;
        let found = generate(&mut model, &[vec![0]], vec![0.0; 4], &config, &mut |_, _| ControlFlow::Continue(()));
        assert!(matches!(found, Err(GenerateError::Input(InputError::Logits { .. }))), "{found:?}");
        let mut model = Constant { failure: Some("out of memory".into()), ..Constant::new(&[0.0; 4]) };
        assert_eq!(model.run(&two, &config), Err(GenerateError::Decoder("out of memory".into())));
    }
    let infinite = [0.0, f32::INFINITY];
    for strategy in &STRATEGIES[1..] {
        let config = GenerationConfig { strategy: *strategy, ..GenerationConfig::greedy(4, 9, 2) };
        assert_eq!(Constant::new(&infinite).run(&two, &config), Err(GenerateError::Input(InputError::NotANumber)));
    }
    let config = GenerationConfig { strategy: beam(2, 1.0), ..GenerationConfig::greedy(4, 9, 2) };
    assert_eq!(Constant::new(&[0.0]).run(&two, &config), Err(GenerateError::Input(InputError::Vocabulary)));
}

#[test]
fn errors_travel() {
    fn travels<T: std::error::Error + Send + Sync + 'static>() {}
    travels::<GenerateError<std::io::Error>>();
    let error = GenerateError::Decoder(std::io::Error::other("no device"));
    assert_eq!(error.to_string(), "no device");
}

#[test]
fn extreme_settings_are_no_panics() {
    let prompts = [vec![0]];
    let mut model = Constant::new(&[0.0, 1.0, 2.0]);
    // More rows than any memory holds.
    let config = GenerationConfig { strategy: beam(usize::MAX, 1.0), ..GenerationConfig::greedy(2, 9, 2) };
    assert!(matches!(model.run(&prompts, &config), Err(GenerateError::Input(InputError::TooManyRows { .. }))));
    // The limit on new tokens at its largest; the stop token comes first.
    for strategy in [Strategy::Greedy, beam(2, 1.0), sample(1e-3, None, None, 0)] {
        let config = GenerationConfig { strategy, ..GenerationConfig::greedy(usize::MAX, 2, 0) };
        assert!(model.run(&prompts, &config).is_ok_and(|out| out[0].finished));
    }
    // More beams than tokens.
    let config = GenerationConfig { strategy: beam(20, 1.0), ..GenerationConfig::greedy(4, 2, 0) };
    assert!(model.run(&prompts, &config).is_ok());
    // Every token blocked: greedy search and beams go on as transformers' do, sampling has nothing to draw.
    for (strategy, fine) in [(Strategy::Greedy, true), (beam(2, 1.0), true), (sample(1.0, None, None, 0), false)] {
        let config = GenerationConfig { strategy, no_repeat_ngram_size: 1, ..GenerationConfig::greedy(9, 9, 0) };
        let found = model.run(&prompts, &config);
        assert_eq!(found.is_ok(), fine, "{found:?}");
        assert!(fine || found == Err(GenerateError::Input(InputError::NoToken)));
    }
}

#[test]
fn padding_takes_any_input() {
    let generated = |ids: &[u32]| Generated { ids: ids.to_vec(), score: None, finished: false };
    assert_eq!(padded(&[], &[], 0), Vec::<Vec<u32>>::new());
    assert_eq!(padded(&[], &[generated(&[1])], 0), [[1]]);
    let out = [generated(&[1]), generated(&[2, 3]), generated(&[])];
    assert_eq!(padded(&[vec![7], vec![8]], &out, 0), [vec![7, 1, 0], vec![8, 2, 3], vec![0, 0]]);
}

#[test]
fn candidates_are_scored() {
    // Rows with probabilities 1/4, 1/4, 1/2 and 1/8, 1/8, 3/4.
    let logits: Vec<f32> = [1.0f32, 1.0, 2.0, 1.0, 1.0, 6.0].iter().map(|x| x.ln() + 40.0).collect();
    let log_probs = sequence_log_prob(&logits, 3, &[2, 0]);
    for (found, p) in log_probs.iter().zip([0.5f32, 0.125]) {
        assert!((found - p.ln()).abs() < 1e-5);
    }
    let score = SequenceScore::new(&log_probs);
    assert!((score.total - 0.0625f64.ln()).abs() < 1e-5);
    assert!((score.mean - score.total / 2.0).abs() < 1e-12 && score.tokens == 2);
    assert_eq!(SequenceScore::new(&[]), SequenceScore { total: 0.0, mean: 0.0, tokens: 0 });

    // What has no probability is NaN.
    let nan = |found: Vec<f32>| found.iter().map(|x| x.is_nan()).collect::<Vec<bool>>();
    assert_eq!(nan(sequence_log_prob(&logits, 3, &[3, 0])), [true, false]);
    assert_eq!(nan(sequence_log_prob(&logits, 3, &[0, 0, 0])), [false, false, true]);
    assert_eq!(nan(sequence_log_prob(&logits, 0, &[0, 0])), [true, true]);
    assert_eq!(nan(sequence_log_prob(&logits, usize::MAX, &[0, 0, 0])), [true, true, true]);
    assert!(sequence_log_prob(&[], 3, &[]).is_empty());
}
