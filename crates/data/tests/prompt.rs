//! Interleaved prompts.

use flamingo_data::{Part, assemble, check_marks, few_shot};

#[test]
fn the_prompt_of_upstreams_readme() {
    let shots = [("cats.jpg", "An image of two cats."), ("sink.jpg", "An image of a bathroom sink.")];
    let prompt = few_shot(shots, Some("query.jpg"), "An image of").expect("a prompt");
    assert_eq!(
        prompt.text,
        "<image>An image of two cats.<|endofchunk|><image>An image of a bathroom sink.<|endofchunk|><image>An image of"
    );
    assert_eq!(prompt.images, ["cats.jpg", "sink.jpg", "query.jpg"]);
}

#[test]
fn prompts_need_neither_demonstrations_nor_pictures() {
    let none: [(usize, String); 0] = [];
    assert_eq!(few_shot(none.clone(), Some(7), "a").expect("a prompt").text, "<image>a");
    assert_eq!(few_shot(none, None, "a").expect("a prompt").text, "a");
    let nothing = assemble::<usize>([]).expect("a prompt");
    assert!(nothing.text.is_empty() && nothing.images.is_empty());
}

#[test]
fn parts_keep_their_order() {
    let text = |text: &str| Part::Text(text.to_string());
    let all = assemble([text("a "), Part::Image(4), Part::Image(2), text(" b"), text("c")]).expect("a prompt");
    assert_eq!((all.text.as_str(), all.images), ("a <image><image> bc", vec![4, 2]));
}

#[test]
fn other_numbers_of_marks_and_pictures_are_errors() {
    assert!(check_marks("<image>a<image>", 2).is_ok());
    let error = check_marks("<image>a<image>", 3).expect_err("an error").to_string();
    assert!(error.contains('2') && error.contains('3') && error.contains("<image>"), "{error}");
    let error = assemble([Part::Image(0), Part::Text("a<image>".to_string())]).expect_err("an error").to_string();
    assert!(error.contains('2') && error.contains('1'), "{error}");
    // Two harmless parts can make a mark together.
    assert!(assemble::<()>([Part::Text("<ima".to_string()), Part::Text("ge>".to_string())]).is_err());
}
