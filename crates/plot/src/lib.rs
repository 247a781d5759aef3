//! Curves and histograms as SVG, and the metrics of training runs that they show. Knows no tensor library.

mod draw;
mod error;
mod panel;
mod run;

pub use draw::draw;
pub use error::PlotError;
pub use panel::{Content, Curve, Panel, smoothed};
pub use run::Run;
