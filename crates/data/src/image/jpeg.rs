//! JPEG, by libjpeg.

use mozjpeg::ColorSpace as Space;

use super::decode::{check_size, wrong};
use super::{Picture, Pixels};
use crate::DataError;

/// Scans of a JPEG: progressive encoders write about ten, and no more than one for each bit of each coefficient.
const MAX_SCANS: usize = 500;

/// Decodes with libjpeg's arithmetic, which is Pillow's: pure Rust decoders differ from it by up to five levels.
pub(super) fn decode(bytes: &[u8], limit: u64) -> Result<Picture, DataError> {
    check(bytes)?;
    let decoder = mozjpeg::Decompress::new_mem(bytes).map_err(wrong)?;
    let (width, height) = (decoder.width() as u32, decoder.height() as u32);
    check_size(width, height, limit)?;
    let (space, channels) = match decoder.color_space() {
        Space::JCS_GRAYSCALE => (Space::JCS_GRAYSCALE, 1),
        Space::JCS_CMYK | Space::JCS_YCCK => (Space::JCS_CMYK, 4),
        _ => (Space::JCS_RGB, 3),
    };
    let mut started = decoder.to_colorspace(space).map_err(wrong)?;
    let mut data = vec![0; width as usize * height as usize * channels];
    started.read_scanlines_into::<u8>(&mut data).map_err(wrong)?;
    started.finish().map_err(wrong)?;
    let pixels = match channels {
        1 => Pixels::Grey(data),
        // Adobe's convention, which Pillow assumes of every CMYK file: ink is stored inverted.
        4 => Pixels::Cmyk(data.into_iter().map(|ink| 255 - ink).collect()),
        _ => Pixels::Rgb(data),
    };
    Ok(Picture { width, height, pixels })
}

/// Whether a JPEG has its end: libjpeg would fill what is missing with grey. Each scan of a progressive one goes over
/// all of its blocks, so a file of many empty scans would keep libjpeg busy for hours.
fn check(bytes: &[u8]) -> Result<(), DataError> {
    let mut at = 2;
    // Segments have their length behind their marker; thumbnails inside them have ends of their own.
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == 0xda {
            let markers = |marker: u8| bytes[at..].windows(2).filter(move |pair| *pair == [0xff, marker]);
            return match (markers(0xd9).next(), markers(0xda).nth(MAX_SCANS)) {
                (None, _) => Err(wrong("it is truncated")),
                (_, Some(_)) => Err(wrong(format!("it has more than {MAX_SCANS} scans"))),
                _ => Ok(()),
            };
        }
        at += if marker == 0xff { 1 } else { 2 + usize::from(high) * 256 + usize::from(low) };
    }
    Err(wrong("it is truncated"))
}
