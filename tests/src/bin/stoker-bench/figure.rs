//! A measured figure, its target, and the statistics that make it of samples.

use serde::Serialize;

/// What a figure has to be.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Measured for the record.
    None,
}

impl Target {
    pub fn met_by(self, value: f64) -> Option<bool> {
        match self {
            Self::AtMost(limit) => Some(value <= limit),
            Self::AtLeast(limit) => Some(value >= limit),
            Self::None => None,
        }
    }
}

/// One line of the table.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    pub name: String,
    pub unit: &'static str,
    pub target: Target,
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What the value was made of, for people.
    pub detail: String,
}

/// Measured, or why not.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Value(f64),
    /// Something this figure needs is missing here.
    Skipped(String),
    /// It was tried and went wrong.
    Failed(String),
}

impl Figure {
    pub fn measured(name: impl Into<String>, unit: &'static str, target: Target, value: f64, detail: String) -> Self {
        Self { name: name.into(), unit, target, outcome: Outcome::Value(value), detail }
    }

    pub fn skipped(name: &str, reason: &str) -> Self {
        Self::without_value(name, Outcome::Skipped(reason.to_owned()))
    }

    pub fn failed(name: &str, error: &dyn std::error::Error) -> Self {
        Self::without_value(name, Outcome::Failed(error.to_string()))
    }

    fn without_value(name: &str, outcome: Outcome) -> Self {
        Self { name: name.to_owned(), unit: "", target: Target::None, outcome, detail: String::new() }
    }

    /// `None` where there is no target or no value.
    pub fn met(&self) -> Option<bool> {
        match self.outcome {
            Outcome::Value(value) => self.target.met_by(value),
            Outcome::Skipped(_) | Outcome::Failed(_) => None,
        }
    }
}

/// Samples in order of size.
#[derive(Debug, Clone, Default)]
pub struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(samples: I) -> Self {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        Self(sorted)
    }
}

impl Samples {
    /// The sample below which this part of all samples lies (nearest rank); NaN of none.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = (part * self.0.len() as f64).ceil().max(1.0) as usize;
        self.0.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    /// The middle one, or the mean of the two in the middle.
    pub fn median(&self) -> f64 {
        let count = self.0.len();
        match (self.0.get(count / 2), count % 2) {
            (Some(upper), 0) => f64::midpoint(self.0[count / 2 - 1], *upper),
            (Some(middle), _) => *middle,
            (None, _) => f64::NAN,
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Median and quartiles, for a detail column.
    pub fn summary(&self) -> String {
        format!("{:.2} ({:.2}-{:.2})", self.median(), self.quantile(0.25), self.quantile(0.75))
    }
}

/// How much y rises for each x, by least squares; NaN of fewer than two points.
pub fn slope(points: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let count = points.clone().count() as f64;
    let mean = |of: fn((f64, f64)) -> f64| points.clone().map(of).sum::<f64>() / count;
    let (middle, height) = (mean(|(x, _)| x), mean(|(_, y)| y));
    let rise: f64 = points.clone().map(|(x, y)| (x - middle) * (y - height)).sum();
    let run: f64 = points.map(|(x, _)| (x - middle).powi(2)).sum();
    rise / run
}
