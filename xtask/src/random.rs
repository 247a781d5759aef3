//! Random weights in upstream's layouts: a full-size model to convert and run where none can be fetched.

use std::fs::{self, File};
use std::io::{BufWriter, Seek, Write};
use std::path::Path;

use anyhow::Context;
use flamingo_config::ModelConfig;
use flamingo_weights::{Dtype, Inputs, TensorSpec, upstream_tensors};
use half::{bf16, f16};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Map, Value, json};
use sha2::Digest;

/// Paths of the files that [`write()`] makes.
pub fn inputs(folder: &Path) -> Inputs {
    Inputs {
        clip: folder.join("clip.safetensors"),
        language_model: folder.join("lm"),
        checkpoint: folder.join("checkpoint.pt"),
    }
}

/// Writes CLIP as safetensors, the language model as safetensors in two shards, and the checkpoint as a `.pt`
/// archive. Equal seeds give equal files.
///
/// # Errors
/// If a file cannot be written.
pub fn write(config: &ModelConfig, dtype: Dtype, seed: u64, folder: &Path) -> anyhow::Result<()> {
    let tensors = upstream_tensors(config);
    let files = inputs(folder);
    fs::create_dir_all(&files.language_model)?;
    safetensors(&files.clip, &tensors.clip, dtype, seed)?;

    let (first, second) = tensors.language_model.split_at(tensors.language_model.len() / 2);
    let mut map = Map::new();
    for (i, shard) in [first, second].into_iter().enumerate() {
        let name = format!("model-{:05}-of-00002.safetensors", i + 1);
        safetensors(&files.language_model.join(&name), shard, dtype, seed)?;
        map.extend(shard.iter().map(|spec| (spec.name.clone(), Value::String(name.clone()))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(files.language_model.join("model.safetensors.index.json"), index.to_string())?;
    let lm_config = flamingo_config::hf::language_model(&config.decoder);
    fs::write(files.language_model.join("config.json"), format!("{lm_config:#}\n"))?;
    tokenizer(config, &files.language_model)?;
    archive(&files.checkpoint, &tensors.checkpoint, dtype, seed)
}

/// A tokenizer of bytes, filled up to the size that the config says, in GPT-2's form.
fn tokenizer(config: &ModelConfig, folder: &Path) -> anyhow::Result<()> {
    // GPT-2 writes printable bytes as themselves and the others as the characters from 256 on.
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    let bytes = (0..256u32).map(|b| if printable(b) { b } else { others.next().unwrap_or(b) });
    let bytes = bytes.filter_map(char::from_u32).map(String::from);
    let filler = (256..).map(|i| format!("<filler {i}>"));
    let tokens: Vec<String> = bytes.chain(filler).take(config.tokens.base_rows()).collect();
    let vocab: Map<String, Value> = tokens.iter().enumerate().map(|(i, token)| (token.clone(), i.into())).collect();
    fs::write(folder.join("vocab.json"), Value::Object(vocab).to_string())?;
    fs::write(folder.join("merges.txt"), "#version: 0.2\n")?;
    let own_pad = tokens.get(config.tokens.pad as usize);
    fs::write(folder.join("tokenizer_config.json"), json!({"pad_token": own_pad}).to_string())?;
    Ok(())
}

/// Numbers of one tensor: norms are near the identity, gates half open, everything else small. They depend on
/// the tensor's name and the seed alone.
struct Numbers {
    rng: ChaCha8Rng,
    centre: f32,
    spread: f32,
    left: usize,
}

impl Numbers {
    fn new(spec: &TensorSpec, seed: u64) -> Self {
        let digest = sha2::Sha256::new_with_prefix(&spec.name).chain_update(seed.to_le_bytes()).finalize();
        let norm = spec.name.ends_with(".weight") && spec.shape.len() == 1;
        let gate = spec.name.ends_with("_gate");
        Self {
            rng: ChaCha8Rng::from_seed(digest.into()),
            centre: if norm {
                1.0
            } else if gate {
                0.5
            } else {
                0.0
            },
            spread: 0.035,
            left: spec.shape.iter().product(),
        }
    }

    /// Fills `out` with the next numbers' bytes; empty when all are given.
    fn next(&mut self, dtype: Dtype, out: &mut Vec<u8>) {
        let count = self.left.min(1 << 18);
        self.left -= count;
        let mut random = vec![0; 2 * count];
        self.rng.fill_bytes(&mut random);
        out.clear();
        for pair in random.chunks_exact(2) {
            let unit = f32::from(u16::from_le_bytes([pair[0], pair[1]])) / 65_536.0 - 0.5;
            let x = self.centre + 2.0 * self.spread * unit;
            match dtype {
                Dtype::F32 => out.extend(x.to_le_bytes()),
                Dtype::F16 => out.extend(f16::from_f32(x).to_le_bytes()),
                Dtype::Bf16 => out.extend(bf16::from_f32(x).to_le_bytes()),
            }
        }
    }

    fn write(mut self, dtype: Dtype, out: &mut impl Write) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        while self.left > 0 {
            self.next(dtype, &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}

fn safetensors(path: &Path, specs: &[TensorSpec], dtype: Dtype, seed: u64) -> anyhow::Result<()> {
    let mut header = Map::new();
    let mut at = 0;
    for spec in specs {
        let end = at + spec.shape.iter().product::<usize>() * dtype.size();
        let name = dtype.to_string().to_uppercase();
        header.insert(spec.name.clone(), json!({"dtype": name, "shape": spec.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut out = create(path)?;
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for spec in specs {
        Numbers::new(spec, seed).write(dtype, &mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// A `.pt` archive: what `torch.save(state_dict)` writes.
fn archive(path: &Path, specs: &[TensorSpec], dtype: Dtype, seed: u64) -> anyhow::Result<()> {
    let mut zip = zip::ZipWriter::new(create(path)?);
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored).large_file(true);
    zip.start_file("checkpoint/data.pkl", options)?;
    zip.write_all(&pickle(specs, dtype))?;
    for (key, spec) in specs.iter().enumerate() {
        zip.start_file(format!("checkpoint/data/{key}"), options)?;
        Numbers::new(spec, seed).write(dtype, &mut zip)?;
    }
    let mut out = zip.finish()?;
    out.flush()?;
    out.stream_position()?;
    Ok(())
}

/// `{name: _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()), …}` in protocol 2.
fn pickle(specs: &[TensorSpec], dtype: Dtype) -> Vec<u8> {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    }
    fn tuple(out: &mut Vec<u8>, sizes: &[usize]) {
        out.push(b'(');
        for &size in sizes {
            out.push(b'J');
            out.extend((size as i32).to_le_bytes());
        }
        out.push(b't');
    }
    let storage = match dtype {
        Dtype::F32 => "FloatStorage",
        Dtype::F16 => "HalfStorage",
        Dtype::Bf16 => "BFloat16Storage",
    };
    let mut out = b"\x80\x02}(".to_vec();
    for (key, spec) in specs.iter().enumerate() {
        text(&mut out, &spec.name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut out, "storage");
        out.extend(format!("ctorch\n{storage}\n").as_bytes());
        text(&mut out, &key.to_string());
        text(&mut out, "cpu");
        out.push(b'J');
        out.extend((spec.shape.iter().product::<usize>() as i32).to_le_bytes());
        out.extend(b"tQK\x00");
        tuple(&mut out, &spec.shape);
        let mut strides = vec![1; spec.shape.len()];
        for i in (1..strides.len()).rev() {
            strides[i - 1] = strides[i] * spec.shape[i];
        }
        tuple(&mut out, &strides);
        out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    out.extend(b"u.");
    out
}

fn create(path: &Path) -> anyhow::Result<BufWriter<File>> {
    let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(BufWriter::with_capacity(1 << 20, file))
}
