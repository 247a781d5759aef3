//! Damaged, hostile and mistaken files: one clear error each, and nothing half-written.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flamingo_config::ModelConfig;
use flamingo_weights::{Dtype, Inputs, ModelFolder, TensorSpec, WeightsError, convert, readers, upstream_tensors};
use tempfile::TempDir;

/// A model small enough to make in a test.
fn config() -> ModelConfig {
    ModelConfig::from_toml(include_str!("../../../xtask/src/small.toml")).expect("a config")
}

/// A safetensors file with the given tensors.
fn safetensors(path: &Path, specs: &[TensorSpec], value: impl Fn(&str, usize) -> f32) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for spec in specs {
        let start = data.len();
        for i in 0..spec.shape.iter().product() {
            data.extend(value(&spec.name, i).to_le_bytes());
        }
        let info = serde_json::json!({"dtype": "F32", "shape": spec.shape, "data_offsets": [start, data.len()]});
        header.insert(spec.name.clone(), info);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    fs::write(path, file).expect("a file");
}

/// Files of the small model, and a place for its folder.
struct Files {
    work: TempDir,
    inputs: Inputs,
}

impl Files {
    fn new(change: impl Fn(&mut Vec<TensorSpec>), value: impl Fn(&str, usize) -> f32) -> Self {
        let work = tempfile::tempdir().expect("a temporary folder");
        let mut tensors = upstream_tensors(&config());
        for specs in [&mut tensors.clip, &mut tensors.language_model, &mut tensors.checkpoint] {
            change(specs);
        }
        let inputs = Inputs {
            clip: work.path().join("clip.safetensors"),
            language_model: work.path().join("lm"),
            checkpoint: work.path().join("checkpoint.safetensors"),
        };
        fs::create_dir(&inputs.language_model).expect("a folder");
        safetensors(&inputs.clip, &tensors.clip, &value);
        safetensors(&inputs.language_model.join("model.safetensors"), &tensors.language_model, &value);
        safetensors(&inputs.checkpoint, &tensors.checkpoint, &value);
        Self { work, inputs }
    }

    fn good() -> Self {
        Self::new(|_| {}, number)
    }

    fn out(&self) -> PathBuf {
        self.work.path().join("model")
    }

    fn convert(&self, dtype: Dtype) -> Result<(), WeightsError> {
        convert(&self.inputs, &config(), dtype, &self.out(), false, &mut |_| {}).map(|_| ())
    }

    /// The error, after which nothing of the folder is there.
    fn fails(&self) -> WeightsError {
        let error = self.convert(Dtype::F16).expect_err("an error");
        self.nothing_written();
        error
    }

    fn nothing_written(&self) {
        let left = fs::read_dir(self.work.path()).expect("a folder").flatten().map(|e| e.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("model")).collect();
        assert!(left.is_empty(), "{left:?} is left");
    }
}

fn number(name: &str, i: usize) -> f32 {
    ((name.len() * 31 + i * 7) % 100) as f32 / 100.0 - 0.5
}

#[test]
fn good_files_convert_and_open() {
    let files = Files::good();
    files.convert(Dtype::F32).expect("a conversion");
    let folder = ModelFolder::open(&files.out()).expect("a folder");
    // A transposed and a fused tensor, number by number.
    let proj = folder.tensor("vision.proj.weight").expect("a tensor");
    assert_eq!(proj.shape, [8, 16]);
    let value = |i: usize| f32::from_le_bytes(proj.bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
    for (row, column) in [(0, 0), (3, 5), (7, 15)] {
        assert_eq!(value(row * 16 + column), number("visual.proj", column * 8 + row));
    }
    assert!(matches!(files.convert(Dtype::F32), Err(WeightsError::Exists(_))));
}

#[test]
fn a_missing_tensor_is_named() {
    let files = Files::new(|specs| specs.retain(|s| s.name != "perceiver.layers.0.0.to_kv.weight"), number);
    let error = files.fails();
    assert!(error.to_string().contains("`perceiver.layers.0.0.to_kv.weight`"), "{error}");
}

#[test]
fn an_unexpected_tensor_is_named() {
    let odd = || TensorSpec { name: "perceiver.odd".into(), shape: vec![2] };
    let error = Files::new(|specs| specs.push(odd()), number).fails();
    assert!(matches!(&error, WeightsError::Unexpected { names, .. } if names == &["perceiver.odd"]), "{error}");
}

#[test]
fn a_misshapen_tensor_is_named_with_both_shapes() {
    let reshape = |specs: &mut Vec<TensorSpec>| {
        for spec in specs.iter_mut().filter(|s| s.name == "transformer.blocks.0.attn.Wqkv.weight") {
            spec.shape = vec![16, 48];
        }
    };
    let error = Files::new(reshape, number).fails().to_string();
    assert!(error.contains("Wqkv") && error.contains("[16, 48]") && error.contains("[48, 16]"), "{error}");
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let value = |name: &str, i: usize| if name == "visual.ln_pre.bias" && i == 3 { bad } else { number(name, i) };
        let error = Files::new(|_| {}, value).fails();
        assert!(matches!(&error, WeightsError::NotFinite { name, .. } if name == "visual.ln_pre.bias"), "{error}");
    }
}

#[test]
fn a_weight_too_large_for_f16_is_named() {
    let value = |name: &str, i: usize| if name == "perceiver.latents" && i == 0 { 1e5 } else { number(name, i) };
    let files = Files::new(|_| {}, value);
    let error = files.fails();
    assert!(matches!(&error, WeightsError::Overflow { name, .. } if name == "perceiver.latents"), "{error}");
    files.convert(Dtype::Bf16).expect("bf16 holds it");
}

#[test]
fn missing_files_are_named() {
    let files = Files::good();
    fs::remove_file(&files.inputs.clip).expect("a file to remove");
    assert!(files.fails().to_string().contains("clip.safetensors"));
    let files = Files::good();
    fs::remove_file(files.inputs.language_model.join("model.safetensors")).expect("a file to remove");
    assert!(files.fails().to_string().contains("model.safetensors"));
}

#[test]
fn truncated_files_are_refused_at_every_length() {
    let files = Files::good();
    let whole = fs::read(&files.inputs.checkpoint).expect("a file");
    for length in (0..whole.len()).step_by(whole.len() / 97 + 1) {
        fs::write(&files.inputs.checkpoint, &whole[..length]).expect("a file");
        files.fails();
    }
}

#[test]
fn a_damaged_folder_does_not_open() {
    let files = Files::good();
    files.convert(Dtype::F32).expect("a conversion");
    let weights = files.out().join("model.safetensors");
    let whole = fs::read(&weights).expect("weights");
    for length in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&weights, &whole[..length]).expect("a file");
        assert!(ModelFolder::open(&files.out()).is_err(), "{length} bytes");
    }
    fs::write(&weights, &whole).expect("a file");
    let toml = files.out().join("model.toml");
    let text = fs::read_to_string(&toml).expect("a config");
    fs::write(&toml, text.replace("d_ff = 32", "d_ff = 33")).expect("a file");
    let error = ModelFolder::open(&files.out()).expect_err("an error").to_string();
    assert!(error.contains("mlp") && error.contains("33"), "{error}");
    fs::write(&toml, text.replace("d_ff = 32", "d_fff = 32")).expect("a file");
    assert!(ModelFolder::open(&files.out()).is_err());
}

#[test]
fn what_a_killed_conversion_left_is_removed() {
    let files = Files::good();
    // No process has this number: Linux ends at 2^22.
    let left = files.work.path().join(".model.partial-99999999");
    fs::create_dir(&left).expect("a folder");
    fs::write(left.join("model.safetensors"), "half").expect("a file");
    files.convert(Dtype::F32).expect("a conversion");
    assert!(!left.exists());
}

/// A `.pt` archive around a pickle.
fn archive(pickle: &[u8]) -> (TempDir, PathBuf) {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = work.path().join("checkpoint.pt");
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).expect("a file"));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).expect("an entry");
    zip.write_all(pickle).expect("a pickle");
    zip.start_file("archive/data/0", stored).expect("an entry");
    zip.write_all(&[0; 64]).expect("a storage");
    zip.finish().expect("an archive");
    (work, path)
}

/// `{"w": _rebuild_tensor_v2(FloatStorage "0", first, (rows, columns), (strides), False, None)}`
fn tensor_pickle(first: u8, shape: [u8; 2], strides: [u8; 2]) -> Vec<u8> {
    let mut p = b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage".to_vec();
    p.extend(b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ");
    p.extend([b'K', first, b'K', shape[0], b'K', shape[1], 0x86, b'K', strides[0], b'K', strides[1], 0x86]);
    p.extend(b"\x89NtRu.");
    p
}

#[test]
fn views_are_read_as_torch_reads_them() {
    let (_work, path) = archive(&tensor_pickle(0, [4, 4], [1, 4]));
    let tensors = readers::open(&path).expect("a checkpoint");
    assert_eq!(tensors["w"].shape, [4, 4]);
    // Beyond its storage of 16 floats: by a row, by its start, by a stride.
    for (first, shape, strides) in [(0, [5, 4], [4, 1]), (1, [4, 4], [4, 1]), (0, [4, 4], [5, 1])] {
        let (_work, path) = archive(&tensor_pickle(first, shape, strides));
        let error = readers::open(&path).expect_err("an error").to_string();
        assert!(error.contains("`w`") && error.contains("beyond"), "{error}");
    }
}

#[test]
fn a_pickle_that_would_call_something_is_refused_by_name() {
    let trap = tempfile::tempdir().expect("a temporary folder");
    let touched = trap.path().join("touched");
    let command = format!("touch {}", touched.display());
    let string = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let call = [&b"\x80\x02cposix\nsystem\n("[..], &string(&command), b"tR."].concat();
    let stack_global =
        [&b"\x80\x04"[..], &string("builtins"), &string("eval"), b"\x93(", &string("1+1"), b"tR."].concat();
    let cases: [(&[u8], &str, &str); 7] = [
        (&call, "REDUCE", "posix.system"),
        (&stack_global, "REDUCE", "builtins.eval"),
        (b"\x80\x02(S'true'\niposix\nsystem\n.", "INST", "posix.system"),
        (b"\x80\x02(cposix\nsystem\nS'true'\no.", "OBJ", "posix.system"),
        (b"\x80\x02csubprocess\nPopen\n)\x81.", "NEWOBJ", "subprocess.Popen"),
        (b"\x80\x04csubprocess\nPopen\n)}\x92.", "NEWOBJ_EX", "subprocess.Popen"),
        (b"\x80\x02cmymodule\nThing\n}b.", "BUILD", "mymodule.Thing"),
    ];
    for (pickle, opcode, callable) in cases {
        let (_work, path) = archive(pickle);
        let error = readers::open(&path).expect_err("an error");
        assert!(matches!(&error, WeightsError::Refused { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains(opcode) && error.contains(callable), "{error}");
    }
    assert!(!touched.exists(), "a pickle was executed");
}

#[test]
fn damaged_pickles_and_archives_are_errors() {
    let good = tensor_pickle(0, [4, 4], [4, 1]);
    for length in 0..good.len() {
        let (_work, path) = archive(&good[..length]);
        assert!(readers::open(&path).is_err(), "a pickle of {length} bytes");
    }
    // Every single damaged byte either fails or gives a tensor that lies in the file.
    let (_work, path) = archive(&good);
    let whole = fs::read(&path).expect("an archive");
    let mut state = 1u32;
    for _ in 0..4000 {
        let mut damaged = whole.clone();
        for _ in 0..3 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (state >> 8) as usize % damaged.len();
            damaged[at] ^= (state >> 24) as u8 | 1;
        }
        fs::write(&path, &damaged).expect("a file");
        if let Ok(tensors) = readers::open(&path) {
            for tensor in tensors.values() {
                let mut numbers = Vec::new();
                let count = tensor.shape.iter().product();
                tensor.read(0, count, &mut numbers).expect("numbers that are there");
            }
        }
    }
    for length in (0..whole.len()).step_by(7) {
        fs::write(&path, &whole[..length]).expect("a file");
        assert!(readers::open(&path).is_err(), "an archive of {length} bytes");
    }
}

#[test]
fn deep_and_endless_pickles_end() {
    let nested = [&b"\x80\x02"[..], &b"]".repeat(200_000), &b"a".repeat(199_999), b"."].concat();
    let (_work, path) = archive(&nested);
    assert!(readers::open(&path).is_err());
    // A dictionary that holds itself.
    let (_work, path) = archive(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.");
    assert!(readers::open(&path).is_err());
    // A length of 2^62 bytes.
    let (_work, path) = archive(b"\x80\x04\x8d\x00\x00\x00\x00\x00\x00\x00\x40.");
    assert!(readers::open(&path).is_err());
}

#[test]
fn files_that_are_something_else_are_refused() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = work.path().join("checkpoint.pt");
    for content in
        [&b""[..], b"hello", b"version https://git-lfs.github.com/spec/v1\n", b"\x7fELF\x02\x01\x01", b"PK\x03\x04"]
    {
        fs::write(&path, content).expect("a file");
        let error = readers::open(&path).expect_err("an error").to_string();
        assert!(error.contains("checkpoint.pt"), "{error}");
    }
}
