//! Every recording on every backend: the same numbers as upstream. One test each, named `backend::recording`:
//! `cargo test --test golden flex` runs those of one backend.
//!
//! A backend that this build lacks, or whose device this machine lacks, is printed as ignored. `FLAMINGO_REQUIRE`
//! (`flex,wgpu`) makes that a failure.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use flamingo_engine::{Device, probe};
use libtest_mimic::{Arguments, Failed, Trial};
use xtask::verify::{self, Outcome};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let required = std::env::var("FLAMINGO_REQUIRE").unwrap_or_default();
    let cases = recordings();
    let mut trials = Vec::new();
    for (name, device) in [
        ("flex", Device::Flex),
        ("ndarray", Device::NdArray),
        ("wgpu", Device::Wgpu(None)),
        ("cuda", Device::Cuda(None)),
    ] {
        if let Err(error) = probe(device) {
            let ignored = !required.split(',').any(|required| required == name);
            let message = error.to_string();
            let trial = Trial::test(format!("{name} (skipped: {error})"), move || Err(message.into()));
            trials.push(trial.with_ignored_flag(ignored));
            continue;
        }
        for (label, case) in &cases {
            let case = case.clone();
            trials.push(Trial::test(format!("{name}::{label}"), move || check(&case, device)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Recordings that the repository carries, so that this test says something wherever it runs, and the full set
/// where it is at hand; with their names.
fn recordings() -> Vec<(String, PathBuf)> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = cases("carried", &here.join("tests/fixtures/golden"));
    assert!(!found.is_empty(), "the repository carries recordings");
    let all = std::env::var_os("FLAMINGO_GOLDEN").map_or_else(|| here.join("../shared/golden"), PathBuf::from);
    if all.is_dir() {
        found.extend(cases("all", &all));
    } else {
        eprintln!("the full set of recordings is skipped: there is no {}", all.display());
    }
    found
}

/// All folders with a recording below `folder`, and their names.
fn cases(name: &str, folder: &Path) -> Vec<(String, PathBuf)> {
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of recordings").flatten() {
        let path = entry.path();
        let name = format!("{name}::{}", entry.file_name().display());
        if ["case.json", "clip.json", "preprocess.json", "train_labels.json", "prompts.json"]
            .iter()
            .any(|file| path.join(file).is_file())
        {
            cases.push((name, path));
        } else if entry.file_name() == "_clip" {
            cases.extend(self::cases(&name, &path));
        }
    }
    cases.sort();
    cases
}

fn check(case: &Path, device: Device) -> Result<(), Failed> {
    let values = verify::compute(case, device).map_err(|e| format!("{e:#}"))?;
    let summary = verify::check(case, &values, device).map_err(|e| format!("{e:#}"))?;
    let failed: Vec<_> = summary.rows.iter().filter(|row| row.outcome == Outcome::Fail).collect();
    if !failed.is_empty() {
        return Err(format!("{failed:#?}").into());
    }
    // Only wgpu does not train.
    let left: Vec<_> = summary.rows.iter().filter(|row| row.outcome == Outcome::NotYetComputed).collect();
    if !left.is_empty() && !matches!(device, Device::Wgpu(_)) {
        return Err(format!("not computed: {left:#?}").into());
    }
    if summary.passed() { Ok(()) } else { Err("nothing was compared".into()) }
}
