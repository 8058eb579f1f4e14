//! Prometheus' text format: samples, and histograms.

use std::fmt::{Display, Write as _};
use std::time::Duration;

/// A page that grows.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a metric.
    pub fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.raw(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.raw(format_args!("{name}"));
        for (i, (label, value)) in labels.iter().enumerate() {
            let before = if i == 0 { '{' } else { ',' };
            let value = escaped(value);
            self.raw(format_args!("{before}{label}=\"{value}\""));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        self.raw(format_args!("{after} {value}\n"));
    }

    /// A metric with one sample.
    pub fn single(&mut self, name: &str, help: &str, kind: &str, value: impl Display) {
        self.head(name, help, kind);
        self.sample(name, &[], value);
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }

    fn raw(&mut self, what: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _written = self.0.write_fmt(what);
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Durations in buckets.
#[derive(Debug, Clone)]
pub struct Histogram {
    /// Upper bounds in seconds.
    bounds: &'static [f64],
    /// Not summed up.
    counts: Vec<u64>,
    total: u64,
    sum: Duration,
}

impl Histogram {
    /// Empty.
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: vec![0; bounds.len()],
            total: 0,
            sum: Duration::ZERO,
        }
    }

    /// Counts `n` values alike.
    pub fn observe(&mut self, value: Duration, n: u64) {
        let seconds = value.as_secs_f64();
        self.total += n;
        self.sum += value * u32::try_from(n).unwrap_or(u32::MAX);
        if let Some(bucket) = self.bounds.iter().position(|bound| seconds <= *bound) {
            self.counts[bucket] += n;
        }
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Writes the samples.
    pub fn render(&self, name: &str, labels: &[(&str, &str)], text: &mut Text) {
        let bucket = format!("{name}_bucket");
        let mut sum = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            sum += count;
            let bound = bound.to_string();
            text.sample(&bucket, &[labels, &[("le", &bound)]].concat(), sum);
        }
        text.sample(&bucket, &[labels, &[("le", "+Inf")]].concat(), self.total);
        text.sample(&format!("{name}_sum"), labels, self.sum.as_secs_f64());
        text.sample(&format!("{name}_count"), labels, self.total);
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn as_prometheus_reads_it() {
        let mut text = Text::default();
        text.single("a_total", "All.", "counter", 3);
        text.head("b", "Two.", "gauge");
        text.sample("b", &[("x", "1"), ("y", "q\"\\\n")], 0.5);
        let mut histogram = Histogram::new(&[0.001, 0.5, 60.0]);
        for (ms, n) in [(1, 1), (2, 2), (70_000, 1)] {
            histogram.observe(Duration::from_millis(ms), n);
        }
        text.head("h", "Times.", "histogram");
        histogram.render("h", &[("f", "IPv4")], &mut text);
        expect![[r#"
            # HELP a_total All.
            # TYPE a_total counter
            a_total 3
            # HELP b Two.
            # TYPE b gauge
            b{x="1",y="q\"\\\n"} 0.5
            # HELP h Times.
            # TYPE h histogram
            h_bucket{f="IPv4",le="0.001"} 1
            h_bucket{f="IPv4",le="0.5"} 3
            h_bucket{f="IPv4",le="60"} 3
            h_bucket{f="IPv4",le="+Inf"} 4
            h_sum{f="IPv4"} 70.005
            h_count{f="IPv4"} 4
        "#]]
        .assert_eq(&text.finish());
    }
}
