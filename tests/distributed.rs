//! `flamingo train` by several workers, on the small shards of the repository.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A recipe whose updates have 12 pairs and 8 documents, however many workers share them.
fn recipe(folder: &Path, workers: usize, more: &str) -> PathBuf {
    let path = folder.join(format!("{workers}.toml"));
    let text = format!(
        "run_name = \"{}\"\nmodel = \"models/golden-tiny\"\n\
         laion_shards = \"tests/fixtures/shards/pairs-*.tar\"\nmmc4_shards = \"tests/fixtures/shards/tasks-*.tar\"\n\
         batch_size_laion = {}\nbatch_size_mmc4 = {}\ntrain_num_samples_laion = 360\ntrain_num_samples_mmc4 = 240\n\
         loss_multiplier_laion = 0.2\nshuffle_laion = 20\nshuffle_mmc4 = 10\nworkers = 4\nmax_tokens_mmc4 = 120\n\
         learning_rate = 1e-3\nlr_scheduler = \"cosine\"\nwarmup_steps = 5\nlogging_steps = 1\ncheckpoint_steps = 3\n{more}",
        folder.join("run").display(),
        12 / workers,
        8 / workers,
    );
    std::fs::write(&path, text).expect("a recipe");
    path
}

fn flamingo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flamingo"));
    // Without the folder drivers complain on stderr.
    command.current_dir(root()).env("NO_COLOR", "1").env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command
}

fn train(recipe: &Path) -> Command {
    let mut command = flamingo();
    command.arg("train").arg("--config").arg(recipe);
    command
}

/// The processes of a training, as torchrun would start them.
fn start(recipe: &Path, count: usize) -> Vec<Child> {
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port").port();
    let process = |rank: usize| {
        let mut command = train(recipe);
        command
            .args(["--device", "flex"])
            .env("RANK", rank.to_string())
            .env("WORLD_SIZE", count.to_string())
            .env("LOCAL_RANK", rank.to_string())
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string());
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a process")
    };
    (0..count).map(process).collect()
}

/// Waits for the end of a process, no longer than it may take; whether it succeeded, and what it said.
#[track_caller]
fn end(mut child: Child, within: Duration) -> (bool, String) {
    let deadline = Instant::now() + within;
    while child.try_wait().expect("a state").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("SIGKILL");
            let output = child.wait_with_output().expect("an end");
            panic!("it hangs, and said: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().expect("an end");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Lines of metrics without what depends on time.
fn metrics(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("run/metrics.jsonl")).expect("metrics");
    let timeless = |line: &str| {
        let mut line: Value = serde_json::from_str(line).expect("a line of JSON");
        let fields = line.as_object_mut().expect("an object");
        fields.retain(|key, _| !key.contains("second") && key != "slowest_rank" && key != "wire_bytes");
        line
    };
    text.lines().map(timeless).collect()
}

fn model(folder: &Path) -> Vec<u8> {
    std::fs::read(folder.join("run/model/model.safetensors")).expect("weights")
}

/// The same curve up to rounding, and exactly the same samples.
#[track_caller]
fn agree(ours: &[Value], theirs: &[Value]) {
    assert_eq!(ours.len(), theirs.len());
    for (a, b) in ours.iter().zip(theirs) {
        for key in ["step", "samples", "tokens", "images"] {
            assert_eq!(a[key], b[key], "{key}");
        }
        for (key, tolerance) in [("loss_laion", 1e-4), ("loss_mmc4", 1e-4), ("grad_norm", 1e-3)] {
            let [a, b] = [a, b].map(|line| line[key].as_f64().expect("a number"));
            assert!((a - b).abs() <= tolerance * a.abs().max(1.0), "{key}: {a} and {b}");
        }
    }
}

/// Waits until processes that have just begun have written down so many steps; whether they did before they ended.
fn wait_for_lines(folder: &Path, lines: usize, children: &mut [Child]) -> bool {
    let path = folder.join("run/metrics.jsonl");
    let modified = || std::fs::metadata(&path).and_then(|file| file.modified()).ok();
    let before = modified();
    loop {
        // What was written by those before them does not count.
        let written = match modified() == before {
            true => 0,
            false => std::fs::read_to_string(&path).map_or(0, |text| text.lines().count()),
        };
        if children.iter_mut().any(|child| child.try_wait().expect("a state").is_some()) {
            return false;
        }
        if written >= lines {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn several_devices_train_as_one_with_all_their_rows_and_go_on_in_another_number() {
    let folders = [(); 4].map(|()| tempfile::tempdir().expect("a folder"));
    let [one, two, four, changed] = folders.each_ref().map(tempfile::TempDir::path);
    // Parts of a batch and steps of several batches as well.
    let more = "rows_at_once = 2\ngradient_accumulation_steps = 2\n";
    succeeds(train(&recipe(one, 1, more)).args(["--device", "flex"]));
    let wanted = metrics(one);
    assert_eq!(wanted.len(), 15);
    succeeds(train(&recipe(two, 2, more)).args(["--devices", "flex,flex"]));
    agree(&wanted, &metrics(two));
    succeeds(train(&recipe(four, 4, more)).args(["--devices", "flex,flex,flex,flex"]));
    agree(&wanted, &metrics(four));

    let mut begun =
        [train(&recipe(changed, 4, more)).args(["--devices", "flex,flex,flex,flex"]).spawn().expect("it runs")];
    assert!(wait_for_lines(changed, 7, &mut begun));
    begun[0].kill().expect("SIGKILL");
    begun[0].wait().expect("an end");
    let output = train(&recipe(changed, 4, more)).args(["--devices", "flex,flex"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("other settings (batch_size_laion, batch_size_mmc4)"), "{said}");
    succeeds(train(&recipe(changed, 2, more)).args(["--devices", "flex,flex"]));
    agree(&wanted, &metrics(changed));
}

#[test]
fn a_run_whose_processes_are_killed_ten_times_ends_as_one_whose_are_not() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [whole, killed] = folders.each_ref().map(tempfile::TempDir::path);
    // As threads, which give the same numbers.
    succeeds(train(&recipe(whole, 4, "")).args(["--devices", "flex,flex,flex,flex"]));

    let recipe = recipe(killed, 4, "");
    for kill in 0..10 {
        let mut children = start(&recipe, 4);
        let micros =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").subsec_micros();
        assert!(wait_for_lines(killed, 2 + 2 * kill, &mut children), "the run is too short for this test");
        std::thread::sleep(Duration::from_micros(u64::from(micros) % 100_000));
        // Each of them, also the one that coordinates.
        let victim = kill % 4;
        children[victim].kill().expect("SIGKILL");
        let killed_at = Instant::now();
        for (rank, child) in children.into_iter().enumerate() {
            let (succeeded, said) = end(child, Duration::from_secs(20));
            assert!(!succeeded, "rank {rank} of kill {kill}: {said}");
            if rank != victim {
                assert!(
                    said.contains(&format!("rank {victim} (process {victim}")),
                    "rank {rank} of kill {kill}: {said}"
                );
                assert!(said.contains("is gone") && !said.contains("panicked"), "{said}");
            }
        }
        assert!(killed_at.elapsed() < Duration::from_secs(20));
    }
    for child in start(&recipe, 4) {
        let (succeeded, said) = end(child, Duration::from_secs(120));
        assert!(succeeded, "{said}");
    }
    assert_eq!(metrics(killed), metrics(whole));
    assert!(model(killed) == model(whole), "weights differ");
}

#[test]
fn processes_of_several_workers_train_as_one_whatever_trains() {
    let folders = [(); 3].map(|()| tempfile::tempdir().expect("a folder"));
    let [one, mixed, rounded] = folders.each_ref().map(tempfile::TempDir::path);
    // Muon updates whole matrices, so that workers own unequal parts.
    let more = "optimizer = \"muon\"\ntrain = [\"resampler\", \"cross_attention\", \"decoder\"]\n";
    succeeds(train(&recipe(one, 1, more)).args(["--device", "flex"]));
    let launch = |recipe: &Path| {
        let mut command = flamingo();
        command.args(["launch", "--processes", "2", "--", "train", "--devices", "flex,flex", "--config"]).arg(recipe);
        command
    };
    succeeds(&mut launch(&recipe(mixed, 4, more)));
    agree(&metrics(one), &metrics(mixed));
    succeeds(&mut launch(&recipe(rounded, 4, &format!("{more}bf16_gradients = true\n"))));
    let (exact, rounded) = (metrics(mixed), metrics(rounded));
    let last = |lines: &[Value]| lines.last().expect("a line")["loss_mmc4"].as_f64().expect("a loss");
    assert!(last(&exact) != last(&rounded) && (last(&exact) - last(&rounded)).abs() < 0.5, "{exact:?} {rounded:?}");
}

#[cfg(unix)]
#[test]
fn a_process_that_stops_without_ending_is_noticed_and_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut children = start(&recipe(folder.path(), 2, ""), 2);
    assert!(wait_for_lines(folder.path(), 2, &mut children));
    let stopped = children.pop().expect("two");
    let signal = |name: &str| Command::new("kill").args([name, &stopped.id().to_string()]).status().expect("kill");
    assert!(signal("-STOP").success());
    let (succeeded, said) = end(children.pop().expect("one"), Duration::from_secs(60));
    assert!(!succeeded);
    assert!(said.contains("rank 1 (process 1 at 127.0.0.1) is gone: nothing was heard of it for too long"), "{said}");
    assert!(signal("-KILL").success());
    end(stopped, Duration::from_secs(10));
}

/// A process that is stopped most of the time, as one that shares its machine with others: the metrics name it.
#[cfg(unix)]
#[test]
fn a_slow_worker_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut children = start(&recipe(folder.path(), 2, ""), 2);
    assert!(wait_for_lines(folder.path(), 1, &mut children));
    let slow = children[1].id().to_string();
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).expect("metrics");
        // The last line may not be whole yet.
        text.lines().skip(2).filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let begun = Instant::now();
    while lines().len() < 8 {
        assert!(begun.elapsed() < Duration::from_secs(120), "it does not go on");
        for (name, time) in [("-STOP", 250), ("-CONT", 20)] {
            assert!(Command::new("kill").args([name, &slow]).status().expect("kill").success(), "it has ended");
            std::thread::sleep(Duration::from_millis(time));
        }
    }
    for mut child in children {
        child.kill().expect("SIGKILL");
        end(child, Duration::from_secs(10));
    }
    let lines = lines();
    // A short update may fall into a time in which it was let go on.
    let named = lines.iter().filter(|line| line["slowest_rank"] == 1).count();
    assert!(named * 2 > lines.len(), "{named} of {} updates", lines.len());
    let sum = |key: &str| lines.iter().map(|line| line[key].as_f64().expect("seconds")).sum::<f64>();
    let [slowest, mean] = ["slowest_seconds", "mean_seconds"].map(sum);
    assert!(slowest > 1.3 * mean, "{slowest} seconds, {mean} in the mean");
}

/// Finds the launcher's processes as Linux lists them.
#[cfg(target_os = "linux")]
#[test]
fn the_launcher_starts_again_what_was_killed() {
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("a folder"));
    let [whole, killed] = folders.each_ref().map(tempfile::TempDir::path);
    succeeds(train(&recipe(whole, 2, "bf16_gradients = true\n")).args(["--devices", "flex,flex"]));
    let recipe = recipe(killed, 2, "");
    let launcher = || {
        let mut command = flamingo();
        command.args(["launch", "--processes", "2", "--restarts", "1", "--", "train", "--device", "flex", "--config"]);
        command.arg(&recipe).stderr(Stdio::piped()).spawn().expect("it runs")
    };
    let mut launched = [launcher()];
    assert!(wait_for_lines(killed, 4, &mut launched));
    let id = launched[0].id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).expect("its children");
    let last = children.split_whitespace().last().expect("a child");
    assert!(Command::new("kill").args(["-KILL", last]).status().expect("kill").success());
    let [launched] = launched;
    let (succeeded, said) = end(launched, Duration::from_secs(120));
    assert!(succeeded && said.contains("rank 1 was killed"), "{said}");
    assert!(
        said.contains("starting all again, for the 1. of 1 times") && said.contains("going on after step"),
        "{said}"
    );
    // Within a process nothing goes as bf16, so the numbers are those of f32.
    assert_eq!(metrics(killed), metrics(whole));
    assert!(model(killed) == model(whole), "weights differ");
}

#[test]
fn what_cannot_begin_together_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let recipe = recipe(folder.path(), 2, "");
    let fails = |args: &[&str], variables: &[(&str, &str)]| {
        let output = train(&recipe).args(args).envs(variables.iter().copied()).output().expect("the binary runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.starts_with("error: ") && said.lines().count() == 1, "{said}");
        said
    };
    let flex = ["--device", "flex"];
    let missing = ["--nodes", "2", "--node-rank", "0", "--rendezvous", "127.0.0.1:0", "--rendezvous-timeout", "1"];
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr()).expect("a port");
    let port = port.to_string();
    let missing = missing.map(|arg| if arg == "127.0.0.1:0" { port.as_str() } else { arg });
    let said = fails(&[&flex[..], &missing].concat(), &[]);
    assert!(said.contains("of 2 processes these did not come within 1 seconds: 1"), "{said}");
    assert!(fails(&flex, &[("WORLD_SIZE", "2")]).contains("--node-rank"));
    assert!(fails(&flex, &[("WORLD_SIZE", "2"), ("RANK", "1")]).contains("--rendezvous"));
    assert!(fails(&["--devices", "flex,wgpu"], &[]).contains("rank 1: "));
    assert!(
        fails(&["--devices", "flex,flex", "--set", "batch_size_laion=400"], &[]).contains("fewer samples than a batch")
    );
    let contrastive =
        ["--devices", "flex,flex", "--set", "upstream_compat=true", "--set", "gradient_accumulation_steps=2"];
    assert!(fails(&contrastive, &[]).contains("is for one device"));
}
