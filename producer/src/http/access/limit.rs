//! How often one may ask: so that one script in a loop does not take the pages from everybody.
//! Generous; what a fleet really does stays far below.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Keys that had their rest are forgotten after so many questions: what is kept stays proportional
/// to who asked lately.
const FORGET_EVERY: u32 = 1_024;

const fn times(n: u32) -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(n.saturating_sub(1))
}

/// What is counted on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reading, per token: pages refresh themselves once a second, scripts poll.
    Read,
    /// Writing, per token: one request may carry a thousand jobs.
    Write,
    /// Anything without a token, per address: probes, webhooks, the login page.
    Stranger,
    /// A wrong token, per address.
    Failure,
}

/// Whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Token(String),
    Peer(IpAddr),
    Sender(String, IpAddr),
}

/// Seconds until it may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOften(pub u32);

/// Counts one kind.
struct Limit {
    limiter: DefaultKeyedRateLimiter<Key>,
    asked: AtomicU32,
}

impl Limit {
    fn new(quota: Quota) -> Self {
        Self { limiter: RateLimiter::keyed(quota), asked: AtomicU32::new(0) }
    }

    fn take(&self, key: &Key) -> Result<(), TooOften> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter.check_key(key).map_err(|until| {
            let wait = until.wait_time_from(DefaultClock::default().now());
            TooOften(u32::try_from(wait.as_secs()).unwrap_or(u32::MAX).saturating_add(1))
        })
    }
}

/// Counts all kinds.
pub struct Limits {
    reads: Limit,
    writes: Limit,
    strangers: Limit,
    failures: Limit,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            reads: Limit::new(Quota::per_second(times(100)).allow_burst(times(500))),
            writes: Limit::new(Quota::per_second(times(50)).allow_burst(times(200))),
            strangers: Limit::new(Quota::per_second(times(50)).allow_burst(times(200))),
            // Nobody guesses 256 bits; this keeps a misconfigured script from filling the log.
            failures: Limit::new(Quota::per_minute(times(10))),
        }
    }
}

impl Limits {
    fn of(&self, kind: Kind) -> &Limit {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
            Kind::Stranger => &self.strangers,
            Kind::Failure => &self.failures,
        }
    }

    /// Counts a request with a token.
    pub fn token(&self, kind: Kind, name: &str) -> Result<(), TooOften> {
        self.of(kind).take(&Key::Token(name.to_owned()))
    }

    /// Counts a request from an address. Behind a proxy that is the proxy's: a header that says
    /// otherwise could be written by anybody.
    pub fn peer(&self, kind: Kind, address: IpAddr) -> Result<(), TooOften> {
        self.of(kind).take(&Key::Peer(network_of(address)))
    }
}

/// Counts deliveries to webhook sources, which everybody may send. By source and by who sends: what
/// a forger uses up is not taken from the sender that a source is for, unless they share a proxy.
pub struct Deliveries(Limit);

impl Default for Deliveries {
    fn default() -> Self {
        // A push to many repositories at once sends some hundred.
        Self(Limit::new(Quota::per_second(times(20)).allow_burst(times(300))))
    }
}

impl Deliveries {
    /// Counts a delivery. A source's name is one of those set up, so there is no end of keys only by
    /// address, and those are forgotten.
    pub fn take(&self, source: &str, peer: IpAddr) -> Result<(), TooOften> {
        self.0.take(&Key::Sender(source.to_owned(), network_of(peer)))
    }
}

/// Of IPv6, everybody has 2^64 addresses: the network counts.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_few_and_counted_by_address() {
        let limits = Limits::default();
        let (one, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..10 {
            assert_eq!(limits.peer(Kind::Failure, one), Ok(()));
        }
        let TooOften(wait) = limits.peer(Kind::Failure, one).unwrap_err();
        assert!((1..=7).contains(&wait), "one every six seconds, {wait}");
        assert_eq!(limits.peer(Kind::Failure, other), Ok(()));
        assert_eq!(limits.peer(Kind::Stranger, one), Ok(()), "other kinds are counted on their own");
    }

    #[test]
    fn a_network_of_addresses_counts_as_one() {
        let at = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(at("2001:db8:0:1::1"), at("2001:db8:0:1:ffff::2"));
        assert_ne!(at("2001:db8:0:1::1"), at("2001:db8:0:2::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
    }

    #[test]
    fn who_had_his_rest_is_forgotten() {
        let limit = Limit::new(Quota::per_second(times(1_000_000_000)));
        for n in 0..FORGET_EVERY {
            limit.take(&Key::Token(n.to_string())).unwrap();
        }
        assert!(limit.limiter.len() <= 2, "{}", limit.limiter.len());
    }
}
