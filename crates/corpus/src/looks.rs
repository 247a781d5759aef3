//! Other looks of an SVG, as if somebody else had drawn the same thing. A tower that has seen a few styles only
//! takes their manners for the things; with many manners the shapes are what remains.

use std::collections::HashMap;
use std::str::FromStr;

use resvg::usvg::roxmltree::{Document, Node};

use crate::colour;
use crate::random::Random;

/// Elements that draw.
const SHAPES: [&str; 6] = ["path", "circle", "ellipse", "rect", "polygon", "polyline"];

/// Elements whose content is not drawn where it stands.
const ASIDE: [&str; 5] = ["defs", "clipPath", "mask", "pattern", "symbol"];

/// Attributes that hold colours.
const PAINTS: [&str; 3] = ["fill", "stroke", "stop-color"];

/// The same drawing with outlines, plain colours for gradients or fewer details, each by chance; with other colours, hue by
/// hue, if `recoloured`. `side` is its longer side in its own units. `None` if it is not XML.
pub(crate) fn restyled(svg: &str, side: f32, recoloured: bool, random: &mut Random) -> Option<String> {
    let document = Document::parse(svg).ok()?;
    let lines_only = recoloured && random.chance(0.15);
    let outlined = lines_only || random.chance(0.3);
    let plain = random.chance(0.5);
    let thinned = random.chance(0.5);
    let turn = random.within(70.0, 290.0);
    let turns: [f32; 6] = std::array::from_fn(|_| turn + random.within(-40.0, 40.0));

    let gradients = if plain { gradients(&document) } else { HashMap::new() };
    let mut edits = Vec::new();
    if outlined {
        let (ink, width) = (random.below(80), side * random.within(0.008, 0.025));
        let attributes =
            format!(" stroke=\"#{ink:02x}{ink:02x}{ink:02x}\" stroke-width=\"{width}\" stroke-linejoin=\"round\"");
        let start = document.root_element().range().start + "<svg".len();
        edits.push((start..start, attributes));
    }
    let mut drawn = 0;
    let mut dropped_to = 0;
    for node in document.descendants().filter(Node::is_element) {
        if node.range().start < dropped_to {
            continue;
        }
        let aside = node.ancestors().any(|a| ASIDE.contains(&a.tag_name().name()));
        if SHAPES.contains(&node.tag_name().name()) && !aside {
            drawn += 1;
            // What comes first is the body more often than not.
            if thinned && drawn > 2 && random.chance(0.12) {
                dropped_to = node.range().end;
                edits.push((node.range(), String::new()));
                continue;
            }
        }
        for attribute in node.attributes().filter(|a| PAINTS.contains(&a.name())) {
            let reference = attribute.value().strip_prefix("url(#").and_then(|value| value.strip_suffix(')'));
            let paint = reference.and_then(|id| gradients.get(id).copied()).unwrap_or(attribute.value());
            let rgb = svgtypes::Color::from_str(paint).ok().map(|colour| [colour.red, colour.green, colour.blue]);
            let paint = match rgb {
                Some(_) if lines_only && attribute.name() != "stroke" => "#ffffff".to_string(),
                Some(rgb) if recoloured => {
                    let turned = colour::hue(rgb).map_or(rgb, |hue| {
                        let turned = colour::turned(rgb.map(f32::from), turns[(hue / 60.0) as usize % 6]);
                        turned.map(|x| x.round() as u8)
                    });
                    format!("#{:02x}{:02x}{:02x}", turned[0], turned[1], turned[2])
                }
                _ => paint.to_string(),
            };
            edits.push((attribute.range(), format!("{}=\"{paint}\"", attribute.name())));
        }
    }
    let mut out = String::with_capacity(svg.len());
    let mut from = 0;
    for (range, text) in edits {
        out.push_str(svg.get(from..range.start)?);
        out.push_str(&text);
        from = range.end;
    }
    out.push_str(svg.get(from..)?);
    Some(out)
}

/// The middle colour of every gradient that is nowhere transparent.
fn gradients<'a>(document: &'a Document) -> HashMap<&'a str, &'a str> {
    let gradient = |node: Node<'a, 'a>| {
        let stops: Vec<Node> = node.children().filter(|child| child.has_tag_name("stop")).collect();
        let opaque = stops.iter().all(|stop| stop.attribute("stop-opacity").is_none());
        let middle = stops.get(stops.len() / 2)?.attribute("stop-color")?;
        opaque.then_some((node.attribute("id")?, middle))
    };
    document.descendants().filter_map(gradient).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SVG: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 16 16\">\
        <defs><linearGradient id=\"a\"><stop stop-color=\"#100000\"/><stop stop-color=\"#c02020\"/></linearGradient>\
        <linearGradient id=\"b\"><stop stop-color=\"#fff\"/><stop stop-color=\"#000\" stop-opacity=\"0\"/></linearGradient>\
        <clipPath id=\"c\"><path d=\"M0 0h9v9z\"/></clipPath></defs>\
        <path fill=\"url(#a)\" d=\"M0 0h9v9z\"/><path fill=\"#888\" d=\"M1 0h9v9z\"/>\
        <g clip-path=\"url(#c)\"><circle fill=\"url(#b)\" r=\"3\"/><path fill=\"none\" stroke=\"#20c020\" d=\"M2 0h9v9z\"/></g></svg>";

    #[test]
    fn looks_are_drawings_of_the_same_thing() {
        let mut seen = [0; 4];
        for seed in 0..200 {
            let natural = restyled(SVG, 16.0, false, &mut Random::new(seed, "look")).expect("an SVG");
            assert!(Document::parse(&natural).is_ok(), "{natural}");
            assert!(
                natural.contains("url(#b)") || !natural.contains("<circle"),
                "transparent gradients stay: {natural}"
            );
            assert!(natural.contains("d=\"M1 0h9v9z\"") && natural.contains("<clipPath id=\"c\"><path"), "{natural}");
            seen[0] += usize::from(natural.starts_with("<svg stroke="));
            seen[1] += usize::from(natural.contains("<path fill=\"#c02020\""));
            seen[2] += usize::from(!natural.contains("<circle") || !natural.contains("M2 0"));
            let other = restyled(SVG, 16.0, true, &mut Random::new(seed, "look")).expect("an SVG");
            assert!(
                Document::parse(&other).is_ok()
                    && !other.contains("fill=\"#c02020\"")
                    && !other.contains("stop-color=\"#c02020\""),
                "{other}"
            );
            assert!(other.contains("fill=\"#888888\"") || other.contains("fill=\"#ffffff\""), "grays stay: {other}");
            seen[3] += usize::from(other.contains("fill=\"#ffffff\""));
        }
        assert!(seen.iter().zip([40..80, 70..130, 10..50, 15..50]).all(|(n, range)| range.contains(n)), "{seen:?}");
    }
}
