//! What a seed draws: hosts, loads and faults, each seed its own mix (swarm testing). A plan is data, so
//! that a failing one can be made smaller.

use std::time::Duration;

use super::broker::BrokerPlan;

/// Everything that happens in a run besides what the code under test does by itself.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The hosts.
    pub hosts: Vec<HostPlan>,
    /// The broker.
    pub broker: BrokerPlan,
    /// Broker, worker and control plane are one process on one host, without RabbitMQ.
    pub in_process: bool,
    /// The control plane's clock, in each of its lives.
    pub control_clock: ClockPlan,
    /// What users do.
    pub loads: Vec<Load>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Faults end by then, ms.
    pub active_ms: u64,
    /// How long a commit takes, ms: between these.
    pub disk_ms: (u64, u64),
}

/// A clock that is wrong. Processes read it when they start and count from there, so that it steps between two lives.
#[derive(Debug, Clone, Default)]
pub struct ClockPlan {
    /// How far it is ahead, s: in the first life, the second one, and so on; then as in the last of them.
    pub ahead_s: Vec<i64>,
    /// How much too fast it counts, millionths.
    pub drift_ppm: i64,
}

impl ClockPlan {
    /// How far it is ahead in a life.
    pub fn ahead_in(&self, life: usize) -> i64 {
        self.ahead_s.get(life).or(self.ahead_s.last()).copied().unwrap_or(0)
    }

    /// It differs from a true one always by the same time.
    pub fn is_steady(&self) -> bool {
        self.ahead_s.len() <= 1 && self.drift_ppm == 0
    }

    /// It is right.
    pub fn is_right(&self) -> bool {
        self.is_steady() && self.ahead_in(0) == 0
    }

    /// What it counts while so much time passes.
    pub fn counts(&self, time: Duration) -> Duration {
        let micros = i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
        let counted = micros.saturating_add(micros.saturating_mul(self.drift_ppm) / 1_000_000);
        Duration::from_micros(counted.unsigned_abs())
    }
}

/// One host.
#[derive(Debug, Clone)]
pub struct HostPlan {
    /// VMs at once.
    pub slots: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Addresses.
    pub addresses: u32,
    /// Boots at once.
    pub max_booting: u32,
    /// How long a job that does not fit is held, ms.
    pub hold_ms: u64,
    /// How long a message is held while its job boots, ms.
    pub settle_after_ms: u64,
    /// How long removing what a VM has left takes, ms.
    pub removal_ms: u64,
    /// Warm VMs.
    pub warm: u32,
    /// Its clock, in each life of its worker.
    pub clock: ClockPlan,
    /// Pools that it serves.
    pub pools: Vec<String>,
}

/// A job that warm VMs make room for may be held this long, ms.
const WARM_GOES_WITHIN_MS: u64 = 30_000;
/// Booting, removing and publishing may take this much longer than the longest deadline, ms.
const SLACK_MS: u64 = 10_000;

impl HostPlan {
    /// How long it may hold a message, ms: while its job waits, then while it boots.
    fn longest_hold_ms(&self) -> u64 {
        let warm_ms = if self.warm > 0 { WARM_GOES_WITHIN_MS } else { 0 };
        self.hold_ms.max(warm_ms) + self.settle_after_ms.min(LONGEST_DEADLINE_MS) + SLACK_MS
    }
}

/// Something that users do.
#[derive(Debug, Clone)]
pub struct Load {
    /// When, ms.
    pub at_ms: u64,
    /// What.
    pub what: Ask,
}

/// What users ask for. `pick` chooses among the jobs that were enqueued before.
#[derive(Debug, Clone)]
pub enum Ask {
    /// New jobs.
    Enqueue {
        /// How many.
        count: u32,
        /// Of this kind.
        kind: JobKind,
    },
    /// The same job, several times at once.
    Same {
        /// How often.
        times: u32,
        /// Of this kind.
        kind: JobKind,
    },
    /// Cancel one.
    Cancel(u64),
    /// Stop one.
    Stop(u64),
    /// Another attempt at one.
    Retry(u64),
    /// Let one wait longer.
    Snooze(u64),
    /// Messages that no worker can read, of so many bytes.
    Garbage {
        /// How many.
        count: u32,
        /// How large.
        bytes: usize,
    },
    /// Pause a pool; it goes on so much later, ms.
    Pause(u64),
}

/// What a job is like.
#[derive(Debug, Clone)]
pub struct JobKind {
    /// How its guest behaves (`sim.*` arguments).
    pub guest: String,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Attempts at most.
    pub max_attempts: u32,
    /// Deadline of a boot, ms.
    pub deadline_ms: u64,
    /// Time to live, s.
    pub ttl_s: Option<u64>,
    /// In the high lane.
    pub high: bool,
    /// Its pool.
    pub pool: String,
}

/// Something that goes wrong.
#[derive(Debug, Clone)]
pub struct Fault {
    /// When, ms.
    pub at_ms: u64,
    /// What.
    pub what: Trouble,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Trouble {
    /// A worker is killed and started again.
    Kill {
        /// Which host's.
        host: usize,
        /// In the middle of what it does: so many looks at its tasks later.
        looks: u32,
        /// How long it is away, ms.
        down_ms: u64,
        /// Whether its VMs die with it.
        vms_too: bool,
    },
    /// A worker is asked to end and started again.
    Restart {
        /// Which host's.
        host: usize,
    },
    /// The control plane is killed and started again.
    KillControl {
        /// So many looks at its tasks later.
        looks: u32,
        /// How long it is away, ms.
        down_ms: u64,
    },
    /// A host, or the control plane where there is no such host, loses its connection.
    Cut {
        /// Which.
        who: usize,
        /// For how long, ms.
        for_ms: u64,
    },
    /// The broker is restarted.
    Broker {
        /// It is away for so long, ms.
        for_ms: u64,
    },
    /// The broker takes nothing.
    Alarm {
        /// For so long, ms.
        for_ms: u64,
    },
    /// A kind of queue takes nothing: most of its replicas are away.
    Refuse {
        /// The delay queues, or else the lanes.
        delays: bool,
        /// For so long, ms.
        for_ms: u64,
    },
    /// The history is cut off.
    History {
        /// For so long, ms.
        for_ms: u64,
    },
    /// A host's next commit fails.
    Disk {
        /// Which host's.
        host: usize,
        /// It is written all the same.
        written: bool,
    },
    /// The history is deleted and made again.
    Recreate,
    /// What waits in the lanes of a pool is gone.
    Purge {
        /// Which.
        pool: String,
    },
    /// The broker confirms one in so many messages of work and forgets it.
    Lie {
        /// One in so many.
        one_in: u32,
        /// For so long, ms.
        for_ms: u64,
    },
    /// The VMs of a host die.
    Vms {
        /// Which host's.
        host: usize,
    },
}

/// Deadline of the boots that take longest, ms.
const LONGEST_DEADLINE_MS: u64 = 30_000;
/// So long a message may be held where attempts take longer than that.
const SHORT_SETTLE_MS: u64 = 15_000;

/// Picks the job that was enqueued last.
pub const LATEST: u64 = u64::MAX;

/// Draws from a seed.
pub struct Draw(fastrand::Rng);

impl Draw {
    /// The plan of a seed.
    pub fn plan(seed: u64) -> Plan {
        let mut draw = Self(fastrand::Rng::with_seed(seed ^ 0x5107_0c3e));
        draw.all()
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.0.u32(..100) < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.0.usize(..choices.len())].clone()
    }

    fn all(&mut self) -> Plan {
        let active_ms = self.pick(&[5_000, 20_000, 60_000]);
        let pools = if self.chance(25) { vec!["default", "other"] } else { vec!["default"] };
        let pools: Vec<String> = pools.into_iter().map(str::to_owned).collect();
        let in_process = self.chance(15);
        let count = if in_process { 1 } else { self.pick(&[1, 1, 2, 3]) };
        let hosts: Vec<HostPlan> = (0..count).map(|_| self.host(&pools)).collect();
        let broker = self.broker(&hosts);
        let mut loads = self.loads(&hosts, &pools, active_ms);
        let mut faults = self.faults(hosts.len(), active_ms);
        let disk_ms = self.pick(&[(0, 0), (0, 2), (1, 10), (1, 60)]);
        let mut control_clock = self.clock();
        if in_process {
            // There is nothing between the parts, and one clock for all.
            let stays = |fault: &Fault| {
                matches!(fault.what, Trouble::Kill { .. } | Trouble::Restart { .. } | Trouble::Disk { .. } | Trouble::Vms { .. })
            };
            faults.retain(stays);
            loads.retain(|load| !matches!(load.what, Ask::Garbage { .. }));
            control_clock = hosts[0].clock.clone();
        }
        Plan { hosts, broker, in_process, control_clock, loads, faults, active_ms, disk_ms }
    }

    fn host(&mut self, pools: &[String]) -> HostPlan {
        let slots = self.pick(&[1, 2, 4, 8, 32]);
        let memory_mib = if self.chance(20) { 512 } else { 65_536 };
        HostPlan {
            slots,
            memory_mib,
            addresses: if self.chance(20) { slots.div_ceil(2) } else { 256 },
            max_booting: self.pick(&[1, 2, 8]),
            hold_ms: self.pick(&[0, 500, 3_000]),
            settle_after_ms: self.pick(&[600_000, SHORT_SETTLE_MS]),
            removal_ms: self.pick(&[0, 0, 20, 1_000]),
            warm: if slots > 2 && self.chance(20) { 1 } else { 0 },
            clock: self.clock(),
            pools: pools.to_vec(),
        }
    }

    fn clock(&mut self) -> ClockPlan {
        let lives = if self.chance(25) { self.pick(&[1, 1, 2, 4]) } else { 0 };
        let ahead_s = (0..lives).map(|_| self.0.i64(-3_600..3_600)).collect();
        ClockPlan { ahead_s, drift_ppm: if self.chance(10) { self.pick(&[-20_000, -200, 200, 20_000]) } else { 0 } }
    }

    fn broker(&mut self, hosts: &[HostPlan]) -> BrokerPlan {
        BrokerPlan {
            latency_ms: self.pick(&[(1, 1), (1, 5), (1, 40), (5, 300)]),
            jobs_max: if self.chance(15) { 8 } else { 1_000_000 },
            delay_max: if self.chance(10) { 3 } else { 1_000_000 },
            dead_max: if self.chance(30) { 2 } else { 100_000 },
            host_max: 10_000,
            delivery_limit: 50,
            held_ms: hosts.iter().map(HostPlan::longest_hold_ms).max().unwrap_or(0),
            detect_ms: self.pick(&[0, 500, 10_000]),
            hosts: (0..hosts.len()).map(super::host_name).collect(),
        }
    }

    fn loads(&mut self, hosts: &[HostPlan], pools: &[String], active_ms: u64) -> Vec<Load> {
        // VMs that stay up hold their slots: never more than half of what there is.
        let room: u32 = hosts.iter().map(|h| h.slots.min(h.addresses).min(h.memory_mib / 256)).sum();
        let mut stay = room / 2;
        let mut loads = Vec::new();
        // Few jobs show most faults, and many of such runs fit into a minute.
        let total = if self.chance(1) { 1_000 } else { self.pick(&[1, 2, 3, 5, 10, 10, 20, 30, 80]) };
        let mut left = total;
        while left > 0 {
            let count = self.0.u32(1..=left.min(50));
            left -= count;
            let stays = count <= stay && self.chance(40);
            if stays {
                stay -= count;
            }
            let kind = self.kind(pools, stays);
            let what = match !stays && self.chance(10) {
                true => Ask::Same { times: count.min(20), kind },
                false => Ask::Enqueue { count, kind },
            };
            let at_ms = self.0.u64(..active_ms);
            loads.push(Load { at_ms, what });
            // Whoever regrets it does so soon.
            if self.chance(15) {
                loads.push(Load { at_ms: at_ms + self.0.u64(..1_000), what: Ask::Cancel(LATEST) });
            }
        }
        for _ in 0..self.pick(&[0, 0, 2, 10]) {
            let pick = self.0.u64(..);
            let what = match self.0.u32(..10) {
                0..=3 => Ask::Cancel(pick),
                4..=5 => Ask::Stop(pick),
                6..=7 => Ask::Retry(pick),
                8 => Ask::Snooze(pick),
                _ => Ask::Pause(pick % 10_000),
            };
            loads.push(Load { at_ms: self.0.u64(..active_ms), what });
        }
        if self.chance(10) {
            let bytes = if self.chance(50) { 10 } else { super::broker::MAX_BODY_BYTES + 1 };
            let what = Ask::Garbage { count: self.0.u32(1..4), bytes };
            loads.push(Load { at_ms: self.0.u64(..active_ms), what });
        }
        loads.sort_by_key(|load| load.at_ms);
        loads
    }

    fn kind(&mut self, pools: &[String], stays: bool) -> JobKind {
        let slow = self.pick(&[0, 10, 300, 2_000]);
        let healthy = self.0.u64(..=slow);
        let fault = if stays {
            ""
        } else {
            self.pick(&["", "", "", "agent=refused", "boot=refused", "crash-ms=20", "unlucky=50"])
        };
        let boot = self.pick(&[0, 0, 30, 400]);
        let mut guest = format!("sim.boot-ms={boot} sim.dhcp-ms={} sim.healthy-ms={healthy}", healthy / 2);
        if !fault.is_empty() {
            guest += &format!(" sim.{fault}");
        }
        if !stays {
            guest += &format!(" sim.exit-ms={}", healthy + self.0.u64(1..5_000));
        }
        if self.chance(20) {
            guest += &format!(" sim.stop-ms={}", self.0.u64(..200));
        }
        JobKind {
            guest,
            memory_mib: self.pick(&[64, 256]),
            max_attempts: self.pick(&[1, 2, 3]),
            deadline_ms: self.pick(&[3_000, 3_000, 10_000, LONGEST_DEADLINE_MS]),
            ttl_s: if self.chance(10) { Some(self.0.u64(1..20)) } else { None },
            high: self.chance(20),
            pool: self.pick(pools),
        }
    }

    fn faults(&mut self, hosts: usize, active_ms: u64) -> Vec<Fault> {
        let mut faults = Vec::new();
        // Each kind is on or off for the whole run: rare mixes are reached by leaving others out.
        for kind in 0..13 {
            // Those that only the control plane can make good take minutes of virtual time.
            let percent = if matches!(kind, 10 | 11) { 8 } else { 30 };
            if !self.chance(percent) {
                continue;
            }
            for _ in 0..self.pick(&[1, 1, 2, 5]) {
                let what = self.trouble(kind, hosts);
                let at_ms = self.0.u64(..active_ms);
                // Whatever makes a worker end may do so again at once.
                if matches!(what, Trouble::Kill { .. }) && self.chance(40) {
                    let again_ms = at_ms + self.0.u64(1..2_000);
                    faults.push(Fault { at_ms: again_ms.min(active_ms - 1), what: what.clone() });
                }
                faults.push(Fault { at_ms, what });
            }
        }
        // What was published while the history was away is in its queue alone: nobody can miss it there.
        let hides = |fault: &Fault| matches!(fault.what, Trouble::History { .. });
        if faults.iter().any(hides) {
            faults.retain(|fault| !matches!(fault.what, Trouble::Purge { .. } | Trouble::Lie { .. }));
        }
        faults.sort_by_key(|fault| fault.at_ms);
        faults
    }

    fn trouble(&mut self, kind: u32, hosts: usize) -> Trouble {
        let host = self.0.usize(..hosts);
        let looks = self.0.u32(..60);
        let for_ms = self.pick(&[50, 500, 3_000, 15_000]);
        let for_ms = self.0.u64(1..=for_ms);
        match kind {
            0 => {
                // Often it is back before the broker has noticed.
                let down_ms = if self.chance(50) { self.0.u64(1..60) } else { for_ms };
                Trouble::Kill { host, looks, down_ms, vms_too: self.chance(30) }
            }
            1 => Trouble::Restart { host },
            2 => Trouble::KillControl { looks, down_ms: for_ms },
            3 => Trouble::Cut { who: self.0.usize(..=hosts), for_ms },
            4 => Trouble::Broker { for_ms },
            5 => Trouble::Alarm { for_ms },
            6 => Trouble::History { for_ms },
            7 => Trouble::Disk { host, written: self.chance(50) },
            8 => Trouble::Vms { host },
            9 => Trouble::Recreate,
            12 => Trouble::Refuse { delays: self.chance(70), for_ms: for_ms + self.0.u64(..20_000) },
            10 => Trouble::Purge { pool: "default".to_owned() },
            _ => Trouble::Lie { one_in: self.pick(&[1, 3, 10]), for_ms },
        }
    }
}
