//! Durations by size, in the buckets that Prometheus adds up over hosts and time.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Upper bounds of the buckets, microseconds; the last one is for whatever is longer. One scale for all, so that any two
/// can be compared: from a fast disk's flush to an hour in a queue.
pub const BOUNDS_US: [u64; 21] = [
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    300_000_000,
    600_000_000,
    3_600_000_000,
];

/// Durations by size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Kept")]
pub struct Histogram {
    /// In each bucket, and beyond the last bound; as long as it needs to be.
    counts: Vec<u64>,
    sum_us: u64,
}

/// As it was stored, perhaps by a version with other buckets: it then begins again, as after any restart of a counter.
#[derive(Deserialize)]
struct Kept {
    counts: Vec<u64>,
    sum_us: u64,
}

impl From<Kept> for Histogram {
    fn from(Kept { counts, sum_us }: Kept) -> Self {
        if counts.len() == BOUNDS_US.len() + 1 { Self { counts, sum_us } } else { Self::default() }
    }
}

impl Histogram {
    /// An empty one.
    pub const fn new() -> Self {
        Self { counts: Vec::new(), sum_us: 0 }
    }

    /// Counts one duration.
    pub fn add(&mut self, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.counts.resize(BOUNDS_US.len() + 1, 0);
        self.counts[BOUNDS_US.partition_point(|bound| *bound < took_us)] += 1;
        self.sum_us = self.sum_us.saturating_add(took_us);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together, seconds.
    pub fn sum_s(&self) -> f64 {
        Duration::from_micros(self.sum_us).as_secs_f64()
    }

    /// Each upper bound in seconds, as written, with how many took no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        let bounds = BOUNDS_US.iter().map(|bound| Duration::from_micros(*bound).as_secs_f64().to_string());
        bounds.chain(["+Inf".to_owned()]).enumerate().scan(0, |total, (place, bound)| {
            *total += self.counts.get(place).copied().unwrap_or(0);
            Some((bound, *total))
        })
    }
}

/// One that several threads count in.
#[derive(Debug)]
pub struct SharedHistogram(Mutex<Histogram>);

impl SharedHistogram {
    /// An empty one.
    pub const fn new() -> Self {
        Self(Mutex::new(Histogram::new()))
    }

    /// Counts one duration.
    pub fn add(&self, took: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).add(took);
    }

    /// As it is now.
    pub fn now(&self) -> Histogram {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Default for SharedHistogram {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_its_bucket_and_in_all_above() {
        let mut histogram = Histogram::default();
        let last = Duration::from_micros(BOUNDS_US[BOUNDS_US.len() - 1]);
        for took in [Duration::ZERO, Duration::from_micros(250), Duration::from_micros(251), last, last * 2] {
            histogram.add(took);
        }
        let cumulative: Vec<_> = histogram.cumulative().collect();
        assert_eq!(cumulative[0], ("0.00025".to_owned(), 2));
        assert_eq!(cumulative[1], ("0.0005".to_owned(), 3));
        assert_eq!(cumulative[BOUNDS_US.len() - 1], ("3600".to_owned(), 4));
        assert_eq!(cumulative[BOUNDS_US.len()], ("+Inf".to_owned(), 5));
        assert!(cumulative.is_sorted_by_key(|(_, n)| *n));
        assert_eq!((histogram.count(), histogram.sum_s()), (5, 10_800.000_501));
        histogram.add(Duration::MAX);
    }

    #[test]
    fn it_is_kept_and_begins_again_where_the_buckets_were_others() {
        let mut histogram = Histogram::default();
        histogram.add(Duration::from_secs(1));
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        let of_another = r#"{"counts":[1,2,3],"sum_us":7}"#;
        assert_eq!(serde_json::from_str::<Histogram>(of_another).unwrap(), Histogram::default());
        let empty = serde_json::to_string(&Histogram::default()).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&empty).unwrap(), Histogram::default());
    }
}
