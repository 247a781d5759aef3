//! What a figure shows.

/// Numbers beyond are drawn as gaps: differences of larger ones would overflow.
pub(crate) const LARGEST: f64 = 1e100;

/// Points of a curve that are drawn, at least; more would not be seen, and would make large files.
const VISIBLE: usize = 2000;

/// One diagram of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What stands above it.
    pub title: String,
    /// What the horizontal axis counts.
    pub x: String,
    /// What the vertical axis counts.
    pub y: String,
    /// What it shows.
    pub content: Content,
}

/// What a diagram shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Curves over one axis.
    Curves {
        /// The curves, later ones over earlier ones.
        curves: Vec<Curve>,
        /// Whether the vertical axis is logarithmic; numbers that are not positive are gaps then.
        log: bool,
    },
    /// Bars of equal width, side by side.
    Bars {
        /// Where the first begins.
        start: f64,
        /// Width of each.
        width: f64,
        /// Their heights.
        counts: Vec<u64>,
    },
}

/// One curve.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// Its name in the legend; without one it has no line there.
    pub name: Option<String>,
    /// Which of the colours it has; they repeat.
    pub colour: usize,
    /// Drawn faintly, behind a smoothed one.
    pub faint: bool,
    /// Its points, from left to right. One that is no number is a gap.
    pub points: Vec<(f64, f64)>,
    /// Where a point's number lies with some confidence: its place, and the ends. Points of a curve with such are
    /// marked.
    pub intervals: Vec<(f64, [f64; 2])>,
}

impl Curve {
    /// Pieces without gaps, as they are drawn.
    pub(crate) fn pieces(&self, log: bool) -> Vec<Vec<(f64, f64)>> {
        let shown = |&(x, y): &(f64, f64)| {
            let y = if log { y.log10() } else { y };
            (x.abs() <= LARGEST && y.abs() <= LARGEST).then_some((x, y))
        };
        let shown: Vec<Option<(f64, f64)>> = self.points.iter().map(shown).collect();
        // Of each stretch of points the lowest and the highest.
        let stretch = (2 * self.points.len() / VISIBLE).max(1);
        let pieces = shown.split(Option::is_none).filter(|piece| !piece.is_empty());
        pieces.map(|piece| thinned(&piece.iter().flatten().copied().collect::<Vec<_>>(), stretch)).collect()
    }
}

/// The first and last point, and of every `stretch` the lowest and the highest.
fn thinned(points: &[(f64, f64)], stretch: usize) -> Vec<(f64, f64)> {
    if stretch <= 2 {
        return points.to_vec();
    }
    let mut kept = vec![0];
    for (i, part) in points.chunks(stretch).enumerate() {
        let at = |offset: usize| i * stretch + offset;
        let by_height = |a: &usize, b: &usize| part[*a].1.total_cmp(&part[*b].1);
        let lowest = (0..part.len()).min_by(by_height).map_or(0, at);
        let highest = (0..part.len()).max_by(by_height).map_or(0, at);
        kept.extend([lowest.min(highest), lowest.max(highest)]);
    }
    kept.push(points.len() - 1);
    kept.dedup();
    kept.into_iter().map(|i| points[i]).collect()
}

/// The exponential moving average of a curve, begun without a bias towards zero. Gaps stay where they are.
pub fn smoothed(points: &[(f64, f64)], weight: f64) -> Vec<(f64, f64)> {
    let (mut sum, mut total) = (0.0, 0.0);
    let smooth = |&(x, y): &(f64, f64)| {
        if !y.is_finite() {
            return (x, f64::NAN);
        }
        sum = weight * sum + (1.0 - weight) * y;
        total = weight * total + (1.0 - weight);
        (x, sum / total)
    };
    points.iter().map(smooth).collect()
}
