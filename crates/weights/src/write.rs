//! Writing safetensors files number by number, and folders that appear whole or not at all.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use flamingo_config::BLOCK as QUANTISED;
use serde_json::{Map, Value, json};

use crate::WeightsError;
use crate::convert::Format;
use crate::quantise::quantise;
use crate::recipe::{Piece, Recipe};

/// Elements that are read, checked and written at a time: 4 MiB of f32.
const BLOCK: usize = 1 << 20;

/// Where the numbers of a file begin: a multiple of this.
const ALIGNMENT: usize = 64;

/// Largest shard, as Hugging Face's tools cut them.
const MAX_SHARD: u64 = 5_000_000_000;

/// What every conversion leaves in its folder.
pub(crate) const REPORT: &str = "conversion_report.json";

/// The other files of a converted model, weights and tokenizer left out.
const WRITTEN: [&str; 5] = [REPORT, "README.md", "config.json", "model.toml", "preprocessor_config.json"];

/// Files of a language model's folder that the tokenizer needs.
pub(crate) const TOKENIZER: [&str; 6] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
];

/// A folder under construction beside its place. Dropped before [`Staging::finish`], it is removed.
pub(crate) struct Staging {
    partial: PathBuf,
    out: PathBuf,
    replace: bool,
    finished: bool,
}

impl Staging {
    /// Begins a folder; removes what killed conversions to the same place left behind.
    pub(crate) fn begin(out: &Path, replace: bool) -> Result<Self, WeightsError> {
        let occupied = fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) || out.is_file();
        if occupied && !replace {
            return Err(WeightsError::Exists(out.to_path_buf()));
        }
        if out.is_file() {
            return Err(WeightsError::format(out, "is a file, not a folder: give another --out"));
        }
        replaceable(out)?;
        let name = out.file_name().ok_or_else(|| WeightsError::format(out, "is no name for a folder"))?;
        let parent = match out.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(parent).map_err(WeightsError::io("write", parent))?;
        let name = name.to_string_lossy();
        let own = std::process::id().to_string();
        // Our own number on a folder that is already there was used before, as in containers. Without /proc nobody
        // knows, and nothing is removed.
        let in_use =
            |pid: &str| pid != own && (Path::new("/proc").join(pid).exists() || !Path::new("/proc/self").exists());
        for entry in fs::read_dir(parent).map_err(WeightsError::io("read", parent))?.flatten() {
            let file = entry.file_name();
            let Some((kind, pid)) = file.to_str().and_then(|file| {
                let rest = file.strip_prefix('.')?.strip_prefix(&*name)?;
                rest.strip_prefix('.')?.rsplit_once('-')
            }) else {
                continue;
            };
            // What was moved aside is kept while there is nothing in its place.
            let removable = kind == "partial" || kind == "replaced" && occupied;
            if removable && pid.parse::<u32>().is_ok() && !in_use(pid) {
                tracing::info!(folder = %entry.path().display(), "removing what a killed conversion left");
                fs::remove_dir_all(entry.path()).map_err(WeightsError::io("write", &entry.path()))?;
            }
        }
        let partial = parent.join(format!(".{name}.partial-{own}"));
        fs::create_dir(&partial).map_err(WeightsError::io("write", &partial))?;
        Ok(Self { partial, out: out.to_path_buf(), replace, finished: false })
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.partial.join(file)
    }

    pub(crate) fn write(&self, file: &str, content: &str) -> Result<(), WeightsError> {
        let path = self.path(file);
        fs::write(&path, content).map_err(WeightsError::io("write", &path))
    }

    /// Copies a file as it is.
    pub(crate) fn copy(&self, source: &Path, file: &str) -> Result<(), WeightsError> {
        let bytes = fs::read(source).map_err(WeightsError::io("read", source))?;
        let path = self.path(file);
        fs::write(&path, bytes).map_err(WeightsError::io("write", &path))
    }

    /// Gives the folder its name, once all of it is on the disk. A folder that it replaces is moved aside first, so
    /// that there is a whole one at any time but for the moment between two renamings.
    pub(crate) fn finish(mut self) -> Result<(), WeightsError> {
        for entry in fs::read_dir(&self.partial).map_err(WeightsError::io("read", &self.partial))?.flatten() {
            sync(&entry.path())?;
        }
        sync(&self.partial)?;
        let aside = self.partial.with_extension(format!("replaced-{}", std::process::id()));
        let replaces = self.out.is_dir() && self.replace;
        if replaces {
            fs::rename(&self.out, &aside).map_err(WeightsError::io("write", &self.out))?;
        } else if self.out.is_dir() {
            // Empty, as `begin` made sure.
            fs::remove_dir(&self.out).map_err(WeightsError::io("write", &self.out))?;
        }
        if let Err(error) = fs::rename(&self.partial, &self.out) {
            if replaces {
                fs::rename(&aside, &self.out).ok();
            }
            return Err(WeightsError::io("write", &self.out)(error));
        }
        self.finished = true;
        if replaces {
            fs::remove_dir_all(&aside).map_err(WeightsError::io("write", &aside))?;
        }
        // The new name too. The folder is there; a file system that cannot say so is no error.
        self.out.parent().map(sync);
        Ok(())
    }
}

/// Refuses a folder that holds anything but a converted model: replacing it would delete that.
///
/// # Errors
/// [`WeightsError::Mismatch`] with what else is there.
pub fn replaceable(folder: &Path) -> Result<(), WeightsError> {
    let refuse = |what: String| {
        WeightsError::Mismatch(format!(
            "{} is not replaced, because {what}: write to another folder, or move away what is there",
            folder.display()
        ))
    };
    if !folder.exists() || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) {
        return Ok(());
    }
    if !folder.join(REPORT).is_file() {
        return Err(refuse(format!("it is no converted model (it has no {REPORT})")));
    }
    for entry in fs::read_dir(folder).map_err(WeightsError::io("read", folder))?.flatten() {
        let file = entry.file_name();
        let name = file.to_string_lossy();
        let weights = name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".index.json"));
        if entry.path().is_dir() || !(weights || WRITTEN.contains(&&*name) || TOKENIZER.contains(&&*name)) {
            return Err(refuse(format!("it also holds {name}")));
        }
    }
    Ok(())
}

fn sync(path: &Path) -> Result<(), WeightsError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(WeightsError::io("write", path))
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.finished {
            fs::remove_dir_all(&self.partial).ok();
        }
    }
}

/// Writes all tensors, in one file or in shards with an index. `on_bytes` sees what was written since the last
/// call.
pub(crate) fn tensors(
    staging: &Staging,
    recipes: &[Recipe],
    format: Format,
    on_bytes: &mut dyn FnMut(&str, u64),
) -> Result<(), WeightsError> {
    let mut shards: Vec<Vec<&Recipe>> = vec![Vec::new()];
    let mut filled = 0;
    for recipe in recipes {
        let bytes = recipe.spec.bytes(format);
        if filled > 0 && filled + bytes > MAX_SHARD {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        shards.last_mut().expect("one shard at least").push(recipe);
    }
    if let [all] = &shards[..] {
        return file(&staging.path("model.safetensors"), all, format, on_bytes).map(|_| ());
    }
    let mut map = Map::new();
    let mut total = 0;
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        for tensor in file(&staging.path(&name), shard, format, on_bytes)? {
            map.insert(tensor, Value::String(name.clone()));
        }
        total += shard.iter().map(|recipe| recipe.spec.bytes(format)).sum::<u64>();
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    staging.write("model.safetensors.index.json", &format!("{index:#}\n"))
}

/// A safetensors header under construction, and where the next tensor lies.
#[derive(Default)]
struct Header {
    tensors: Map<String, Value>,
    end: u64,
}

impl Header {
    fn add(&mut self, name: String, dtype: &str, shape: &[usize], bytes: u64) {
        let end = self.end + bytes;
        self.tensors.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": [self.end, end]}));
        self.end = end;
    }
}

/// One safetensors file: the header's length, the header, the numbers. Returns the names of its tensors.
///
/// Codes come first, then numbers, then scales, so that each begins where a processor can read it in place.
fn file(
    path: &Path,
    recipes: &[&Recipe],
    format: Format,
    on_bytes: &mut dyn FnMut(&str, u64),
) -> Result<Vec<String>, WeightsError> {
    let mut header = Header::default();
    let (quantised, plain): (Vec<&Recipe>, Vec<&Recipe>) =
        recipes.iter().partition(|recipe| recipe.spec.scheme(format).is_some());
    for recipe in &quantised {
        let (spec, scheme) = (&recipe.spec, recipe.spec.scheme(format).expect("partitioned so"));
        let shape = [spec.shape[0], scheme.row_words(spec.shape[1])];
        header.add(format!("{}.codes", spec.name), "I32", &shape, spec.sizes(format).0);
    }
    for recipe in &plain {
        let spec = &recipe.spec;
        header.add(spec.name.clone(), format.dtype.safetensors(), &spec.shape, spec.sizes(format).0);
    }
    for recipe in &quantised {
        let spec = &recipe.spec;
        let shape = [spec.shape[0], spec.shape[1] / QUANTISED];
        header.add(format!("{}.scales", spec.name), "F16", &shape, spec.sizes(format).1);
    }
    let names = header.tensors.keys().cloned().collect();
    header.tensors.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut header = Value::Object(header.tensors).to_string().into_bytes();
    header.resize((header.len() + 8).next_multiple_of(ALIGNMENT) - 8, b' ');

    let io = || WeightsError::io("write", path);
    let file = File::create(path).map_err(io())?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
    out.write_all(&header).map_err(io())?;
    let (mut numbers, mut bytes) = (Vec::new(), Vec::new());
    let mut all_scales = Vec::new();
    for recipe in &quantised {
        let (name, scheme) = (&recipe.spec.name, recipe.spec.scheme(format).expect("partitioned so"));
        let mut of_matrix: Vec<u8> = Vec::new();
        for piece in &recipe.pieces {
            blocks(piece, &mut numbers, &mut |source, numbers| {
                let (codes, scales) = quantise(scheme, numbers);
                if let Some(at) = scales.iter().position(|scale| !scale.is_finite()) {
                    let block = numbers[at * QUANTISED..][..QUANTISED].iter();
                    let value = block.copied().fold(0.0f32, |a, b| if b.abs() > a.abs() { b } else { a });
                    return Err(WeightsError::Overflow { name: source.to_string(), value });
                }
                of_matrix.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
                out.write_all(&codes).map_err(io())?;
                on_bytes(name, codes.len() as u64);
                Ok(())
            })?;
        }
        all_scales.push(of_matrix);
    }
    for recipe in &plain {
        for piece in &recipe.pieces {
            blocks(piece, &mut numbers, &mut |name, numbers| {
                bytes.clear();
                format
                    .dtype
                    .encode(numbers, &mut bytes)
                    .map_err(|value| WeightsError::Overflow { name: name.to_string(), value })?;
                out.write_all(&bytes).map_err(io())?;
                on_bytes(&recipe.spec.name, bytes.len() as u64);
                Ok(())
            })?;
        }
    }
    for (recipe, scales) in quantised.iter().zip(all_scales) {
        out.write_all(&scales).map_err(io())?;
        on_bytes(&recipe.spec.name, scales.len() as u64);
    }
    out.flush().map_err(io())?;
    Ok(names)
}

/// Takes a source's name and some of its numbers.
type Sink<'a> = dyn FnMut(&str, &[f32]) -> Result<(), WeightsError> + 'a;

/// A piece's numbers, a block at a time, all finite.
fn blocks(piece: &Piece, numbers: &mut Vec<f32>, write: &mut Sink) -> Result<(), WeightsError> {
    let finite = |name: &str, numbers: &[f32]| match numbers.iter().find(|x| !x.is_finite()) {
        Some(&value) => Err(WeightsError::NotFinite { name: name.to_string(), value }),
        None => Ok(()),
    };
    match piece {
        Piece::Run { name, tensor, start, count } => {
            for first in (*start..start + count).step_by(BLOCK) {
                numbers.clear();
                tensor.read(first, BLOCK.min(start + count - first), numbers)?;
                finite(name, numbers)?;
                write(name, numbers)?;
            }
        }
        Piece::Transposed { name, tensor } => {
            numbers.clear();
            let [rows, columns] = tensor.shape[..] else {
                return Err(WeightsError::Mismatch(format!("`{name}` is no matrix")));
            };
            tensor.read(0, rows * columns, numbers)?;
            finite(name, numbers)?;
            let transposed: Vec<f32> = (0..columns)
                .flat_map(|c| (0..rows).map(move |r| (r, c)))
                .map(|(r, c)| numbers[r * columns + c])
                .collect();
            write(name, &transposed)?;
        }
        Piece::Zeros { count } => {
            for first in (0..*count).step_by(BLOCK) {
                numbers.clear();
                numbers.resize(BLOCK.min(count - first), 0.0);
                write("", numbers)?;
            }
        }
    }
    Ok(())
}
