//! Learning rates by step, as transformers' `get_*_schedule_with_warmup` give them.

use serde::{Deserialize, Serialize};

/// How the learning rate goes on after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    #[default]
    Constant,
    /// It falls to zero in a line.
    Linear,
    /// It falls to zero along half a cosine.
    Cosine,
}

impl Schedule {
    /// The factor of the learning rate at a step, counted from 0: it rises in a line over `warmup_steps`, so that the
    /// first step has none, and reaches its end after `total_steps`.
    pub fn factor(self, step: usize, warmup_steps: usize, total_steps: usize) -> f64 {
        if step < warmup_steps {
            return step as f64 / warmup_steps.max(1) as f64;
        }
        let left = total_steps.saturating_sub(step) as f64;
        let length = total_steps.saturating_sub(warmup_steps).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Linear => left / length,
            Self::Cosine => {
                let progress = (step - warmup_steps) as f64 / length;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn rates_rise_and_fall() {
        let factors = |schedule: Schedule| [0, 1, 2, 3, 6, 10, 11].map(|step| schedule.factor(step, 2, 10));
        assert_eq!(factors(Schedule::Constant), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(factors(Schedule::Linear), [0.0, 0.5, 1.0, 0.875, 0.5, 0.0, 0.0]);
        let cosine = factors(Schedule::Cosine);
        assert_eq!((cosine[2], cosine[5]), (1.0, 0.0));
        assert!((cosine[4] - 0.5).abs() < 1e-12);
        // No warm-up, no steps at all: numbers all the same.
        assert_eq!(Schedule::Constant.factor(0, 0, 0), 1.0);
        assert!(Schedule::Linear.factor(5, 0, 0).is_finite());
    }
}
