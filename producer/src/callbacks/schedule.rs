//! When a callback is tried again: the waits of Standard Webhooks, over more than a day, spread so
//! that receivers which were away together are not called together.

use std::time::Duration;

use stoker_schemas::Time;

/// Waits after the first, second, … failure: 27 hours in all.
const WAITS_S: [u64; 7] = [5, 5 * 60, 30 * 60, 2 * 3_600, 5 * 3_600, 10 * 3_600, 10 * 3_600];
/// Longest wait that a receiver may ask for.
const MAX_ASKED: Duration = Duration::from_secs(24 * 3_600);
/// Part of a wait that is added at most, in thousandths.
const JITTER_PER_MILLE: u64 = 200;

/// Tries of one callback.
pub const MAX_TRIES: u32 = WAITS_S.len() as u32 + 1;

/// When to try again after so many tries; none when that was the last. A receiver may ask for
/// more time, not for less: else it would use up its tries at once. `seed` spreads.
pub fn next(now: Time, tries: u32, asked: Option<Duration>, seed: u64) -> Option<Time> {
    let index = usize::try_from(tries.checked_sub(1)?).ok()?;
    let wait = Duration::from_secs(*WAITS_S.get(index)?);
    let spread = seed.rotate_left(tries) % (JITTER_PER_MILLE + 1);
    let ours = wait + wait * u32::try_from(spread).unwrap_or(0) / 1_000;
    Some(now.plus(ours.max(asked.unwrap_or_default().min(MAX_ASKED))))
}

/// `Retry-After`: seconds, or a date.
pub fn asked(header: &str, now: Time) -> Option<Duration> {
    if let Ok(seconds) = header.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let parser = jiff::fmt::rfc2822::DateTimeParser::new();
    let date = parser.parse_timestamp(header.trim()).ok()?;
    Some(Time::from_unix_micros(date.as_microsecond()).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::UNIX_EPOCH;

    fn seconds(tries: u32, asked: Option<u64>, seed: u64) -> Option<u64> {
        next(NOW, tries, asked.map(Duration::from_secs), seed).map(|at| at.since(NOW).as_secs())
    }

    #[test]
    fn waits_grow_over_more_than_a_day_and_end() {
        let waits: Vec<_> = (1..).map_while(|tries| seconds(tries, None, 0)).collect();
        assert_eq!(waits, WAITS_S);
        assert_eq!(waits.len() as u32 + 1, MAX_TRIES);
        assert!(waits.iter().sum::<u64>() > 24 * 3_600);
        let spread = (0..500).map(|seed| seconds(2, None, seed).unwrap());
        assert!(spread.clone().all(|s| (300..=360).contains(&s)));
        assert!(spread.max().unwrap() > 350);
    }

    #[test]
    fn a_receiver_may_ask_for_more_but_not_for_less() {
        assert_eq!(seconds(1, Some(90), 0), Some(90));
        assert_eq!(seconds(3, Some(1), 0), Some(1_800));
        assert_eq!(seconds(1, Some(u64::MAX), 0), Some(24 * 3_600));
        assert_eq!(asked("120", NOW), Some(Duration::from_secs(120)));
        assert_eq!(asked("Thu, 01 Jan 1970 00:02:00 GMT", NOW), Some(Duration::from_secs(120)));
        assert_eq!(asked("Wed, 31 Dec 1969 23:59:00 GMT", NOW), Some(Duration::ZERO));
        assert_eq!(asked("soon", NOW), None);
    }
}
