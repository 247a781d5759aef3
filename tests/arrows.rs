//! The arrows of ARCHITECTURE.md, read from the manifests: who may depend on whom.

use std::collections::BTreeSet;
use std::path::Path;

/// Crate, and the workspace crates that it may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("crates/config", &[]),
    ("crates/corpus", &["flamingo-data"]),
    ("crates/data", &[]),
    ("crates/distributed", &[]),
    (
        "crates/eval",
        &[
            "flamingo-config",
            "flamingo-data",
            "flamingo-generate",
            "flamingo-metrics",
            "flamingo-plot",
            "flamingo-weights",
            "flamingo-zoo",
        ],
    ),
    ("crates/generate", &[]),
    ("crates/kernels", &["flamingo-config"]),
    ("crates/metrics", &[]),
    ("crates/model", &["flamingo-config", "flamingo-kernels"]),
    ("crates/train", &["flamingo-config", "flamingo-kernels", "flamingo-model"]),
    ("crates/weights", &["flamingo-config"]),
    (
        "crates/engine",
        &[
            "flamingo-config",
            "flamingo-generate",
            "flamingo-kernels",
            "flamingo-model",
            "flamingo-train",
            "flamingo-weights",
        ],
    ),
    ("crates/plan", &["flamingo-config", "flamingo-weights"]),
    ("crates/plot", &[]),
    (
        "crates/run",
        &["flamingo-config", "flamingo-data", "flamingo-distributed", "flamingo-engine", "flamingo-weights"],
    ),
    (
        "crates/web",
        &[
            "flamingo-config",
            "flamingo-data",
            "flamingo-engine",
            "flamingo-generate",
            "flamingo-weights",
            "flamingo-zoo",
        ],
    ),
    ("crates/serve", &["flamingo-config", "flamingo-data", "flamingo-engine", "flamingo-generate", "flamingo-zoo"]),
    ("crates/zoo", &["flamingo-config", "flamingo-data", "flamingo-engine", "flamingo-generate", "flamingo-weights"]),
    (
        "xtask",
        &[
            "flamingo-config",
            "flamingo-corpus",
            "flamingo-data",
            "flamingo-engine",
            "flamingo-eval",
            "flamingo-generate",
            "flamingo-metrics",
            "flamingo-weights",
            "flamingo-zoo",
        ],
    ),
    // The binary `flamingo`, in crates/cli.
    (
        ".",
        &[
            "flamingo-config",
            "flamingo-data",
            "flamingo-distributed",
            "flamingo-engine",
            "flamingo-eval",
            "flamingo-generate",
            "flamingo-plan",
            "flamingo-plot",
            "flamingo-run",
            "flamingo-serve",
            "flamingo-weights",
            "flamingo-zoo",
        ],
    ),
];

/// Crates that may use Burn at all, and those that may name its backends.
const BURN: &[&str] = &["crates/distributed", "crates/engine", "crates/kernels", "crates/model", "crates/train"];
/// The engine instantiates them; Rust allows the kernels of a backend beside their trait only; Burn's service between
/// processes is generic over one, though what goes through it is plain data.
const BACKENDS: &[&str] = &["crates/distributed", "crates/engine", "crates/kernels"];

fn dependencies(folder: &str) -> BTreeSet<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).expect("every crate has a manifest");
    let section = text.split("[dependencies]").nth(1).expect("a [dependencies] section");
    let section = section.split("\n[").next().unwrap_or(section);
    section
        .lines()
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|name| !name.is_empty() && !name.starts_with('#'))
        .map(str::to_string)
        .collect()
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    for (folder, allowed) in ARROWS {
        for dependency in dependencies(folder) {
            if dependency.starts_with("flamingo") || dependency == "xtask" {
                assert!(allowed.contains(&dependency.as_str()), "{folder} must not depend on {dependency}");
            }
            let burn = dependency == "burn" || dependency.starts_with("burn-");
            assert!(!burn || BURN.contains(folder), "{folder} must not depend on {dependency}");
            let backend = burn && dependency != "burn" && dependency != "burn-store";
            assert!(!backend || BACKENDS.contains(folder), "{folder} must not name the backend {dependency}");
        }
    }
}

#[test]
fn every_crate_is_listed() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
    for folder in std::fs::read_dir(crates).expect("a folder of crates") {
        let folder = folder.expect("a readable folder").path();
        if folder.join("Cargo.toml").is_file() {
            let name = format!("crates/{}", folder.file_name().unwrap_or_default().to_string_lossy());
            assert!(ARROWS.iter().any(|(listed, _)| *listed == name), "{name} has no line in ARROWS");
        }
    }
}
