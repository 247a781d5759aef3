//! The page that runs a model in the browser, as a folder for any web server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

/// The program's name, in files.
const PROGRAM: &str = "flamingo_web";

/// Files of a model folder that the program reads; the last two are not in every folder.
const MODEL: [&str; 5] =
    ["model.toml", "model.safetensors", "tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"];

/// Most bytes of a model's files: the program holds them twice while it loads, and has 4 GB for everything.
const MOST: u64 = 1_500_000_000;

/// What is said to whoever reads the page's source, and what the page reads: how it is to reach the model.
const TRANSPORT: [&str; 2] =
    [r#"name="flamingo-transport" content="http""#, r#"name="flamingo-transport" content="worker""#];

/// A site to be made.
pub struct Site<'a> {
    /// The model folder.
    pub model: &'a Path,
    /// The folder to write.
    pub out: &'a Path,
    /// Whether a site that is there may be replaced.
    pub force: bool,
}

/// What was made.
pub struct Made {
    /// Bytes of the program.
    pub program: u64,
    /// Bytes of the model's files.
    pub model: u64,
}

impl Site<'_> {
    /// Builds the program and puts it together with the page and the model. The folder appears under its name when it is whole.
    ///
    /// # Errors
    /// If the model is too large or in several files, the program does not build, a file is missing or cannot be written, or something else stands in the folder's place.
    pub fn make(&self) -> anyhow::Result<Made> {
        let occupied = self.out.exists() && (self.out.is_file() || self.out.read_dir()?.next().is_some());
        if occupied {
            ensure!(self.force, "{} exists: give another --out, or --force to replace it", self.out.display());
            ensure!(
                self.out.join("worker.js").is_file(),
                "{} is no site of ours: nothing was done",
                self.out.display()
            );
        }
        check_model(self.model)?;
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let built = build(&root)?;

        let parent = self.out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let staging = tempfile::Builder::new().prefix(".web-").tempdir_in(parent)?;
        let site = staging.path().join("site");
        copy_folder(&root.join("crates/serve/assets"), &site.join("assets"))?;
        page(&site)?;
        copy(&root.join("crates/web/worker.js"), &site.join("worker.js"))?;
        wasm_bindgen_cli_support::Bindgen::new()
            .input_path(&built)
            .web(true)?
            .typescript(false)
            .remove_name_section(true)
            .remove_producers_section(true)
            .generate(&site)?;
        let program = site.join(format!("{PROGRAM}_bg.wasm"));
        let made = Made { program: fs::metadata(&program)?.len(), model: copy_model(self.model, &site.join("model"))? };

        // Renaming onto a folder is refused, so what is there goes first, and comes back if the new one does not get its place.
        let (there, aside) = (self.out.exists(), staging.path().join("replaced"));
        if there {
            fs::rename(self.out, &aside).with_context(|| format!("cannot replace {}", self.out.display()))?;
        }
        if let Err(error) = fs::rename(&site, self.out) {
            if there {
                fs::rename(&aside, self.out)?;
            }
            return Err(error).with_context(|| format!("cannot write {}", self.out.display()));
        }
        Ok(made)
    }
}

/// Builds the program and says where it is.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["build", "--profile", "web", "--package", "flamingo-web", "--target", "wasm32-unknown-unknown"])
        .args(["--message-format", "json-render-diagnostics", "--manifest-path"])
        .arg(root.join("Cargo.toml"))
        // They would take the place of those of .cargo/config.toml, which has the program use simd128.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(
        output.status.success(),
        "the program does not build; `rustup target add wasm32-unknown-unknown` installs what it needs beside Rust"
    );
    let messages = String::from_utf8_lossy(&output.stdout);
    let files = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        (message["target"]["name"] == PROGRAM).then(|| message["filenames"].clone())
    });
    let files: Vec<String> =
        files.filter_map(|files| serde_json::from_value(files).ok()).flat_map(|files: Vec<String>| files).collect();
    match files.iter().find(|file| file.ends_with(".wasm")) {
        Some(file) => Ok(file.into()),
        None => bail!("cargo built no {PROGRAM}.wasm"),
    }
}

/// Writes the page, which asks the worker in place of a server.
fn page(site: &Path) -> anyhow::Result<()> {
    let page = site.join("assets/index.html");
    let text = fs::read_to_string(&page)?;
    let [http, worker] = TRANSPORT;
    ensure!(text.contains(http), "{} has no `{http}` to be changed", page.display());
    fs::write(site.join("index.html"), text.replace(http, worker))?;
    Ok(fs::remove_file(page)?)
}

/// Refuses a model that the page could not load.
fn check_model(model: &Path) -> anyhow::Result<()> {
    ensure!(
        !model.join("model.safetensors.index.json").exists(),
        "{} has its tensors in several files, and the page reads one: `cargo xtask convert-weights --quantize q4` makes \
         a smaller model",
        model.display()
    );
    let bytes: u64 = MODEL.iter().filter_map(|name| fs::metadata(model.join(name)).ok()).map(|file| file.len()).sum();
    ensure!(
        bytes <= MOST,
        "{} has {:.1} GB, and a page holds {:.1}: `cargo xtask convert-weights --quantize q4` makes a smaller model",
        model.display(),
        bytes as f64 / 1e9,
        MOST as f64 / 1e9
    );
    Ok(())
}

/// Copies what the program reads of a model folder, and lists it with sizes. Returns the sum of them.
fn copy_model(model: &Path, to: &Path) -> anyhow::Result<u64> {
    fs::create_dir_all(to)?;
    let mut files = Map::new();
    for (i, name) in MODEL.into_iter().enumerate() {
        let file = model.join(name);
        if i < 3 || file.is_file() {
            copy(&file, &to.join(name))?;
            files.insert(name.into(), fs::metadata(&file)?.len().into());
        }
    }
    fs::write(to.join("files.json"), serde_json::to_string(&files)?)?;
    Ok(files.values().filter_map(Value::as_u64).sum())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let (from, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let to = to.join(name);
        if from.is_dir() { copy_folder(&from, &to)? } else { copy(&from, &to)? }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
