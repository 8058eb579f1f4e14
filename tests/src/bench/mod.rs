//! Benchmarks: figures with medians, beside the bare kernel operation measured in the same run.

pub mod cluster;
pub mod cni;
pub mod ebpf;
pub mod ipvs;
pub mod overlay;
pub mod proxy;

use std::time::Duration;

use serde_json::{Value, json};

/// One measured figure.
#[derive(Debug, Clone)]
pub struct Figure {
    /// Its name, such as `cni.add_ms`.
    pub figure: String,
    /// Number of samples, or of services where the figure depends on them.
    pub n: usize,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Unit of the values.
    pub unit: &'static str,
    /// Median of the bare kernel operation in the same run.
    pub floor_p50: Option<f64>,
    /// What to know when reading it.
    pub note: String,
}

impl Figure {
    /// A figure from samples.
    pub fn of(figure: &str, unit: &'static str, samples: &[f64], note: impl Into<String>) -> Self {
        let (p50, p99) = (percentile(samples, 50), percentile(samples, 99));
        let (figure, note) = (figure.to_owned(), note.into());
        Self {
            figure,
            n: samples.len(),
            p50,
            p99,
            unit,
            floor_p50: None,
            note,
        }
    }

    /// Beside the bare kernel operation.
    #[must_use]
    pub fn floor(mut self, samples: &[f64]) -> Self {
        self.floor_p50 = Some(percentile(samples, 50));
        self
    }

    /// With another `n` than the number of samples.
    #[must_use]
    pub fn size(mut self, n: usize) -> Self {
        self.n = n;
        self
    }

    /// As one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "figure": self.figure, "n": self.n, "p50": round(self.p50), "p99": round(self.p99),
            "unit": self.unit, "floor_p50": self.floor_p50.map(round), "note": self.note,
        })
    }

    /// As a line of a table.
    pub fn line(&self) -> String {
        let floor = self
            .floor_p50
            .map(|f| format!("{f:.3}"))
            .unwrap_or_default();
        format!(
            "{:<30} {:>6} {:>9.2} {:>9.2} {:<5} {:>9}  {}",
            self.figure, self.n, self.p50, self.p99, self.unit, floor, self.note
        )
    }

    /// The head of that table.
    pub fn head() -> String {
        format!(
            "{:<30} {:>6} {:>9} {:>9} {:<5} {:>9}  note",
            "figure", "n", "p50", "p99", "unit", "floor p50"
        )
    }
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Milliseconds, as figures have them.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Nearest-rank percentile; 0 for no samples.
fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(
            (percentile(&samples, 50), percentile(&samples, 99)),
            (3.0, 5.0)
        );
        assert_eq!(percentile(&[], 50), 0.0);
    }
}
