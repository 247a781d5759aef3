//! Figures hold what they are given, and files of metrics may be damaged.

use std::path::Path;

use flamingo_plot::{Content, Curve, Panel, PlotError, Run, draw, smoothed};
use roxmltree::{Document, Node};

fn curve(name: &str, points: Vec<(f64, f64)>) -> Curve {
    Curve { name: Some(name.into()), colour: 0, faint: false, points, intervals: Vec::new() }
}

fn curves(curves: Vec<Curve>, log: bool) -> Panel {
    Panel { title: "loss".into(), x: "step".into(), y: "loss".into(), content: Content::Curves { curves, log } }
}

/// The thick lines of a figure, as the number of points of each: curves, not axes; legends have two points.
fn lines(svg: &str) -> Vec<usize> {
    let document = Document::parse(svg).expect("an SVG");
    let thick = |node: &Node| node.has_tag_name("polyline") && node.attribute("stroke-width") == Some("2");
    let points = |node: Node| node.attribute("points").unwrap_or_default().split_whitespace().count();
    document.descendants().filter(thick).map(points).collect()
}

fn texts(svg: &str) -> Vec<String> {
    let document = Document::parse(svg).expect("an SVG");
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts.map(|node| node.text().unwrap_or_default().trim().to_string()).collect()
}

#[test]
fn curves_break_at_gaps_and_have_names() {
    let mut points: Vec<(f64, f64)> = (0..20).map(|i| (f64::from(i), 1.0 / f64::from(1 + i))).collect();
    points[7].1 = f64::NAN;
    points[15].1 = f64::INFINITY;
    let panel = curves(vec![curve("<a & \u{1b}b>", points), curve("second", vec![(3.0, 0.5)])], false);
    let svg = draw(std::slice::from_ref(&panel)).expect("a figure");
    assert_eq!(lines(&svg), [7, 7, 4, 2, 2], "three pieces and two lines of legend");
    let texts = texts(&svg);
    for text in ["<a & \u{fffd}b>", "second", "loss", "step"] {
        assert!(texts.iter().any(|found| found == text), "{text}: {texts:?}");
    }
    assert!(svg.contains("#FFFFFF"), "a ground");
    assert_eq!(svg, draw(&[panel]).expect("a figure"), "the same again");
}

#[test]
fn a_point_is_where_its_numbers_say() {
    let svg = draw(&[curves(vec![curve("a", vec![(0.0, 1.0), (1.0, 10.0), (2.0, 100.0)])], true)]).expect("a figure");
    let document = Document::parse(&svg).expect("an SVG");
    let thick = |node: &Node| node.has_tag_name("polyline") && node.attribute("stroke-width") == Some("2");
    let line = document.descendants().find(thick).and_then(|node| node.attribute("points")).expect("a curve");
    let at: Vec<(f64, f64)> = line
        .split_whitespace()
        .filter_map(|point| point.split_once(','))
        .map(|(x, y)| (x.parse().expect("a number"), y.parse().expect("a number")))
        .collect();
    assert!((at[0].0 + at[2].0 - 2.0 * at[1].0).abs() <= 2.0 && at[0].0 < at[1].0, "{at:?}");
    assert!(
        (at[0].1 + at[2].1 - 2.0 * at[1].1).abs() <= 2.0 && at[0].1 > at[1].1,
        "equal steps of a logarithm: {at:?}"
    );
}

#[test]
fn bars_are_as_high_as_their_counts() {
    let content = Content::Bars { start: 0.0, width: 0.02, counts: vec![0, 5, 10, 0, 1] };
    let svg = draw(&[Panel { title: "h".into(), x: "x".into(), y: "n".into(), content }]).expect("a figure");
    let document = Document::parse(&svg).expect("an SVG");
    let bars =
        document.descendants().filter(|node| node.has_tag_name("rect") && node.attribute("fill") == Some("#0072B2"));
    let heights: Vec<f64> = bars.filter_map(|bar| bar.attribute("height")?.parse().ok()).collect();
    assert_eq!(heights.len(), 3);
    assert!(
        (heights[1] / heights[0] - 2.0).abs() < 0.05 && (heights[1] / heights[2] - 10.0).abs() < 1.5,
        "{heights:?}"
    );
}

#[test]
fn any_numbers_can_be_drawn() {
    let special =
        [0.0, -0.0, 1.0, -1.0, 1e-300, 5e-324, 1e300, -1e300, f64::MAX, f64::NAN, f64::INFINITY, 1e16, 1.5e16];
    let mut state = 5u64;
    let mut draw_one = |count: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % count
    };
    for round in 0..400 {
        let length = 1 + draw_one(6);
        let points = (0..length).map(|i| (i as f64 * special[draw_one(8)], special[draw_one(special.len())])).collect();
        match draw(&[curves(vec![curve("a", points)], round % 2 == 0)]) {
            Ok(svg) => assert!(Document::parse(&svg).is_ok() && !svg.contains("NaN"), "{svg}"),
            Err(error) => assert!(matches!(error, PlotError::NoNumbers(_)), "{error}"),
        }
    }
    assert!(matches!(draw(&[]), Err(PlotError::Nothing)));
    let content = Content::Bars { start: 0.0, width: 1.0, counts: vec![] };
    let empty = Panel { title: "h".into(), x: String::new(), y: String::new(), content };
    assert!(matches!(draw(&[empty]), Err(PlotError::NoNumbers(_))));
}

#[test]
fn long_curves_are_thinned_and_keep_their_peaks() {
    let mut points: Vec<(f64, f64)> = (0..200_000).map(|i| (f64::from(i), f64::from(i % 7))).collect();
    points[123_457].1 = 1000.0;
    let svg = draw(&[curves(vec![curve("a", points.clone())], false)]).expect("a figure");
    let lines = lines(&svg);
    assert!((2000..2500).contains(&lines[0]), "{lines:?}");
    points[123_457].1 = 0.0;
    assert_ne!(svg, draw(&[curves(vec![curve("a", points)], false)]).expect("a figure"), "the peak is drawn");
}

#[test]
fn smoothing_averages_what_came_before() {
    let points = [(0.0, 4.0), (1.0, 8.0), (2.0, f64::NAN), (3.0, 8.0)];
    let found = smoothed(&points, 0.5);
    assert_eq!(found[0], (0.0, 4.0));
    assert!((found[1].1 - (0.5 * 8.0 + 0.25 * 4.0) / 0.75).abs() < 1e-12);
    assert!(found[2].1.is_nan());
    assert!((found[3].1 - (0.5 * 8.0 + 0.25 * 8.0 + 0.125 * 4.0) / 0.875).abs() < 1e-12);
    assert_eq!(smoothed(&points[..2], 0.0), points[..2]);
}

fn run(folder: &Path, metrics: &[u8]) -> Result<Run, PlotError> {
    std::fs::write(folder.join("metrics.jsonl"), metrics).expect("a file");
    Run::open(folder)
}

#[test]
fn damaged_lines_are_passed_over_and_later_ones_count() {
    let work = tempfile::tempdir().expect("a folder");
    let metrics = b"{\"step\": 1, \"loss\": 3.0}\n\xff\xfe garbage\n\n[1]\n{\"step\": -2, \"loss\": 1}\n{\"loss\": 9}\n\
        {\"step\": 2, \"loss\": NaN}\n{\"step\": 3, \"loss\": 5, \"lr\": 0.1, \"note\": \"x\"}\n{\"step\": 4, \"loss\": 6}\n\
        {\"step\": 3, \"loss\": 2}\n{\"step\": 5, \"lo";
    let read = run(work.path(), metrics).expect("a run");
    let points = read.points("step", "loss");
    assert_eq!(points.iter().map(|point| point.0).collect::<Vec<_>>(), [1.0, 2.0, 3.0], "step 4 was undone");
    assert!(points[1].1.is_nan());
    assert_eq!((points[0].1, points[2].1), (3.0, 2.0));
    assert_eq!(read.keys().into_iter().collect::<Vec<_>>(), ["loss", "lr", "step"]);
    assert_eq!(read.points("step", "lr"), [(3.0, 0.1)]);
    assert_eq!(read.name, work.path().file_name().expect("a name").to_string_lossy());
    let same = Run::open(&work.path().join("metrics.jsonl")).expect("a run");
    assert_eq!((same.name.as_str(), same.keys()), (read.name.as_str(), read.keys()));
}

#[test]
fn what_is_no_run_is_an_error() {
    let work = tempfile::tempdir().expect("a folder");
    assert!(matches!(Run::open(work.path()), Err(PlotError::Io { .. })));
    assert!(matches!(Run::open(Path::new("/dev/zero")), Err(PlotError::Io { .. })));
    assert!(matches!(run(work.path(), b""), Err(PlotError::NoMetrics(_))));
    assert!(matches!(run(work.path(), &[7; 3_000_000]), Err(PlotError::NoMetrics(_))));
}
