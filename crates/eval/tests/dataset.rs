//! Samples of every published format, and what is said of broken files.

use std::path::{Path, PathBuf};

use flamingo_eval::{Benchmark, Source, Task, read};
use serde_json::{Value, json};
use tempfile::TempDir;

fn put(folder: &TempDir, name: &str, content: impl ToString) {
    let path = folder.path().join(name);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, content.to_string()).expect("a file");
}

fn fails(source: &Source, folder: &TempDir) -> String {
    let error = read(source, folder.path(), None).expect_err("a broken file").to_string();
    assert!(error.starts_with(&folder.path().display().to_string()), "no file in {error}");
    error[folder.path().display().to_string().len() + 1..].to_string()
}

fn karpathy() -> Source {
    Source::Karpathy { annotations: "dataset.json".into(), split: "test".into(), image: "{filepath}/{filename}".into() }
}

fn captions() -> Value {
    json!({"dataset": "coco", "images": [
        {"split": "train", "filepath": "train2014", "filename": "a.jpg", "cocoid": 1, "sentences": [{"raw": "A."}]},
        {"split": "test", "filepath": "val2014", "filename": "b.jpg", "cocoid": 2,
         "sentences": [{"raw": " A dog. \n"}, {"raw": "Dogs"}]},
        {"split": "test", "filepath": "val2014", "filename": "c.d.jpg", "sentences": [{"raw": "C"}]},
    ]})
}

#[test]
fn captions_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    put(&folder, "dataset.json", captions());
    let samples = read(&karpathy(), folder.path(), None).expect("samples");
    assert_eq!(samples.len(), 2);
    assert_eq!(samples[0].id, 2);
    assert_eq!(samples[0].image, folder.path().join("val2014/b.jpg"));
    assert_eq!(samples[0].answer, "A dog.");
    assert_eq!(samples[0].references, [" A dog. \n", "Dogs"]);
    // Flickr30k has no numbers.
    assert_eq!(samples[1].id, "c");
}

#[test]
fn broken_captions_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(fails(&karpathy(), &folder).contains("No such file"));
    put(&folder, "dataset.json", "{\"images\": [");
    assert!(fails(&karpathy(), &folder).starts_with("dataset.json: EOF"));
    put(&folder, "dataset.json", json!({"annotations": []}));
    assert_eq!(fails(&karpathy(), &folder), "dataset.json: it has no list `images`");
    put(&folder, "dataset.json", json!({"images": [{"split": "val"}]}));
    assert_eq!(fails(&karpathy(), &folder), "dataset.json: no image is of the split `test`");
    for (key, value, expected) in [
        ("sentences", json!([]), "image 2 has no `sentences` with `raw`"),
        ("sentences", json!([{"tokens": ["a"]}]), "image 2 has no `sentences` with `raw`"),
        ("filepath", json!(null), "image 2 has no `filepath`"),
        ("filename", json!(3), "image 1 has no text `filename`"),
        ("split", json!(1), "image 1 has no text `split`"),
    ] {
        let mut broken = captions();
        broken["images"][1][key] = value;
        put(&folder, "dataset.json", broken);
        assert_eq!(fails(&karpathy(), &folder), format!("dataset.json: {expected}"));
    }
    let mut twice = captions();
    twice["images"][2]["cocoid"] = 2.into();
    put(&folder, "dataset.json", twice);
    assert_eq!(fails(&karpathy(), &folder), "dataset.json: there are two samples 2");
}

fn vqa(annotations: bool) -> Source {
    Source::Vqa {
        questions: "questions.json".into(),
        annotations: annotations.then(|| "annotations.json".into()),
        image: "val2014/COCO_val2014_{image_id:012}.jpg".into(),
    }
}

fn questions() -> Value {
    json!({"questions": [
        {"question_id": 10, "image_id": 7, "question": "What?"},
        {"question_id": 11, "image_id": 7, "question": "Is it?"},
    ]})
}

fn annotations() -> Value {
    // Not in the order of the questions.
    json!({"annotations": [
        {"question_id": 11, "question_type": "is", "answer_type": "yes/no", "answers": [{"answer": "yes", "answer_id": 1}]},
        {"question_id": 10, "answers": [{"answer": "a cat"}, {"answer": "cat"}]},
    ]})
}

#[test]
fn questions_find_their_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    put(&folder, "questions.json", questions());
    put(&folder, "annotations.json", annotations());
    let samples = read(&vqa(true), folder.path(), None).expect("samples");
    assert_eq!(samples[0].image, folder.path().join("val2014/COCO_val2014_000000000007.jpg"));
    assert_eq!((samples[0].answer.as_str(), samples[1].answer.as_str()), ("a cat", "yes"));
    assert_eq!(samples[1].references, [json!({"answer": "yes", "answer_id": 1})]);
    assert_eq!(samples[1].fields["answer_type"], "yes/no");
    let unanswered = read(&vqa(false), folder.path(), None).expect("samples");
    assert!(unanswered.iter().all(|sample| sample.references.is_empty()));
}

#[test]
fn broken_answers_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    put(&folder, "questions.json", questions());
    let broken = |change: &dyn Fn(&mut Value)| {
        let mut annotations = annotations();
        change(&mut annotations["annotations"]);
        put(&folder, "annotations.json", annotations);
        fails(&vqa(true), &folder)
    };
    let say = |what: &str| format!("annotations.json: {what}");
    assert_eq!(broken(&|a| drop(a.as_array_mut().expect("a list").pop())), say("question 10 has no annotation"));
    assert_eq!(
        broken(&|a| a[0]["question_id"] = 12.into()),
        say("question 11 has no annotation"),
        "the first question without one is named"
    );
    assert_eq!(broken(&|a| a[1]["question_id"] = 11.into()), say("there are two annotations of question 11"));
    assert_eq!(broken(&|a| a[0]["answers"] = json!([])), say("question 11 has no list `answers`, or an empty one"));
    assert_eq!(broken(&|a| a[0]["answers"] = json!([{}])), say("question 11 has an answer without a text `answer`"));
    let extra = json!({"question_id": 99, "answers": [{"answer": "x"}]});
    assert_eq!(
        broken(&|a| a.as_array_mut().expect("a list").push(extra.clone())),
        say("there is an annotation of question 99, which is not asked")
    );
    assert!(broken(&|a| *a = json!([1])).starts_with("annotations.json: `annotations`: invalid type"));
    let mut questions = questions();
    questions["questions"][1].as_object_mut().expect("an object").remove("image_id");
    put(&folder, "questions.json", questions);
    assert_eq!(fails(&vqa(false), &folder), "questions.json: question 11 has no `image_id`");
}

#[test]
fn memes_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::HatefulMemes { annotations: "dev.jsonl".into(), image: "{img}".into() };
    let meme =
        |id: u32, label: Value| json!({"id": id, "img": format!("img/{id:05}.png"), "text": "so so", "label": label});
    put(&folder, "dev.jsonl", format!("{}\n{}\n\n", meme(42, 0.into()), meme(43, 1.into())));
    let samples = read(&source, folder.path(), None).expect("samples");
    assert_eq!(samples.iter().map(|sample| sample.answer.as_str()).collect::<Vec<_>>(), ["no", "yes"]);
    assert_eq!(samples[0].image, folder.path().join("img/00042.png"));
    put(&folder, "dev.jsonl", meme(42, json!("hateful")));
    assert_eq!(fails(&source, &folder), "dev.jsonl: meme 42 has no `label` of 0 or 1");
    put(&folder, "dev.jsonl", format!("{}\nnot JSON", meme(42, 0.into())));
    assert!(fails(&source, &folder).starts_with("dev.jsonl: line 2: expected"));
}

#[test]
fn image_folders_are_read_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::ImageFolder { folder: "val".into() };
    for name in ["n02/b.JPEG", "n02/a.png", "n01/deep/er.jpg", "n01/x.txt", "readme.md"] {
        put(&folder, &format!("val/{name}"), "");
    }
    let classes = ["tench".to_string(), "goldfish".to_string()];
    let samples = read(&source, folder.path(), Some(&classes)).expect("samples");
    let seen: Vec<(PathBuf, &str)> = samples
        .iter()
        .map(|s| (s.image.strip_prefix(folder.path().join("val")).expect("inside").to_path_buf(), s.answer.as_str()))
        .collect();
    let expected = [("n01/deep/er.jpg", "tench"), ("n02/a.png", "goldfish"), ("n02/b.JPEG", "goldfish")];
    assert_eq!(seen, expected.map(|(path, name)| (PathBuf::from(path), name)));
    assert_eq!(fails(&source, &folder), "val: it has 2 folders for 0 classes");
    std::fs::create_dir(folder.path().join("val/n00")).expect("a folder");
    let three = ["a", "b", "c"].map(String::from);
    let error = read(&source, folder.path(), Some(&three)).expect_err("an empty class").to_string();
    assert!(error.ends_with("n00: there is no picture in it"), "{error}");
}

#[test]
fn lines_of_ones_own_are_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let source = Source::Jsonl { file: "a/mine.jsonl".into() };
    put(
        &folder,
        "a/mine.jsonl",
        "{\"image\": \"x.png\", \"answer\": \"red\", \"question\": \"what colour?\"}\n\
         {\"id\": \"q\", \"image\": \"y.png\", \"references\": [\"a\", \"b\"]}\n",
    );
    let samples = read(&source, folder.path(), None).expect("samples");
    assert_eq!((samples[0].id.clone(), samples[1].id.clone()), (json!(0), json!("q")));
    assert_eq!(samples[0].image, folder.path().join("a/x.png"));
    assert_eq!((samples[1].answer.as_str(), samples[1].references.len()), ("a", 2));
    for (line, expected) in [
        ("{\"answer\": \"a\"}", "sample 0 has no text `image`"),
        ("{\"image\": \"x\"}", "sample 0 must have either an `answer` or a list `references` that is not empty"),
        (
            "{\"image\": \"x\", \"references\": []}",
            "sample 0 must have either an `answer` or a list `references` that is not empty",
        ),
        ("{\"image\": \"x\", \"answer\": 3}", "sample 0 has an answer that is no text"),
    ] {
        put(&folder, "a/mine.jsonl", line);
        assert_eq!(fails(&source, &folder), format!("a/mine.jsonl: {expected}"));
    }
    put(&folder, "a/mine.jsonl", "\n");
    assert!(read(&source, folder.path(), None).expect_err("nothing").to_string().contains("there is no sample"));
}

#[test]
fn shipped_tasks_are_sound_and_have_upstreams_prompts() {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/eval/prompts.json");
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(recorded).expect("a file")).expect("JSON");
    for name in Task::shipped() {
        let task = Task::open(name).expect("a sound task");
        assert_eq!(task.name, name);
        let (kind, answer) = match name {
            "coco" | "flickr30" => ("caption", "caption"),
            "imagenet" => ("imagenet", "label"),
            "hateful_memes" => ("hateful_memes", "label"),
            _ => ("vqa", "answer"),
        };
        for case in recorded[kind].as_array().expect("cases") {
            let sample = flamingo_eval::Sample {
                file: Path::new("").into(),
                id: 0.into(),
                image: PathBuf::new(),
                fields: case.as_object().expect("an object").clone(),
                answer: case[answer].as_str().unwrap_or_default().into(),
                references: Vec::new(),
            };
            let prompt = if case[answer].is_null() {
                task.query(&sample).expect("a prompt")
            } else {
                let shot = task.demonstration(&sample).expect("a demonstration");
                shot.strip_suffix(&task.separator).expect("a separator").to_string()
            };
            assert_eq!(prompt, case["prompt"].as_str().expect("a prompt"));
        }
        assert_eq!(task.separator, if matches!(kind, "caption" | "vqa") { "\n" } else { "" });
        if let flamingo_eval::Answer::Generate(generate) = &task.answer {
            let key = if name == "textvqa" {
                "textvqa"
            } else if kind == "vqa" {
                "vqa"
            } else {
                "captioning"
            };
            let recorded = &recorded["generation"][key];
            assert_eq!(generate.max_new_tokens, recorded["max_new_tokens"]);
            assert_eq!(generate.min_new_tokens, recorded["min_new_tokens"]);
            assert_eq!(generate.num_beams, recorded["num_beams"]);
            assert_eq!(generate.length_penalty, recorded["length_penalty"]);
        }
    }
    let flamingo_eval::Answer::Classify(imagenet) = Task::open("imagenet").expect("a task").answer else { panic!() };
    assert_eq!(imagenet.classes.names().len(), 1000);
}

#[test]
fn tasks_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let good = "name = \"mine\"\ntitle = \"Mine\"\nprompt = \"<image>Q:{question} A:\"\nmetric = \"accuracy\"\n\
                [answer.generate]\nmax_new_tokens = 5\n[test]\nformat = \"jsonl\"\nfile = \"mine.jsonl\"\n";
    let path = folder.path().join("mine.toml");
    let opened = |text: &str| {
        std::fs::write(&path, text).expect("a file");
        Task::open(&path.display().to_string())
    };
    let task = opened(good).expect("a task");
    for (from, to, expected) in [
        ("<image>", "", "the prompt has 0 marks <image> instead of one"),
        ("\"mine\"", "\"../mine\"", "the name `../mine` is not of letters"),
        ("\"accuracy\"", "\"roc_auc\"", "roc_auc wants classes"),
        ("\"accuracy\"", "\"bleu\"", "unknown variant `bleu`"),
        ("max_new_tokens = 5", "max_new_tokens = 0", "max_new_tokens and num_beams are at least 1"),
        ("max_new_tokens = 5", "max_new_tokens = 5\nnum_beams = 0", "max_new_tokens and num_beams are at least 1"),
        ("max_new_tokens", "max_tokens", "unknown field `max_tokens`"),
    ] {
        let error = opened(&good.replace(from, to)).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains("mine.toml"), "{error}");
    }
    let classes = good.replace("[answer.generate]\nmax_new_tokens = 5", "[answer.classify]\nclasses = [\"red\"]");
    let task_of_classes = opened(&classes).expect("a task");
    put(&folder, "mine.jsonl", "{\"image\": \"x.png\", \"answer\": \"blue\", \"question\": \"?\"}");
    let error = Benchmark::open(task_of_classes, folder.path()).err().expect("no such class").to_string();
    assert!(error.ends_with("sample 0 is a `blue`, which is no class of the task"), "{error}");
    put(&folder, "mine.jsonl", "{\"image\": \"x.png\", \"answer\": \"blue\"}");
    let benchmark = Benchmark::open(task, folder.path()).expect("a benchmark");
    let error = benchmark.task.query(&benchmark.test[0]).expect_err("no question").to_string();
    assert!(error.ends_with("sample 0 has no `question`, which the prompt wants"), "{error}");
    assert!(Task::open("cocoo").expect_err("no such task").to_string().contains("give one of coco, flickr30"));
}
