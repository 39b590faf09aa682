//! The kinds of events. What each carries is in [`payload`](super::payload).

use super::payload::*;
use crate::{id::VmId, time::Time};

macro_rules! events {
    ($($(#[$doc:meta])* $variant:ident($payload:ty) = $kind:literal v $version:literal;)*) => {
        /// What happened, by kind.
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum EventData {
            $($(#[$doc])* $variant($payload),)*
        }

        impl EventData {
            /// Kind without version (`job.enqueued`).
            pub const fn kind(&self) -> &'static str {
                match self { $(Self::$variant(_) => $kind),* }
            }

            /// The version written today.
            pub const fn version(&self) -> u32 {
                match self { $(Self::$variant(_) => $version),* }
            }

            /// Kinds and today's versions.
            pub const KINDS: &'static [(&'static str, u32)] = &[$(($kind, $version)),*];

            pub(super) fn payload_to_value(&self) -> serde_json::Result<Box<serde_json::value::RawValue>> {
                match self { $(Self::$variant(p) => serde_json::value::to_raw_value(p)),* }
            }

            /// Reads a payload of today's version; `None` for a kind that does not exist.
            pub(super) fn payload_from_str(kind: &str, text: &str) -> Option<serde_json::Result<Self>> {
                match kind {
                    $($kind => Some(serde_json::from_str(text).map(Self::$variant)),)*
                    _ => None,
                }
            }

            /// The JSON Schema of each kind's payload.
            pub fn payload_schemas() -> Vec<(&'static str, schemars::Schema)> {
                vec![$(($kind, schemars::schema_for!($payload))),*]
            }
        }
    };
}

events! {
    /// Somebody wants a VM.
    JobEnqueued(JobEnqueued) = "job.enqueued" v 1;
    /// Another attempt follows: after a failure, or because somebody asked.
    JobRetryScheduled(JobRetryScheduled) = "job.retry-scheduled" v 1;
    /// Put back without an attempt: no host that got it may run it.
    JobDeferred(JobDeferred) = "job.deferred" v 1;
    /// No attempt follows.
    JobDead(JobDead) = "job.dead" v 1;
    /// Somebody wants the job not to run.
    CancelRequested(JobCancelRequested) = "job.cancel-requested" v 1;
    /// Somebody wants the next attempt to wait longer.
    SnoozeRequested(JobSnoozeRequested) = "job.snooze-requested" v 1;
    /// It does not run and will not.
    JobCancelled(JobCancelled) = "job.cancelled" v 1;
    /// Somebody wants the running VM stopped.
    StopRequested(JobStopRequested) = "job.stop-requested" v 1;
    /// Its message was published again: it may have been lost.
    JobRepublished(JobRepublished) = "job.republished" v 1;
    /// A host takes the job; written before anything happens.
    AttemptStarted(AttemptStarted) = "attempt.started" v 1;
    /// Stages reached.
    AttemptProgressed(AttemptProgressed) = "attempt.progressed" v 1;
    /// The agent answered as asked, and it was this VM.
    AttemptReady(AttemptReady) = "attempt.ready" v 1;
    /// The VM will not become ready; why.
    AttemptFailed(AttemptFailed) = "attempt.failed" v 1;
    /// The attempt takes longer than a message may be held: it was acknowledged, and what follows is up to this host.
    AttemptMessageSettled(AttemptMessageSettled) = "attempt.message-settled" v 1;
    /// A restarted worker took the running VM over.
    AttemptAdopted(AttemptAdopted) = "attempt.adopted" v 1;
    /// This VM is to go: another one of the job stays, or the job has ended without it.
    AttemptSuperseded(AttemptSuperseded) = "attempt.superseded" v 1;
    /// Nothing of the VM is left on the host.
    VmGone(VmGone) = "vm.gone" v 1;
    /// A worker began.
    HostStarted(HostStarted) = "host.started" v 1;
    /// A worker boots VMs in another way from now on: its accelerator does not run a kernel.
    HostHypervisorChanged(HostHypervisorChanged) = "host.hypervisor-changed" v 1;
    /// A queue refuses what a host publishes for it. All else goes on.
    HostPublishingRefused(HostPublishingRefused) = "host.publishing-refused" v 1;
    /// That queue takes messages again.
    HostPublishingResumed(HostPublishingResumed) = "host.publishing-resumed" v 1;
    /// Somebody wants a host to take no more jobs.
    HostDrainRequested(Request) = "host.drain-requested" v 1;
    /// A worker takes no more jobs.
    HostDraining(HostDraining) = "host.draining" v 1;
    /// A worker ended in order.
    HostStopped(HostStopped) = "host.stopped" v 1;
    /// A host boots a VM for a job to come.
    WarmStarted(WarmStarted) = "warm.started" v 1;
    /// It is up and waits for a job.
    WarmReady(WarmReady) = "warm.ready" v 1;
    /// It is a job's from now on.
    WarmTaken(WarmTaken) = "warm.taken" v 1;
    /// It is gone, and was no job's.
    WarmGone(WarmGone) = "warm.gone" v 1;
    /// Somebody paused a pool, resumed it, or limited it.
    PoolConfigured(PoolConfigured) = "pool.configured" v 1;
    /// A message that no worker could work on, or that the broker gave up.
    MessageDeadLettered(MessageDeadLettered) = "message.dead-lettered" v 1;
    /// Somebody sent a dead letter on its way again.
    MessageRedriven(MessageRedriven) = "message.redriven" v 1;
    /// Somebody said that a dead letter needs nothing any more.
    MessageDismissed(MessageDismissed) = "message.dismissed" v 1;
}

impl EventData {
    /// What tells this fact from others of the same epoch.
    pub fn step(&self, time: Time) -> String {
        match self {
            // These may happen more than once in an epoch: the time tells them apart.
            Self::CancelRequested(_)
            | Self::StopRequested(_)
            | Self::SnoozeRequested(_)
            | Self::PoolConfigured(_)
            | Self::JobDeferred(_)
            | Self::JobRepublished(_)
            | Self::AttemptAdopted(_)
            | Self::AttemptProgressed(_)
            | Self::HostStarted(_)
            | Self::HostHypervisorChanged(_)
            | Self::HostDrainRequested(_)
            | Self::HostDraining(_)
            | Self::HostStopped(_)
            | Self::MessageRedriven(_)
            | Self::MessageDismissed(_) => {
                format!("{}@{}", self.kind(), time.unix_micros())
            }
            // Each death once, whoever tells of it and when.
            Self::MessageDeadLettered(e) => format!("{}@{}", self.kind(), e.died_at.unix_micros()),
            // A host publishes to many queues.
            Self::HostPublishingRefused(HostPublishingRefused { queue, .. })
            | Self::HostPublishingResumed(HostPublishingResumed { queue }) => {
                format!("{}@{queue}@{}", self.kind(), time.unix_micros())
            }
            other => match other.warm_vm() {
                // A host has many.
                Some(vm) => format!("{}@{vm}", other.kind()),
                None => other.kind().to_owned(),
            },
        }
    }

    /// Which of two tellings of one fact counts, before their times decide: the lower one. An attempt that
    /// was asked for by hand is that, also where a host scheduled one with the same number by itself; and
    /// attempts that failed say more of a job than a time-to-live that passed.
    pub fn precedence(&self) -> u8 {
        match self {
            Self::JobRetryScheduled(e) => u8::from(e.by.is_none()),
            Self::JobDead(e) => e.reason as u8,
            _ => 0,
        }
    }

    /// The VM that waits for a job, of events about one.
    pub fn warm_vm(&self) -> Option<VmId> {
        match self {
            Self::WarmStarted(WarmStarted { vm, .. })
            | Self::WarmReady(WarmReady { vm, .. })
            | Self::WarmTaken(WarmTaken { vm, .. })
            | Self::WarmGone(WarmGone { vm, .. }) => Some(*vm),
            _ => None,
        }
    }

    /// About the try on one host: told by two hosts of the same epoch, it is two facts.
    pub fn is_about_try(&self) -> bool {
        matches!(
            self,
            Self::AttemptStarted(_)
                | Self::AttemptProgressed(_)
                | Self::AttemptReady(_)
                | Self::AttemptFailed(_)
                | Self::AttemptMessageSettled(_)
                | Self::AttemptAdopted(_)
                | Self::AttemptSuperseded(_)
                | Self::VmGone(_)
        )
    }

    /// About a job, whose id is the subject.
    pub fn is_about_job(&self) -> bool {
        !self.is_about_host() && !self.is_about_letter() && !matches!(self, Self::PoolConfigured(_))
    }

    /// About a dead letter, whose id is the subject.
    pub fn is_about_letter(&self) -> bool {
        matches!(self, Self::MessageDeadLettered(_) | Self::MessageRedriven(_) | Self::MessageDismissed(_))
    }

    /// About a host, not a job.
    pub fn is_about_host(&self) -> bool {
        let host = matches!(
            self,
            Self::HostStarted(_)
                | Self::HostHypervisorChanged(_)
                | Self::HostPublishingRefused(_)
                | Self::HostPublishingResumed(_)
                | Self::HostDrainRequested(_)
                | Self::HostDraining(_)
                | Self::HostStopped(_)
        );
        host || self.warm_vm().is_some()
    }
}
