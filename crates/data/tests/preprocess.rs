//! Pictures of every kind against Pillow's recorded pixels.

use std::fs;
use std::path::{Path, PathBuf};

use flamingo_data::{ConvertOrder, ImageTransform, Picture};
use safetensors::SafeTensors;
use serde_json::Value;

/// The recordings, or `None` (said on stderr) where they are not at hand.
fn golden() -> Option<PathBuf> {
    let folder = std::env::var_os("FLAMINGO_GOLDEN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/golden"), PathBuf::from)
        .join("preprocess");
    if !folder.is_dir() {
        eprintln!("skipped: no golden recordings");
        return None;
    }
    Some(folder)
}

fn largest(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| a.abs_diff(b)).max().unwrap_or(0)
}

#[test]
fn pictures_become_pillows_pixels() {
    let Some(folder) = golden() else { return };
    let bytes = fs::read(folder.join("golden.safetensors")).expect("a recording");
    let recording = SafeTensors::deserialize(&bytes).expect("safetensors");
    let json = fs::read_to_string(folder.join("preprocess.json")).expect("a description");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let mut compared = 0;
    for image in json["images"].as_array().expect("images") {
        let file = image["file"].as_str().expect("a file");
        let picture = Picture::open(&folder.join(file)).expect("a picture");
        let mut check = |name: String, pixels: Vec<u8>| {
            if let Ok(expected) = recording.tensor(&name) {
                assert_eq!(largest(&pixels, expected.data()), 0, "{name} differs");
                compared += 1;
            }
        };
        check(format!("{file}/decoded_rgb_u8"), picture.rgb());
        for (size, output) in image["outputs"].as_object().expect("outputs") {
            let mut transform = ImageTransform::clip(size.parse().expect("a size"));
            check(format!("{file}/{size}/u8"), transform.pixels(&picture));
            let tensor = transform.tensor(&picture);
            for (ours, theirs) in tensor.iter().zip(output["first_values"].as_array().expect("values")) {
                let theirs = theirs.as_f64().expect("a number") as f32;
                assert!((ours - theirs).abs() <= 1e-6, "{file}/{size}: {ours} {theirs}");
            }
            transform.order = ConvertOrder::RgbFirst;
            check(format!("{file}/{size}/u8_rgb_first"), transform.pixels(&picture));
        }
    }
    assert!(compared >= 29, "{compared} recorded tensors compared");
}

/// A PNG made here.
fn png(width: u32, height: u32, colour: png::ColorType, depth: png::BitDepth, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(data).expect("pixels");
    writer.finish().expect("an end");
    out
}

#[test]
fn a_plain_picture_stays_plain_at_any_size() {
    for (width, height) in [(1, 1), (3, 50), (64, 64), (200, 31)] {
        let data = [90, 130, 250].repeat(width as usize * height as usize);
        let bytes = png(width, height, png::ColorType::Rgb, png::BitDepth::Eight, &data);
        let picture = Picture::decode(&bytes).expect("a picture");
        for size in [1, 7, 64, 100] {
            let pixels = ImageTransform::clip(size).pixels(&picture);
            let expected: Vec<u8> = [90u8, 130, 250].into_iter().flat_map(|c| vec![c; size * size]).collect();
            assert!(pixels == expected, "{width}x{height} to {size}");
        }
    }
}

#[test]
fn a_picture_of_the_right_size_is_left_alone() {
    let data: Vec<u8> = (0..16 * 16 * 3).map(|i| (i * 7 % 251) as u8).collect();
    let bytes = png(16, 16, png::ColorType::Rgb, png::BitDepth::Eight, &data);
    let pixels = ImageTransform::clip(16).pixels(&Picture::decode(&bytes).expect("a picture"));
    for (i, &p) in pixels.iter().enumerate() {
        assert_eq!(p, data[(i % 256) * 3 + i / 256]);
    }
}

#[test]
fn sixteen_bit_grey_is_cut_off_at_255_as_pillow_cuts_it() {
    // Pillow 13: Image.open(...).resize((4, 4), BICUBIC) of arange(64) * 1000 has 4895 and 58105 in its corners.
    let data: Vec<u8> = (0..64u16).flat_map(|i| (i * 4).to_be_bytes()).collect();
    let bytes = png(8, 8, png::ColorType::Grayscale, png::BitDepth::Sixteen, &data);
    let picture = Picture::decode(&bytes).expect("a picture");
    assert_eq!(picture.rgb()[..9], [0, 0, 0, 4, 4, 4, 8, 8, 8]);
    let data: Vec<u8> = (0..64u16).flat_map(|i| (i * 1000).to_be_bytes()).collect();
    let bytes = png(8, 8, png::ColorType::Grayscale, png::BitDepth::Sixteen, &data);
    let pixels = ImageTransform::clip(4).pixels(&Picture::decode(&bytes).expect("a picture"));
    assert_eq!(pixels, [255; 48]);
}

#[test]
fn damaged_pictures_are_errors() {
    let data: Vec<u8> = (0..40 * 30 * 3).map(|i| (i * 13 % 256) as u8).collect();
    let mut files = vec![png(40, 30, png::ColorType::Rgb, png::BitDepth::Eight, &data)];
    for format in [image::ImageFormat::Jpeg, image::ImageFormat::Bmp, image::ImageFormat::Gif, image::ImageFormat::WebP]
    {
        let buffer = image::RgbImage::from_raw(40, 30, data.clone()).expect("pixels");
        let mut out = std::io::Cursor::new(Vec::new());
        buffer.write_to(&mut out, format).expect("an encoded picture");
        files.push(out.into_inner());
    }
    let transform = ImageTransform::clip(8);
    let mut state = 7u32;
    for whole in &files {
        assert_eq!(transform.pixels(&Picture::decode(whole).expect("a picture")).len(), 192);
        for length in (0..whole.len() / 2).step_by(11) {
            assert!(Picture::decode(&whole[..length]).is_err(), "{length} of {} bytes", whole.len());
        }
        for _ in 0..300 {
            let mut damaged = whole.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % damaged.len();
                damaged[at] = (state >> 24) as u8;
            }
            if let Ok(picture) = Picture::decode(&damaged) {
                assert_eq!(picture.rgb().len(), 3 * picture.width() as usize * picture.height() as usize);
            }
        }
    }
    assert!(Picture::decode(b"").is_err() && Picture::decode(b"no picture at all").is_err());
}

#[test]
fn a_picture_of_100_megapixels_is_refused_before_it_is_allocated() {
    // Only the header says so: 10000 x 10000 pixels in a file of a few bytes.
    let mut bytes = png(1, 1, png::ColorType::Rgb, png::BitDepth::Eight, &[0; 3]);
    bytes[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
    let mut crc = 0xffff_ffffu32;
    for &byte in &bytes[12..29] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
    let error = Picture::decode(&bytes).expect_err("an error").to_string();
    assert!(error.contains("100000000") && error.contains("89478485"), "{error}");
}
