//! Models that differ in one thing, trained, asked and reported with the real binary.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::{fails, flamingo};
use crate::eval::{own, text_of};

/// An experiment of a few steps on the repository's small shards.
fn small(folder: &Path) -> PathBuf {
    let shards = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/shards");
    let recipe = format!(
        "run_name = \"\"\nmodel = \"\"\ntrain = [\"resampler\", \"cross_attention\", \"decoder\"]\n\
         mmc4_shards = \"{}/tasks-*.tar\"\nbatch_size_mmc4 = 2\ntrain_num_samples_mmc4 = 8\nmax_tokens_mmc4 = 120\n\
         shuffle_mmc4 = 10\nwarmup_steps = 1\nlogging_steps = 1\n",
        shards.display()
    );
    fs::write(folder.join("recipe.toml"), recipe).expect("a recipe");
    let experiment = format!(
        "title = \"How often?\"\nquestion = \"Is one block enough?\"\nconfig = \"models/golden-tiny/model.toml\"\n\
         tokenizer = \"models/golden-tiny\"\nfrom = \"models/golden-tiny\"\ntake = [\"vision.\"]\n\
         recipe = \"{0}/recipe.toml\"\ntasks = [\"{0}/mine.toml\"]\ndata = \"{0}\"\nshots = [0, 2]\nnum_samples = 4\n\
         seeds = [1, 2]\n\
         [[variants]]\nname = \"before every block\"\nconfig = {{ \"cross_attention.every_n_layers\" = 1 }}\n\
         [[variants]]\nname = \"every second, fast\"\nrecipe = {{ learning_rate = 0.01 }}\n",
        folder.display()
    );
    let file = folder.join("how-often.toml");
    fs::write(&file, experiment).expect("an experiment");
    file
}

#[test]
fn an_experiment_trains_asks_and_reports() {
    let folder = own();
    let file = small(folder.path());
    let out = folder.path().join("out");
    let run = || {
        let arguments = ["experiment", &text_of(&file), "--device", "flex", "--out", &text_of(&out)];
        let output = flamingo(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(folder.path().join("how-often.md")).expect("a report")
    };
    let report = run();
    // Two variants in each table, the first with more parameters.
    let rows: Vec<&str> = report.lines().filter(|line| line.starts_with("| before every block |")).collect();
    assert_eq!(rows.len(), 2, "{report}");
    assert_eq!(report.lines().filter(|line| line.starts_with("| every second, fast |")).count(), 2);
    assert_eq!(rows[1].matches('±').count(), 2, "a number for each number of shots, of two seeds: {}", rows[1]);
    assert!(report.contains("Is one block enough?") && report.contains("![Scores over demonstrations](how-often.svg)"));
    let figure = fs::read_to_string(folder.path().join("how-often.svg")).expect("a figure");
    assert!(figure.contains("before every block") && figure.contains("every second, fast"));
    let metrics = |variant: &str| {
        let path = out.join(variant).join("seed-1/run/metrics.jsonl");
        let text = fs::read_to_string(path).expect("metrics");
        text.lines().count()
    };
    assert_eq!((metrics("before-every-block"), metrics("every-second--fast")), (4, 4));
    // What is there is not made again, and says the same.
    let model = out.join("before-every-block/seed-2/run/model/model.safetensors");
    let weights = fs::read(&model).expect("weights");
    assert_eq!(run(), report);
    assert_eq!(fs::read(&model).expect("weights"), weights);
}

#[test]
fn what_is_wrong_with_an_experiment_is_found_before_it_trains() {
    let folder = own();
    let file = small(folder.path());
    let good = fs::read_to_string(&file).expect("an experiment");
    let out = text_of(&folder.path().join("out"));
    for (from, to, expected) in [
        ("cross_attention.every_n_layers", "cross.every_n_layers", "changes `cross.every_n_layers`, which"),
        ("cross_attention.every_n_layers", "cross_attention.interval", "unknown field `interval`"),
        ("learning_rate", "learning_rat", "unknown field `learning_rat`"),
        ("mine.toml", "yours.toml", "yours.toml"),
        ("seeds = [1, 2]", "seeds = []", "needs variants and seeds"),
        ("take = [\"vision.\"]", "take = [\"cross_attention.\"]", "cross_attention.0"),
    ] {
        fs::write(&file, good.replace(from, to)).expect("an experiment");
        let error = fails(&["experiment", &text_of(&file), "--device", "flex", "--out", &out]);
        assert!(error.contains(expected), "{error}");
    }
}
