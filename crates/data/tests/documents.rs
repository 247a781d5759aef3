//! Interleaved documents: order of pictures, limits, and files that are none.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flamingo_data::{Document, DocumentRules, Rejected, SpecialTokens, Tokenizer};
use serde_json::{Value, json};

fn tokenizer() -> (Tokenizer, SpecialTokens) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/golden-tiny");
    let mut tokenizer = Tokenizer::open(&folder).expect("a tokenizer");
    let tokens = tokenizer.add_flamingo_tokens().expect("tokens");
    (tokenizer, tokens)
}

/// A picture of a width of its own.
fn picture(width: u32) -> String {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, width, 1);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(&vec![0; width as usize]).expect("a picture");
    writer.finish().expect("a picture");
    STANDARD.encode(file)
}

fn rules() -> DocumentRules {
    DocumentRules { min_bytes: 0, textsim_threshold: 0.5, ..DocumentRules::default() }
}

fn apply(rules: &DocumentRules, json: &Value) -> Result<Document, Rejected> {
    let (tokenizer, tokens) = tokenizer();
    rules.apply(json.to_string().as_bytes(), &tokenizer, &tokens, 0.9)
}

fn widths(document: &Document) -> Vec<u32> {
    document.pictures.iter().map(|picture| picture.width()).collect()
}

fn text(document: &Document) -> String {
    tokenizer().0.decode(&document.ids, false)
}

/// Three pictures whose sentences come in another order.
fn crossed() -> Value {
    json!({
        "text_list": ["a.", "b.", "c.", "d."],
        "image_info": [{"image_base64": picture(1)}, {"image_base64": picture(2)}, {"image_base64": picture(3)}],
        "similarity_matrix": [[0.1, 0.1, 0.1, 0.9], [0.9, 0.1, 0.1, 0.1], [0.1, 0.8, 0.1, 0.1]],
    })
}

#[test]
fn pictures_stand_in_the_order_of_their_marks() {
    let document = apply(&rules(), &crossed()).expect("a document");
    assert_eq!(widths(&document), [2, 3, 1]);
    let marked = "<image>a.<|endofchunk|><image>b. c.<|endofchunk|><image>d.<|endofchunk|><|endoftext|>";
    assert_eq!(text(&document), marked);
    // Upstream keeps the order of the file.
    let upstream = apply(&DocumentRules { upstream_compat: true, ..rules() }, &crossed()).expect("a document");
    assert_eq!((widths(&upstream), upstream.ids), (vec![1, 2, 3], document.ids));
}

#[test]
fn limits_hold() {
    let two = apply(&DocumentRules { max_num_images: 2, ..rules() }, &crossed()).expect("a document");
    assert_eq!(widths(&two), [2, 1]);
    let strict = DocumentRules { textsim_threshold: 0.85, ..rules() };
    assert_eq!(widths(&apply(&strict, &crossed()).expect("a document")), [2, 1]);
    let stricter = DocumentRules { textsim_threshold: 0.95, ..rules() };
    assert!(matches!(apply(&stricter, &crossed()), Err(Rejected::NoPicture)));
    let large = DocumentRules { min_bytes: 1 << 20, ..rules() };
    assert!(matches!(apply(&large, &crossed()), Err(Rejected::NoPicture)));
    let many = DocumentRules { min_num_images: 4, ..rules() };
    assert!(matches!(apply(&many, &crossed()), Err(Rejected::TooFew(4))));
    let short = DocumentRules { max_tokens: 1, ..rules() };
    assert!(matches!(apply(&short, &crossed()), Err(Rejected::Empty)));
}

#[test]
fn generated_sequences_keep_a_mark_for_each_picture() {
    let image = |width| json!({"base64_image": picture(width)});
    let file = json!({
        "is_gpt": true,
        "example": "_!_IMAGE1_!_ a _!_IMAGE2_!_ b _!_IMAGE3_!_ c _!_IMAGE_!_",
        "image_map": {"_!_IMAGE1_!_": image(1), "_!_IMAGE2_!_": image(2), "_!_IMAGE3_!_": image(3)},
    });
    let document = apply(&rules(), &file).expect("a document");
    let all = "<image>a<|endofchunk|><image>b<|endofchunk|><image>c _!_IMAGE_!_<|endofchunk|><|endoftext|>";
    assert_eq!(text(&document), all);
    let marks = |rules: &DocumentRules| {
        let document = apply(rules, &file).expect("a document");
        (text(&document).matches("<image>").count(), document.pictures.len())
    };
    assert_eq!(marks(&DocumentRules { max_num_images: 2, ..rules() }), (2, 2));
    assert_eq!(marks(&DocumentRules { max_num_images: 2, upstream_compat: true, ..rules() }), (1, 2));
}

#[test]
fn generated_pictures_stand_where_their_numbers_do() {
    let image = |width| json!({"base64_image": picture(width)});
    let of = |example: &str| {
        let map = json!({"_!_IMAGE1_!_": image(1), "_!_IMAGE2_!_": image(2), "_!_IMAGE3_!_": image(3)});
        json!({"is_gpt": true, "example": example, "image_map": map})
    };
    let turned = of("_!_IMAGE2_!_ a _!_IMAGE1_!_ b _!_IMAGE2_!_ c");
    let document = apply(&rules(), &turned).expect("a document");
    assert_eq!(widths(&document), [2, 1, 2]);
    assert_eq!(text(&document).matches("<image>").count(), 3);
    let upstream = apply(&DocumentRules { upstream_compat: true, ..rules() }, &turned).expect("a document");
    assert_eq!(widths(&upstream), [1, 2, 3]);
    for unknown in ["_!_IMAGE4_!_ a", "_!_IMAGE0_!_ a", "_!_IMAGE99999999999999999999999_!_ a"] {
        assert!(matches!(apply(&rules(), &of(unknown)), Err(Rejected::Form(_))), "{unknown}");
    }
}

#[test]
fn what_a_page_writes_about_marks_is_no_picture() {
    let mut page = crossed();
    // Taken out once, each of the last two leaves a mark.
    page["text_list"][1] = "use <image> and <|endofchunk|> <ima<image>ge> <im<|endofchunk|>age> b.".into();
    let document = apply(&rules(), &page).expect("a document");
    assert_eq!(text(&document).matches("<image>").count(), document.pictures.len());
    let upstream = apply(&DocumentRules { upstream_compat: true, ..rules() }, &page).expect("a document");
    assert_eq!(text(&upstream).matches("<image>").count(), upstream.pictures.len() + 2);
    let generated = json!({
        "is_gpt": true,
        "example": "<|endof<ima<image>ge>chunk|>a _!_IMAGE1_!_ b",
        "image_map": {"_!_IMAGE1_!_": {"base64_image": picture(1)}},
    });
    let document = apply(&rules(), &generated).expect("a document");
    assert_eq!(text(&document), "a<image>b<|endofchunk|><|endoftext|>");
    // However many lie in each other.
    let nest = 300_000;
    page["text_list"][1] = format!("{}{} b.", "<ima".repeat(nest), "ge>".repeat(nest)).into();
    assert_eq!(text(&apply(&rules(), &page).expect("a document")), text(&apply(&rules(), &crossed()).expect("one")));
}

#[test]
fn files_that_are_no_documents_are_rejected() {
    let (tokenizer, tokens) = tokenizer();
    let forms = [
        String::new(),
        "[]".into(),
        "{".into(),
        json!({"text_list": 3}).to_string(),
        json!({"text_list": ["a"], "image_info": [{}], "similarity_matrix": []}).to_string(),
        json!({"text_list": ["a"], "image_info": [{}], "similarity_matrix": [[0.1, 0.2]]}).to_string(),
        json!({"text_list": ["a"], "image_info": [{"image_base64": "?"}], "similarity_matrix": [[0.9]]}).to_string(),
        json!({"is_gpt": true, "example": "_!_IMAGE1_!_a", "image_map": {"other": {"base64_image": ""}}}).to_string(),
    ];
    for form in forms {
        let rejected = rules().apply(form.as_bytes(), &tokenizer, &tokens, 0.9).expect_err(&form);
        assert!(matches!(rejected, Rejected::Form(_)), "{form}: {rejected}");
    }
    let broken =
        json!({"text_list": ["a"], "image_info": [{"image_base64": "aGVsbG8="}], "similarity_matrix": [[0.9]]});
    assert!(matches!(apply(&rules(), &broken), Err(Rejected::Data(_))));
    assert!(matches!(apply(&rules(), &json!({})), Err(Rejected::NoPicture)));
}
