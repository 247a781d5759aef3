//! The colour of a drawing, from its pixels.

/// Names of colours.
pub(crate) const COLOURS: [&str; 11] =
    ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray"];

/// Share of the weight that the winner must have, and how many times that of the second.
const CLEAR: (f32, f32) = (0.45, 1.5);

/// The colour that most of a drawing has, if one clearly does. `rgba` is not premultiplied.
pub(crate) fn dominant(rgba: &[u8]) -> Option<&'static str> {
    let mut weights = [0.0f32; COLOURS.len()];
    for pixel in rgba.chunks_exact(4).filter(|pixel| pixel[3] > 127) {
        let name = name(pixel[0], pixel[1], pixel[2]);
        // Black and white are outlines and highlights more often than what a thing is.
        weights[name] += if name >= 8 { 0.5 } else { 1.0 };
    }
    let total: f32 = weights.iter().sum();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let (first, second) = (weights[order[0]], weights[order[1]]);
    (total > 0.0 && first >= CLEAR.0 * total && first >= CLEAR.1 * second).then_some(COLOURS[order[0]])
}

/// The place in [`COLOURS`] of a colour.
fn name(r: u8, g: u8, b: u8) -> usize {
    let (value, saturation) = value_and_saturation([r, g, b]);
    if value < 0.25 {
        return 8;
    }
    if saturation < 0.16 {
        return if value > 0.85 { 9 } else { 10 };
    }
    let hue = hue([r, g, b]).unwrap_or(0.0);
    match hue {
        h if (10.0..48.0).contains(&h) && value < 0.68 => 7,
        h if !(10.0..345.0).contains(&h) => {
            if value > 0.8 && saturation < 0.5 {
                6
            } else {
                0
            }
        }
        h if h < 40.0 => 1,
        h if h < 68.0 => 2,
        h if h < 168.0 => 3,
        h if h < 255.0 => 4,
        h if h < 295.0 => 5,
        _ => 6,
    }
}

fn value_and_saturation(rgb: [u8; 3]) -> (f32, f32) {
    let [r, g, b] = rgb.map(|x| f32::from(x) / 255.0);
    let (value, least) = (r.max(g).max(b), r.min(g).min(b));
    (value, if value > 0.0 { (value - least) / value } else { 0.0 })
}

/// Degrees from red towards yellow; grays have none.
pub(crate) fn hue(rgb: [u8; 3]) -> Option<f32> {
    let [r, g, b] = rgb.map(|x| f32::from(x) / 255.0);
    let value = r.max(g).max(b);
    let spread = value - r.min(g).min(b);
    (spread > 0.0).then(|| {
        if value == r {
            60.0 * ((g - b) / spread).rem_euclid(6.0)
        } else if value == g {
            60.0 * ((b - r) / spread + 2.0)
        } else {
            60.0 * ((r - g) / spread + 4.0)
        }
    })
}

/// A colour, RGB up to 255, turned around the axis of grays.
pub(crate) fn turned(rgb: [f32; 3], degrees: f32) -> [f32; 3] {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (third, root) = ((1.0 - cos) / 3.0, sin / 3.0f32.sqrt());
    let sum: f32 = rgb.iter().sum();
    let turned = |i: usize| cos * rgb[i] + third * sum + root * (rgb[(i + 2) % 3] - rgb[(i + 1) % 3]);
    [turned(0), turned(1), turned(2)].map(|x| x.clamp(0.0, 255.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hues_turn_and_grays_stay() {
        let near = |a: [f32; 3], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.1);
        assert!(near(turned([200.0, 20.0, 20.0], 120.0), [20.0, 200.0, 20.0]));
        assert!(near(turned([90.0; 3], 120.0), [90.0; 3]));
        assert_eq!([[200, 20, 20], [20, 200, 20], [20, 20, 200]].map(hue), [Some(0.0), Some(120.0), Some(240.0)]);
        assert_eq!(hue([90; 3]), None);
    }

    #[test]
    fn painted_squares_have_their_colours() {
        for (rgb, wanted) in [
            ([220, 30, 30], "red"),
            ([250, 150, 30], "orange"),
            ([250, 220, 50], "yellow"),
            ([60, 160, 60], "green"),
            ([40, 90, 220], "blue"),
            ([130, 60, 200], "purple"),
            ([250, 140, 180], "pink"),
            ([120, 70, 30], "brown"),
            ([20, 20, 20], "black"),
            ([250, 250, 250], "white"),
            ([140, 140, 140], "gray"),
        ] {
            let square: Vec<u8> = (0..64).flat_map(|_| [rgb[0], rgb[1], rgb[2], 255]).collect();
            assert_eq!(dominant(&square), Some(wanted), "{rgb:?}");
        }
        let half = [[220, 30, 30, 255], [40, 90, 220, 255]].repeat(8).concat();
        assert_eq!(dominant(&half), None);
        assert_eq!(dominant(&[220, 30, 30, 0]), None);
    }
}
