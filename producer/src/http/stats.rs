//! What the overview shows, as data: what happened minute by minute, and how it stands now.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::{JobId, Phase, Time};

use super::extract::Params;
use super::{Api, Problem};
use crate::readmodel::{KEPT_MINUTES, Minute, begin_of};
use crate::view::ms_between;

/// Minutes when nobody says: as many as the overview shows.
const DEFAULT_MINUTES: u64 = 60;

/// Query of the numbers.
#[derive(Debug, Default, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StatsQuery {
    /// Minutes up to now; 60 without it, at most a week.
    #[schemars(range(min = 1, max = KEPT_MINUTES))]
    minutes: Option<u64>,
}

/// Numbers of the last minutes, and of now.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Stats {
    /// As of.
    pub at: Time,
    /// Jobs by phase, now.
    pub phases: BTreeMap<Phase, u64>,
    /// Jobs that are failing, retrying or dead, by the cause of their last failure, now.
    pub causes: BTreeMap<Cause, u64>,
    /// The job that has waited for a host longest.
    pub oldest_queued: Option<OldestQueued>,
    /// All the minutes added up.
    pub total: Totals,
    /// Each of them, the oldest first; the last one is not over.
    pub minutes: Vec<MinuteStats>,
}

/// The job that has waited longest.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct OldestQueued {
    /// Which.
    pub id: JobId,
    /// Since when.
    pub since: Time,
    /// How long, ms.
    pub waits_ms: u64,
}

/// Several minutes added up.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Totals {
    /// Jobs enqueued.
    pub enqueued: u64,
    /// Attempts that were decided.
    pub boots: u64,
    /// Those that became ready.
    pub ok: u64,
    /// Those that failed.
    pub failed: u64,
    /// Failures by cause.
    pub causes: BTreeMap<Cause, u64>,
    /// Half of the boots that became ready took no longer, ms (within 7 %).
    pub boot_p50_ms: Option<u64>,
    /// 95 % of them took no longer, ms (within 7 %).
    pub boot_p95_ms: Option<u64>,
    /// Milliseconds that they spent in each stage, added up.
    pub stages_ms: BTreeMap<String, u64>,
}

/// One minute.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
pub struct MinuteStats {
    /// When it began.
    pub at: Time,
    /// Jobs enqueued.
    pub enqueued: u64,
    /// Attempts that were decided.
    pub boots: u64,
    /// Those that became ready.
    pub ok: u64,
    /// Those that failed.
    pub failed: u64,
    /// Half of the boots that became ready took no longer, ms.
    pub boot_p50_ms: Option<u64>,
    /// 95 % of them took no longer, ms.
    pub boot_p95_ms: Option<u64>,
}

impl From<(u64, &Minute)> for MinuteStats {
    fn from((number, minute): (u64, &Minute)) -> Self {
        Self {
            at: begin_of(number),
            enqueued: minute.enqueued,
            boots: minute.ready + minute.failed,
            ok: minute.ready,
            failed: minute.failed,
            boot_p50_ms: minute.boots.quantile(0.5),
            boot_p95_ms: minute.boots.quantile(0.95),
        }
    }
}

impl From<Minute> for Totals {
    fn from(sum: Minute) -> Self {
        Self {
            enqueued: sum.enqueued,
            boots: sum.ready + sum.failed,
            ok: sum.ready,
            failed: sum.failed,
            boot_p50_ms: sum.boots.quantile(0.5),
            boot_p95_ms: sum.boots.quantile(0.95),
            causes: sum.causes,
            stages_ms: sum.stages,
        }
    }
}

/// `GET /v1/stats`
pub async fn stats(State(api): State<Api>, Params(query): Params<StatsQuery>) -> Result<Json<Stats>, Problem> {
    let minutes = query.minutes.unwrap_or(DEFAULT_MINUTES);
    if !(1..=KEPT_MINUTES).contains(&minutes) {
        let detail = format!("minutes: {minutes} is not between 1 and {KEPT_MINUTES}");
        return Err(Problem::bad_request(detail, "a week is kept; keep more with GET /metrics"));
    }
    let at = api.now();
    let counts = api.model.counts();
    let series = api.model.series(minutes)?;
    let mut sum = Minute::default();
    series.iter().for_each(|(_, minute)| sum.merge(minute));
    let oldest = api.model.oldest(Phase::Queued)?;
    Ok(Json(Stats {
        at,
        phases: counts.phases,
        causes: counts.causes,
        oldest_queued: oldest.map(|job| OldestQueued {
            id: job.id,
            since: job.created,
            waits_ms: ms_between(job.created, at),
        }),
        total: sum.into(),
        minutes: series.iter().map(|(number, minute)| (*number, minute).into()).collect(),
    }))
}
