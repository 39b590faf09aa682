//! About a job as a whole.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::diagnosis::{Cause, Diagnosis};
use crate::spec::JobSpec;
use crate::time::Time;

payload! {
    /// Payload of `job.enqueued`.
    struct JobEnqueued {
        /// What to boot.
        spec: JobSpec,
        /// Who asked.
        by: String,
    }
}
payload! {
    /// Payload of `job.retry-scheduled`. Carries the spec: whoever gets it can run it.
    struct JobRetryScheduled {
        /// Number of the attempt that follows.
        attempt: u32,
        /// Not before this time.
        not_before: Time,
        /// The wait in ms, as the broker is told it.
        delay_ms: u64,
        /// Cause of the failure before; absent when somebody asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Cause>,
        /// Who asked; absent for Stoker itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// What to boot.
        spec: JobSpec,
        /// When the job was first enqueued.
        enqueued_at: Time,
        /// When an attempt was last asked for by hand, by the asker's clock. Decides nothing, except about
        /// requests of an older Stoker, which do not say what their asker knew.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_at: Option<Time>,
        /// The latest attempt asked for by hand; 0 for none. Travels with the job, so that a host that knows
        /// of a cancellation which that attempt overtook does not cancel the job again.
        #[serde(default, skip_serializing_if = "is_zero")]
        asked_attempt: u32,
    }
}
payload! {
    /// Payload of `job.deferred`. Written once for each reason, not each time: the broker keeps the message.
    struct JobDeferred {
        /// Number of the attempt that still waits.
        attempt: u32,
        /// How long the broker keeps the message at first, ms; the more often, the longer.
        delay_ms: u64,
        /// Why no attempt was made, for people.
        reason: String,
        /// The same as a kind. Absent in events of releases for which this event was the message.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        why: Option<DeferredWhy>,
        /// What to boot.
        spec: JobSpec,
        /// When the job was first enqueued.
        enqueued_at: Time,
        /// When an attempt was last asked for by hand, by the asker's clock. Decides nothing, except about
        /// requests of an older Stoker, which do not say what their asker knew.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_at: Option<Time>,
        /// The latest attempt asked for by hand; 0 for none. Travels with the job, so that a host that knows
        /// of a cancellation which that attempt overtook does not cancel the job again.
        #[serde(default, skip_serializing_if = "is_zero")]
        asked_attempt: u32,
    }
}
/// Why a host put a job back without an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeferredWhy {
    /// A user asked for the attempt to wait.
    Snoozed,
    /// The host lacks labels that the job requires.
    Labels,
    /// The host is too small, even when it is empty.
    TooLarge,
    /// The host has as many VMs of the pool as it may.
    PoolLimit,
    /// The host has no slot, vCPU or memory left.
    Full,
    /// As many VMs boot on the host as may at once.
    Booting,
    /// The host has no address for it.
    Address,
}

payload! {
    /// Payload of `job.dead`.
    struct JobDead {
        /// After this many attempts.
        attempt: u32,
        /// Why none follows.
        reason: DeadReason,
        /// The last failure.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        diagnosis: Option<Diagnosis>,
        /// More, for people.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        detail: String,
        /// What was to be booted.
        spec: JobSpec,
    }
}

/// Why no attempt follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// As many attempts as the policy allows.
    AttemptsExhausted,
    /// Another attempt would fail the same way.
    NotRetryable,
    /// Its time-to-live passed before an attempt could start.
    Expired,
    /// Its message was given up: no host gets it any more.
    MessageLost,
}

pub(super) fn is_zero(number: &u32) -> bool {
    *number == 0
}

payload! {
    /// Payload of requests about hosts, and what every request says.
    struct Request {
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}
payload! {
    /// Payload of `job.cancel-requested`.
    struct JobCancelRequested {
        /// The latest attempt asked for by hand that the asker knew of; 0 for none. A later one overtakes the
        /// request: also one asked for at the same moment, by somebody who did not know of the request. Absent
        /// in requests of an older Stoker: then the times of both decide.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        asked_attempt: Option<u32>,
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}
payload! {
    /// Payload of `job.stop-requested`.
    struct JobStopRequested {
        /// The latest attempt that the asker knew of: VMs of later ones are not meant. Absent in requests of
        /// an older Stoker: then VMs that started before the request, by their hosts' clocks, are meant.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attempt: Option<u32>,
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}

impl From<Request> for JobCancelRequested {
    /// Without what the asker knew.
    fn from(Request { by, reason }: Request) -> Self {
        Self { asked_attempt: None, by, reason }
    }
}

impl From<Request> for JobStopRequested {
    /// Without what the asker knew.
    fn from(Request { by, reason }: Request) -> Self {
        Self { attempt: None, by, reason }
    }
}

payload! {
    /// Payload of `job.snooze-requested`: the next attempt is to wait longer.
    struct JobSnoozeRequested {
        /// Number of the attempt that waits.
        attempt: u32,
        /// Not before this time.
        until: Time,
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}
payload! {
    /// Payload of `job.cancelled`.
    struct JobCancelled {
        /// After this many attempts.
        attempt: u32,
        /// Who asked.
        by: String,
    }
}
payload! {
    /// Payload of `job.republished`: its message was published again, because it may have been lost.
    struct JobRepublished {
        /// The attempt that the message is about.
        attempt: u32,
        /// Who asked; absent for Stoker itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// Why, for people.
        reason: String,
    }
}
