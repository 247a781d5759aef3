//! File formats: every layout is read alike, and damaged or hostile files are errors, never a panic, a call or a
//! full memory.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flamingo_weights::{WeightsError, readers};
use tempfile::TempDir;

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
    let mut random = Random(1);
    for _ in 0..4000 {
        fs::write(&path, random.damage(&whole)).expect("a file");
        read_all_if_any(&path);
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

/// Numbers of a tensor, in row-major order.
fn numbers(path: &Path, name: &str) -> Vec<f32> {
    let tensors = readers::open(path).expect("a checkpoint");
    let tensor = &tensors[name];
    let mut numbers = Vec::new();
    tensor.read(0, tensor.shape.iter().product(), &mut numbers).expect("numbers");
    numbers
}

fn floats(count: usize) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// A `.pt` archive whose one storage holds 0, 1, 2, …
fn counting_archive(pickle: &[u8], count: usize) -> (TempDir, PathBuf) {
    let (work, path) = archive(pickle);
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).expect("a file"));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in [("archive/data.pkl", pickle), ("archive/data/0", &floats(count))] {
        zip.start_file(name, stored).expect("an entry");
        zip.write_all(content).expect("its content");
    }
    zip.finish().expect("an archive");
    (work, path)
}

/// What `torch.save` wrote before version 1.6, around a pickle whose only storage is "0".
fn legacy(object: &[u8], count: usize) -> (TempDir, PathBuf) {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = work.path().join("checkpoint.pt");
    let mut file = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.".to_vec();
    file.extend(b"\x80\x02M\xe9\x03.");
    file.extend(b"\x80\x02}q\x00(X\x0d\x00\x00\x00little_endianq\x01\x88u.");
    file.extend(object);
    file.extend(b"\x80\x02]q\x00X\x01\x00\x00\x000q\x01a.");
    file.extend((count as u64).to_le_bytes());
    file.extend(floats(count));
    fs::write(&path, file).expect("a file");
    (work, path)
}

#[test]
fn views_give_their_own_numbers() {
    // A transposition, a part, and one row seen three times.
    for (first, shape, strides) in [(0u8, [4u8, 4u8], [1u8, 4u8]), (5, [2, 3], [4, 1]), (2, [3, 2], [0, 1])] {
        let (_work, path) = counting_archive(&tensor_pickle(first, shape, strides), 16);
        let place = |i: u8, j: u8| f32::from(first + i * strides[0] + j * strides[1]);
        let expected: Vec<f32> = (0..shape[0]).flat_map(|i| (0..shape[1]).map(move |j| place(i, j))).collect();
        assert_eq!(numbers(&path, "w"), expected, "shape {shape:?}, strides {strides:?}");
    }
}

#[test]
fn the_format_before_torch_1_6_is_read() {
    let (_work, path) = legacy(&tensor_pickle(0, [4, 4], [1, 4]), 16);
    let (_work, archive) = counting_archive(&tensor_pickle(0, [4, 4], [1, 4]), 16);
    assert_eq!(numbers(&path, "w"), numbers(&archive, "w"));

    let whole = fs::read(&path).expect("a file");
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("a file");
        assert!(readers::open(&path).is_err(), "{length} of {} bytes", whole.len());
    }
    let mut random = Random(7);
    for _ in 0..2000 {
        fs::write(&path, random.damage(&whole)).expect("a file");
        read_all_if_any(&path);
    }
    // A call in any of its pickles is refused.
    let (_work, path) = legacy(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", 16);
    assert!(matches!(readers::open(&path), Err(WeightsError::Refused { .. })));
    // So is a storage that is a part of another one, which its offset would make another tensor.
    let mut part =
        b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage".to_vec();
    part.extend(b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04X\x01\x00\x00\x001K\x04K\x04\x87tQ");
    part.extend(b"K\x00K\x04\x85K\x01\x85\x89NtRu.");
    let (_work, path) = legacy(&part, 16);
    let error = readers::open(&path).expect_err("an error").to_string();
    assert!(error.contains("view of another"), "{error}");
}

#[test]
fn a_header_of_any_length_is_a_header() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = work.path().join("model.safetensors");
    // Among them lengths whose first bytes are those of a pickle: 0x0280, 0x0380, 0x0480, 0x0580.
    for length in (56..1500).step_by(8) {
        let mut header = br#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#.to_vec();
        header.resize(length, b' ');
        let file = [&(length as u64).to_le_bytes()[..], &header, &floats(2)].concat();
        fs::write(&path, file).expect("a file");
        assert_eq!(numbers(&path, "w"), [0.0, 1.0], "a header of {length} bytes");
    }
}

#[test]
fn damaged_safetensors_are_errors() {
    let work = tempfile::tempdir().expect("a temporary folder");
    let path = work.path().join("model.safetensors");
    let header = br#"{"v":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    let whole = [&(header.len() as u64).to_le_bytes()[..], header, &floats(4)].concat();
    for length in 0..whole.len() {
        fs::write(&path, &whole[..length]).expect("a file");
        assert!(readers::open(&path).is_err(), "{length} of {} bytes", whole.len());
    }
    let mut random = Random(3);
    for _ in 0..4000 {
        fs::write(&path, random.damage(&whole)).expect("a file");
        read_all_if_any(&path);
    }
}

#[test]
fn an_index_cannot_leave_its_folder() {
    let work = tempfile::tempdir().expect("a temporary folder");
    for file in ["../other.bin", "/etc/passwd", ".."] {
        let index = serde_json::json!({"weight_map": {"w": file}});
        fs::write(work.path().join("pytorch_model.bin.index.json"), index.to_string()).expect("an index");
        let error = readers::open(work.path()).expect_err("an error").to_string();
        assert!(error.contains("outside"), "{error}");
    }
}

#[test]
fn small_pickles_cannot_fill_the_memory() {
    let text = |length: u32| [&b"X"[..], &length.to_le_bytes(), &vec![b'a'; length as usize]].concat();
    // Many values; one long name, called for again and again; one long list, copied again and again; one
    // dictionary under many names; a long name above many tensors.
    let values = [&b"\x80\x02"[..], &vec![b']'; 20_000_000], b"."].concat();
    let globals = [&b"\x80\x04"[..], &text(1_000_000), b"q\x00", &b"h\x00h\x00\x93".repeat(3000), b"."].concat();
    let list = [&b"\x80\x02("[..], &b"N".repeat(1_000_000), b"tq\x00"].concat();
    let lists = [&list[..], &b"ccollections\nOrderedDict\nh\x00\x85R".repeat(3000), b"."].concat();
    let copies = [&list[..], &b"ctorch\nSize\nh\x00R".repeat(3000), b"."].concat();
    let mut nested = b"\x80\x02}q\x00".to_vec();
    for level in 1..30u8 {
        nested.extend(b"}(X\x01\x00\x00\x00a");
        nested.extend([b'h', level - 1]);
        nested.extend(b"X\x01\x00\x00\x00b");
        nested.extend([b'h', level - 1, b'u', b'q', level]);
    }
    nested.push(b'.');
    for pickle in [&values, &globals, &lists, &copies, &nested] {
        let (_work, path) = archive(pickle);
        assert!(readers::open(&path).is_err());
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    // The other tests of this file, which may run meanwhile, need little.
    assert!(peak.is_none_or(|kib| kib < 1 << 20), "{peak:?} KiB");
}

#[test]
fn a_shape_that_overflows_is_an_error() {
    for shape in [&[2u64, 1 << 40, 1 << 40][..], &[1 << 63], &[u64::MAX >> 1, 3], &[1 << 62, 1 << 62, 0]] {
        let mut p =
            b"\x80\x02}(X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage".to_vec();
        p.extend(b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQK\x00");
        // Strides of zero: every shape fits into any storage.
        for sizes in [shape, &vec![0; shape.len()]] {
            p.push(b'(');
            for size in sizes {
                p.extend([0x8a, 8]);
                p.extend(size.to_le_bytes());
            }
            p.push(b't');
        }
        p.extend(b"\x89NtRu.");
        let (_work, path) = archive(&p);
        assert!(readers::open(&path).is_err(), "{shape:?}");
    }
}

#[test]
fn what_torch_marks_its_values_with_is_no_call() {
    // TorchScript marks lists with their type; a parameter is a tensor with a mark.
    let tensor = tensor_pickle(0, [4, 4], [4, 1]);
    let tensor = &tensor[2..tensor.len() - 1];
    let mut p = b"\x80\x02}(X\x01\x00\x00\x00sctorch.jit._pickle\nbuild_intlist\n]K\x01a\x85R".to_vec();
    p.extend(b"X\x01\x00\x00\x00m");
    p.extend(tensor);
    p.extend(b"u.");
    let (_work, path) = counting_archive(&p, 16);
    assert_eq!(numbers(&path, "m.w").len(), 16);
}

#[test]
fn of_a_trainers_file_the_model_is_taken() {
    let tensor = tensor_pickle(0, [4, 4], [4, 1]);
    let tensor = &tensor[2..tensor.len() - 1];
    let mut p = b"\x80\x02}(X\x05\x00\x00\x00epochK\x02X\x10\x00\x00\x00model_state_dict".to_vec();
    p.extend(tensor);
    p.extend(b"X\x14\x00\x00\x00optimizer_state_dict}X\x05\x00\x00\x00state}K\x00");
    p.extend(tensor);
    p.extend(b"ssu.");
    let (_work, path) = counting_archive(&p, 16);
    let tensors = readers::open(&path).expect("a checkpoint");
    assert_eq!(tensors.keys().collect::<Vec<_>>(), ["w"]);
}

/// Reads whatever a damaged file still gives.
fn read_all_if_any(path: &Path) {
    let Ok(tensors) = readers::open(path) else { return };
    for tensor in tensors.values() {
        let count = tensor.shape.iter().product::<usize>();
        tensor.read(0, count.min(1 << 16), &mut Vec::new()).expect("numbers that are there");
    }
}

/// Equal numbers at every run.
struct Random(u32);

impl Random {
    /// The file with three bytes changed.
    fn damage(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut damaged = whole.to_vec();
        for _ in 0..3 {
            self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (self.0 >> 8) as usize % damaged.len();
            damaged[at] ^= (self.0 >> 24) as u8 | 1;
        }
        damaged
    }
}
