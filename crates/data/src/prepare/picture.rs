//! Picture files: whether they are usable, and how they are made smaller.

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::imageops::{FilterType, resize};
use image::{ImageFormat, RgbImage};

use super::Unusable;
use crate::{DataError, Picture};

/// Largest file that goes into a shard: no larger member is read from one.
const MAX_FILE: u64 = 1 << 28;

/// Longest side of a JPEG.
const MAX_SIDE: u32 = 65_500;

/// Quality of JPEGs that nobody sees a difference in.
pub(super) const HIGH_QUALITY: f32 = 95.0;

/// Quality of Pillow's JPEGs, and so of upstream's.
pub(super) const PILLOW_QUALITY: f32 = 75.0;

/// The content of a file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Unusable> {
    let kind = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => Unusable::Missing,
        _ => Unusable::Unreadable,
    };
    let about = std::fs::metadata(path).map_err(kind)?;
    match about.len() {
        // Devices and pipes have no end, or none that comes.
        _ if !about.is_file() => Err(Unusable::Unreadable),
        MAX_FILE.. => Err(Unusable::TooLarge),
        _ => std::fs::read(path).map_err(kind),
    }
}

/// Decodes a picture and says what format it has, whatever its name may be.
pub(crate) fn decode(bytes: &[u8]) -> Result<(ImageFormat, Picture), Unusable> {
    let format = image::guess_format(bytes).map_err(|_| Unusable::NoPicture)?;
    let picture = Picture::decode(bytes).map_err(|error| match (error, format) {
        (DataError::TooLarge { .. }, _) => Unusable::TooLarge,
        (_, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Gif | ImageFormat::Bmp) => {
            Unusable::Damaged(format)
        }
        _ => Unusable::Format(format),
    })?;
    Ok((format, picture))
}

/// The picture as a JPEG whose shorter side has `side` pixels; `None` if it has no more already.
pub(super) fn shrunk(picture: &Picture, side: u32) -> Result<Option<Vec<u8>>, Unusable> {
    let (width, height) = (picture.width(), picture.height());
    let short = width.min(height);
    if short <= side {
        return Ok(None);
    }
    let scaled = |length: u32| (f64::from(length) * f64::from(side) / f64::from(short)).round() as u32;
    let rgb = RgbImage::from_raw(width, height, picture.rgb()).ok_or(Unusable::TooLarge)?;
    let small = resize(&rgb, scaled(width), scaled(height), FilterType::CatmullRom);
    encode(small.as_raw(), small.width(), small.height(), HIGH_QUALITY).map(Some)
}

/// The picture as a JPEG.
pub(super) fn as_jpeg(picture: &Picture, quality: f32) -> Result<Vec<u8>, Unusable> {
    encode(&picture.rgb(), picture.width(), picture.height(), quality)
}

/// A small picture as a JPEG that is good enough for a page.
pub(crate) fn jpeg(picture: &Picture) -> Result<Vec<u8>, Unusable> {
    as_jpeg(picture, PILLOW_QUALITY)
}

fn encode(rgb: &[u8], width: u32, height: u32, quality: f32) -> Result<Vec<u8>, Unusable> {
    if width.max(height) > MAX_SIDE {
        return Err(Unusable::TooLarge);
    }
    // Errors of the C code unwind.
    let written = catch_unwind(AssertUnwindSafe(|| {
        let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
        encoder.set_fastest_defaults();
        encoder.set_size(width as usize, height as usize);
        encoder.set_quality(quality);
        let mut encoder = encoder.start_compress(Vec::new())?;
        encoder.write_scanlines(rgb)?;
        encoder.finish()
    }));
    written.ok().and_then(Result::ok).ok_or(Unusable::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_shrunk_and_never_grown() {
        let colours: Vec<u8> = (0..60u32 * 30).flat_map(|i| [(i % 60 * 4) as u8, (i / 60 * 8) as u8, 100]).collect();
        let (_, picture) = decode(&encode(&colours, 60, 30, 100.0).expect("a JPEG")).expect("a picture");
        assert_eq!(shrunk(&picture, 30), Ok(None));
        let bytes = shrunk(&picture, 10).expect("a JPEG").expect("smaller");
        let (format, small) = decode(&bytes).expect("a picture");
        assert_eq!((format, small.width(), small.height()), (ImageFormat::Jpeg, 20, 10));
        // The middle keeps its colour.
        let (at, small) = (3 * (5 * 20 + 10), small.rgb());
        for (channel, expected) in [122, 124, 100].into_iter().enumerate() {
            assert!(i32::from(small[at + channel]).abs_diff(expected) < 8, "{:?}", &small[at..at + 3]);
        }
        assert_eq!(encode(&[], 70_000, 1, 75.0), Err(Unusable::TooLarge));
    }
}
