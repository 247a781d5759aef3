//! MMC4's documents and their pictures as shards (`open_flamingo/scripts/convert_mmc4_to_wds.py`).

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::picture::{PILLOW_QUALITY, as_jpeg, decode, read};
use super::writer::ShardWriter;
use super::{BATCH, BATCH_BYTES, Unusable, count, listed, read_lines, size};
use crate::PrepareError;
use crate::shards::MAX_MEMBER;

/// What is made of MMC4's files.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// Where the pictures are: those of `docs_shard_7…` in `7/`, those of the third of other files in `2/`, as upstream
    /// has them, or all of them in the folder itself.
    pub image_dir: PathBuf,
    /// Folder of the shards, which must not be there, or empty.
    pub output: PathBuf,
    /// Documents in each shard.
    pub samples_per_shard: usize,
    /// Write each picture anew, as a JPEG of quality 75, as upstream does, instead of the file as it is.
    pub reencode: bool,
}

/// What became of MMC4's files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ConvertReport {
    /// Documents that were written.
    pub documents: u64,
    /// Pictures that were written.
    pub pictures: u64,
    /// Shards that hold them.
    pub shards: usize,
    /// Bytes of the shards.
    pub bytes: u64,
    /// Documents that were not written, by reason.
    pub documents_left_out: BTreeMap<String, u64>,
    /// Pictures that were not written, by reason.
    pub pictures_left_out: BTreeMap<String, u64>,
}

/// Fields of a JSON object, each as it was written.
type Fields = BTreeMap<String, Box<RawValue>>;

/// A document to be written: its JSON, its number of pictures, and why others are left out.
type Converted = Result<(Vec<u8>, u64, Vec<Unusable>), Unusable>;

/// Makes shards of MMC4's documents, JSON lines or zip archives of such, with their pictures. A picture that is not
/// there is left out, its document is not. `on_progress` gets the bytes that were read, and of how many.
///
/// # Errors
/// [`PrepareError`] if an input cannot be read, a shard cannot be written, or there is no document or no picture.
pub fn convert_mmc4(
    inputs: &[PathBuf],
    options: &ConvertOptions,
    on_progress: &mut dyn FnMut(u64, u64),
) -> Result<ConvertReport, PrepareError> {
    let total = inputs.iter().map(|input| size(input)).sum::<Result<u64, _>>()?;
    let mut writer = ShardWriter::new(&options.output, 9, options.samples_per_shard)?;
    let mut report = ConvertReport::default();
    let mut done = 0;
    for (index, input) in inputs.iter().enumerate() {
        let number = shard_number(input).unwrap_or(index);
        let folders = [options.image_dir.join(number.to_string()), options.image_dir.clone()];
        let mut write = |lines: &mut Vec<Vec<u8>>| {
            let converted: Vec<Converted> =
                lines.par_iter().map(|line| convert(line, &folders, options.reencode)).collect();
            lines.clear();
            converted.into_iter().try_for_each(|document| add(document, &mut writer, &mut report))
        };
        let (mut batch, mut held) = (Vec::new(), 0);
        read_lines(input, &mut |line| {
            done += line.len() as u64 + 1;
            batch.push(line.to_vec());
            held += line.len();
            if batch.len() == BATCH || held > BATCH_BYTES {
                held = 0;
                write(&mut batch)?;
                on_progress(done, total);
            }
            Ok(())
        })?;
        write(&mut batch)?;
    }
    if report.documents == 0 {
        let why = listed(&report.documents_left_out);
        return Err(PrepareError::Nothing(match why.is_empty() {
            true => "the files hold no document: each line must be one, as JSON".into(),
            false => format!("no document is usable ({why}): each line must be one, as JSON"),
        }));
    }
    if report.pictures == 0 {
        let (folder, why) = (options.image_dir.display(), listed(&report.pictures_left_out));
        return Err(PrepareError::Nothing(format!(
            "no picture can be used ({why}): those of the first file belong in {folder}/0 or {folder}"
        )));
    }
    (report.shards, report.bytes) = writer.finish()?;
    Ok(report)
}

/// The number in the name of a file of MMC4: files need not come in its order, nor all of them.
fn shard_number(input: &Path) -> Option<usize> {
    let name = input.file_name()?.to_str()?.strip_prefix("docs_shard_")?;
    name[..name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len())].parse().ok()
}

fn add(document: Converted, writer: &mut ShardWriter, report: &mut ConvertReport) -> Result<(), PrepareError> {
    match document {
        Ok((json, pictures, left_out)) => {
            writer.add(&[("json", &json)])?;
            report.documents += 1;
            report.pictures += pictures;
            left_out.iter().for_each(|reason| count(&mut report.pictures_left_out, reason));
        }
        Err(reason) => count(&mut report.documents_left_out, reason),
    }
    Ok(())
}

/// Puts the pictures of a document into it. Everything else stays as it is, to the last digit.
fn convert(line: &[u8], folders: &[PathBuf], reencode: bool) -> Converted {
    let wrong = |_| Unusable::Document;
    let mut document: Fields = serde_json::from_slice(line).map_err(wrong)?;
    let info = document.get("image_info").ok_or(Unusable::Document)?;
    let mut info: Vec<Fields> = serde_json::from_str(info.get()).map_err(wrong)?;
    let (mut pictures, mut left_out) = (0, Vec::new());
    for image in &mut info {
        let name = image.get("image_name").ok_or(Unusable::Document)?;
        let name: String = serde_json::from_str(name.get()).map_err(wrong)?;
        match picture(&name, folders, reencode) {
            Ok(bytes) => {
                image.insert("image_base64".into(), to_raw_value(&STANDARD.encode(bytes)).map_err(wrong)?);
                pictures += 1;
            }
            Err(reason) => left_out.push(reason),
        }
    }
    document.insert("image_info".into(), to_raw_value(&info).map_err(wrong)?);
    let json = serde_json::to_vec(&document).map_err(wrong)?;
    // Training would not read it.
    if json.len() as u64 > MAX_MEMBER { Err(Unusable::TooLarge) } else { Ok((json, pictures, left_out)) }
}

/// A picture of that name, from the first folder that has one.
fn picture(name: &str, folders: &[PathBuf], reencode: bool) -> Result<Vec<u8>, Unusable> {
    let name = Path::new(name);
    if !name.components().all(|part| matches!(part, Component::Normal(_))) || name.as_os_str().is_empty() {
        return Err(Unusable::Name);
    }
    let missing = Err(Unusable::Missing);
    let bytes = folders.iter().map(|folder| read(&folder.join(name))).find(|read| *read != missing);
    let bytes = bytes.unwrap_or(missing)?;
    let (_, picture) = decode(&bytes)?;
    if reencode { as_jpeg(&picture, PILLOW_QUALITY) } else { Ok(bytes) }
}
