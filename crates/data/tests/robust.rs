//! Hostile and extreme pictures.

use std::io::Cursor;

use flamingo_data::{DataError, ImageTransform, Picture};
use image::ImageFormat;

/// A PNG of 8-bit colours.
fn png(width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(data).expect("pixels");
    writer.finish().expect("an end");
    out
}

/// The same 40x30 pixels in every format.
fn every_format() -> Vec<(ImageFormat, Vec<u8>)> {
    let data: Vec<u8> = (0..40 * 30 * 3).map(|i| (i * 13 % 256) as u8).collect();
    let formats = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Bmp, ImageFormat::Gif, ImageFormat::WebP];
    let encode = |format| {
        let buffer = image::RgbImage::from_raw(40, 30, data.clone()).expect("pixels");
        let mut out = Cursor::new(Vec::new());
        buffer.write_to(&mut out, format).expect("an encoded picture");
        (format, out.into_inner())
    };
    formats.map(encode).into()
}

#[test]
fn truncated_pictures_are_errors() {
    for (format, whole) in every_format() {
        assert_eq!(Picture::decode(&whole).expect("a picture").width(), 40);
        // The last bytes of some formats hold no pixels.
        for length in (0..whole.len() - 8).step_by(7) {
            let error = Picture::decode(&whole[..length]).expect_err("an error");
            assert!(matches!(error, DataError::Image(_)), "{format:?}, {length} bytes: {error}");
        }
    }
    assert!(matches!(Picture::decode(b"no picture at all"), Err(DataError::Image(_))));
}

#[test]
fn damaged_pictures_never_panic() {
    let transform = ImageTransform::clip(8);
    let mut state = 7u32;
    for (_, whole) in every_format() {
        for round in 0..400 {
            let mut damaged = whole.clone();
            for _ in 0..1 + round % 4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Every other time the headers.
                let reach = if round % 2 == 0 { damaged.len() } else { damaged.len().min(64) };
                let at = (state >> 8) as usize % reach;
                damaged[at] = (state >> 24) as u8;
            }
            if let Ok(picture) = Picture::decode(&damaged) {
                let pixels = u64::from(picture.width()) * u64::from(picture.height());
                assert_eq!(picture.rgb().len() as u64, 3 * pixels);
                assert_eq!(transform.pixels(&picture).len(), 192);
            }
        }
    }
}

/// Sets a PNG's size in its header, whose checksum is made anew.
fn claim(bytes: &mut [u8], width: u32, height: u32) {
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let mut crc = u32::MAX;
    for &byte in &bytes[12..29] {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    bytes[29..33].copy_from_slice(&(!crc).to_be_bytes());
}

#[test]
fn pictures_beyond_the_limit_are_refused_before_they_are_allocated() {
    // Only the header says so: the files have a few bytes.
    for (width, height) in [(10_000, 10_000), (89_478_486, 1), (0x7fff_ffff, 0x7fff_ffff)] {
        let mut bytes = png(1, 1, &[0; 3]);
        claim(&mut bytes, width, height);
        let error = Picture::decode(&bytes).expect_err("an error");
        let claimed = u64::from(width) * u64::from(height);
        assert!(matches!(error, DataError::TooLarge { pixels, limit: 89_478_485 } if pixels == claimed), "{error}");
    }
    let [mut jpeg, mut bmp, mut gif] = [1, 2, 3].map(|i| every_format()[i].1.clone());
    let frame = jpeg.windows(2).position(|pair| pair == [0xff, 0xc0]).expect("a frame header");
    jpeg[frame + 5..frame + 9].fill(0xfd);
    bmp[18..26].copy_from_slice(&[0x10, 0x27, 0, 0, 0x10, 0x27, 0, 0]);
    gif[6..10].fill(0xff);
    for bytes in [jpeg, bmp, gif] {
        let error = Picture::decode(&bytes).expect_err("an error");
        assert!(matches!(error, DataError::TooLarge { .. }), "{error}");
    }
    assert!(matches!(Picture::open("no/such/file.png".as_ref()), Err(DataError::Io { .. })));
}

#[test]
fn one_row_may_hold_the_whole_picture() {
    let width = 25_000_000;
    let picture = Picture::decode(&png(width, 1, &vec![7; 3 * width as usize])).expect("a picture");
    assert_eq!((picture.width(), picture.height()), (width, 1));
    assert!(ImageTransform::clip(8).pixels(&picture).iter().all(|&level| level == 7));
}
