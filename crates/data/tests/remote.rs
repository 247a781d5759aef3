//! Shards that come over the network.
#![cfg(feature = "remote")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::numbered;
use flamingo_data::{Decode, InspectOptions, Loader, LoaderOptions, find_shards, inspect};

/// Set for the process that reads the bucket: its variables say where that is.
const BUCKET: &str = "FLAMINGO_TEST_BUCKET";

type Files = BTreeMap<String, Vec<u8>>;

/// Serves files until the test ends, and one bucket; remembers what was asked for.
fn serve(files: Files) -> (String, Arc<Mutex<Vec<String>>>) {
    serve_at(TcpListener::bind("127.0.0.1:0").expect("a port"), files)
}

fn serve_at(listener: TcpListener, files: Files) -> (String, Arc<Mutex<Vec<String>>>) {
    let address = listener.local_addr().expect("an address");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (files, log) = (files.clone(), log.clone());
            std::thread::spawn(move || answer(connection.ok()?, &files, &log));
        }
    });
    (address.to_string(), asked)
}

fn answer(mut connection: TcpStream, files: &Files, log: &Mutex<Vec<String>>) -> Option<()> {
    let mut lines = BufReader::new(connection.try_clone().ok()?).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    lines.find(|line| line.as_ref().is_ok_and(String::is_empty))?.ok()?;
    let times = log.lock().ok().map(|mut log| {
        log.push(path.clone());
        log.iter().filter(|asked| **asked == path).count()
    })?;
    if path.contains("silent") {
        std::thread::sleep(Duration::from_secs(3600));
    }
    let listing;
    let (status, body) = match files.get(path.split('?').next()?) {
        _ if path.contains("flaky") && times == 1 => ("503 Slow Down", &b""[..]),
        _ if path.contains("list-type=2") => {
            listing = list(files);
            ("200 OK", listing.as_bytes())
        }
        Some(file) => ("200 OK", &file[..]),
        None => ("404 Not Found", &b""[..]),
    };
    let length = body.len();
    // What is given up must not be asked for again: it has no tag.
    let (tag, sent) = if path.contains("torn") { ("", length / 2) } else { ("ETag: \"1\"\r\n", length) };
    let date = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n";
    write!(connection, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{tag}{date}Connection: close\r\n\r\n").ok()?;
    connection.write_all(&body[..sent]).ok()
}

/// A bucket's answer to `ListObjectsV2`.
fn list(files: &Files) -> String {
    let keys = files.keys().filter_map(|path| path.strip_prefix("/bucket/"));
    let about = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>\"1\"</ETag><Size>1</Size>";
    let contents: String = keys.map(|key| format!("<Contents><Key>{key}</Key>{about}</Contents>")).collect();
    format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>")
}

fn keys() -> Decode<String> {
    Arc::new(|sample, _| Ok(sample.key))
}

fn read(shards: Vec<String>, count: usize) -> (Vec<String>, BTreeMap<String, u64>) {
    let options = LoaderOptions { shards, shuffle: 0, batch_size: count, ..LoaderOptions::default() };
    let mut loader = Loader::start(options, keys(), None).expect("a loader");
    let items = loader.next_batch().expect("a batch");
    (items, loader.position().counts.clone())
}

#[test]
fn shards_of_a_web_server_are_those_of_its_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let local = numbered(folder.path(), 3, 40);
    let names = ["/a%20b/0.tar", "/a%20b/flaky.tar", "/torn.tar"];
    let contents = local.iter().map(|path| std::fs::read(path).expect("a shard"));
    let (address, asked) = serve(names.iter().map(|name| name.to_string()).zip(contents).collect());
    let there = format!("http://user:secret@{address}/a%20b/{{0,flaky}}.tar?key=value");
    let mut shards = find_shards(&there).expect("shards");
    let (items, counts) = read(shards.clone(), 80);
    assert_eq!(items, read(local[..2].to_vec(), 80).0);
    assert_eq!(counts, BTreeMap::from([("delivered".into(), 80)]));
    assert_eq!(asked.lock().expect("a log")[0], "/a%20b/0.tar?key=value");

    let look = |shards: &[String]| inspect(shards, &InspectOptions::default(), &mut |_| ()).expect("a summary");
    assert_eq!(look(&shards), look(&local[..2]));
    let documents = [format!("http://user:secret@{address}/docs.jsonl")];
    let error = inspect(&documents, &InspectOptions::default(), &mut |_| ()).expect_err("an error").to_string();
    assert!(error.contains("fetch it first") && !error.contains("secret"), "{error}");

    // What is not there and what breaks off is left out; the last sample needs the second epoch.
    shards = [shards[0].clone(), "/nothing.tar".into(), "/torn.tar".into()].to_vec();
    shards[1..].iter_mut().for_each(|path| *path = format!("http://{address}{path}"));
    let (items, counts) = read(shards, 61);
    assert_eq!((&*items[40], &*items[59], &*items[60]), ("000080", "000099", "000000"));
    assert_eq!(
        counts,
        [("cut shard", 1), ("delivered", 61), ("unreadable shard", 1)].map(|(k, n)| (k.into(), n)).into()
    );
}

#[test]
fn a_server_may_have_a_long_address() {
    // Some machines have no such addresses.
    let Ok(listener) = TcpListener::bind("[::1]:0") else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let local = numbered(folder.path(), 2, 3);
    let contents = local.iter().map(|path| std::fs::read(path).expect("a shard"));
    let (address, _) = serve_at(listener, ["/0.tar", "/1.tar"].map(String::from).into_iter().zip(contents).collect());
    let shards = find_shards(&format!("http://{address}/0.tar::http://{address}/1.tar")).expect("shards");
    assert_eq!(read(shards, 6), read(local, 6));
}

#[test]
fn nobody_waits_for_a_silent_server_once_the_stream_is_left() {
    let (address, asked) = serve(Files::new());
    let options = LoaderOptions { shards: vec![format!("http://{address}/silent.tar")], ..LoaderOptions::default() };
    let loader = Loader::start(options, keys(), None).expect("a loader");
    while asked.lock().expect("a log").is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let since = Instant::now();
    drop(loader);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[test]
fn secrets_of_addresses_stay_out_of_messages() {
    let (address, _) = serve(Files::new());
    let shards = vec![format!("http://user:secret@{address}/nothing.tar?key=secret")];
    let mut loader =
        Loader::start(LoaderOptions { shards, ..LoaderOptions::default() }, keys(), None).expect("a loader");
    let error = loader.next_batch().expect_err("an error").to_string();
    assert!(error.contains("/nothing.tar") && !error.contains("secret"), "{error}");
    let error = find_shards(&format!("http://user:secret@{address}/*.tar?key=secret")).expect_err("an error");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn shards_of_a_bucket_are_found_and_read() {
    if std::env::var_os(BUCKET).is_some() {
        let shards = find_shards("s3://bucket/train/{a,b}-*.tar").expect("shards");
        let names = ["a-0.tar", "a-1.tar", "b-0.tar"];
        assert_eq!(shards, names.map(|name| format!("s3://bucket/train/{name}")));
        assert_eq!(read(shards, 6).0, ["000000", "000001", "000002", "000003", "000004", "000005"]);
        assert!(find_shards("s3://bucket/train/c-*.tar").is_err());
        assert!(find_shards("s3://*").is_err());
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let names = ["a-0.tar", "a-1.tar", "b-0.tar", "a-0.txt", "deep/a-2.tar"];
    let local = numbered(folder.path(), 5, 2);
    let contents = local.iter().map(|path| std::fs::read(path).expect("a shard"));
    let files = names.iter().map(|name| format!("/bucket/train/{name}")).zip(contents).collect();
    let (address, asked) = serve(files);
    let this = std::env::current_exe().expect("this program");
    let output = std::process::Command::new(this)
        .args(["--exact", "shards_of_a_bucket_are_found_and_read", "--nocapture"])
        .env(BUCKET, "1")
        .env("AWS_ENDPOINT", format!("http://{address}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_SKIP_SIGNATURE", "true")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let asked = asked.lock().expect("a log");
    assert!(asked[0].starts_with("/bucket?") && asked[0].contains("prefix=train%2F"), "{}", asked[0]);
}
