//! Pictures of every kind against Pillow's recorded pixels.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use flamingo_data::{ConvertOrder, DataError, ImageTransform, Picture};
use safetensors::SafeTensors;
use serde_json::Value;

use recordings::recorded;

#[path = "../../../tests/recordings.rs"]
mod recordings;

fn largest(a: &[u8], b: &[u8]) -> u8 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(&a, &b)| a.abs_diff(b)).max().unwrap_or(0)
}

/// Mean and standard deviation, of `n - 1` as PyTorch has it.
fn statistics(values: &[f32]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let squares: f64 = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

#[test]
fn pictures_become_pillows_pixels() {
    let carried = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/golden/preprocess");
    let folder = recorded("preprocess").unwrap_or_else(carried);
    let bytes = fs::read(folder.join("golden.safetensors")).expect("a recording");
    let recording = SafeTensors::deserialize(&bytes).expect("safetensors");
    let json = fs::read_to_string(folder.join("preprocess.json")).expect("a description");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let mut compared = BTreeSet::new();
    for image in json["images"].as_array().expect("images") {
        let file = image["file"].as_str().expect("a file");
        let picture = Picture::open(&folder.join(file)).expect("a picture");
        let mut check = |name: String, pixels: Vec<u8>| {
            if let Ok(expected) = recording.tensor(&name) {
                assert_eq!(largest(&pixels, expected.data()), 0, "{name} differs");
                compared.insert(name);
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
            let (mean, std) = statistics(&tensor);
            for (ours, key) in [(mean, "mean"), (std, "std")] {
                let theirs = output[key].as_f64().expect("a number");
                assert!((ours - theirs).abs() <= 1e-6, "{key} of {file}/{size}: {ours} {theirs}");
            }
            transform.order = ConvertOrder::RgbFirst;
            check(format!("{file}/{size}/u8_rgb_first"), transform.pixels(&picture));
        }
    }
    let recorded: BTreeSet<String> = recording.names().into_iter().map(str::to_string).collect();
    assert_eq!(compared, recorded);
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

/// The same 40 x 30 pixels in every format.
fn samples() -> Vec<Vec<u8>> {
    let data: Vec<u8> = (0..40 * 30 * 3).map(|i| (i * 13 % 256) as u8).collect();
    let mut files = vec![png(40, 30, png::ColorType::Rgb, png::BitDepth::Eight, &data)];
    for format in [image::ImageFormat::Jpeg, image::ImageFormat::Bmp, image::ImageFormat::Gif, image::ImageFormat::WebP]
    {
        let buffer = image::RgbImage::from_raw(40, 30, data.clone()).expect("pixels");
        let mut out = std::io::Cursor::new(Vec::new());
        buffer.write_to(&mut out, format).expect("an encoded picture");
        files.push(out.into_inner());
    }
    files
}

#[test]
fn damaged_pictures_are_errors() {
    let files = samples();
    let transform = ImageTransform::clip(8);
    let mut state = 7u32;
    for whole in &files {
        assert_eq!(transform.pixels(&Picture::decode(whole).expect("a picture")).len(), 192);
        // The last bytes can be a mere end mark.
        for length in (0..whole.len() - 8).step_by(7).chain(whole.len().saturating_sub(200)..whole.len() - 8) {
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

#[test]
fn every_format_has_the_limit_of_the_caller() {
    for file in samples() {
        assert!(Picture::decode_within(&file, 1200).is_ok());
        let error = Picture::decode_within(&file, 1199).expect_err("an error");
        assert!(matches!(error, DataError::TooLarge { pixels: 1200, limit: 1199 }), "{error}");
    }
    // A frame may be larger than the canvas that the header gives.
    let gif = gif((1, 1), (30, 20), &[1; 600], &[0; 12], None);
    assert!(matches!(Picture::decode_within(&gif, 599), Err(DataError::TooLarge { pixels: 600, .. })));
}

#[test]
fn very_thin_pictures_need_no_memory_for_their_length() {
    // Resized as a whole they would have 30 and 27 gigabytes.
    for (width, height) in [(1, 200_000), (180_000, 1)] {
        let data = [90, 130, 250].repeat(width as usize * height as usize);
        let picture =
            Picture::decode(&png(width, height, png::ColorType::Rgb, png::BitDepth::Eight, &data)).expect("a picture");
        let pixels = ImageTransform::clip(224).pixels(&picture);
        assert!(pixels.len() == 3 * 224 * 224 && pixels.iter().all(|p| [90, 130, 250].contains(p)));
        let data = vec![0xff; (width as usize).div_ceil(8) * height as usize];
        let picture = Picture::decode(&png(width, height, png::ColorType::Grayscale, png::BitDepth::One, &data))
            .expect("a picture");
        assert_eq!(ImageTransform::clip(64).pixels(&picture), [255; 3 * 64 * 64]);
    }
}

#[test]
fn tall_pictures_are_resized_horizontally_first() {
    // Pillow 9.5 and 12.0; 13.0 begins with the vertical pass here and has 126, 155, 180, ...
    let data: Vec<u8> = (0..6 * 30u32).map(|i| (i * i * 7 % 251) as u8).collect();
    let bytes = png(6, 30, png::ColorType::Grayscale, png::BitDepth::Eight, &data);
    let pixels = ImageTransform::clip(4).pixels(&Picture::decode(&bytes).expect("a picture"));
    assert_eq!(pixels[..16], [125, 155, 181, 54, 163, 71, 130, 178, 169, 111, 83, 173, 67, 178, 129, 102]);
}

/// A GIF made here: its canvas, its frame at (2, 3) or, if that is larger, at (0, 0), and its palette.
fn gif(canvas: (u16, u16), frame: (u16, u16), indices: &[u8], palette: &[u8], transparent: Option<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = gif::Encoder::new(&mut out, canvas.0, canvas.1, palette).expect("a header");
    let inside = frame.0 < canvas.0;
    let mut frame = gif::Frame::from_indexed_pixels(frame.0, frame.1, indices.to_vec(), transparent);
    (frame.left, frame.top) = if inside { (2, 3) } else { (0, 0) };
    encoder.write_frame(&frame).expect("a frame");
    drop(encoder);
    out
}

#[test]
fn gif_canvases_are_pillows() {
    let palette = [10, 20, 30, 200, 0, 0, 0, 200, 0, 7, 8, 9];
    let pixel = |bytes: &[u8], x: usize, y: usize| {
        let picture = Picture::decode(bytes).expect("a picture");
        picture.rgb()[3 * (y * picture.width() as usize + x)..][..3].to_vec()
    };
    // Around the frame there is the first colour, or the transparent one.
    for (transparent, around) in [(None, [10, 20, 30]), (Some(3), [7, 8, 9])] {
        let bytes = gif((9, 8), (4, 2), &[1, 2, 1, 2, 1, 2, 1, 2], &palette, transparent);
        assert_eq!([pixel(&bytes, 1, 3), pixel(&bytes, 6, 4), pixel(&bytes, 8, 7)], [around; 3]);
        assert_eq!([pixel(&bytes, 2, 3), pixel(&bytes, 5, 4)], [[200, 0, 0], [0, 200, 0]]);
    }
    let picture = Picture::decode(&gif((1, 1), (2, 2), &[0, 1, 2, 3], &palette, None)).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (2, 2));
}

#[test]
fn grey_palettes_are_resized_as_grey_and_others_by_nearest_neighbour() {
    let indices: Vec<u8> = (0..64).map(|i| i * 3 % 64).collect();
    let ramp: Vec<u8> = (0..64).flat_map(|i| [i; 3]).collect();
    let turned: Vec<u8> = (0..64).flat_map(|i| [63 - i; 3]).collect();
    let grey = png(8, 8, png::ColorType::Grayscale, png::BitDepth::Eight, &indices);
    let transform = ImageTransform::clip(5);
    let pixels = |bytes: &[u8]| transform.pixels(&Picture::decode(bytes).expect("a picture"));
    assert_eq!(pixels(&gif((8, 8), (8, 8), &indices, &ramp, None)), pixels(&grey));
    let nearest = pixels(&gif((8, 8), (8, 8), &indices, &turned, None));
    // Sources of 5 samples from 8: 0.8, 2.4, 4, 5.6, 7.2.
    let places = [0, 2, 4, 5, 7];
    let expected: Vec<u8> = places.iter().flat_map(|y| places.map(|x| 63 - indices[y * 8 + x])).collect();
    assert_eq!(nearest[..25], expected);
    assert_eq!(pixels(&bmp(8, 8, 8, 0, &ramp, &indices)), pixels(&grey));
    assert_eq!(pixels(&bmp(8, 8, 8, 0, &turned, &indices)), nearest);
}

/// A BMP made here, its first row first.
fn bmp(width: u32, height: u32, bits: u16, compression: u32, palette: &[u8], rows: &[u8]) -> Vec<u8> {
    let colours: Vec<u8> = palette.chunks_exact(3).flat_map(|c| [c[2], c[1], c[0], 0]).collect();
    let masks: &[u8] = if compression == 3 { &[0, 0xf8, 0, 0, 0xe0, 7, 0, 0, 0x1f, 0, 0, 0] } else { &[] };
    let start = 54 + (masks.len() + colours.len()) as u32;
    let mut out = b"BM".to_vec();
    for word in [start + rows.len() as u32, 0, start, 40, width, height.wrapping_neg(), 1 | u32::from(bits) << 16] {
        out.extend(word.to_le_bytes());
    }
    for word in [compression, rows.len() as u32, 0, 0, colours.len() as u32 / 4, 0] {
        out.extend(word.to_le_bytes());
    }
    [out, masks.to_vec(), colours, rows.to_vec()].concat()
}

#[test]
fn bmps_of_16_bits_are_scaled_without_rounding() {
    let word = |value: u16| -> Vec<u8> { [value, value].iter().flat_map(|v| v.to_le_bytes()).collect() };
    let first = |compression: u32, value: u16| -> Vec<u8> {
        Picture::decode(&bmp(2, 1, 16, compression, &[], &word(value))).expect("a picture").rgb()[..3].to_vec()
    };
    for level in 0..32u16 {
        let scaled = (level * 255 / 31) as u8;
        assert_eq!(first(0, level << 10 | level << 5 | level), [scaled; 3]);
        assert_eq!(first(3, level << 11 | level), [scaled, 0, scaled]);
    }
    for level in 0..64u16 {
        assert_eq!(first(3, level << 5), [0, (level * 255 / 63) as u8, 0]);
    }
}

#[test]
fn a_jpeg_of_countless_scans_is_refused() {
    let photos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/photos");
    let jpeg = fs::read(photos.join("coffee.jpg")).expect("a photograph");
    let scan = jpeg.windows(2).position(|pair| pair == [0xff, 0xda]).expect("a scan");
    let mut hostile = jpeg[..scan].to_vec();
    for _ in 0..600 {
        hostile.extend([0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0]);
    }
    hostile.extend([0xff, 0xd9]);
    assert!(Picture::decode(&hostile).expect_err("an error").to_string().contains("scans"));
}

#[test]
fn what_is_no_file_is_not_read() {
    for path in ["/dev/zero", "."] {
        assert!(matches!(Picture::open(Path::new(path)), Err(DataError::Io { .. })), "{path}");
    }
}
