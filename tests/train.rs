//! `flamingo train` as a user runs it, on the small shards of the repository.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn flamingo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo"));
    command.current_dir(root()).env("NO_COLOR", "1");
    command
}

/// A recipe over both streams, several epochs of each.
fn recipe(folder: &Path, shards: &Path) -> PathBuf {
    let path = folder.join("train.toml");
    let shards = shards.display();
    let text = format!(
        "run_name = \"{}\"\nmodel = \"models/golden-tiny\"\n\
         laion_shards = \"{shards}/pairs-*.tar\"\nmmc4_shards = \"{shards}/tasks-*.tar\"\n\
         batch_size_laion = 3\nbatch_size_mmc4 = 2\ntrain_num_samples_laion = 360\ntrain_num_samples_mmc4 = 240\n\
         loss_multiplier_laion = 0.2\nshuffle_laion = 20\nshuffle_mmc4 = 10\nworkers = 2\nmax_tokens_mmc4 = 120\n\
         learning_rate = 1e-3\nlr_scheduler = \"cosine\"\nwarmup_steps = 5\nlogging_steps = 1\ncheckpoint_steps = 3\n",
        folder.join("run").display()
    );
    std::fs::write(&path, text).expect("a recipe");
    path
}

fn train(recipe: &Path, settings: &[&str]) -> Command {
    let mut command = flamingo();
    command.args(["train", "--device", "flex", "--config"]).arg(recipe);
    settings.iter().for_each(|setting| {
        command.args(["--set", setting]);
    });
    command
}

fn shards() -> PathBuf {
    root().join("tests/fixtures/shards")
}

/// Lines of metrics without what depends on time.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let timeless = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("a line of JSON");
        let fields = line.as_object_mut().expect("an object");
        fields.retain(|key, _| !key.contains("second"));
        line
    };
    text.lines().map(timeless).collect()
}

#[track_caller]
fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[track_caller]
fn fails(command: &mut Command) -> String {
    let output = command.output().expect("the binary runs");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("error: ") && !said.contains("panicked"), "{said}");
    said
}

/// Waits until a run has written so many lines, or ended.
fn wait_for_lines(run: &Path, lines: usize, child: &mut Child) -> bool {
    loop {
        let written = std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
        if child.try_wait().expect("a state").is_some() {
            return false;
        }
        if written >= lines {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_run_that_is_killed_ten_times_ends_as_one_that_is_not() {
    let (whole, killed) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let whole_recipe = recipe(whole.path(), &shards());
    // Sums of losses that no line has yet are in checkpoints, too.
    let settings = ["logging_steps=2"];
    succeeds(&mut train(&whole_recipe, &settings));

    let (killed_recipe, run) = (recipe(killed.path(), &shards()), killed.path().join("run"));
    let mut kills = Vec::new();
    while kills.len() < 10 {
        let mut child =
            train(&killed_recipe, &settings).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("a process");
        // At a random moment of the next few steps: in a step, in the writing of a line or of a checkpoint.
        let lines = 3 + 5 * kills.len();
        let microseconds =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").subsec_micros();
        let alive = wait_for_lines(&run, lines, &mut child);
        assert!(alive, "the run ended after {} kills: it is too short for this test", kills.len());
        std::thread::sleep(Duration::from_micros(u64::from(microseconds) % 30_000));
        child.kill().expect("SIGKILL");
        child.wait().expect("an end");
        kills.push(lines);
    }
    succeeds(&mut train(&killed_recipe, &settings));

    assert_eq!(metrics(&run), metrics(&whole.path().join("run")));
    for file in ["model/model.safetensors", "checkpoint.safetensors"] {
        let bytes = |folder: &Path| std::fs::read(folder.join("run").join(file)).expect("weights");
        assert!(bytes(killed.path()) == bytes(whole.path()), "{file} differs");
    }
    // Nothing half-written stays behind.
    let left = std::fs::read_dir(run.join("checkpoints")).expect("a folder").flatten();
    assert!(left.into_iter().all(|entry| entry.file_name().to_string_lossy().starts_with("step-")));
}

/// Two trainings in one folder would write each other's checkpoints.
#[test]
fn a_folder_has_one_run_at_a_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let (recipe, run) = (recipe(folder.path(), &shards()), folder.path().join("run"));
    let mut first = train(&recipe, &[]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("a process");
    assert!(wait_for_lines(&run, 1, &mut first));
    let said = fails(&mut train(&recipe, &[]));
    assert!(said.contains("another training runs in") && said.contains("run_name"), "{said}");
    // Killed, it leaves the folder to the next, which goes on.
    first.kill().expect("SIGKILL");
    first.wait().expect("an end");
    let lines = metrics(&run).len();
    let mut next = train(&recipe, &[]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("a process");
    assert!(wait_for_lines(&run, lines + 2, &mut next));
    next.kill().expect("SIGKILL");
    next.wait().expect("an end");
}

#[test]
fn a_run_learns_and_leaves_a_model_that_answers() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), &shards());
    succeeds(&mut train(
        &recipe,
        &["train=[\"resampler\",\"cross_attention\",\"decoder\"]", "gradient_accumulation_steps=2"],
    ));
    let lines = metrics(&folder.path().join("run"));
    let mean = |lines: &[Value], key: &str| {
        lines.iter().map(|line| line[key].as_f64().expect("a loss")).sum::<f64>() / lines.len() as f64
    };
    for key in ["loss_laion", "loss_mmc4"] {
        let (first, last) = (mean(&lines[..10], key), mean(&lines[lines.len() - 10..], key));
        assert!(last < 0.8 * first, "{key}: {first} to {last}");
    }
    let picture = root().join("tests/fixtures/photos/chelsea.jpg");
    let model = folder.path().join("run/model");
    let output = flamingo()
        .args(["generate", "--device", "flex", "--max-new-tokens", "4", "--model"])
        .arg(&model)
        .arg("--image")
        .arg(picture)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Upstream's names, and nothing but what its checkpoints hold.
    let bytes = std::fs::read(folder.path().join("run/checkpoint.safetensors")).expect("a checkpoint");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("tensors");
    let names = tensors.names();
    assert!(names.contains(&"perceiver.latents"));
    assert!(names.contains(&"lang_encoder.gpt_neox.embed_in.weight"));
    assert!(names.iter().any(|name| name.starts_with("lang_encoder.gpt_neox.layers.1.gated_cross_attn_layer.")));
}

#[test]
fn a_vision_tower_learns_from_captions() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), &shards());
    let text = std::fs::read_to_string(&recipe).expect("a recipe");
    let text: String =
        text.lines().filter(|line| !line.starts_with("mmc4_shards")).map(|line| format!("{line}\n")).collect();
    let tower = "[text_tower.decoder]\nfamily = \"gpt_neox\"\nd_model = 16\nn_heads = 2\nn_layers = 1\nd_ff = 32\n\
                 max_positions = 64\nrotary_pct = 1.0\nrotary_base = 10000.0\nparallel_residual = false\n\
                 activation = \"gelu\"\ntied_head = true\nnorm_eps = 1e-5\n";
    std::fs::write(&recipe, format!("{text}objective = \"contrastive\"\n{tower}")).expect("a recipe");
    let settings = [
        "batch_size_laion=20",
        "train_num_samples_laion=1200",
        "optimizer=muon",
        "muon_factor=4.0",
        "patch_dropout=0.3",
        "patch_loss=0.5",
    ];
    for (setting, said) in [
        ("batch_size_laion=1", "at least 2"),
        ("max_tokens_laion=65", "places for 64"),
        (
            "text_tower={decoder={family=\"gpt_neox\",d_model=16,n_heads=3,n_layers=1,d_ff=32,max_positions=64,\
          rotary_pct=1.0,rotary_base=10000.0,parallel_residual=false,activation=\"gelu\",tied_head=true,norm_eps=1e-5}}",
            "is not a multiple of",
        ),
    ] {
        let error = fails(&mut train(&recipe, &[setting]));
        assert!(error.contains(said), "{setting}: {error}");
    }
    succeeds(&mut train(&recipe, &settings));
    let run = folder.path().join("run");
    let lines = metrics(&run);
    let loss = |line: &Value| line["loss_laion"].as_f64().expect("a loss");
    assert!(loss(&lines[lines.len() - 1]) < loss(&lines[0]) - 0.5, "{} to {}", lines[0], lines[lines.len() - 1]);

    // Killed and taken up again it leaves out the same patches.
    let again = folder.path().join("again");
    let name = format!("run_name={}", again.display());
    let settings: Vec<&str> = settings.into_iter().chain([name.as_str()]).collect();
    let mut child = train(&recipe, &settings).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("a process");
    assert!(wait_for_lines(&again, lines.len() / 2, &mut child), "the run is too short for this test");
    child.kill().expect("SIGKILL");
    child.wait().expect("an end");
    succeeds(&mut train(&recipe, &settings));
    assert_eq!(metrics(&again), lines);

    // The tower and nothing else is new.
    let open = |path: &Path| flamingo_weights::ModelFolder::open(path).expect("a folder");
    let (old, new) = (open(&root().join("models/golden-tiny")), open(&run.join("model")));
    let changed = |name: &str| old.tensor_f32(name) != new.tensor_f32(name);
    assert!(changed("vision.blocks.0.mlp.up.weight") && changed("vision.proj.weight"));
    assert!(!changed("resampler.latents") && !changed("decoder.embedding.base"));
}

#[test]
fn damage_in_a_shard_does_not_stop_a_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("shards");
    std::fs::create_dir(&broken).expect("a folder");
    // Every twentieth member is damaged: now the content of a picture or a document, now its header.
    for name in ["pairs-0000.tar", "pairs-0001.tar", "tasks-0000.tar", "tasks-0001.tar"] {
        let mut bytes = std::fs::read(shards().join(name)).expect("a shard");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let place = |member: std::io::Result<tar::Entry<'_, _>>| {
            let member = member.expect("a member");
            [member.raw_header_position(), member.raw_file_position(), member.size()].map(|number| number as usize)
        };
        let places: Vec<[usize; 3]> = archive.entries().expect("members").map(place).collect();
        for (i, [header, content, size]) in places.into_iter().skip(18).step_by(20).enumerate() {
            if (i + usize::from(name.contains("0001"))) % 2 == 0 {
                bytes[content + size / 2..content + size].fill(0);
            } else {
                bytes[header + 100] ^= 1;
            }
        }
        std::fs::write(broken.join(name), bytes).expect("a shard");
    }
    let recipe = recipe(folder.path(), &broken);
    // All samples of each stream in order, by one reader, and one update more, in which the last shards' damage counts:
    // of 120 pairs 108 are sound, of 50 documents 48.
    let settings = [
        "workers=1",
        "shuffle_laion=0",
        "shuffle_mmc4=0",
        "batch_size_laion=9",
        "train_num_samples_laion=117",
        "batch_size_mmc4=4",
        "train_num_samples_mmc4=52",
    ];
    let said = succeeds(&mut train(&recipe, &settings));
    let left_out: Vec<&str> = said.lines().filter_map(|line| line.trim().strip_prefix("left out, ")).collect();
    let expected = [
        "laion: damaged member: 6",
        "laion: part missing: 6",
        "laion: unreadable picture: 6",
        "mmc4: damaged member: 1",
        "mmc4: unreadable text: 1",
    ];
    assert_eq!(left_out, expected, "{said}");
    let lines = metrics(&folder.path().join("run"));
    assert_eq!(lines.len(), 13);
    assert!(lines.iter().all(|line| line["loss_laion"].is_f64() && line["loss_mmc4"].is_f64()), "{lines:?}");
}

/// Which steps have a checkpoint.
fn checkpoints(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("checkpoints")).expect("a folder").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn checkpoints_are_written_when_told_and_rotated() {
    let folder = tempfile::tempdir().expect("a folder");
    let (recipe, run) = (recipe(folder.path(), &shards()), folder.path().join("run"));
    let steps = |steps: &[usize]| steps.iter().map(|step| format!("step-{step:08}.safetensors")).collect::<Vec<_>>();
    // Twelve steps, and one line of metrics.
    let short = ["train_num_samples_laion=36", "logging_steps=1000", "keep_checkpoints=3", "checkpoint_steps=5"];
    succeeds(&mut train(&recipe, &short));
    assert_eq!(checkpoints(&run), steps(&[5, 10, 12]));
    let by_time = ["checkpoint_steps=0", "checkpoint_minutes=1e-9", "num_epochs=2"];
    std::fs::remove_dir_all(&run).expect("a folder");
    succeeds(&mut train(&recipe, &[&short[..3], &by_time].concat()));
    assert_eq!(checkpoints(&run), steps(&[22, 23, 24]));
    std::fs::remove_dir_all(&run).expect("a folder");
    succeeds(&mut train(&recipe, &[&short[..], &["delete_previous_checkpoint=true"]].concat()));
    assert_eq!(checkpoints(&run), steps(&[12]));
}

/// Nothing is infinite in JSON.
#[test]
fn a_run_with_infinite_settings_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), &shards());
    let settings = ["train_num_samples_laion=9", "max_grad_norm=inf", "mmc4_textsim_threshold=-inf"];
    succeeds(&mut train(&recipe, &settings));
    // What is no line of metrics is left out.
    let lines = folder.path().join("run/metrics.jsonl");
    let before = std::fs::read(&lines).expect("metrics");
    std::fs::write(&lines, [b"\xff\xfe\n", before.as_slice()].concat()).expect("a file");
    let said = succeeds(&mut train(&recipe, &settings));
    assert!(said.contains("going on after step 3 of 3"), "{said}");
    assert_eq!(std::fs::read(&lines).expect("metrics"), before);
}

#[test]
fn losses_that_are_no_numbers_are_told_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), &shards());
    // A caption of one token predicts nothing.
    let none = ["train_num_samples_laion=12", "max_tokens_laion=1"];
    let said = fails(&mut train(&recipe, &none));
    assert!(said.contains("the loss was no number 4 steps in a row: lower learning_rate"), "{said}");
    assert!(!folder.path().join("run/model").exists());
    // Steps before weights that overflow count.
    let name = format!("run_name={}", folder.path().join("other").display());
    let diverges = ["train_num_samples_laion=30", "learning_rate=1e30", "warmup_steps=0", "lr_scheduler=constant"];
    let said = succeeds(&mut train(&recipe, &[&diverges[..], &[&name]].concat()));
    let lines = metrics(&folder.path().join("other"));
    let last = lines.last().expect("a line");
    let (steps, skipped) = (last["step"].as_u64().expect("steps"), last["skipped_steps"].as_u64().expect("steps"));
    assert!(steps == 10 && 0 < skipped && skipped < steps, "{last}");
    assert!(said.contains(&format!("the loss was no number: {skipped} of 10 steps")), "{said}");
}

/// Upstream's loop: an update at the end of each epoch, however few batches are left, and clipping after each batch.
#[test]
fn upstreams_loop_can_be_had() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), &shards());
    let settings = [
        "train_num_samples_laion=12",
        "num_epochs=2",
        "gradient_accumulation_steps=3",
        "max_grad_norm=1e-3",
        "lr_scheduler=linear",
        "warmup_steps=0",
    ];
    let run = |name: &str, compat: &str| {
        let path = folder.path().join(name);
        let name = format!("run_name={}", path.display());
        succeeds(&mut train(&recipe, &[&settings[..], &[&name, compat]].concat()));
        metrics(&path)
    };
    let numbers = |lines: &[Value], key: &str| -> Vec<f64> {
        lines.iter().map(|line| line[key].as_f64().expect("a number")).collect()
    };
    // Two epochs of four batches, each of three pairs and two documents.
    let (ours, upstreams) = (run("ours", "upstream_compat=false"), run("upstreams", "upstream_compat=true"));
    assert_eq!(numbers(&ours, "samples"), [15.0, 30.0]);
    assert_eq!(numbers(&upstreams, "samples"), [15.0, 20.0, 35.0, 40.0]);
    // The schedule goes over all eight batches, and advances with updates.
    let near = |rate: f64, share: f64| (rate - 1e-3 * share).abs() < 1e-9;
    let rates = numbers(&upstreams, "lr");
    assert!(rates.iter().enumerate().all(|(update, &rate)| near(rate, 1.0 - update as f64 / 8.0)), "{rates:?}");
    // All but the last batch's gradients were clipped to nearly nothing before.
    let (ours, upstreams) = (numbers(&ours, "grad_norm"), numbers(&upstreams, "grad_norm"));
    assert!(upstreams[0] < 0.8 * ours[0], "{upstreams:?}, {ours:?}");
}

#[test]
fn what_is_wrong_is_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), &shards());
    for (setting, said) in [
        ("learning_rat=1", "learning_rat"),
        ("model=nowhere", "nowhere"),
        ("laion_shards=nothing-*.tar", "finds nothing"),
        ("laion_shards=nothing.tar", "nothing.tar"),
        ("batch_size_laion=0", "at least 1"),
        ("lm_path=x", "model folder"),
        ("max_tokens_mmc4=0", "at least 1"),
        ("mmc4_min_num_images=9", "must not be above mmc4_max_num_images"),
        ("fsdp=true", "spread over the workers"),
        ("report_to_wandb=true", "metrics.jsonl"),
        ("mmc4_textsim_threshold=nan", "must be a number"),
        ("gradient_accumulation_steps=1000", "fewer batches than gradient_accumulation_steps"),
    ] {
        let error = fails(&mut train(&recipe, &[setting]));
        assert!(error.contains(said), "{setting}: {error}");
    }
    // A run that was begun goes on with its settings only.
    succeeds(&mut train(&recipe, &["num_epochs=1", "train_num_samples_laion=9"]));
    let error = fails(&mut train(&recipe, &["train_num_samples_laion=12", "learning_rate=0.5"]));
    assert!(error.contains("learning_rate") && error.contains("train_num_samples_laion"), "{error}");
    // So it does with its model only.
    let moved = folder.path().join("model");
    std::fs::create_dir(&moved).expect("a folder");
    for entry in std::fs::read_dir(root().join("models/golden-tiny")).expect("a folder").flatten() {
        std::fs::copy(entry.path(), moved.join(entry.file_name())).expect("a copy");
    }
    let (name, model) =
        (format!("run_name={}", folder.path().join("moved").display()), format!("model={}", moved.display()));
    let of_moved = ["train_num_samples_laion=9", &name, &model];
    succeeds(&mut train(&recipe, &of_moved));
    let weights = moved.join("model.safetensors");
    let mut bytes = std::fs::read(&weights).expect("weights");
    *bytes.last_mut().expect("a byte") ^= 1;
    std::fs::write(&weights, bytes).expect("weights");
    let error = fails(&mut train(&recipe, &of_moved));
    assert!(error.contains("is another model than") && error.contains("run_name"), "{error}");
    // What the model would replace is known before anything is learnt.
    let notes = folder.path().join("run/model/notes.txt");
    std::fs::write(&notes, "mine").expect("a file");
    let error = fails(&mut train(&recipe, &["train_num_samples_laion=9"]));
    assert!(error.contains("it also holds notes.txt"), "{error}");
    std::fs::remove_file(&notes).expect("a file");
    // A damaged checkpoint is named.
    let checkpoints = folder.path().join("run/checkpoints");
    let last =
        std::fs::read_dir(checkpoints).expect("a folder").flatten().map(|entry| entry.path()).max().expect("one");
    std::fs::write(&last, b"nonsense").expect("a file");
    let error = fails(&mut train(&recipe, &["train_num_samples_laion=9"]));
    assert!(error.contains("step-") && error.contains("move it away"), "{error}");
}
