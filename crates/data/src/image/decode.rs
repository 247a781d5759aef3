//! Decoding to Pillow's modes.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use png::{BitDepth, ColorType, Transformations};

use super::{Picture, Pixels};
use crate::DataError;

pub(super) fn wrong(what: impl std::fmt::Display) -> DataError {
    DataError::Image(what.to_string())
}

/// Fails for more pixels than the limit, before they are allocated.
pub(super) fn check_size(width: u32, height: u32, limit: u64) -> Result<(), DataError> {
    let pixels = u64::from(width) * u64::from(height);
    match pixels {
        0 => Err(wrong("it has no pixel")),
        _ if pixels > limit => Err(DataError::TooLarge { pixels, limit }),
        _ => Ok(()),
    }
}

pub(super) fn decode(bytes: &[u8], limit: u64) -> Result<Picture, DataError> {
    let format = image::guess_format(bytes).map_err(|_| wrong("it is neither PNG, JPEG, WebP, GIF nor BMP"))?;
    let decode = || match format {
        ImageFormat::Png => decode_png(bytes, limit),
        #[cfg(not(target_arch = "wasm32"))]
        ImageFormat::Jpeg => super::jpeg::decode(bytes, limit),
        #[cfg(target_arch = "wasm32")]
        ImageFormat::Jpeg => Err(wrong("JPEG is left to the browser's decoder")),
        ImageFormat::Gif => decode_gif(bytes, limit),
        ImageFormat::Bmp => Ok(as_pillow_reads_bmp(bytes, decode_other(bytes, format, limit)?)),
        // The decoder takes what a truncated file has; libwebp does not.
        ImageFormat::WebP if riff_length(bytes) > bytes.len() as u64 => Err(wrong("it is truncated")),
        ImageFormat::WebP => decode_other(bytes, format, limit),
        other => Err(wrong(format!("{other:?} is not supported: PNG, JPEG, WebP, GIF and BMP are"))),
    };
    // A decoder's bug on a hostile file must not end the program. On wasm, where panics abort, it does.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(wrong("it is damaged")))
}

fn decode_png(bytes: &[u8], limit: u64) -> Result<Picture, DataError> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::IDENTITY);
    let header = decoder.read_header_info().map_err(wrong)?;
    let (width, height) = (header.width, header.height);
    check_size(width, height, limit)?;
    // Rows are allocated from here on; one may hold the whole picture, of 8 bytes a pixel.
    decoder.set_limits(png::Limits { bytes: usize::try_from(limit.saturating_mul(16)).unwrap_or(usize::MAX) });
    let mut reader = decoder.read_info().map_err(wrong)?;
    let info = reader.info();
    let (colour, depth) = (info.color_type, info.bit_depth);
    let palette = info.palette.as_ref().map(|palette| palette.to_vec());
    let size = reader.output_buffer_size().ok_or_else(|| wrong("its size is absurd"))?;
    let mut data = vec![0; size];
    let frame = reader.next_frame(&mut data).map_err(wrong)?;
    data.truncate(frame.buffer_size());

    let samples = colour.samples() * width as usize;
    // Rows of less than 8 bits a sample end on whole bytes.
    let unpacked = |bits: usize| -> Vec<u8> {
        let mask = (1u16 << bits) as u8 - 1;
        data.chunks_exact((samples * bits).div_ceil(8))
            .flat_map(|row| (0..samples).map(move |i| row[i * bits / 8] >> (8 - bits - i * bits % 8) & mask))
            .collect()
    };
    // Pillow keeps the high byte of 16-bit colours.
    let high = || data.chunks_exact(2).map(|sample| sample[0]).collect::<Vec<u8>>();
    let deep = depth == BitDepth::Sixteen;
    let pixels = match (colour, depth) {
        (ColorType::Grayscale, BitDepth::One) => {
            Pixels::Bilevel(unpacked(1).into_iter().map(|bit| bit * 255).collect())
        }
        (ColorType::Grayscale, BitDepth::Two) => Pixels::Grey(unpacked(2).into_iter().map(|l| l * 85).collect()),
        (ColorType::Grayscale, BitDepth::Four) => Pixels::Grey(unpacked(4).into_iter().map(|l| l * 17).collect()),
        (ColorType::Grayscale, BitDepth::Eight) => Pixels::Grey(data),
        (ColorType::Grayscale, BitDepth::Sixteen) => {
            Pixels::Grey16(data.chunks_exact(2).map(|b| u16::from_be_bytes([b[0], b[1]])).collect())
        }
        (ColorType::GrayscaleAlpha, _) => Pixels::GreyAlpha(if deep { high() } else { data }),
        (ColorType::Rgb, _) => Pixels::Rgb(if deep { high() } else { data }),
        (ColorType::Rgba, _) => Pixels::Rgba(if deep { high() } else { data }),
        (ColorType::Indexed, _) => {
            let palette = palette.ok_or_else(|| wrong("it has no palette"))?;
            let indices = if depth == BitDepth::Eight { data } else { unpacked(depth as usize) };
            Pixels::Palette(colours(&palette, &indices))
        }
    };
    Ok(Picture { width, height, pixels })
}

/// How long a RIFF file says that it is.
fn riff_length(bytes: &[u8]) -> u64 {
    bytes.get(4..8).map_or(u64::MAX, |b| 8 + u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
}

/// The first frame. Pillow has the mode `L` where the palette is 0, 1, 2, ... and `P` elsewhere; a canvas that the
/// frame does not fill shows the transparent colour or the first, and a frame that is larger widens it.
fn decode_gif(bytes: &[u8], limit: u64) -> Result<Picture, DataError> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.check_frame_consistency(false);
    let mut decoder = options.read_info(bytes).map_err(wrong)?;
    let global = decoder.global_palette().map(<[u8]>::to_vec);
    let canvas = (usize::from(decoder.width()), usize::from(decoder.height()));
    let frame = decoder.next_frame_info().map_err(wrong)?.ok_or_else(|| wrong("it has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    let (width, height) = (canvas.0.max(left + columns), canvas.1.max(top + rows));
    check_size(width as u32, height as u32, limit)?;
    let palette = frame.palette.clone().or(global).filter(|palette| !is_ramp(palette));
    let fill = frame.transparent.unwrap_or(0);
    let mut data = vec![0; columns * rows];
    decoder.read_into_buffer(&mut data).map_err(wrong)?;

    let mut indices = vec![fill; width * height];
    for (y, row) in data.chunks_exact(columns.max(1)).enumerate() {
        let at = (top + y) * width + left;
        indices[at..at + columns].copy_from_slice(row);
    }
    let pixels = match palette {
        Some(palette) => Pixels::Palette(colours(&palette, &indices)),
        None => Pixels::Grey(indices),
    };
    Ok(Picture { width: width as u32, height: height as u32, pixels })
}

/// Whether each colour of a palette is the grey of its own index.
fn is_ramp(palette: &[u8]) -> bool {
    palette.chunks_exact(3).enumerate().all(|(i, colour)| colour.iter().all(|&c| usize::from(c) == i))
}

/// The colours that indices stand for; black where the palette has none.
fn colours(palette: &[u8], indices: &[u8]) -> Vec<u8> {
    let colour = |i: usize| palette.get(3 * i..3 * i + 3).map_or([0; 3], |c| [c[0], c[1], c[2]]);
    let table: [[u8; 3]; 256] = std::array::from_fn(colour);
    indices.iter().flat_map(|&i| table[usize::from(i)]).collect()
}

/// What Pillow makes of a BMP whose colours are `picture`'s: the mode is that of the palette if there is one, and
/// 5 and 6 bits are scaled to 8 without rounding.
fn as_pillow_reads_bmp(bytes: &[u8], mut picture: Picture) -> Picture {
    let word = |at: usize| bytes.get(at..at + 2).map_or(0, |b| u32::from(u16::from_le_bytes([b[0], b[1]])));
    let long = |at: usize| word(at) | word(at + 2) << 16;
    let header = long(14);
    // IBM's first form has a short header and three bytes a colour.
    let (bits, entry, colours) = if header == 12 { (word(24), 3, 0) } else { (word(28), 4, long(46)) };
    let Pixels::Rgb(p) = &mut picture.pixels else { return picture };
    match bits {
        16 => {
            const BITFIELDS: u32 = 3;
            let green = if long(30) == BITFIELDS && long(58) == 0x7e0 { 63 } else { 31 };
            for pixel in p.chunks_exact_mut(3) {
                for (level, most) in pixel.iter_mut().zip([31, green, 31]) {
                    let stored = (u32::from(*level) * most + 127) / 255;
                    *level = (stored * 255 / most) as u8;
                }
            }
        }
        1 | 2 | 4 | 8 => {
            let colours = if colours == 0 { 1 << bits } else { colours as usize };
            let step = if colours == 2 { 255 } else { 1 };
            let grey = |i: usize| {
                let at = 14 + header as usize + i * entry;
                bytes.get(at..at + 3).is_some_and(|c| c.iter().all(|&c| usize::from(c) == i * step))
            };
            let is_grey = colours <= 256 && (0..colours).all(grey);
            let levels = || p.iter().step_by(3).copied().collect();
            picture.pixels = match is_grey {
                true if colours <= 2 => Pixels::Bilevel(levels()),
                true => Pixels::Grey(levels()),
                false => Pixels::Palette(std::mem::take(p)),
            };
        }
        _ => {}
    }
    picture
}

fn decode_other(bytes: &[u8], format: ImageFormat, limit: u64) -> Result<Picture, DataError> {
    let reader = || ImageReader::with_format(Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(wrong)?;
    check_size(width, height, limit)?;
    let mut reader = reader();
    let mut limits = Limits::default();
    limits.max_alloc = Some(limit.saturating_mul(8));
    reader.limits(limits);
    let image = reader.decode().map_err(wrong)?;
    let (width, height) = (image.width(), image.height());
    let pixels = match image {
        DynamicImage::ImageLuma8(image) => Pixels::Grey(image.into_raw()),
        DynamicImage::ImageLumaA8(image) => Pixels::GreyAlpha(image.into_raw()),
        DynamicImage::ImageRgba8(image) => Pixels::Rgba(image.into_raw()),
        image => Pixels::Rgb(image.into_rgb8().into_raw()),
    };
    Ok(Picture { width, height, pixels })
}
