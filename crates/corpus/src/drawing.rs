//! Drawings of concepts, and pictures of drawings.

use std::collections::BTreeMap;

use rayon::prelude::*;
use resvg::{tiny_skia, usvg};

use crate::concepts::{Concept, compact};
use crate::looks;
use crate::packages::Packages;
use crate::random::Random;
use crate::{CorpusError, colour};

/// Side of a drawing as it is kept, in pixels.
const SIDE: usize = 128;

/// Side of a picture, in pixels.
pub(crate) const PICTURE: usize = 64;

/// First variants of a drawing, which look as drawn.
const AS_DRAWN: usize = 8;

/// Variants of each further look.
const LOOK: usize = 4;

/// First variants of a drawing, whose colours are its own. Sequences that tell colours draw on these.
pub(crate) const OWN_COLOURS: usize = AS_DRAWN + LOOK;

/// Samples along each side of a pixel.
const SAMPLES: usize = 3;

/// Sets of SVG drawings by iconify's form: style, file.
const ICONIFY: [(&str, &str); 6] = [
    ("noto", "iconify-json-noto-1.2.9.tgz"),
    ("fluent-flat", "iconify-json-fluent-emoji-flat-1.2.6.tgz"),
    ("fluent", "iconify-json-fluent-emoji-1.2.7.tgz"),
    ("fxemoji", "iconify-json-fxemoji-1.2.2.tgz"),
    ("streamline", "iconify-json-streamline-emojis-1.2.4.tgz"),
    ("noto-v1", "iconify-json-noto-v1-1.2.5.tgz"),
];

/// The set of rendered drawings, by hexcode.
const RENDERED: (&str, &str) = ("fluent-3d", "lobehub-fluent-emoji-3d-1.1.0.tgz");

/// A concept in a style.
pub(crate) struct Drawing {
    pub(crate) style: &'static str,
    pub(crate) concept: usize,
    /// Its colour, where it clearly has one.
    pub(crate) colour: Option<&'static str>,
    /// `SIDE * SIDE` premultiplied pixels.
    pixels: Vec<[f32; 4]>,
    /// What it was drawn from, and its longer side there.
    svg: Option<(String, f32)>,
}

/// Every drawing of every concept that some style has, style by style.
pub(crate) fn read(packages: &Packages, concepts: &[Concept]) -> Result<Vec<Drawing>, CorpusError> {
    let mut by_spelling: BTreeMap<&str, usize> = BTreeMap::new();
    for (i, concept) in concepts.iter().enumerate() {
        for spelling in &concept.spellings {
            by_spelling.entry(spelling).or_insert(i);
        }
    }
    // Unicode's own name wins over another's shortcode.
    let labels: Vec<String> = concepts.iter().map(|concept| compact(&concept.name)).collect();
    for (i, label) in labels.iter().enumerate() {
        by_spelling.insert(label, i);
    }
    let mut drawings = Vec::new();
    for (style, file) in ICONIFY {
        let set = packages.npm_json(file, "package/icons.json")?;
        let mut svgs: Vec<(usize, String, f32)> = Vec::new();
        for (name, icon) in set["icons"].as_object().into_iter().flatten() {
            // Several drawings of one thing are numbered.
            let base = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
            let concept = by_spelling.get(compact(name).as_str()).or_else(|| by_spelling.get(compact(base).as_str()));
            let (Some(&concept), Some(body)) = (concept, icon["body"].as_str()) else { continue };
            let size = |key: &str| icon[key].as_f64().or(set[key].as_f64()).unwrap_or(16.0);
            let (width, height) = (size("width"), size("height"));
            svgs.push((concept, svg(body, width, height), width.max(height) as f32));
        }
        let rendered: Vec<Option<Drawing>> =
            svgs.into_par_iter().map(|(concept, svg, side)| Drawing::of_svg(style, concept, svg, side)).collect();
        drawings.extend(rendered.into_iter().flatten());
    }
    let (style, file) = RENDERED;
    let files = packages.npm(file, ".webp")?;
    let rendered: Vec<Option<Drawing>> = concepts
        .par_iter()
        .enumerate()
        .map(|(i, concept)| {
            let names = [concept.hexcode.clone(), format!("{}-fe0f", concept.hexcode)];
            let file = names.iter().find_map(|name| files.get(&format!("package/assets/{name}.webp")))?;
            let picture = image::load_from_memory(file).ok()?.to_rgba8();
            let side = SIDE as u32;
            let picture = image::imageops::resize(&picture, side, side, image::imageops::FilterType::Triangle);
            Some(Drawing::new(style, i, picture.into_raw()))
        })
        .collect();
    drawings.extend(rendered.into_iter().flatten());
    Ok(drawings)
}

fn svg(body: &str, width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
         viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\">{body}</svg>"
    )
}

/// Pixels of an SVG, not premultiplied; `None` if it cannot be drawn or shows nothing.
fn render(svg: &str) -> Option<Vec<u8>> {
    let tree = usvg::Tree::from_str(svg, &usvg::Options::default()).ok()?;
    let mut map = tiny_skia::Pixmap::new(SIDE as u32, SIDE as u32)?;
    let scale = SIDE as f32 / tree.size().width().max(tree.size().height());
    resvg::render(&tree, tiny_skia::Transform::from_scale(scale, scale), &mut map.as_mut());
    let pixels: Vec<u8> = map
        .pixels()
        .iter()
        .flat_map(|pixel| {
            let colour = pixel.demultiply();
            [colour.red(), colour.green(), colour.blue(), colour.alpha()]
        })
        .collect();
    pixels.chunks_exact(4).any(|pixel| pixel[3] > 0).then_some(pixels)
}

/// Where and how a drawing comes onto a canvas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Its centre, in pixels of the canvas.
    pub(crate) x: f32,
    pub(crate) y: f32,
    /// Its side, in pixels of the canvas.
    pub(crate) size: f32,
    /// Degrees.
    pub(crate) angle: f32,
    pub(crate) mirrored: bool,
    /// So many times wider, and narrower in the other direction.
    pub(crate) stretch: f32,
    /// Columns by which a row leans, per row.
    pub(crate) shear: f32,
}

impl Place {
    pub(crate) fn plain(x: f32, y: f32, size: f32) -> Self {
        Self { x, y, size, angle: 0.0, mirrored: false, stretch: 1.0, shear: 0.0 }
    }
}

impl Drawing {
    fn new(style: &'static str, concept: usize, rgba: Vec<u8>) -> Self {
        let premultiplied = |pixel: &[u8]| {
            let alpha = f32::from(pixel[3]) / 255.0;
            [f32::from(pixel[0]) * alpha, f32::from(pixel[1]) * alpha, f32::from(pixel[2]) * alpha, alpha]
        };
        let pixels = rgba.chunks_exact(4).map(premultiplied).collect();
        Self { style, concept, colour: colour::dominant(&rgba), pixels, svg: None }
    }

    /// A drawing of an SVG with its longer side; `None` if it cannot be drawn or shows nothing.
    pub(crate) fn of_svg(style: &'static str, concept: usize, svg: String, side: f32) -> Option<Self> {
        let drawing = Self::new(style, concept, render(&svg)?);
        Some(Self { svg: Some((svg, side)), ..drawing })
    }

    /// Draws onto a canvas.
    pub(crate) fn draw(&self, canvas: &mut Canvas, place: Place) {
        let Place { x, y, size, angle, mirrored, stretch, shear } = place;
        let (sin, cos) = angle.to_radians().sin_cos();
        let reach = (size * 0.85) as isize + 1;
        let scale = SIDE as f32 / size;
        let half = SIDE as f32 / 2.0;
        for row in (y as isize - reach).max(0)..(y as isize + reach).min(PICTURE as isize) {
            for column in (x as isize - reach).max(0)..(x as isize + reach).min(PICTURE as isize) {
                let mut sum = [0.0f32; 4];
                for sample in 0..SAMPLES * SAMPLES {
                    let step = |i: usize| (i as f32 + 0.5) / SAMPLES as f32;
                    let (dx, dy) =
                        (column as f32 + step(sample % SAMPLES) - x, row as f32 + step(sample / SAMPLES) - y);
                    let (u, v) = ((cos * dx + sin * dy) * scale, (cos * dy - sin * dx) * scale);
                    let (u, v) = ((u + shear * v) / stretch, v * stretch);
                    let u = if mirrored { -u } else { u };
                    let (u, v) = ((u + half).floor(), (v + half).floor());
                    if (0.0..SIDE as f32).contains(&u) && (0.0..SIDE as f32).contains(&v) {
                        let pixel = self.pixels[v as usize * SIDE + u as usize];
                        sum.iter_mut().zip(pixel).for_each(|(sum, x)| *sum += x);
                    }
                }
                let [r, g, b, alpha] = sum.map(|x| x / (SAMPLES * SAMPLES) as f32);
                let pixel = &mut canvas.0[row as usize * PICTURE + column as usize];
                *pixel = std::array::from_fn(|i| [r, g, b][i] + pixel[i] * (1.0 - alpha));
            }
        }
    }

    /// Whether a variant has other colours than the drawing: every second further look does, so that a tower learns
    /// shapes and not only that lemons are yellow. What colours define keeps them.
    pub(crate) fn is_recoloured(&self, variant: usize, concepts: &[Concept]) -> bool {
        let concept = &concepts[self.concept];
        let by_colour = |word: &str| word == "rainbow" || colour::COLOURS.contains(&word);
        let keeps = concept.category == "flag" || concept.name.split([' ', '-']).any(by_colour);
        variant >= AS_DRAWN && (variant - AS_DRAWN) / LOOK % 2 == 1 && !keeps
    }

    /// PNGs of the drawing. The first is plain; the others differ in size, place, angle, background and light, and those
    /// behind [`AS_DRAWN`] in their looks.
    pub(crate) fn variants(&self, seed: u64, number: usize, count: usize, concepts: &[Concept]) -> Vec<Vec<u8>> {
        let mut look = None;
        let mut variants = vec![self.plain()];
        for variant in 1..count {
            let recoloured = self.is_recoloured(variant, concepts);
            if variant >= AS_DRAWN && (variant - AS_DRAWN).is_multiple_of(LOOK) {
                let mut random = Random::new(seed, &format!("look {number} {variant}"));
                look = self.look(recoloured, &mut random);
            }
            let mut random = Random::new(seed, &format!("variant {number} {variant}"));
            let mut canvas = look.as_ref().unwrap_or(self).placed(concepts, &mut random);
            if recoloured && look.is_none() {
                canvas.turn_hues(random.within(50.0, 310.0));
            }
            canvas.light(&mut random);
            variants.push(canvas.png());
        }
        variants
    }

    /// A PNG of the drawing on white.
    pub(crate) fn plain(&self) -> Vec<u8> {
        let middle = PICTURE as f32 / 2.0;
        let mut canvas = Canvas::plain([255.0; 3]);
        self.draw(&mut canvas, Place::plain(middle, middle, PICTURE as f32 * 0.92));
        canvas.png()
    }

    /// The drawing in another look, if it was drawn from an SVG.
    fn look(&self, recoloured: bool, random: &mut Random) -> Option<Self> {
        let (svg, side) = self.svg.as_ref()?;
        let svg = looks::restyled(svg, *side, recoloured, random)?;
        Self::of_svg(self.style, self.concept, svg, *side)
    }

    /// The drawing somewhere on some background.
    fn placed(&self, concepts: &[Concept], random: &mut Random) -> Canvas {
        let middle = PICTURE as f32 / 2.0;
        let size = PICTURE as f32 * random.within(0.6, 1.05);
        let room = (PICTURE as f32 - size * 0.9).max(4.0) / 2.0;
        let (x, y) = (middle + random.within(-room, room), middle + random.within(-room, room));
        let turns = if random.chance(0.7) { random.within(-15.0, 15.0) } else { 0.0 };
        let concept = &concepts[self.concept];
        // What mirrors change would be another thing.
        let fixed = ["flag", "time", "other object", "hand fingers partial", "hand single finger"];
        let keeps = concept.category == "flag" || fixed.contains(&concept.kind.as_str());
        let mirrored = !keeps && random.chance(0.5);
        let mut canvas = background(random);
        let stretch = random.within(-0.16, 0.16).exp();
        let shear = random.within(-0.14, 0.14);
        self.draw(&mut canvas, Place { x, y, size, angle: turns, mirrored, stretch, shear });
        canvas
    }
}

/// A plain or graded background.
pub(crate) fn background(random: &mut Random) -> Canvas {
    let colour = |random: &mut Random| -> [f32; 3] {
        match random.below(10) {
            0..=3 => [255.0; 3],
            4..=6 => std::array::from_fn(|_| random.within(190.0, 255.0)),
            7 | 8 => std::array::from_fn(|_| random.within(0.0, 255.0)),
            _ => [random.within(10.0, 90.0); 3],
        }
    };
    let first = colour(random);
    if random.chance(0.75) {
        return Canvas::plain(first);
    }
    let second = colour(random);
    let mut canvas = Canvas::plain(first);
    for (i, pixel) in canvas.0.iter_mut().enumerate() {
        let share = (i / PICTURE) as f32 / PICTURE as f32;
        *pixel = std::array::from_fn(|c| first[c] + (second[c] - first[c]) * share);
    }
    canvas
}

/// A picture in the making: RGB up to 255.
pub(crate) struct Canvas(Vec<[f32; 3]>);

impl Canvas {
    pub(crate) fn plain(colour: [f32; 3]) -> Self {
        Self(vec![colour; PICTURE * PICTURE])
    }

    /// Turns all colours around the axis of grays.
    fn turn_hues(&mut self, degrees: f32) {
        for pixel in &mut self.0 {
            *pixel = colour::turned(*pixel, degrees);
        }
    }

    /// Changes brightness, contrast and saturation a little; hues stay.
    pub(crate) fn light(&mut self, random: &mut Random) {
        let (gain, offset) = (random.within(0.85, 1.12), random.within(-14.0, 14.0));
        let saturation = random.within(0.8, 1.2);
        for pixel in &mut self.0 {
            let gray = (pixel[0] + pixel[1] + pixel[2]) / 3.0;
            *pixel = pixel.map(|x| (gray + (x - gray) * saturation - 128.0) * gain + 128.0 + offset);
        }
        if random.chance(0.15) {
            self.blur();
        }
    }

    fn blur(&mut self) {
        let old = self.0.clone();
        let at = |row: usize, column: usize| old[row.min(PICTURE - 1) * PICTURE + column.min(PICTURE - 1)];
        for row in 0..PICTURE {
            for column in 0..PICTURE {
                let near = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)];
                let near = near.map(|(r, c)| at((row + r).saturating_sub(1), (column + c).saturating_sub(1)));
                self.0[row * PICTURE + column] =
                    std::array::from_fn(|i| near[0][i] * 0.4 + near[1..].iter().map(|p| p[i]).sum::<f32>() * 0.15);
            }
        }
    }

    pub(crate) fn png(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.0.iter().flatten().map(|x| x.round().clamp(0.0, 255.0) as u8).collect();
        let mut out = Vec::new();
        let mut encoder = png::Encoder::new(&mut out, PICTURE as u32, PICTURE as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_compression(png::Compression::Fast);
        // A Vec takes whatever is written to it.
        let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&bytes));
        debug_assert!(written.is_ok());
        out
    }
}
