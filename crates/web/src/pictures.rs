//! The pictures of a request.

use std::sync::Arc;

use flamingo_data::{DataError, Picture};

/// Pictures in the order of their places in a prompt.
#[derive(Clone, Debug, Default)]
pub struct Pictures(Vec<Arc<Picture>>);

impl Pictures {
    /// No picture.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a picture by its file. `false`, and nothing is added, for formats that are left to the browser: JPEG, and whatever else
    /// it may know; its pixels are then to be added by [`Pictures::add_pixels`].
    ///
    /// # Errors
    /// [`DataError::Image`] and [`DataError::TooLarge`] for an unusable file.
    pub fn add_file(&mut self, file: &[u8]) -> Result<bool, DataError> {
        let webp = file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP");
        let ours = webp || [&b"\x89PNG"[..], b"GIF8", b"BM"].iter().any(|magic| file.starts_with(magic));
        if ours {
            self.0.push(Arc::new(Picture::decode(file)?));
        }
        Ok(ours)
    }

    /// Adds a picture by what the browser made of its file: red, green, blue and opacity of each pixel.
    ///
    /// # Errors
    /// As [`Picture::from_rgba`].
    pub fn add_pixels(&mut self, width: u32, height: u32, levels: Vec<u8>) -> Result<(), DataError> {
        self.0.push(Arc::new(Picture::from_rgba(width, height, levels)?));
        Ok(())
    }

    pub(crate) fn into_vec(self) -> Vec<Arc<Picture>> {
        self.0
    }
}

/// A JPEG without what would have a browser turn it or change its colours (EXIF and colour profiles), which upstream ignores.
/// Anything else comes back as it is.
#[cfg_attr(not(any(target_arch = "wasm32", test)), expect(dead_code, reason = "only a browser decodes by itself"))]
pub(crate) fn as_stored(file: &[u8]) -> Vec<u8> {
    const START: [u8; 2] = [0xff, 0xd8];
    // JFIF says nothing of that kind, and Adobe's segment what the channels are.
    const KEPT: [u8; 2] = [0xe0, 0xee];
    if !file.starts_with(&START) {
        return file.to_vec();
    }
    let mut stored = START.to_vec();
    let mut at = START.len();
    while let Some(&[0xff, marker, high, low]) = file.get(at..at + 4) {
        // Any number of these bytes may fill up before a marker.
        if marker == 0xff {
            at += 1;
            continue;
        }
        let end = at + 2 + usize::from(high) * 256 + usize::from(low);
        let (Some(segment), 0xc0..=0xfe) = (file.get(at..end), marker) else { break };
        // The scan follows, which has no length.
        if marker == 0xda {
            break;
        }
        if !(0xe0..=0xef).contains(&marker) || KEPT.contains(&marker) {
            stored.extend_from_slice(segment);
        }
        at = end;
    }
    stored.extend_from_slice(&file[at..]);
    stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jpegs_lose_what_a_browser_would_act_on() {
        let start: &[u8] = &[0xff, 0xd8];
        let jfif: &[u8] = &[0xff, 0xe0, 0, 4, 1, 2];
        let exif: &[u8] = &[0xff, 0xe1, 0, 6, b'E', b'x', b'i', b'f'];
        let profile: &[u8] = &[0xff, 0xe2, 0, 3, 7];
        let table: &[u8] = &[0xff, 0xdb, 0, 3, 9];
        let scan: &[u8] = &[0xff, 0xda, 0, 2, 1, 0xff, 0xe1, 0, 6, 3, 0xff, 0xd9];
        let whole = [start, jfif, exif, profile, table, scan].concat();
        assert_eq!(as_stored(&whole), [start, jfif, table, scan].concat());
        let filled = [start, jfif, &[0xff, 0xff], exif, &[0xff], table, scan].concat();
        assert_eq!(as_stored(&filled), [start, jfif, table, scan].concat());
        for damaged in [&whole[..9], &whole[..3], b"no picture", b"\xff\xd8\xff\xe1\x00"] {
            assert!(as_stored(damaged).len() <= damaged.len());
        }
    }

    #[test]
    fn formats_are_told_by_their_content() {
        let mut pictures = Pictures::new();
        let png = include_bytes!("../../../tests/fixtures/emoji/crab.png");
        assert!(pictures.add_file(png).expect("a picture"));
        assert!(!pictures.add_file(b"\xff\xd8\xff\xe0").expect("left to the browser"));
        assert!(pictures.add_file(b"\x89PNG\r\n").is_err());
        pictures.add_pixels(1, 2, vec![255; 8]).expect("two pixels");
        assert!(pictures.add_pixels(1, 2, vec![255; 7]).is_err());
        assert_eq!(pictures.into_vec().len(), 2);
    }
}
