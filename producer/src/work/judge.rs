//! Whether work flows: jobs wait, hosts have room, and yet nothing starts. Pure: the caller looks and says when.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A pool in which jobs wait, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolNow {
    /// Which.
    pub name: String,
    /// Jobs that any host may take now: neither put back with a reason, nor waiting for their time.
    pub waiting: u64,
    /// No attempt is to start.
    pub is_paused: bool,
    /// Hosts that take its jobs.
    pub hosts: u64,
    /// Those of them that have room for one.
    pub with_room: u64,
    /// Jobs of it that hosts have taken, or put back with a reason, until now.
    pub answered: u64,
}

/// What keeps a pool's jobs waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Hosts have room, and nothing starts.
    NothingStarts,
    /// No host takes its jobs.
    NoHost,
}

/// A pool whose jobs wait for no good reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// Which.
    pub pool: String,
    /// Why.
    pub why: Why,
    /// Jobs that wait.
    pub waiting: u64,
    /// Hosts that have room.
    pub with_room: u64,
    /// For how long that has been so.
    pub lasts: Duration,
}

/// How the work is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Work {
    /// Whether that is known: the rows are current, and the broker is there.
    pub is_known: bool,
    /// Pools whose jobs wait for no good reason, by name.
    pub blocked: Vec<Blocked>,
}

/// What was so, unchanged, since when.
#[derive(Debug, Clone, Copy)]
struct Since {
    why: Why,
    answered: u64,
    at: Instant,
}

/// Compares what is seen now with what was seen before.
#[derive(Debug)]
pub struct Watch {
    after: Duration,
    since: BTreeMap<String, Since>,
}

impl PoolNow {
    /// What keeps its jobs waiting now; none where that is as it should be.
    fn why(&self) -> Option<Why> {
        match self {
            Self { waiting: 0, .. } | Self { is_paused: true, .. } => None,
            Self { hosts: 0, .. } => Some(Why::NoHost),
            // All hosts are full.
            Self { with_room: 0, .. } => None,
            _ => Some(Why::NothingStarts),
        }
    }
}

impl Watch {
    /// Calls a pool blocked when that has lasted so long.
    pub fn new(after: Duration) -> Self {
        Self { after, since: BTreeMap::new() }
    }

    /// Takes in how it is now. How long something lasts is measured from the first look that saw it, by this
    /// process's own clock.
    pub fn look(&mut self, now: Instant, pools: &[PoolNow]) -> Work {
        let mut since = BTreeMap::new();
        let mut blocked = Vec::new();
        for pool in pools {
            let Some(why) = pool.why() else { continue };
            let before = self.since.get(&pool.name);
            let before = before.filter(|before| (before.why, before.answered) == (why, pool.answered));
            let at = before.map_or(now, |before| before.at);
            since.insert(pool.name.clone(), Since { why, answered: pool.answered, at });
            let lasts = now.saturating_duration_since(at);
            if lasts >= self.after {
                let PoolNow { name, waiting, with_room, .. } = pool.clone();
                blocked.push(Blocked { pool: name, why, waiting, with_room, lasts });
            }
        }
        self.since = since;
        blocked.sort_by(|a, b| a.pool.cmp(&b.pool));
        Work { is_known: true, blocked }
    }

    /// Nothing can be seen now: what was seen before says nothing of what comes after.
    pub fn forget(&mut self) -> Work {
        self.since.clear();
        Work::default()
    }
}

impl Work {
    /// Pools that wait for this reason.
    pub fn blocked_by(&self, why: Why) -> impl Iterator<Item = &Blocked> {
        self.blocked.iter().filter(move |blocked| blocked.why == why)
    }
}

fn counted(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

impl Blocked {
    /// In a sentence; without the pool's name for readers whom it does not concern.
    pub fn sentence(&self, is_named: bool) -> String {
        let wait = if self.waiting == 1 { "1 job waits".to_owned() } else { format!("{} jobs wait", self.waiting) };
        let pool = if is_named { format!("pool {}", self.pool) } else { "a pool".to_owned() };
        let lasts = self.lasts.as_secs();
        match self.why {
            Why::NothingStarts => {
                let hosts = counted(self.with_room, "host has", "hosts have");
                format!("{wait} in {pool}, {hosts} room, and nothing has started for {lasts} s")
            }
            Why::NoHost => format!("no host serves {pool}, and {wait} in it for {lasts} s"),
        }
    }

    /// What to do about it.
    pub const fn remedy(&self) -> &'static str {
        match self.why {
            Why::NothingStarts => {
                "look at the logs of its workers; restart one (its VMs stay), drain a host that is gone"
            }
            Why::NoHost => "start a worker that serves the pool, or cancel its jobs",
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    fn pool(waiting: u64, hosts: u64, with_room: u64, answered: u64) -> PoolNow {
        PoolNow { name: "default".to_owned(), waiting, is_paused: false, hosts, with_room, answered }
    }

    /// What is found after each of these looks: seconds and what is seen.
    fn looks(looks: &[(u64, PoolNow)]) -> Vec<Option<Why>> {
        let (start, mut watch) = (Instant::now(), Watch::new(AFTER));
        let look = |(second, pool): &(u64, PoolNow)| {
            let work = watch.look(start + Duration::from_secs(*second), std::slice::from_ref(pool));
            assert!(work.is_known);
            work.blocked.first().map(|blocked| blocked.why)
        };
        looks.iter().map(look).collect()
    }

    #[test]
    fn given_waiting_jobs_and_room_when_nothing_starts_for_so_long_then_the_work_is_stalled() {
        let seen = looks(&[(0, pool(12, 3, 3, 7)), (59, pool(12, 3, 3, 7)), (60, pool(12, 3, 3, 7))]);
        assert_eq!(seen, [None, None, Some(Why::NothingStarts)]);
    }

    #[test]
    fn given_a_stall_when_a_host_answers_then_the_wait_begins_again() {
        let seen = looks(&[
            (0, pool(12, 3, 3, 7)),
            (70, pool(12, 3, 3, 7)),
            (71, pool(12, 3, 3, 8)),
            (130, pool(12, 3, 3, 8)),
            (131, pool(12, 3, 3, 8)),
        ]);
        assert_eq!(seen, [None, Some(Why::NothingStarts), None, None, Some(Why::NothingStarts)]);
    }

    #[test]
    fn given_full_hosts_when_jobs_wait_for_hours_then_that_is_no_failure_and_room_begins_the_wait() {
        let seen = looks(&[
            (0, pool(500, 3, 0, 7)),
            (7_200, pool(500, 3, 0, 7)),
            (7_201, pool(500, 3, 1, 7)),
            (7_261, pool(500, 3, 1, 7)),
        ]);
        assert_eq!(seen, [None, None, None, Some(Why::NothingStarts)]);
    }

    #[test]
    fn given_no_host_when_jobs_wait_then_that_has_its_own_name_and_a_restarting_worker_has_none() {
        let seen = looks(&[(0, pool(1, 0, 0, 0)), (60, pool(1, 0, 0, 0)), (61, pool(1, 1, 1, 0))]);
        assert_eq!(seen, [None, Some(Why::NoHost), None]);
        let restarting = looks(&[(0, pool(1, 0, 0, 0)), (20, pool(1, 1, 1, 0)), (70, pool(0, 1, 1, 1))]);
        assert_eq!(restarting, [None; 3]);
    }

    #[test]
    fn given_rows_that_are_not_current_when_they_are_again_then_the_wait_begins_again() {
        let (start, mut watch) = (Instant::now(), Watch::new(AFTER));
        let stuck = [pool(1, 1, 1, 0)];
        watch.look(start, &stuck);
        assert_eq!(watch.forget(), Work::default());
        assert_eq!(watch.look(start + AFTER, &stuck).blocked, []);
        assert_eq!(watch.look(start + AFTER * 2, &stuck).blocked.len(), 1);
    }

    #[test]
    fn the_sentence_has_the_numbers_and_names_the_pool_to_those_whom_it_concerns() {
        let lasts = Duration::from_secs(94);
        let mut blocked = Blocked { pool: "gpu".to_owned(), why: Why::NothingStarts, waiting: 12, with_room: 3, lasts };
        let wanted = "12 jobs wait in pool gpu, 3 hosts have room, and nothing has started for 94 s";
        assert_eq!(blocked.sentence(true), wanted);
        assert!(!blocked.sentence(false).contains("gpu"));
        (blocked.waiting, blocked.why) = (1, Why::NoHost);
        assert_eq!(blocked.sentence(true), "no host serves pool gpu, and 1 job waits in it for 94 s");
        assert!(!blocked.sentence(false).contains("gpu"));
    }

    fn any_pool() -> impl Strategy<Value = PoolNow> {
        (0..3u64, any::<bool>(), 0..3u64, 0..3u64, 0..2u64).prop_map(|(waiting, is_paused, hosts, room, answered)| {
            PoolNow { is_paused, ..pool(waiting, hosts, room.min(hosts), answered) }
        })
    }

    proptest! {
        /// No alarm without its reason, all along the time that it names, and none is missed.
        #[test]
        fn an_alarm_is_raised_exactly_where_its_reason_held_without_a_break(
            looks in prop::collection::vec((any_pool(), 1..40u64), 1..40),
        ) {
            let (start, mut watch) = (Instant::now(), Watch::new(AFTER));
            let mut seen: Vec<(u64, PoolNow)> = Vec::new();
            let mut second = 0;
            for (pool, pause) in looks {
                second += pause;
                let work = watch.look(start + Duration::from_secs(second), std::slice::from_ref(&pool));
                seen.push((second, pool.clone()));
                let is_same = |(_, then): &&(u64, PoolNow)| {
                    then.why().is_some() && (then.why(), then.answered) == (pool.why(), pool.answered)
                };
                let held = seen.iter().rev().take_while(is_same).last().map(|(since, _)| second - since);
                let wanted = held.filter(|held| *held >= AFTER.as_secs());
                prop_assert_eq!(work.blocked.first().map(|blocked| blocked.lasts.as_secs()), wanted);
                if let Some(blocked) = work.blocked.first() {
                    prop_assert!(!pool.is_paused && pool.waiting > 0);
                    match blocked.why {
                        Why::NothingStarts => prop_assert!(pool.with_room > 0),
                        Why::NoHost => prop_assert_eq!(pool.hosts, 0),
                    }
                }
            }
        }
    }
}
