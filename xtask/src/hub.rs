//! Fetching the published parts of a released model from the Hugging Face hub, or a mirror of it.
//!
//! Plain HTTP: `{endpoint}/api/models/{repo}` lists a repository, `{endpoint}/{repo}/resolve/{revision}/{file}`
//! gives a file. A download goes to `<file>.incomplete`, continues there after an interruption, is checked against
//! the size and hash that the hub announces, and only then gets its name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use flamingo_config::Source;
use flamingo_weights::Inputs;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Where files come from.
pub struct Hub {
    endpoint: String,
    token: Option<String>,
    /// Follows no redirect: the first answer carries the announced size and hash.
    announce: ureq::Agent,
    download: ureq::Agent,
}

/// What the hub says of a file.
#[derive(Debug)]
struct Announced {
    size: Option<u64>,
    hash: Option<Hash>,
}

/// Large files are announced with their SHA-256, small ones with git's hash of a blob.
#[derive(Debug)]
enum Hash {
    Sha256(String),
    GitBlob(String),
}

/// Called with the file's name, the bytes so far and the announced size.
pub type OnBytes<'a> = &'a mut dyn FnMut(&str, u64, Option<u64>);

impl Hub {
    /// A hub at an address such as `https://huggingface.co`; `token` opens gated repositories.
    pub fn new(endpoint: &str, token: Option<String>) -> Self {
        let agent = |redirects| {
            ureq::Agent::new_with_config(
                ureq::Agent::config_builder()
                    .http_status_as_error(false)
                    .max_redirects(redirects)
                    .max_redirects_will_error(false)
                    .timeout_connect(Some(Duration::from_secs(30)))
                    .timeout_recv_response(Some(Duration::from_secs(60)))
                    .timeout_recv_body(Some(Duration::from_secs(600)))
                    .build(),
            )
        };
        Self { endpoint: endpoint.trim_end_matches('/').to_string(), token, announce: agent(0), download: agent(10) }
    }

    /// Fetches CLIP, language model and checkpoint of a released model into `folder`.
    ///
    /// # Errors
    /// If a file is not there, does not arrive, or is not what the hub announced.
    pub fn fetch(&self, source: &Source, folder: &Path, on_bytes: OnBytes) -> anyhow::Result<Inputs> {
        let clip = self.file(&source.clip.repo, "main", &source.clip.file, &folder.join("clip"), on_bytes)?;
        let checkpoint =
            self.file(&source.checkpoint.repo, "main", &source.checkpoint.file, &folder.join("checkpoint"), on_bytes)?;
        let language_model = folder.join("lm");
        let (revision, files) = self.list(&source.language_model)?;
        for file in language_model_files(&files)
            .with_context(|| format!("{} holds no language model", source.language_model))?
        {
            self.file(&source.language_model, &revision, &file, &language_model, on_bytes)?;
        }
        Ok(Inputs { clip, language_model, checkpoint })
    }

    /// A repository's newest revision and the names of its files.
    fn list(&self, repo: &str) -> anyhow::Result<(String, Vec<String>)> {
        let url = format!("{}/api/models/{repo}", self.endpoint);
        let mut response = self.request(&self.download, &url, None)?;
        let json: serde_json::Value = serde_json::from_str(&response.body_mut().read_to_string()?)
            .with_context(|| format!("{url} did not answer with JSON"))?;
        let files = json["siblings"].as_array().with_context(|| format!("{url} lists no files"))?;
        let files = files.iter().filter_map(|f| f["rfilename"].as_str()).map(str::to_string).collect();
        let revision = json["sha"].as_str().filter(|sha| sha.bytes().all(|b| b.is_ascii_hexdigit()));
        Ok((revision.unwrap_or("main").to_string(), files))
    }

    /// Fetches one file into a folder, unless it is there already and as announced.
    fn file(
        &self,
        repo: &str,
        revision: &str,
        file: &str,
        folder: &Path,
        on_bytes: OnBytes,
    ) -> anyhow::Result<PathBuf> {
        // A repository names its files; none of them may leave the folder.
        let relative = Path::new(file);
        if !relative.components().all(|c| matches!(c, std::path::Component::Normal(_))) {
            bail!("{repo} names a file `{file}`, which is no relative path");
        }
        let path = folder.join(relative);
        let parent = path.parent().unwrap_or(folder);
        std::fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let url = format!("{}/{repo}/resolve/{revision}/{file}", self.endpoint);
        let announced = self.announced(&url)?;
        if path.is_file() && announced.check(&path).is_ok() {
            return Ok(path);
        }
        let mut partial = path.clone().into_os_string();
        partial.push(".incomplete");
        let partial = PathBuf::from(partial);
        if announced.size.is_none() && announced.hash.is_none() {
            bail!("{url} announces neither size nor hash, so nothing could be checked: fetch it by hand");
        }
        if announced.hash.is_none() {
            tracing::warn!("{url} announces no hash: only its size is checked");
        }
        // An answer ends after ten minutes at the latest. A slow line goes on from there, a dead one has brought
        // nothing new.
        let mut before = 0;
        while let Err(error) = self.resume(&url, file, &partial, &announced, on_bytes) {
            let have = std::fs::metadata(&partial).map_or(0, |about| about.len());
            if have <= before {
                return Err(error);
            }
            before = have;
        }
        if let Err(wrong) = announced.check(&partial) {
            // What is there cannot become right by fetching more of it.
            std::fs::remove_file(&partial).ok();
            bail!("{url} arrived damaged ({wrong}); run the command again to fetch it anew");
        }
        std::fs::rename(&partial, &path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// What the hub announces of a file, before any redirect to where it is stored.
    fn announced(&self, url: &str) -> anyhow::Result<Announced> {
        let mut request = self.announce.head(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = request.call().with_context(|| format!("cannot reach {url}"))?;
        let status = response.status().as_u16();
        if status >= 400 {
            bail!("{}", refusal(url, status));
        }
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let redirected = status >= 300;
        let size = header("x-linked-size").or(if redirected { None } else { header("content-length") });
        let tag = header("x-linked-etag").or(header("etag")).map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        Ok(Announced {
            size: size.and_then(|s| s.parse().ok()),
            hash: tag.and_then(|tag| match tag.len() {
                _ if !tag.bytes().all(|b| b.is_ascii_hexdigit()) => None,
                64 => Some(Hash::Sha256(tag.to_lowercase())),
                40 => Some(Hash::GitBlob(tag.to_lowercase())),
                _ => None,
            }),
        })
    }

    /// Appends what is missing to a partial file.
    fn resume(
        &self,
        url: &str,
        name: &str,
        partial: &Path,
        announced: &Announced,
        on_bytes: OnBytes,
    ) -> anyhow::Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(partial)
            .with_context(|| format!("cannot write {}", partial.display()))?;
        let mut have = file.metadata()?.len();
        if announced.size.is_some_and(|size| have > size) {
            file.set_len(0)?;
            have = 0;
        }
        if announced.size == Some(have) && have > 0 {
            return Ok(());
        }
        let mut response = self.request(&self.download, url, (have > 0).then_some(have))?;
        if response.status().as_u16() != 206 {
            // The server sends the whole file, whatever was asked for.
            file.set_len(0)?;
            have = 0;
        }
        file.seek(SeekFrom::Start(have))?;
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = body.read(&mut buffer).with_context(|| format!("{url} broke off after {have} bytes"))?;
            if n == 0 {
                break;
            }
            file.write_all(&buffer[..n]).with_context(|| format!("cannot write {}", partial.display()))?;
            have += n as u64;
            on_bytes(name, have, announced.size);
        }
        file.sync_all()?;
        Ok(())
    }

    fn request(
        &self,
        agent: &ureq::Agent,
        url: &str,
        from: Option<u64>,
    ) -> anyhow::Result<ureq::http::Response<ureq::Body>> {
        let mut request = agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        let response = request.call().with_context(|| format!("cannot reach {url}"))?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            // Nothing lies behind what is there already: it is fetched anew.
            416 if from.is_some() => self.request(agent, url, None),
            status => bail!("{}", refusal(url, status)),
        }
    }
}

/// One sentence for a refusal.
fn refusal(url: &str, status: u16) -> String {
    match status {
        401 | 403 => format!("{url} needs permission (HTTP {status}): accept its licence on the hub and set HF_TOKEN"),
        404 => format!("{url} does not exist (HTTP 404)"),
        _ => format!("{url} answered HTTP {status}"),
    }
}

impl Announced {
    /// Whether a file has the announced size and hash; the error says what differs.
    fn check(&self, path: &Path) -> Result<(), String> {
        let mut file = File::open(path).map_err(|e| e.to_string())?;
        let size = file.metadata().map_err(|e| e.to_string())?.len();
        if let Some(expected) = self.size
            && size != expected
        {
            return Err(format!("{size} bytes instead of {expected}"));
        }
        let (found, expected) = match &self.hash {
            None => return Ok(()),
            Some(Hash::Sha256(expected)) => (hash::<Sha256>(Sha256::new(), &mut file), expected),
            Some(Hash::GitBlob(expected)) => {
                (hash::<Sha1>(Sha1::new_with_prefix(format!("blob {size}\0")), &mut file), expected)
            }
        };
        match found.map_err(|e| e.to_string())? {
            found if found == *expected => Ok(()),
            found => Err(format!("hash {found} instead of {expected}")),
        }
    }
}

fn hash<H: Digest + Write>(mut hash: H, file: &mut File) -> std::io::Result<String> {
    std::io::copy(file, &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Of a repository's files those that make a language model: config, tokenizer, and one form of the weights
/// (safetensors before pickles, one file before shards).
fn language_model_files(all: &[String]) -> anyhow::Result<Vec<String>> {
    let has = |name: &str| all.iter().any(|file| file == name);
    let shards = |prefix: &str, suffix: &str| {
        let shards = all.iter().filter(|f| f.starts_with(prefix) && f.ends_with(suffix) && f.contains("-of-"));
        shards.cloned().collect::<Vec<_>>()
    };
    let mut files = if has("model.safetensors") {
        vec!["model.safetensors".to_string()]
    } else if has("model.safetensors.index.json") {
        let mut files = shards("model-", ".safetensors");
        files.push("model.safetensors.index.json".into());
        files
    } else if has("pytorch_model.bin") {
        vec!["pytorch_model.bin".to_string()]
    } else if has("pytorch_model.bin.index.json") {
        let mut files = shards("pytorch_model-", ".bin");
        files.push("pytorch_model.bin.index.json".into());
        files
    } else {
        bail!("it lists neither model.safetensors nor pytorch_model.bin");
    };
    let small = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
    ];
    files.extend(small.into_iter().filter(|name| has(name)).map(str::to_string));
    Ok(files)
}
