//! Panels, one below the other, as an SVG.

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::panel::{Content, LARGEST, Panel};
use crate::{Curve, PlotError};

/// Width and height of a panel, in pixels.
const SIZE: (u32, u32) = (960, 360);

/// Colours that the colour-blind can tell apart (Okabe and Ito), dark enough for a white ground.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Draws panels one below the other on a white ground: the text of an SVG file, the same for the same panels.
///
/// # Errors
/// [`PlotError::Nothing`] without panels, [`PlotError::NoNumbers`] for one without a point.
pub fn draw(panels: &[Panel]) -> Result<String, PlotError> {
    if panels.is_empty() {
        return Err(PlotError::Nothing);
    }
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (SIZE.0, SIZE.1 * panels.len() as u32)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (area, panel) in root.split_evenly((panels.len(), 1)).iter().zip(panels) {
        match &panel.content {
            Content::Curves { curves, log } => draw_curves(area, panel, curves, *log)?,
            Content::Bars { start, width, counts } => draw_bars(area, panel, *start, *width, counts)?,
        }
    }
    root.present().map_err(failed)?;
    drop(root);
    Ok(svg)
}

fn failed(error: impl std::fmt::Display) -> PlotError {
    PlotError::Drawing(error.to_string())
}

fn draw_curves(area: &Area<'_>, panel: &Panel, curves: &[Curve], log: bool) -> Result<(), PlotError> {
    let pieces: Vec<_> = curves.iter().map(|curve| (curve, curve.pieces(log))).collect();
    let height = |y: f64| if log { y.log10() } else { y };
    let ends = |curve: &Curve| -> Vec<[(f64, f64); 2]> {
        let ends = curve.intervals.iter().map(|&(x, ends)| ends.map(|y| (x, height(y))));
        ends.filter(|ends| ends.iter().all(|(x, y)| x.abs() <= LARGEST && y.abs() <= LARGEST)).collect()
    };
    let intervals: Vec<_> = curves.iter().map(ends).collect();
    let points =
        || pieces.iter().flat_map(|(_, pieces)| pieces.iter().flatten()).chain(intervals.iter().flatten().flatten());
    let none = || PlotError::NoNumbers(panel.title.clone());
    let x = range(points().map(|point| point.0), 0.0).ok_or_else(none)?;
    let y = range(points().map(|point| point.1), 0.06).ok_or_else(none)?;
    let mut chart = axes(area, panel, x, y, log)?;
    for ((curve, pieces), intervals) in pieces.iter().zip(&intervals) {
        let colour = COLOURS[curve.colour % COLOURS.len()];
        let line = colour.mix(if curve.faint { 0.3 } else { 1.0 }).stroke_width(if curve.faint { 1 } else { 2 });
        let spread = colour.mix(0.45).stroke_width(1);
        chart.draw_series(intervals.iter().map(|ends| PathElement::new(ends.to_vec(), spread))).map_err(failed)?;
        if !intervals.is_empty() {
            let marks = pieces.iter().filter(|piece| piece.len() > 1).flatten();
            chart.draw_series(marks.map(|&point| Circle::new(point, 3, line.filled()))).map_err(failed)?;
        }
        let mut name = curve.name.as_ref();
        for piece in pieces {
            let drawn = if let [point] = piece[..] {
                chart.draw_series([Circle::new(point, 2, line.filled())]).map_err(failed)?
            } else {
                chart.draw_series([PathElement::new(piece.clone(), line)]).map_err(failed)?
            };
            if let Some(name) = name.take() {
                drawn.label(text(name)).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], line));
            }
        }
    }
    if curves.iter().any(|curve| curve.name.is_some()) {
        let mut legend = chart.configure_series_labels();
        // Where the curves do not end.
        let ends: Vec<f64> = pieces.iter().filter_map(|(_, pieces)| Some(pieces.last()?.last()?.1)).collect();
        let high = ends.iter().filter(|&&end| end > (y.0 + y.1) / 2.0).count() * 2 > ends.len();
        let corner = if high { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::UpperRight };
        legend.position(corner).background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.2));
        legend.label_font(("sans-serif", 13)).draw().map_err(failed)?;
    }
    Ok(())
}

fn draw_bars(area: &Area<'_>, panel: &Panel, start: f64, width: f64, counts: &[u64]) -> Result<(), PlotError> {
    let highest = counts.iter().copied().max().filter(|&count| count > 0);
    let highest = highest.ok_or_else(|| PlotError::NoNumbers(panel.title.clone()))? as f64;
    let edge = |i: usize| start + width * i as f64;
    let mut chart = axes(area, panel, (edge(0), edge(counts.len())), (0.0, highest * 1.06), false)?;
    let bar = |(i, &count): (usize, &u64)| {
        let mut bar = Rectangle::new([(edge(i), 0.0), (edge(i + 1), count as f64)], COLOURS[0].mix(0.7).filled());
        bar.set_margin(0, 0, 1, 1);
        bar
    };
    let bars = counts.iter().enumerate().filter(|(_, count)| **count > 0).map(bar);
    chart.draw_series(bars).map_err(failed)?;
    Ok(())
}

/// Title, axes and grid.
fn axes<'a, 'b>(
    area: &Area<'b>,
    panel: &Panel,
    x: (f64, f64),
    y: (f64, f64),
    log: bool,
) -> Result<Chart<'a, 'b>, PlotError>
where
    'b: 'a,
{
    let mut builder = ChartBuilder::on(area);
    builder.margin(10).margin_right(28).x_label_area_size(44).y_label_area_size(72);
    builder.caption(text(&panel.title), ("sans-serif", 17));
    let mut chart = builder.build_cartesian_2d(x.0..x.1, y.0..y.1).map_err(failed)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(text(&panel.x)).y_desc(text(&panel.y)).x_labels(9).y_labels(7);
    mesh.light_line_style(TRANSPARENT).bold_line_style(BLACK.mix(0.12)).label_style(("sans-serif", 13));
    let x_label = |&value: &f64| label(value, x);
    let y_label = |&value: &f64| if log { power(value) } else { label(value, y) };
    mesh.x_label_formatter(&x_label).y_label_formatter(&y_label);
    mesh.draw().map_err(failed)?;
    Ok(chart)
}

/// From the least to the greatest number, and a share of that beyond on both sides.
fn range(numbers: impl Iterator<Item = f64>, beyond: f64) -> Option<(f64, f64)> {
    let (low, high) = numbers.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), n| (low.min(n), high.max(n)));
    let span = high - low;
    // Numbers that are equal, or nearly, have a middle only.
    let pad = if span > low.abs().max(high.abs()) * 1e-9 { span * beyond } else { (low.abs() * 0.05).max(0.5) };
    (low <= high).then_some((low - pad, high + pad))
}

/// A number on an axis, with as many digits as tell neighbours apart.
fn label(value: f64, (low, high): (f64, f64)) -> String {
    let (span, largest) = (high - low, low.abs().max(high.abs()));
    if value.abs() < span * 1e-6 {
        return "0".to_string();
    }
    let digits = (1.0 - span.log10().floor()).max(0.0) as usize;
    if largest >= 1e6 || span < 1e-3 {
        let digits = (1.0 + (largest / span).log10().ceil()).clamp(1.0, 12.0) as usize;
        return format!("{value:.digits$e}");
    }
    format!("{value:.digits$}")
}

/// A number of which the logarithm is given, in two digits.
fn power(exponent: f64) -> String {
    let value = 10f64.powf(exponent);
    match exponent {
        -3.0..5.0 => format!("{value:.digits$}", digits = (1.0 - exponent.floor()).max(0.0) as usize),
        _ => format!("{value:.1e}"),
    }
}

/// A text without characters that XML does not know.
fn text(raw: &str) -> String {
    let known = |c: char| if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') { '\u{fffd}' } else { c };
    raw.chars().map(known).collect()
}
