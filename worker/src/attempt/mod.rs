//! One try at a job: a task that owns one VM from its folder to its removal.
//!
//! ```text
//!            Fresh                                   Resume (worker restarted)
//!              |                                        |
//!         bring_up: dir -> disk, network -> boot     find the VMM, take it over
//!              |                                        |
//!              +----------------- wait -----------------+
//!   console, DHCP, exit, probe -> Seen      ready | failed (diagnosed)
//!              |                                        |
//!            watch (until it exits)             stay, for its order
//!              +------------- Order::Remove ------------+
//!                                 |
//!                    tear_down: VMM, console, network, folder
//! ```
//!
//! A VM may also be up before its job comes; see `warm`.
//!
//! It decides nothing: it reports what it sees ([`Report`]) and obeys [`Order`]s. What it holds is
//! found again by name after a crash, so it keeps no secrets of its own.

mod bring_up;
mod hung;
mod rig;
mod seen;
mod tear_down;
mod wait;
mod warm;

use std::net::Ipv4Addr;

use stoker_schemas::diagnosis::Diagnosis;
use stoker_schemas::event::{AttemptReady, GoneWhy, StageMark};
use stoker_schemas::{Epoch, JobId, JobSpec, Time, VmId};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use bring_up::Held;
pub use rig::Rig;
use seen::Seen;

/// What a VM is up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// This try at this job.
    Job(JobId, Epoch),
    /// A job to come.
    Nobody,
}

/// What this try is.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What for.
    pub whose: Whose,
    /// Its VM.
    pub vm: VmId,
    /// What to boot.
    pub spec: JobSpec,
    /// Address from the pool.
    pub address: Option<Ipv4Addr>,
    /// When it started: the deadline counts from here, over worker restarts too.
    pub started_at: Time,
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nothing of it exists.
    Fresh,
    /// An earlier worker began; the log says how far it came.
    Resume {
        /// It was ready.
        ready: bool,
    },
}

/// What the supervisor wants of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Go on.
    Run,
    /// Remove everything, then end.
    Remove(GoneWhy),
}

/// What it has to say.
#[derive(Debug, Clone)]
pub enum Report {
    /// Stages reached.
    Progress(Vec<StageMark>),
    /// An earlier worker's VM was taken over.
    Adopted {
        /// Process id of the VMM.
        pid: u32,
    },
    /// The agent answered as asked.
    Ready(Box<AttemptReady>),
    /// It will not become ready. It waits for its order to remove.
    Failed {
        /// Why.
        diagnosis: Box<Diagnosis>,
        /// Stages not told before.
        marks: Vec<StageMark>,
    },
    /// Nothing of it is left. The last report.
    Removed {
        /// Why.
        why: GoneWhy,
        /// More, for people.
        detail: String,
    },
}

/// A report with its sender's name.
#[derive(Debug, Clone)]
pub struct Tagged {
    /// Whose try.
    pub whose: Whose,
    /// Its VM.
    pub vm: VmId,
    /// What it says.
    pub report: Report,
}

/// The running task, as its owner sees it. Dropping it ends the task where it stands and leaves
/// the VM alone: the next worker finds both in the log.
#[derive(Debug)]
pub struct Running {
    orders: watch::Sender<Order>,
    handover: Option<mpsc::Sender<Plan>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// Starts the task. Its reports go to `tell`.
    pub fn start(rig: Rig, plan: Plan, mode: Mode, tell: mpsc::Sender<Tagged>) -> Self {
        let (orders, taken) = watch::channel(Order::Run);
        let runner = Runner { seen: Seen::new(rig.clock, &plan), rig, plan, tell, orders: taken };
        let task = tokio::spawn(runner.run(mode)).abort_handle();
        Self { orders, handover: None, task }
    }

    /// Starts one that boots and waits for its job.
    pub fn start_warm(rig: Rig, plan: Plan, tell: mpsc::Sender<Tagged>) -> Self {
        let (orders, taken) = watch::channel(Order::Run);
        let (handover, comes) = mpsc::channel(1);
        let runner = Runner { seen: Seen::new(rig.clock, &plan), rig, plan, tell, orders: taken };
        let task = tokio::spawn(runner.run_warm(comes)).abort_handle();
        Self { orders, handover: Some(handover), task }
    }

    /// Makes one that waits this job's try. Before any order: what it is ordered then, it does for the job.
    pub fn hand_over(&mut self, plan: Plan) {
        if let Some(handover) = self.handover.take() {
            // There is room for the one that is ever sent; the task ends by order only, and it had none.
            let _ = handover.try_send(plan);
        }
    }

    /// Gives an order. The first order to remove is final.
    pub fn order(&self, order: Order) {
        self.orders.send_if_modified(|current| {
            let fresh = *current == Order::Run && order != Order::Run;
            if fresh {
                *current = order;
            }
            fresh
        });
    }
}

/// The task.
struct Runner {
    rig: Rig,
    plan: Plan,
    tell: mpsc::Sender<Tagged>,
    orders: watch::Receiver<Order>,
    seen: Seen,
}

/// How waiting ended.
enum Waited {
    /// The agent answered as asked.
    Ready(Box<AttemptReady>),
    /// It will not.
    Failed,
    /// An order came.
    Ordered,
}

impl Runner {
    async fn run(mut self, mode: Mode) {
        let mut held = match mode {
            Mode::Fresh => self.bring_up().await,
            Mode::Resume { .. } => self.resume().await,
        };
        let was_ready = mode == Mode::Resume { ready: true };
        let waited = match &mut held {
            Some(_) if was_ready => None,
            Some(held) => Some(self.wait(held).await),
            None if was_ready => return self.remove(held, GoneWhy::Exited, "the VM ended while no worker ran").await,
            None => Some(Waited::Failed),
        };
        if let (Some(held), Some(Waited::Ready(_) | Waited::Failed)) = (&held, &waited) {
            self.learn(held, matches!(waited, Some(Waited::Ready(_))));
        }
        self.go_on(held, waited).await;
    }

    /// From the verdict to the end. `None`: there was one before.
    async fn go_on(mut self, held: Option<Held>, waited: Option<Waited>) {
        let up = match waited {
            None => true,
            Some(Waited::Ready(proof)) => {
                self.report(Report::Ready(proof)).await;
                true
            }
            Some(Waited::Failed) => {
                self.report_failure(held.as_ref()).await;
                false
            }
            Some(Waited::Ordered) => false,
        };
        let ended = match &held {
            Some(held) if up => tokio::select! {
                biased;
                exit = held.vm.exited() => Some(exit.reason),
                () = hung::hangs(&*held.vm) => Some(hung::HUNG.to_owned()),
                _ = ordered(&mut self.orders) => None,
            },
            _ => None,
        };
        match ended {
            Some(reason) => self.remove(held, GoneWhy::Exited, &reason).await,
            None => {
                let why = ordered(&mut self.orders).await;
                self.remove(held, why, "").await;
            }
        }
    }

    async fn report(&self, report: Report) {
        let tagged = Tagged { whose: self.plan.whose, vm: self.plan.vm, report };
        // A supervisor that is gone has left the VM to its successor: nobody to tell.
        let _ = self.tell.send(tagged).await;
    }
}

/// Waits for the order to remove; never returns once nobody can give one.
async fn ordered(orders: &mut watch::Receiver<Order>) -> GoneWhy {
    loop {
        if let Order::Remove(why) = *orders.borrow_and_update() {
            return why;
        }
        if orders.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
