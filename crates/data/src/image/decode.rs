//! Decoding to Pillow's modes.

use std::io::Cursor;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use mozjpeg::ColorSpace as Space;
use png::{BitDepth, ColorType, Transformations};

use super::{MAX_PIXELS, Picture, Pixels};
use crate::DataError;

fn wrong(what: impl std::fmt::Display) -> DataError {
    DataError::Image(what.to_string())
}

/// Fails for more pixels than the limit, before they are allocated.
fn check_size(width: u32, height: u32) -> Result<(), DataError> {
    let pixels = u64::from(width) * u64::from(height);
    match pixels {
        0 => Err(wrong("it has no pixel")),
        _ if pixels > MAX_PIXELS => Err(DataError::TooLarge { pixels, limit: MAX_PIXELS }),
        _ => Ok(()),
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Picture, DataError> {
    let format = image::guess_format(bytes).map_err(|_| wrong("it is neither PNG, JPEG, WebP, GIF nor BMP"))?;
    let decode = || match format {
        ImageFormat::Png => decode_png(bytes),
        ImageFormat::Jpeg => decode_jpeg(bytes),
        ImageFormat::WebP => decode_webp(bytes),
        ImageFormat::Gif => decode_gif(bytes),
        ImageFormat::Bmp => decode_bmp(bytes),
        other => Err(wrong(format!("{other:?} is not supported: PNG, JPEG, WebP, GIF and BMP are"))),
    };
    // A decoder's bug on a hostile file must not end the program.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err(wrong("it is damaged")))
}

fn decode_png(bytes: &[u8]) -> Result<Picture, DataError> {
    let mut decoder = png::Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::IDENTITY);
    let mut reader = decoder.read_info().map_err(wrong)?;
    let info = reader.info();
    let (width, height) = (info.width, info.height);
    check_size(width, height)?;
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
            coloured(&indices, &palette)
        }
    };
    Ok(Picture { width, height, pixels })
}

/// Decodes with libjpeg's arithmetic, which is Pillow's: pure Rust decoders differ from it by up to five levels.
fn decode_jpeg(bytes: &[u8]) -> Result<Picture, DataError> {
    if !is_whole(bytes) {
        return Err(wrong("it is truncated"));
    }
    let decoder = mozjpeg::Decompress::new_mem(bytes).map_err(wrong)?;
    let (width, height) = (decoder.width() as u32, decoder.height() as u32);
    check_size(width, height)?;
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

/// Whether a JPEG has its end. libjpeg would fill what is missing with grey.
fn is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    // Segments have their length behind their marker; thumbnails inside them have ends of their own.
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == 0xda {
            return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]);
        }
        at += if marker == 0xff { 1 } else { 2 + usize::from(high) * 256 + usize::from(low) };
    }
    false
}

fn decode_webp(bytes: &[u8]) -> Result<Picture, DataError> {
    let image = decode_rgb(bytes, ImageFormat::WebP)?;
    let (width, height) = (image.width(), image.height());
    let pixels = match image {
        DynamicImage::ImageRgba8(image) => Pixels::Rgba(image.into_raw()),
        image => Pixels::Rgb(image.into_rgb8().into_raw()),
    };
    Ok(Picture { width, height, pixels })
}

/// Decodes what crate `image` gives as Pillow does, but for the mode.
fn decode_rgb(bytes: &[u8], format: ImageFormat) -> Result<DynamicImage, DataError> {
    let reader = || ImageReader::with_format(Cursor::new(bytes), format);
    let (width, height) = reader().into_dimensions().map_err(wrong)?;
    check_size(width, height)?;
    let mut reader = reader();
    let mut limits = Limits::default();
    limits.max_alloc = Some(8 * MAX_PIXELS);
    reader.limits(limits);
    reader.decode().map_err(wrong)
}

/// The first frame.
fn decode_gif(bytes: &[u8]) -> Result<Picture, DataError> {
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::Indexed);
    options.set_memory_limit(gif::MemoryLimit::Bytes(NonZeroU64::new(MAX_PIXELS).expect("not zero")));
    let mut decoder = options.read_info(bytes).map_err(wrong)?;
    check_size(u32::from(decoder.width()), u32::from(decoder.height()))?;
    let screen = (usize::from(decoder.width()), usize::from(decoder.height()));
    let frame = decoder.read_next_frame().map_err(wrong)?.ok_or_else(|| wrong("it has no frame"))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (columns, rows) = (usize::from(frame.width), usize::from(frame.height));
    // Frames may be smaller than the screen, and larger.
    let (width, height) = (screen.0.max(left + columns), screen.1.max(top + rows));
    check_size(width as u32, height as u32)?;
    let mut indices = vec![frame.transparent.unwrap_or(0); width * height];
    if columns > 0 {
        for (y, row) in frame.buffer.chunks_exact(columns).enumerate() {
            indices[(top + y) * width + left..][..columns].copy_from_slice(row);
        }
    }
    let local = frame.palette.clone();
    let palette = local.or_else(|| decoder.global_palette().map(<[u8]>::to_vec)).unwrap_or_default();
    // A grey ramp is no palette to Pillow.
    let ramp = palette.chunks(3).enumerate().all(|(i, colour)| colour.iter().all(|&c| usize::from(c) == i));
    let pixels = if ramp { Pixels::Grey(indices) } else { coloured(&indices, &palette) };
    Ok(Picture { width: width as u32, height: height as u32, pixels })
}

/// What the indices stand for; black beyond the palette's end.
fn coloured(indices: &[u8], palette: &[u8]) -> Pixels {
    let mut colours = [[0; 3]; 256];
    for (colour, entry) in colours.iter_mut().zip(palette.chunks_exact(3)) {
        colour.copy_from_slice(entry);
    }
    Pixels::Palette(indices.iter().flat_map(|&index| colours[usize::from(index)]).collect())
}

fn decode_bmp(bytes: &[u8]) -> Result<Picture, DataError> {
    let image = decode_rgb(bytes, ImageFormat::Bmp)?;
    let (width, height) = (image.width(), image.height());
    let number = |at: usize| bytes.get(at..at + 4).map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let header = number(14) as usize;
    // OS/2's header is short and has no alignment.
    let (bits, entries, entry) =
        if header == 12 { (number(24) & 0xffff, 0, 3) } else { (number(28) & 0xffff, number(46), 4) };
    let pixels = match image {
        DynamicImage::ImageRgba8(image) => Pixels::Rgba(image.into_raw()),
        image if bits <= 8 => {
            let entries = if entries == 0 { 1 << bits } else { entries.min(256) as usize };
            let palette = bytes.get(14 + header..).unwrap_or_default().chunks_exact(entry).take(entries);
            let step = if entries == 2 { 255 } else { 1 };
            // A grey ramp is no palette to Pillow.
            let ramp = palette.enumerate().all(|(i, colour)| colour[..3].iter().all(|&c| usize::from(c) == i * step));
            let rgb = image.into_rgb8().into_raw();
            let grey = || rgb.iter().step_by(3).copied().collect();
            match (ramp, entries) {
                (true, 0..=2) => Pixels::Bilevel(grey()),
                (true, _) => Pixels::Grey(grey()),
                (false, _) => Pixels::Palette(rgb),
            }
        }
        image => {
            let mut rgb = image.into_rgb8().into_raw();
            if bits == 16 {
                // 5 or 6 bits a colour, which Pillow rounds down when it widens them.
                let six = number(30) == 3 && number(58) == 0x7e0;
                for pixel in rgb.chunks_exact_mut(3) {
                    for (channel, level) in pixel.iter_mut().enumerate() {
                        let most = if six && channel == 1 { 63 } else { 31 };
                        *level = ((u32::from(*level) * most + 127) / 255 * 255 / most) as u8;
                    }
                }
            }
            Pixels::Rgb(rgb)
        }
    };
    Ok(Picture { width, height, pixels })
}
