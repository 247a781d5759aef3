//! VQA accuracy and OK-VQA stems against upstream's recordings and against what the Python packages behind them made of
//! more words (`fixtures/make_stems.py`).

use std::collections::BTreeMap;
use std::path::Path;

use flamingo_metrics::vqa::normalise::{map_words, one_line, strip_punctuation};
use flamingo_metrics::vqa::stem::{singularise, stem, tags, tokenise, verb_lemma};
use flamingo_metrics::vqa::{
    AccuracyError, Answer, Prediction, Question, accuracy, normalise, short_answer, short_answer_stemmed,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::Value;

fn read(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_str(&std::fs::read_to_string(path).expect("a recording")).expect("JSON")
}

fn recorded(name: &str) -> Value {
    read(&format!("../../tests/fixtures/golden/eval/{name}.json"))
}

fn list(value: &Value) -> &[Value] {
    let list = value.as_array().expect("a list");
    assert!(!list.is_empty());
    list
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

fn id(value: &Value) -> u64 {
    value["question_id"].as_u64().expect("a number")
}

#[test]
fn normalisation_agrees_with_upstream() {
    for item in list(&recorded("vqa")["normalization"]) {
        let input = text(&item["input"]);
        assert_eq!(strip_punctuation(&one_line(input)), item["after_punctuation"], "{input:?}");
        assert_eq!(normalise(input), item["normalized"], "{input:?}");
    }
}

#[test]
fn oddities_of_normalisation() {
    // One number with a comma, and every mark goes without a space.
    assert_eq!(strip_punctuation("red-hot 1,000"), "redhot 1000");
    // The 33rd full stop stays.
    assert_eq!(strip_punctuation(&"x.".repeat(34)), format!("{}x.x.", "x".repeat(32)));
    assert_eq!(strip_punctuation("3. .5 ٣.٣ ."), "3 .5 ٣.٣ ");
    assert_eq!(map_words("An IM dont the two\x1csomebody'd"), "im don't 2 somebodyd");
    assert_eq!(one_line("\u{3000} a\tb\nc\x1f"), "a b c");
}

fn question(annotation: &Value) -> Question<Value> {
    let answers = list(&annotation["answers"]).iter().map(|answer| {
        let mut details = answer.as_object().expect("a record").clone();
        let text = details.remove("answer").expect("an answer");
        Answer { text: text.as_str().expect("a string").to_owned(), details: Value::Object(details) }
    });
    Question {
        id: id(annotation),
        question_type: text(&annotation["question_type"]).to_owned(),
        answer_type: annotation.get("answer_type").map(|name| text(name).to_owned()),
        answers: answers.collect(),
    }
}

#[test]
fn accuracy_agrees_with_upstream() {
    let recording = recorded("vqa");
    let questions: Vec<_> = list(&recording["annotations"]).iter().map(question).collect();
    let predictions: Vec<_> = list(&recording["predictions"])
        .iter()
        .map(|item| Prediction { question_id: id(item), answer: text(&item["answer"]).to_owned() })
        .collect();
    let ours = accuracy(&questions, &predictions).expect("an accuracy");
    assert_eq!(ours.overall, recording["overall"]);
    let by_name = |value: &Value| -> BTreeMap<String, f64> {
        let entries = value.as_object().expect("a record").iter();
        entries.map(|(name, percent)| (name.clone(), percent.as_f64().expect("a number"))).collect()
    };
    let per_question: BTreeMap<String, f64> = ours.per_question.iter().map(|(id, p)| (id.to_string(), *p)).collect();
    assert_eq!(per_question, by_name(&recording["per_question"]));
    assert_eq!(ours.per_question_type, by_name(&recording["accuracy"]["perQuestionType"]));
    assert_eq!(ours.per_answer_type, by_name(&recording["accuracy"]["perAnswerType"]));
}

fn asked<D: Clone>(answers: &[(&str, D)]) -> Question<D> {
    let answers = answers.iter().map(|(text, details)| Answer { text: (*text).to_owned(), details: details.clone() });
    Question { id: 7, question_type: "what".into(), answer_type: None, answers: answers.collect() }
}

fn predicted(question_id: u64, answer: &str) -> Prediction {
    Prediction { question_id, answer: answer.into() }
}

#[test]
fn equal_answers_without_numbers_vanish() {
    let numbered = asked(&[("yes", 1), ("yes", 2), ("yes", 3), ("no", 4)]);
    let ours = accuracy(&[numbered], &[predicted(7, "Yes.")]).expect("an accuracy");
    assert_eq!((ours.overall, ours.per_answer_type["other"]), (75.0, 75.0));
    let bare = asked(&[("yes", ()), ("Yes", ()), ("yes.", ()), ("no", ())]);
    assert_eq!(accuracy(&[bare], &[predicted(7, "yes")]).map(|ours| ours.overall), Ok(25.0));
}

#[test]
fn a_question_predicted_twice_counts_twice_with_the_last_answer() {
    let other = Question { id: 8, ..asked(&[("no", 1)]) };
    let questions = [asked(&[("yes", 1), ("yes", 2), ("yes", 3), ("yes", 4)]), other];
    let predictions = [predicted(7, "no"), predicted(8, "no"), predicted(7, "yes")];
    assert_eq!(accuracy(&questions, &predictions).map(|ours| ours.overall), Ok(66.67));
}

#[test]
fn what_has_no_accuracy_is_an_error() {
    assert_eq!(accuracy::<()>(&[], &[]), Err(AccuracyError::NoPredictions));
    assert_eq!(accuracy::<()>(&[], &[predicted(1, "")]), Err(AccuracyError::UnknownQuestion(1)));
    assert_eq!(accuracy::<()>(&[asked(&[])], &[predicted(7, "")]), Err(AccuracyError::NoAnswers(7)));
}

#[test]
fn short_answers_agree_with_upstream() {
    for item in list(&recorded("vqa")["postprocess_vqa_generation"]) {
        assert_eq!(short_answer(text(&item["input"])), item["output"], "{item}");
    }
}

#[test]
fn stems_agree_with_upstream() {
    for item in list(&recorded("ok_vqa")["items"]) {
        assert_eq!(short_answer_stemmed(text(&item["input"])), item["output"], "{item}");
    }
}

/// Pairs of a word and its tag.
fn tagged(text: &str) -> Value {
    let words = tokenise(text);
    let tags = tags(&words);
    Value::from_iter(words.iter().zip(tags).map(|(word, tag)| Value::from(vec![word.as_str(), tag])))
}

#[test]
fn tags_agree_with_upstream() {
    let recording = recorded("ok_vqa");
    let tags = recording["tags"].as_object().expect("a record");
    assert!(!tags.is_empty());
    for (input, expected) in tags {
        assert_eq!(&tagged(input), expected, "{input:?}");
    }
}

#[test]
fn singulars_agree_with_inflection() {
    for pair in list(&read("tests/fixtures/stems.json")["singulars"]) {
        assert_eq!(singularise(text(&pair[0])), pair[1], "{pair}");
    }
}

#[test]
fn verbs_agree_with_nltk() {
    for pair in list(&read("tests/fixtures/stems.json")["verbs"]) {
        assert_eq!(verb_lemma(text(&pair[0])), pair[1], "{pair}");
    }
}

#[test]
fn tokens_tags_and_stems_agree_with_nltk() {
    for entry in list(&read("tests/fixtures/stems.json")["texts"]) {
        let input = text(&entry[0]);
        assert_eq!(tagged(input), entry[1], "{input:?}");
        assert_eq!(stem(input), entry[2], "{input:?}");
    }
}

/// Texts of characters that the rules look at, and of any others.
fn arbitrary_texts() -> impl Iterator<Item = String> {
    const LOOKED_AT: &str = "aeinstwgonmcd'\"`.,:;?!-()[]{}<>@#$%&*/\\_=+ \t\n\x1c\u{85}\u{301}“”’«…—19½²٣İſß猫";
    let looked_at: Vec<char> = LOOKED_AT.chars().collect();
    let mut random = ChaCha8Rng::seed_from_u64(0);
    (0..4_000).map(move |_| {
        let length = random.next_u32() % 12;
        let one = |_| match random.next_u32() {
            any if any % 4 == 0 => char::from_u32(any >> 11).unwrap_or('\u{fffd}'),
            some => looked_at[(some >> 2) as usize % looked_at.len()],
        };
        (0..length).map(one).collect()
    })
}

#[test]
fn any_text_has_words_tags_and_a_stem() {
    let space = |c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c);
    for text in arbitrary_texts() {
        let words = tokenise(&text);
        assert!(words.iter().all(|word| !word.is_empty() && !word.contains(space)), "{text:?}");
        assert_eq!(tags(&words).len(), words.len(), "{text:?}");
        assert!(stem(&text).split(' ').count() <= words.len().max(1), "{text:?}");
        assert!(text.starts_with(short_answer(&text)), "{text:?}");
        short_answer_stemmed(&text);
        singularise(&text);
        verb_lemma(&text);
    }
}

#[test]
fn what_is_normalised_stays() {
    for text in arbitrary_texts() {
        let once = normalise(&text);
        assert_eq!(normalise(&once), once, "{text:?}");
        assert!(!once.contains(['-', ',', '?', '(']) && once.trim() == once, "{text:?}");
    }
}
