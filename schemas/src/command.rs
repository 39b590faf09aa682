//! What somebody or something wants of a job, and why it may not be.

use std::net::Ipv4Addr;

use crate::diagnosis::Diagnosis;
use crate::event::{AttemptReady, AttemptSuperseded, DeferredWhy, GoneWhy, Request, StageMark};
use crate::id::{Epoch, HostName, VmId};
use crate::image::Driver;
use crate::limits::MAX_SNOOZE_S;
use crate::retry::Jitter;
use crate::spec::JobSpec;
use crate::state::{Duplicate, Phase};
use crate::time::Time;

/// What is asked of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Take it on.
    Enqueue {
        /// What to boot.
        spec: JobSpec,
        /// Who asks.
        by: String,
    },
    /// Start an attempt on a host. The state must include the event that was delivered (applied,
    /// not necessarily stored): it says when somebody last asked for the job.
    Begin(Begin),
    /// Put it back without an attempt. Nothing new when the same was said before.
    Defer {
        /// Attempt that goes on waiting.
        attempt: u32,
        /// How long.
        delay_ms: u64,
        /// Why.
        why: DeferredWhy,
        /// Why, for people.
        reason: String,
        /// What to boot, from the delivery.
        spec: JobSpec,
        /// When it was enqueued, from the delivery.
        enqueued_at: Time,
    },
    /// Its time-to-live passed.
    Expire {
        /// What was to be booted.
        spec: JobSpec,
        /// Attempt that would have been next.
        attempt: u32,
    },
    /// Its message was given up, so that no host gets it any more. The state must include the event that
    /// the message is.
    GiveUp {
        /// What was to be booted, from the message.
        spec: JobSpec,
        /// Attempt that it was about.
        attempt: u32,
        /// Why, in words.
        detail: String,
    },
    /// Note stages.
    Progress {
        /// Of which try.
        epoch: Epoch,
        /// Reached since.
        marks: Vec<StageMark>,
    },
    /// Note that the agent answered as asked.
    Ready {
        /// Of which try.
        epoch: Epoch,
        /// The proof.
        proof: AttemptReady,
    },
    /// Note that it will not become ready.
    Fail {
        /// Of which try.
        epoch: Epoch,
        /// Why.
        diagnosis: Diagnosis,
        /// Stages not told before.
        marks: Vec<StageMark>,
    },
    /// Note that its message was acknowledged although the try goes on. Nothing new the second time.
    SettleMessage {
        /// Of which try.
        epoch: Epoch,
        /// How long the message had been held, ms.
        held_ms: u64,
    },
    /// Note that a restarted worker took the VM over.
    Adopt {
        /// Of which try.
        epoch: Epoch,
        /// The VMM.
        pid: u32,
    },
    /// Note that nothing of the VM is left.
    Gone {
        /// Of which try.
        epoch: Epoch,
        /// Why.
        why: GoneWhy,
        /// More, for people.
        detail: String,
    },
    /// Note that a try which was never up has nothing left on its host, without deciding what
    /// follows: this worker lost the job's message (it restarted), and whoever has it now decides.
    Lost {
        /// Of which try.
        epoch: Epoch,
        /// Why, unless that was noted before.
        diagnosis: Diagnosis,
        /// More, for people.
        detail: String,
    },
    /// Have a VM removed because another one of the job stays.
    Supersede {
        /// Of which try.
        epoch: Epoch,
        /// Which VM goes, where, and which stays.
        duplicate: AttemptSuperseded,
    },
    /// Note that nothing comes of its latest attempt any more: its host has told nothing for too long.
    Abandon,
    /// Do not run it (any more).
    Cancel(Request),
    /// Settle a cancelled job that has no VM.
    SettleCancel {
        /// Attempt that would have been next.
        attempt: u32,
    },
    /// Stop the running VM.
    Stop(Request),
    /// Let the attempt that waits wait longer.
    Snooze {
        /// Until then.
        until: Time,
        /// Who asks, and why.
        request: Request,
    },
    /// Another attempt, now; of one that waits in a queue, its message again.
    Retry {
        /// Who asks.
        by: String,
        /// The spec to use from now on; `None` for the same.
        spec: Option<JobSpec>,
    },
}

impl From<Duplicate> for Command {
    fn from(d: Duplicate) -> Self {
        Self::Supersede { epoch: d.epoch, duplicate: AttemptSuperseded { host: d.host, vm: d.vm, kept: d.kept } }
    }
}

/// An attempt about to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Begin {
    /// Which try.
    pub epoch: Epoch,
    /// Where.
    pub host: HostName,
    /// The VM.
    pub vm: VmId,
    /// With which hypervisor.
    pub driver: Driver,
    /// Address from the pool.
    pub address: Option<Ipv4Addr>,
    /// What to boot, from the delivery.
    pub spec: JobSpec,
    /// When it was enqueued, from the delivery.
    pub enqueued_at: Time,
}

/// What a decision may depend on besides state and command.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Now.
    pub now: Time,
    /// Randomness for retry waits.
    pub jitter: Jitter,
}

/// Why a command is not carried out. Each says what would be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Taken on before; with another spec under the same key.
    #[error("this idempotency key already names a job with another spec; use a new key for another job")]
    KeyReused,
    /// Taken on before, the same: nothing to do.
    #[error("already enqueued")]
    AlreadyEnqueued,
    /// The job does not exist.
    #[error("no such job; stoker list shows the known ones")]
    UnknownJob,
    /// This try does not exist.
    #[error("attempt {0} was never started here")]
    UnknownAttempt(Epoch),
    /// This try exists already.
    #[error("attempt {0} was started before")]
    AttemptExists(Epoch),
    /// Another try of the job has a VM here.
    #[error("attempt {0} still has its VM; one VM per job")]
    AttemptRunning(Epoch),
    /// This try has ended.
    #[error("attempt {0} has ended")]
    AttemptEnded(Epoch),
    /// The VM is not gone yet.
    #[error("attempt {0} still has its VM")]
    VmStillThere(Epoch),
    /// Nothing can be done with the job in this phase.
    #[error("the job is {phase}; {command} needs it {needs}")]
    WrongPhase {
        /// What was asked.
        command: &'static str,
        /// What it is.
        phase: Phase,
        /// What it would have to be.
        needs: &'static str,
    },
    /// The attempt is due later than the wish.
    #[error("the attempt is due at {0} anyway; snooze it beyond that, or retry to have it now")]
    DueLater(Time),
    /// Nobody will remember it by then.
    #[error("an attempt can be snoozed for {} days at most; cancel the job, or snooze it again later", MAX_SNOOZE_S / 86_400)]
    SnoozedTooLong,
    /// A cancellation came first.
    #[error("the job is being cancelled")]
    CancelPending,
}
