//! What makes the binary pleasant: help whose examples are true, exit codes, completions, manual pages, `flamingo doctor`, a
//! session that stays open.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cli::{fails, flamingo, stdout};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The names behind "Commands:" in a help text.
fn commands(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // A description that is long goes on below, further to the right.
    let names = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(String::from).collect()
}

/// Every command without commands of its own, with its help.
fn all_help() -> Vec<(Vec<String>, String)> {
    let help = |path: &[String]| {
        let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let output = flamingo(&args);
        assert!(output.status.success(), "{args:?}");
        stdout(&output)
    };
    let mut all = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let text = help(&path);
        let inner = commands(&text);
        open.extend(inner.iter().map(|name| [path.clone(), vec![name.clone()]].concat()));
        all.push((path, text));
    }
    all
}

/// Examples as they are in help: lines that begin with two spaces and run the program.
fn examples(help: &str) -> impl Iterator<Item = &str> {
    let lines = help.lines().filter_map(|line| line.strip_prefix("  "));
    lines.filter(|line| line.starts_with("flamingo ") || line.starts_with("printf ") && line.contains("| flamingo "))
}

/// Examples that want what is not in the repository, another machine, a long time, or a client.
const NOT_RUN: &[&str] = &[
    "flamingo bench --model openflamingo-3b --device flex --precision f32 --precision q4",
    "flamingo caption --model DIR --shot a.jpg \"A cat.\" --shot b.jpg \"A dog.\" c.jpg",
    "flamingo data convert-mmc4 --image-dir images --output shards documents.jsonl",
    "flamingo data convert-mmc4 --image-dir images --output shards mmc4/docs_shard_{0..99}.jsonl.zip",
    "flamingo data inspect documents.jsonl --json",
    "flamingo data inspect shards/{0000..0009}.tar",
    "flamingo data inspect shards --tokenizer models/golden-tiny --plot shards.svg",
    "flamingo data pack pairs.jsonl --output shards --resize 256 --samples-per-shard 5000",
    "flamingo data pack photos --output shards",
    "flamingo eval --model openflamingo-3b --task coco,vqav2 --data benchmarks --shots 0,4,8,16,32",
    "flamingo eval --task mine.toml --shots 0,4 --demonstrations random,rices --out runs/mine",
    "flamingo experiment experiments/new-embeddings.toml --out runs/new-embeddings --report new-embeddings.md",
    "flamingo generate --model DIR --interleaved prompt.json",
    "flamingo generate --model DIR --shot a.jpg 'A cat.' --image b.jpg --prompt 'A'",
    "flamingo init --config mine.toml --tokenizer DIR --vision DIR --out models/mine --seed 7",
    "flamingo launch --processes 2 -- train --config train.toml --device flex",
    "flamingo launch --processes 8 --restarts 3 -- train --config train.toml",
    "flamingo plot runs/a --output a.svg",
    "flamingo plot runs/a runs/b --keys loss_mmc4,grad_norm --smooth 0.9 --x time --log --output both.svg",
    "flamingo report runs/eval-a runs/eval-b --output both.html",
    "flamingo train --config models/flamingo-tiny-neox/train.toml",
    "flamingo train --config train.toml --devices cuda:0,cuda:1",
    "flamingo train --config train.toml --nodes 2 --node-rank 1 --rendezvous 10.0.0.1:29500",
    "flamingo train --config train.toml --set learning_rate=3e-4 --set run_name=runs/b",
];

/// In a folder that looks like the repository's root, so that what examples write is not left there.
#[cfg(unix)]
#[test]
fn the_examples_of_the_help_are_true() {
    let work = tempfile::tempdir().expect("a temporary folder");
    for name in ["tests", "experiments"] {
        std::os::unix::fs::symlink(root().join(name), work.path().join(name)).expect("a link");
    }
    std::fs::create_dir(work.path().join("models")).expect("a folder");
    for model in std::fs::read_dir(root().join("models")).expect("the zoo").flatten() {
        std::os::unix::fs::symlink(model.path(), work.path().join("models").join(model.file_name())).expect("a link");
    }
    let program = Path::new(env!("CARGO_BIN_EXE_flamingo")).parent().expect("a folder").display().to_string();
    let path = format!("{program}:{}", std::env::var("PATH").unwrap_or_default());
    let mut not_run: BTreeSet<&str> = NOT_RUN.iter().copied().collect();
    for (command, help) in all_help() {
        let leaf = commands(&help).is_empty();
        assert!(!leaf || examples(&help).next().is_some(), "the help of {command:?} has no example");
        for example in examples(&help) {
            // What follows three spaces is said about it.
            let example = example.split("   ").next().unwrap_or(example).trim_end();
            // A server does not end by itself.
            if example.starts_with("flamingo serve") || NOT_RUN.contains(&example) {
                not_run.remove(example);
                continue;
            }
            let output = Command::new("sh")
                .args(["-c", example])
                .current_dir(work.path())
                .env("PATH", &path)
                .env_remove("FLAMINGO_MODELS")
                .env("NO_COLOR", "1")
                .env("XDG_RUNTIME_DIR", std::env::temp_dir())
                .stdin(Stdio::null())
                .output()
                .expect("a shell");
            assert!(output.status.success(), "{example}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    assert!(not_run.is_empty(), "no help has these any more: {not_run:?}");
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&flamingo(&["completions", shell]));
        assert!(script.contains("max-new-tokens") && script.contains("convert-mmc4"), "{shell}: {script}");
    }
    assert_eq!(flamingo(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn every_command_has_a_manual_page() {
    let page = stdout(&flamingo(&["man"]));
    assert!(page.contains(".TH flamingo 1") && page.contains("flamingo\\-generate(1)"), "{page}");
    assert!(page.contains("Exit status:"), "{page}");
    let work = tempfile::tempdir().expect("a temporary folder");
    let folder = work.path().join("share/man1");
    let output = flamingo(&["man", "--out", folder.to_str().expect("a path")]);
    assert!(output.status.success() && output.stdout.is_empty());
    let pages: BTreeSet<String> = std::fs::read_dir(&folder)
        .expect("a folder")
        .map(|page| page.expect("a page").file_name().to_string_lossy().into_owned())
        .collect();
    let name =
        |command: &[String]| format!("{}.1", [vec!["flamingo".to_string()], command.to_vec()].concat().join("-"));
    assert_eq!(pages, all_help().iter().map(|(command, _)| name(command)).collect());
    let page = std::fs::read_to_string(folder.join("flamingo-data-pack.1")).expect("a page");
    assert!(page.contains(".nf\nExamples:\n") && page.contains("flamingo data pack photos"), "{page}");

    let file = work.path().join("file");
    std::fs::write(&file, "").expect("a file");
    assert!(fails(&["man", "--out", file.to_str().expect("a path")]).contains("cannot write manual pages"));
}

/// Runs with stdout somewhere else.
fn into(stdout: impl Into<Stdio>, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo"));
    command.args(args).current_dir(root()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().and_then(std::process::Child::wait_with_output).expect("the binary runs")
}

#[cfg(target_os = "linux")]
#[test]
fn where_output_goes_decides_the_status() {
    // A reader that has gone away.
    let gone = || {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        writer
    };
    for args in
        [&["models"][..], &["models", "--json"], &["man"], &["completions", "zsh"], &["serve", "--print-openapi"]]
    {
        let output = into(gone(), args);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let full = File::options().write(true).open("/dev/full").expect("a full device");
        let output = into(full, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("No space left"), "{args:?}");
    }
    // Nobody hears the error; the status tells.
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo"));
    let status = command.args(["inspect", "nothing"]).current_dir(root()).stderr(gone()).status();
    assert_eq!(status.expect("the binary runs").code(), Some(1));
}

#[test]
fn names_that_are_nearly_right_are_told() {
    for command in ["generate", "inspect", "bench"] {
        let args = match command {
            "inspect" => vec![command, "golden-tinny"],
            "generate" => vec![command, "--prompt", "A", "--model", "golden-tinny"],
            _ => vec![command, "--model", "golden-tinny"],
        };
        assert!(fails(&args).contains("did you mean golden-tiny?"), "{args:?}");
    }
    assert!(!fails(&["inspect", "nothing"]).contains("did you mean"));
}

#[test]
fn places_that_cannot_be_written_are_told_first() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| work.path().join(name).display().to_string();
    let (nowhere, folder) = (path("nowhere/file.md"), path("folder"));
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(path("metrics.jsonl"), "{\"step\": 1, \"lr\": 0.1}\n{\"step\": 2, \"lr\": 0.1}\n").expect("a file");
    let run = path("metrics.jsonl");
    assert!(fails(&["bench", "--model", "nothing", "--out", &nowhere]).contains("nothing"));
    assert!(fails(&["bench", "--device", "flex", "--out", &nowhere]).contains("there is no folder"));
    let experiment = ["experiment", "experiments/new-embeddings.toml"];
    assert!(fails(&[&experiment[..], &["--report", &nowhere]].concat()).contains("there is no folder"));
    let shards = ["data", "inspect", "tests/fixtures/shards/tasks-0000.tar"];
    assert!(fails(&[&shards[..], &["--plot", &nowhere]].concat()).contains("there is no folder"));
    assert!(fails(&[&shards[..], &["--plot", &folder]].concat()).contains("it is a folder"));
    assert!(fails(&["plot", &run, "--output", &folder]).contains("it is a folder"));
    let left: Vec<_> = std::fs::read_dir(work.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "something was left behind: {left:?}");
}

#[test]
fn files_of_other_kinds_get_one_sentence() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| work.path().join(name).display().to_string();
    let (empty, folder) = (path("empty"), path("folder"));
    std::fs::write(&empty, "").expect("a file");
    std::fs::create_dir(&folder).expect("a folder");
    for wrong in [empty.as_str(), &folder, "nothing"] {
        assert!(fails(&["report", wrong]).contains("no folder that `flamingo eval --out` has filled"));
        fails(&["experiment", wrong]);
        fails(&["plot", wrong]);
        fails(&["train", "--config", wrong]);
        fails(&["caption", wrong]);
        fails(&["generate", "--image", wrong]);
        fails(&["generate", "--interleaved", wrong]);
        fails(&["init", "--config", wrong, "--tokenizer", "models/golden-tiny", "--out", &path("new")]);
        fails(&["data", "inspect", wrong]);
        fails(&["data", "pack", wrong, "--output", &path("shards")]);
        fails(&["data", "convert-mmc4", wrong, "--image-dir", &folder, "--output", &path("shards")]);
    }
    assert!(fails(&["experiment", &empty]).contains("line 1: missing field"));
    assert!(fails(&["eval", "--task", "coco", "--data", &folder]).contains("--data says where they are"));
    // Numbers that no machine has memory for, or that mean nothing.
    let number =
        |name: &str, value: &str| flamingo(&["generate", "--prompt", "A", "--sample", name, value]).status.code();
    assert_eq!(number("--num-return-sequences", "99999999999"), Some(2));
    assert_eq!(number("--max-new-tokens", "-1"), Some(2));
    assert_eq!(number("--temperature", "-1"), Some(1));
    assert_eq!(number("--top-p", "-1"), Some(1));
}

#[test]
fn the_doctor_tries_devices() {
    let page = stdout(&flamingo(&["doctor"]));
    assert!(page.contains("works") && page.contains("golden-tiny") && page.contains("what is missing"), "{page}");
    let report: Value = serde_json::from_str(&stdout(&flamingo(&["doctor", "--json"]))).expect("JSON");
    let devices = report["devices"].as_array().expect("devices");
    let of_build = report["backends"].as_array().expect("backends");
    for device in devices {
        let name = device["device"].as_str().expect("a name");
        let backend = name.split(':').next().expect("a backend");
        if device["works"] == true {
            assert!(of_build.iter().any(|built| built == backend), "{device}");
            assert!(device["trial"]["read"].as_f64().is_some_and(|seconds| seconds > 0.0), "{device}");
        } else {
            let fixes = report["missing"].as_array().expect("what is missing");
            assert!(device["error"].is_string() && fixes.iter().any(|fix| fix["what"] == name), "{report}");
        }
    }
    assert_eq!(devices.iter().filter(|device| device["auto"] == true).count(), 1, "{report}");

    // A device that does not answer is given up, and all are told of.
    let output = flamingo(&["doctor", "--time-limit", "0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("no answer within 0 seconds"), "{}", stdout(&output));

    // Without a model the weights are made up, and one that cannot be opened is no fault of a device.
    let work = tempfile::tempdir().expect("a temporary folder");
    let zoo = work.path().to_str().expect("a path");
    let output = flamingo(&["doctor", "--models", zoo]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout(&output).contains("random weights"));
    let broken = work.path().join("broken");
    std::fs::create_dir(&broken).expect("a folder");
    std::fs::copy(root().join("models/golden-tiny/model.toml"), broken.join("model.toml")).expect("a copy");
    std::fs::write(broken.join("model.safetensors"), "nothing").expect("a file");
    let output = flamingo(&["doctor", "--models", zoo]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = stdout(&output);
    assert!(page.contains("random weights") && !page.contains("driver"), "{page}");
    let missing = page.lines().find(|line| line.contains("a sound broken"));
    assert!(missing.is_some_and(|line| line.contains("model.safetensors")), "{page}");
}

/// A session that is typed into a pipe.
fn session(args: &[&str], typed: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_flamingo"))
        .args(["generate", "--interactive", "--device", "flex"])
        .args(args)
        .current_dir(root())
        .env_remove("FLAMINGO_MODELS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    // It may end before all is read.
    let _ = child.stdin.take().expect("stdin").write_all(typed);
    child.wait_with_output().expect("an end")
}

const PIZZA: &str = "tests/fixtures/emoji/pizza.png";
const CRAB: &str = "tests/fixtures/emoji/crab.png";

#[test]
fn a_session_answers_line_by_line_and_remembers() {
    let typed =
        format!("/image {PIZZA}\nA picture of\n/show\n/image \"{CRAB}\"\nA picture of\n/show\n/undo\n/undo\n/show\n");
    let output = session(&[], typed.as_bytes());
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    let [first, once, second, twice, undone] = lines[..] else { panic!("{text}") };
    assert_eq!(once, format!("<image>A picture of{first}<|endofchunk|>"));
    assert_eq!(twice, format!("{once}<image>A picture of{second}<|endofchunk|>"));
    assert_eq!(undone, once);

    // The answers are those of a process for each prompt.
    let alone = |args: &[&str]| stdout(&flamingo(&[&["generate", "--device", "flex"], args].concat()));
    assert_eq!(alone(&["--image", PIZZA, "--prompt", "A picture of"]).trim_end_matches('\n'), first);
    let shot = format!("A picture of{first}");
    assert_eq!(
        alone(&["--shot", PIZZA, &shot, "--image", CRAB, "--prompt", "A picture of"]).trim_end_matches('\n'),
        second
    );
    // A prompt from the command line, a demonstration, and an empty line that asks.
    let typed =
        format!("/shot {PIZZA} A picture of{first}\n\n/image {CRAB}\n/text A picture of\n\n/show\n/quit\nnever read\n");
    assert_eq!(stdout(&session(&[], typed.as_bytes())), format!("{second}\n{twice}\n"));
    let begun = session(&["--image", PIZZA, "--prompt", "A picture of"], b"\n");
    assert_eq!(stdout(&begun), format!("{first}\n"));
}

#[test]
fn a_session_goes_on_after_errors() {
    let typed = format!(
        "/image missing.png\n/nonsense\n/image {PIZZA}\n/shot {CRAB} too late\nan <image> mark\n/set seed\n/set max-new-tokens 0\n\
         /set nothing 1\n/image \"open\n/show\n/reset\n/show\n/undo\n/undo\n/undo\n//\n"
    );
    let output = session(&["--max-new-tokens", "1"], [typed.as_bytes(), b"\xff\xfe\n"].concat().as_slice());
    assert_eq!(output.status.code(), Some(1), "a script is told");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = errors.lines().collect();
    let expected = [
        "missing.png",
        "/nonsense",
        "/undo",
        "/image PATH",
        "/set seed 1",
        "max_new_tokens",
        "no option nothing",
        "quote",
        "nothing to take back",
        "UTF-8",
        "10 of the lines",
    ];
    assert_eq!(lines.len(), expected.len(), "{errors}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.starts_with("error: ") && line.contains(expected), "{line} has no {expected}");
    }
    assert!(stdout(&output).starts_with("<image>\n\n"), "{}", stdout(&output));
}

#[test]
fn a_session_has_options_and_speaks_json() {
    let typed = format!(
        "/image {PIZZA}\n/set max-new-tokens 3\n/set min_new_tokens 3\nA\n/set temperature 1.5\n/set seed 2\n/set top-k off\n/set\n/show\n/help\n"
    );
    let output = session(&["--json", "--model", "golden-tiny"], typed.as_bytes());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let [answer, options, shown, help] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(answer["ids"].as_array().map(Vec::len), Some(3), "{answer}");
    assert_eq!(answer["prompt"], "<image>A");
    assert_eq!(
        (&options["sample"], &options["seed"], &options["max-new-tokens"]),
        (&true.into(), &2.into(), &3.into())
    );
    assert_eq!(shown["pictures"], 1);
    assert!(help["help"].is_string());
    // Several answers would not be one conversation.
    let args = ["generate", "--interactive", "--num-beams", "2", "--num-return-sequences", "2"];
    assert_eq!(flamingo(&args).status.code(), Some(2));
}
