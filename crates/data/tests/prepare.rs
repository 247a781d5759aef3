//! Shards made of files on disk: what goes in comes out, what is unusable is counted, nothing is half-written.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flamingo_data::{
    ConvertOptions, ConvertReport, PackOptions, PackReport, Picture, PrepareError, Sample, Skipped, convert_mmc4, pack,
    read_samples,
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn work() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn photo(name: &str) -> Vec<u8> {
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/photos");
    fs::read(photos.join(name)).expect("a photograph")
}

fn put(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(&path, content).expect("a file");
    path
}

/// A picture of one colour, in the format of the name.
fn plain(folder: &Path, name: &str, width: u32, height: u32) -> PathBuf {
    let path = put(folder, name, []);
    image::RgbImage::from_pixel(width, height, image::Rgb([200, 30, 60])).save(&path).expect("a picture");
    path
}

/// All samples of a folder's shards, and the names of its files.
fn read(folder: &Path) -> (Vec<Sample>, Vec<String>) {
    let mut names: Vec<String> =
        fs::read_dir(folder).expect("a folder").flatten().map(|e| e.file_name().to_string_lossy().into()).collect();
    names.sort();
    let mut samples = Vec::new();
    for name in &names {
        let shard = fs::read(folder.join(name)).expect("a shard");
        let skipped = read_samples(&shard[..], &mut |sample| {
            samples.push(sample);
            ControlFlow::Continue(())
        });
        assert_eq!(skipped, Skipped::default());
    }
    (samples, names)
}

fn counts(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
    pairs.iter().map(|&(kind, count)| (kind.to_string(), count)).collect()
}

fn packed(input: &Path, output: &Path, resize: Option<u32>) -> Result<PackReport, PrepareError> {
    let options = PackOptions { output: output.into(), samples_per_shard: 2, resize };
    pack(input, &options, &mut |_, _| {})
}

fn converted(inputs: &[PathBuf], images: &Path, output: &Path) -> Result<ConvertReport, PrepareError> {
    let options =
        ConvertOptions { image_dir: images.into(), output: output.into(), samples_per_shard: 2, reencode: false };
    convert_mmc4(inputs, &options, &mut |_, _| {})
}

fn document(names: &[&str]) -> Value {
    let info: Vec<Value> = names.iter().map(|name| json!({"image_name": name, "raw_url": "http://a/b"})).collect();
    json!({"url": "http://a", "text_list": ["x"], "image_info": info, "similarity_matrix": vec![[0.3]; names.len()]})
}

#[test]
fn a_folder_is_packed_as_it_is_and_what_is_unusable_is_counted() {
    let work = work();
    let folder = work.path().join("in");
    put(&folder, "b.jpg", photo("coffee.jpg"));
    put(&folder, "b.txt", "A cup.\n");
    plain(&folder, "a/wrongly-named.png", 5, 4);
    // What a file is counts, not what it is called.
    fs::rename(folder.join("a/wrongly-named.png"), folder.join("a/wrongly-named.JPG")).expect("a file");
    put(&folder, "a/wrongly-named.txt", "ein grünes Feld");
    plain(&folder, "c.webp", 3, 3);
    put(&folder, "c.txt", "c");
    for (name, content) in [("d", &b"no picture"[..]), ("e", &photo("chelsea.jpg")[..2000]), ("f", b"")] {
        put(&folder, &format!("{name}.jpg"), content);
        put(&folder, &format!("{name}.txt"), name);
    }
    plain(&folder, "g.gif", 2, 2);
    put(&folder, "g.txt", "g");
    plain(&folder, "h.png", 2, 2);
    plain(&folder, "i.png", 2, 2);
    put(&folder, "i.txt", "  \n");
    plain(&folder, "j.png", 2, 2);
    put(&folder, "j.txt", b"\xff\xfe");
    put(&folder, "readme.md", "not counted");

    let output = work.path().join("out");
    let report = packed(&folder, &output, None).expect("shards");
    let left_out = counts(&[
        ("not a picture", 2),
        ("damaged jpg", 1),
        ("unsupported format gif", 1),
        ("without a text", 1),
        ("text that is empty", 1),
        ("text that is no UTF-8", 1),
    ]);
    assert_eq!((report.pairs, report.shards, report.left_out), (3, 2, left_out));
    let (samples, names) = read(&output);
    assert_eq!(names, ["0000.tar", "0001.tar"]);
    assert!(!work.path().join("out.partial").exists());
    let sizes: u64 = names.iter().map(|name| fs::metadata(output.join(name)).expect("a shard").len()).sum();
    assert_eq!(report.bytes, sizes);
    let parts: Vec<Vec<&str>> = samples.iter().map(|s| s.parts.keys().map(String::as_str).collect()).collect();
    assert_eq!(parts, [["png", "txt"], ["jpg", "txt"], ["txt", "webp"]]);
    assert_eq!(samples[1].parts["jpg"], photo("coffee.jpg"));
    assert_eq!(samples[1].parts["txt"], b"A cup.\n");
    let again = work.path().join("again");
    packed(&folder, &again, None).expect("shards");
    assert_eq!(fs::read(again.join("0000.tar")).expect("a shard"), fs::read(output.join("0000.tar")).expect("a shard"));
}

#[test]
fn lines_are_packed_and_large_pictures_made_smaller() {
    let work = work();
    plain(work.path(), "pictures/large.png", 100, 50);
    plain(work.path(), "pictures/small.gif", 10, 20);
    let small = plain(work.path(), "pictures/small.png", 20, 10);
    let lines = r#"{"image": "pictures/large.png", "caption": "large"}
{"image": "pictures/small.gif", "text": "a gif", "more": 1}

{"image": "pictures/small.png", "text": "small"}
{"image": "pictures/missing.png", "text": "x"}
{"image": "pictures", "text": "x"}
{"image": 3, "text": "x"}
{"image": "pictures/small.png"}
garbage"#;
    let input = put(work.path(), "pairs.jsonl", lines);
    let output = work.path().join("out");
    let report = packed(&input, &output, Some(25)).expect("shards");
    assert_eq!(report.left_out, counts(&[("not found", 1), ("not readable", 1), ("unreadable line", 3)]));
    let (samples, _) = read(&output);
    let size = |index: usize, kind: &str| {
        let picture = Picture::decode(&samples[index].parts[kind]).expect("a picture");
        (picture.width(), picture.height())
    };
    assert_eq!((size(0, "jpg"), size(1, "jpg")), ((50, 25), (10, 20)));
    assert_eq!(samples[2].parts["png"], fs::read(small).expect("a file"));
    assert_eq!(samples[0].parts["txt"], b"large");
}

#[test]
fn nothing_is_written_when_nothing_can_be() {
    let work = work();
    let (empty, output) = (work.path().join("empty"), work.path().join("out"));
    fs::create_dir(&empty).expect("a folder");
    assert!(packed(&empty, &output, None).expect_err("nothing").to_string().contains("no pictures"));
    put(&empty, "a.jpg", "garbage");
    put(&empty, "a.txt", "a");
    assert!(packed(&empty, &output, None).expect_err("nothing").to_string().contains("1 not a picture"));
    assert!(matches!(packed(Path::new("missing"), &output, None), Err(PrepareError::Data(_))));
    assert!(matches!(packed(Path::new("/dev/zero"), &output, None), Err(PrepareError::Data(_))));
    let lines = put(work.path(), "mmc4.jsonl", document(&["a.jpg", "missing.jpg"]).to_string());
    let error = converted(&[lines], &empty, &output).expect_err("no pictures").to_string();
    assert!(error.contains("1 not a picture, 1 not found"), "{error}");
    let lines = put(work.path(), "mmc4.jsonl", "[1]\n{\"image_info\": 3}");
    assert!(converted(&[lines], &empty, &output).expect_err("none").to_string().contains("2 unreadable document"));
    assert!(!output.exists(), "nothing stays behind");
    // Shards of two makings are never mixed, nor with anything else, and what was there stays.
    plain(&empty, "b.png", 2, 2);
    put(&empty, "b.txt", "b");
    for there in ["out/old.tar", "out.partial/0000.tar"] {
        let old = put(work.path(), there, "old");
        let Err(PrepareError::Occupied(place)) = packed(&empty, &output, None) else { panic!("{there} was not seen") };
        assert_eq!(
            (place.as_path(), fs::read(&old).expect("a file")),
            (old.parent().expect("a folder"), b"old".into())
        );
        fs::remove_dir_all(place).expect("a folder");
    }
    assert!(matches!(packed(&empty, &empty.join("a.txt"), None), Err(PrepareError::Occupied(_))));
    let options = PackOptions { output: output.clone(), samples_per_shard: 0, resize: None };
    assert!(matches!(pack(&empty, &options, &mut |_, _| {}), Err(PrepareError::Nothing(_))));
    // An empty folder is a place; what comes to stand there meanwhile is never written over.
    fs::create_dir(&output).expect("a folder");
    let options = PackOptions { samples_per_shard: 1, ..options };
    let lines = put(work.path(), "pairs.jsonl", r#"{"image": "empty/b.png", "text": "b"}"#.to_string() + "\n");
    let lines = put(work.path(), "pairs.jsonl", fs::read_to_string(lines).expect("lines").repeat(40));
    let late = pack(&lines, &options, &mut |_, _| drop(put(&output, "late", "")));
    assert!(matches!(late, Err(PrepareError::Occupied(_))));
    let mut left: Vec<_> = fs::read_dir(work.path()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    left.sort();
    assert_eq!(left, ["empty", "mmc4.jsonl", "out", "pairs.jsonl"]);
    assert_eq!(fs::read_dir(&output).expect("a folder").count(), 1);
}

#[test]
fn documents_get_their_pictures_and_keep_every_digit() {
    let work = work();
    let images = work.path().join("images");
    put(&images, "0/a.jpg", photo("coffee.jpg"));
    put(&images, "a.jpg", photo("rocket.jpg"));
    put(&images, "1/b.jpg", "garbage");
    put(&images, "c.jpg", photo("chelsea.jpg"));
    put(work.path(), "secret.jpg", photo("astronaut.jpg"));
    let odd = r#"{"similarity_matrix": [[0.12345678901234567890, 1E-3]], "text_list": ["\u00e9", "b"], "extra": 1.50,
        "image_info": [{"image_name": "a.jpg", "matched_sim": 0.30000000000000001}]}"#
        .replace('\n', " ");
    let first =
        put(work.path(), "0.jsonl", format!("{odd}\n\n{}\nbroken\n", document(&["../secret.jpg", "c.jpg", ""])));
    let second = work.path().join("1.zip");
    let mut zip = zip::ZipWriter::new(fs::File::create(&second).expect("a file"));
    zip.start_file("docs_shard_1.jsonl", zip::write::SimpleFileOptions::default()).expect("a member");
    zip.write_all(format!("{}\n", document(&["a.jpg", "b.jpg", "gone.jpg"])).as_bytes()).expect("a member");
    zip.add_directory("more", zip::write::SimpleFileOptions::default()).expect("a member");
    zip.start_file("more/docs.jsonl", zip::write::SimpleFileOptions::default()).expect("a member");
    zip.write_all(format!("{}\n", document(&["c.jpg"])).as_bytes()).expect("a member");
    zip.finish().expect("an archive");

    let output = work.path().join("out");
    let report = converted(&[first, second], &images, &output).expect("shards");
    let left_out = counts(&[("name that leads out of the folder", 2), ("not a picture", 1), ("not found", 1)]);
    assert_eq!((report.documents, report.pictures, report.shards), (4, 4, 2));
    assert_eq!(report.pictures_left_out, left_out);
    assert_eq!(report.documents_left_out, counts(&[("unreadable document", 1)]));
    let (samples, names) = read(&output);
    assert_eq!(names, ["000000000.tar", "000000001.tar"]);
    let text = String::from_utf8(samples[0].parts["json"].clone()).expect("text");
    for part in ["[[0.12345678901234567890, 1E-3]]", r#"["\u00e9", "b"]"#, ":1.50", ":0.30000000000000001"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let pictures: Vec<Vec<Option<Vec<u8>>>> = samples
        .iter()
        .map(|sample| {
            let document: Value = serde_json::from_slice(&sample.parts["json"]).expect("JSON");
            let decoded = |image: &Value| STANDARD.decode(image["image_base64"].as_str()?).ok();
            document["image_info"].as_array().expect("a list").iter().map(decoded).collect()
        })
        .collect();
    let [coffee, rocket, chelsea] = ["coffee.jpg", "rocket.jpg", "chelsea.jpg"].map(|name| Some(photo(name)));
    let expected = [vec![coffee], vec![None, chelsea.clone(), None], vec![rocket, None, None], vec![chelsea]];
    assert_eq!(pictures, expected);
}

#[test]
fn pictures_can_be_written_anew_as_upstream_writes_them() {
    let work = work();
    plain(work.path(), "a.png", 40, 30);
    let lines = put(work.path(), "mmc4.jsonl", document(&["a.png"]).to_string());
    let (image_dir, output) = (work.path().to_path_buf(), work.path().join("out"));
    let options = ConvertOptions { image_dir, output: output.clone(), samples_per_shard: 9, reencode: true };
    convert_mmc4(&[lines], &options, &mut |_, _| {}).expect("shards");
    let document: Value = serde_json::from_slice(&read(&output).0[0].parts["json"]).expect("JSON");
    let bytes = STANDARD.decode(document["image_info"][0]["image_base64"].as_str().expect("text")).expect("base64");
    assert_eq!(image::guess_format(&bytes).expect("a format"), image::ImageFormat::Jpeg);
    let picture = Picture::decode(&bytes).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (40, 30));
}

#[test]
fn damaged_archives_are_errors() {
    let work = work();
    let mut state = 11u32;
    for round in 0..40 {
        let mut bytes = b"PK\x03\x04".to_vec();
        for _ in 0..round * 7 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            bytes.push((state >> 24) as u8);
        }
        let input = put(work.path(), "a.zip", bytes);
        let error = converted(&[input], work.path(), &work.path().join("out")).expect_err("no archive");
        assert!(matches!(error, PrepareError::Zip { .. }), "{error}");
    }
}
