//! What somebody said about pools: paused, or limited on each host. Kept in the log, so that a restart
//! does not resume what was paused.

use std::collections::BTreeMap;
use std::time::Duration;

use stoker_schemas::event::{Event, EventData, PoolConfigured};
use stoker_schemas::seeded::{self, Bug};
use stoker_schemas::{PoolName, Time};

use super::turn::{HOST_STREAM, Turn};
use super::{Supervisor, SupervisorError};

/// What follows is later by this, at least.
const NEXT: Duration = Duration::from_micros(1);

/// The latest word about each pool.
#[derive(Debug, Default)]
pub(super) struct Pools(BTreeMap<String, (Time, PoolConfigured)>);

impl Pools {
    /// Takes a word in, unless a later one is known. Whether anything changes by it.
    fn learn(&mut self, pool: &str, at: Time, rule: &PoolConfigured) -> bool {
        match self.0.get(pool) {
            Some((known, _)) if *known >= at => false,
            before => {
                let (paused, max) = before.map_or((false, None), |(_, rule)| (rule.paused, rule.max_per_host));
                let changed = (paused, max) != (rule.paused, rule.max_per_host);
                self.0.insert(pool.to_owned(), (at, rule.clone()));
                changed
            }
        }
    }

    pub(super) fn is_paused(&self, pool: &PoolName) -> bool {
        self.0.get(pool.as_str()).is_some_and(|(_, rule)| rule.paused)
    }

    /// VMs of the pool that may be here at once.
    pub(super) fn limit(&self, pool: &PoolName) -> Option<u32> {
        self.0.get(pool.as_str()).and_then(|(_, rule)| rule.max_per_host)
    }
}

impl Supervisor {
    /// Reads what was said before this life, of pools and of this host.
    pub(super) fn restore_host(&mut self) -> Result<(), SupervisorError> {
        for record in self.log.read_stream(HOST_STREAM)? {
            let event = Event::decode(&record.payload, self.rig.clock.now())
                .map_err(|e| SupervisorError::Corrupt { position: record.position, cause: e.to_string() })?;
            if event.source == self.source {
                self.last_host_fact = self.last_host_fact.max(event.time.plus(NEXT));
            }
            if let EventData::PoolConfigured(rule) = &event.data
                && !seeded::is_on(Bug::PauseForgotten)
            {
                self.pools.learn(&event.subject, event.time, rule);
            }
        }
        Ok(())
    }

    /// From now on; what boots or is up stays.
    pub(super) fn configure_pool(
        &mut self,
        event: &Event,
        rule: &PoolConfigured,
        turn: &mut Turn,
    ) -> Result<(), SupervisorError> {
        if !self.pools.learn(&event.subject, event.time, rule) {
            return Ok(());
        }
        tracing::info!(
            pool = event.subject,
            paused = rule.paused,
            max_per_host = rule.max_per_host,
            by = rule.by,
            "pool"
        );
        self.keep(event, turn)?;
        // Jobs that wait here would keep other pools' from being sent.
        let (stay, go): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|waiting| !self.pools.is_paused(&waiting.claim.spec.pool));
        self.waiting.extend(stay);
        for waiting in go {
            if seeded::is_on(Bug::PauseDropsWaiting) {
                continue;
            }
            tokio::spawn(waiting.claim.held.ack.requeue());
        }
        self.room_made = true;
        Ok(())
    }

    /// VMs of a pool that are here, also those still booting or going.
    pub(super) fn on_host(&self, pool: &PoolName) -> u32 {
        let count = self.jobs.values().filter(|job| job.live.pool == *pool).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// How many more jobs of a pool may be taken, if there is a limit.
    pub(super) fn pool_room(&self, pool: &PoolName) -> Option<u32> {
        self.pools.limit(pool).map(|max| max.saturating_sub(self.on_host(pool)))
    }
}
