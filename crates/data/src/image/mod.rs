//! Pictures, to the last bit as upstream's image transform makes them.
//!
//! Upstream opens pictures with Pillow and transforms them with open_clip's evaluation transform: resize the
//! shorter side (bicubic, antialiased), crop the centre, convert to RGB, scale to 0..1, normalise. Pillow
//! resizes in the picture's own mode, so a [`Picture`] keeps it: a palette picture is resized by nearest
//! neighbour, transparency is premultiplied, CMYK stays CMYK. EXIF orientation is ignored, as upstream ignores
//! it. Grey of 16 bits is resized as by Pillow 13 (10 refuses to resize it, 11 and 12 wrap around at the extremes).

mod decode;
// C code, which no browser runs: there its own decoder makes pixels for [`Picture::from_rgba`].
#[cfg(not(target_arch = "wasm32"))]
mod jpeg;
mod resize;

use std::path::Path;

use crate::DataError;

/// Most pixels of a picture that [`Picture::decode`] reads: Pillow warns of "decompression bombs" beyond.
pub const MAX_PIXELS: u64 = 89_478_485;

/// Largest picture file, in bytes: the largest picture uncompressed, at four bytes a pixel, is a third of it.
const MAX_BYTES: u64 = 1 << 30;

/// A decoded picture in Pillow's mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Pixels,
}

/// Pixels, row by row.
#[derive(Clone, Debug, PartialEq)]
enum Pixels {
    /// `1`: black and white, 0 or 255.
    Bilevel(Vec<u8>),
    /// `L`.
    Grey(Vec<u8>),
    /// `I;16`.
    Grey16(Vec<u16>),
    /// `LA`.
    GreyAlpha(Vec<u8>),
    /// `P`, as the colours that the indices stand for: resizing repeats pixels and never mixes them.
    Palette(Vec<u8>),
    /// `RGB`.
    Rgb(Vec<u8>),
    /// `RGBA`.
    Rgba(Vec<u8>),
    /// `CMYK`.
    #[cfg_attr(target_arch = "wasm32", expect(dead_code, reason = "JPEGs alone have it"))]
    Cmyk(Vec<u8>),
}

/// When colours are converted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ConvertOrder {
    /// After the resize: open_clip's transform, which upstream evaluates with.
    #[default]
    ResizeFirst,
    /// Before it: upstream's training data.
    RgbFirst,
}

/// Upstream's image transform.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageTransform {
    /// Side of the square result.
    pub size: usize,
    /// Mean of each channel.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
    /// When colours are converted.
    pub order: ConvertOrder,
}

impl ImageTransform {
    /// OpenAI's CLIP normalisation.
    #[allow(clippy::excessive_precision, reason = "OpenAI's digits")]
    pub fn clip(size: usize) -> Self {
        Self {
            size,
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
            order: ConvertOrder::default(),
        }
    }

    /// The picture's pixels before normalisation, `[3, size, size]`.
    pub fn pixels(&self, picture: &Picture) -> Vec<u8> {
        let side = self.size as u32;
        let square = match self.order {
            ConvertOrder::RgbFirst if !matches!(picture.pixels, Pixels::Rgb(_)) => {
                resize::square(&Picture { pixels: Pixels::Rgb(picture.rgb()), ..*picture }, side)
            }
            _ => resize::square(picture, side),
        };
        let rgb = square.rgb();
        (0..3).flat_map(|channel| rgb.iter().skip(channel).step_by(3)).copied().collect()
    }

    /// The model's input, `[3, size, size]`.
    pub fn tensor(&self, picture: &Picture) -> Vec<f32> {
        let pixels = self.pixels(picture);
        let mut tensor = Vec::with_capacity(pixels.len());
        for (channel, plane) in pixels.chunks_exact(self.size * self.size).enumerate() {
            let levels: [f32; 256] =
                std::array::from_fn(|p| (p as f32 / 255.0 - self.mean[channel]) / self.std[channel]);
            tensor.extend(plane.iter().map(|&p| levels[usize::from(p)]));
        }
        tensor
    }
}

impl Picture {
    /// Opens a picture file.
    ///
    /// # Errors
    /// [`DataError::Io`], and as [`Picture::decode`].
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |source| DataError::Io { path: path.to_path_buf(), source };
        // Devices and pipes have no end, or none that comes.
        let size = std::fs::metadata(path).and_then(|about| match about.is_file() {
            true => Ok(about.len()),
            false => Err(std::io::Error::other("it is not a regular file")),
        });
        let size = size.map_err(failed)?;
        if size > MAX_BYTES {
            return Err(DataError::Image(format!("the file has {size} bytes, more than the limit of {MAX_BYTES}")));
        }
        Self::decode(&std::fs::read(path).map_err(failed)?)
    }

    /// Decodes PNG, JPEG, WebP, GIF (its first frame) or BMP.
    ///
    /// # Errors
    /// [`DataError::Image`] for anything else and for damaged files, [`DataError::TooLarge`] beyond
    /// [`MAX_PIXELS`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DataError> {
        Self::decode_within(bytes, MAX_PIXELS)
    }

    /// Decodes as [`Picture::decode`] does, with a limit of the caller's.
    ///
    /// # Errors
    /// [`DataError::TooLarge`] for more than `limit` pixels, known from the header and before anything is allocated;
    /// otherwise as [`Picture::decode`].
    pub fn decode_within(bytes: &[u8], limit: u64) -> Result<Self, DataError> {
        decode::decode(bytes, limit)
    }

    /// A picture of pixels that something else decoded, four levels each: red, green, blue and opacity. Where every pixel is
    /// opaque it is one without transparency.
    ///
    /// # Errors
    /// [`DataError::Image`] for another number of levels or none, [`DataError::TooLarge`] beyond [`MAX_PIXELS`].
    pub fn from_rgba(width: u32, height: u32, levels: Vec<u8>) -> Result<Self, DataError> {
        decode::check_size(width, height, MAX_PIXELS)?;
        if levels.len() as u64 != 4 * u64::from(width) * u64::from(height) {
            return Err(DataError::Image(format!("{} levels for {width} × {height} pixels", levels.len())));
        }
        let opaque = levels.chunks_exact(4).all(|pixel| pixel[3] == 255);
        let picture = Self { width, height, pixels: Pixels::Rgba(levels) };
        Ok(if opaque { Self { pixels: Pixels::Rgb(picture.rgb()), ..picture } } else { picture })
    }

    /// Width in pixels.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The middle square of the picture with so many pixels a side, what a model sees of it, as a JPEG.
    ///
    /// # Errors
    /// [`DataError::Image`] if it cannot be written: more than 65,500 pixels a side, or none.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn thumbnail(&self, side: u32) -> Result<Vec<u8>, DataError> {
        if side == 0 {
            return Err(DataError::Image("a thumbnail without pixels".into()));
        }
        crate::prepare::jpeg(&resize::square(self, side))
            .map_err(|_| DataError::Image(format!("a thumbnail of {side} pixels a side")))
    }

    /// Red, green and blue of each pixel, `[height, width, 3]`: Pillow's `convert("RGB")`, which forgets
    /// transparency and cuts 16-bit grey off at 255.
    pub fn rgb(&self) -> Vec<u8> {
        match &self.pixels {
            Pixels::Rgb(p) | Pixels::Palette(p) => p.clone(),
            Pixels::Bilevel(p) | Pixels::Grey(p) => p.iter().flat_map(|&l| [l; 3]).collect(),
            Pixels::Grey16(p) => p.iter().flat_map(|&l| [l.min(255) as u8; 3]).collect(),
            Pixels::GreyAlpha(p) => p.chunks_exact(2).flat_map(|la| [la[0]; 3]).collect(),
            Pixels::Rgba(p) => p.chunks_exact(4).flat_map(|p| [p[0], p[1], p[2]]).collect(),
            Pixels::Cmyk(p) => p
                .chunks_exact(4)
                .flat_map(|p| {
                    let light = 255 - p[3];
                    [p[0], p[1], p[2]].map(|ink| light.saturating_sub(resize::multiply(ink, light)))
                })
                .collect(),
        }
    }
}
