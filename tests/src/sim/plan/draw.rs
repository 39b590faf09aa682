//! Draws plans, each seed its own mix of what there is (swarm testing).

use super::{Ask, ClockPlan, Fault, HostPlan, JobKind, LATEST, LONGEST_DEADLINE_MS, Load, Plan, Trouble};
use crate::sim::broker::{self, BrokerPlan};
use crate::sim::host_name;

/// So long a message may be held where attempts take longer than that.
const SHORT_SETTLE_MS: u64 = 15_000;

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
                matches!(
                    fault.what,
                    Trouble::Kill { .. } | Trouble::Restart { .. } | Trouble::Disk { .. } | Trouble::Vms { .. }
                )
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
            hosts: (0..hosts.len()).map(host_name).collect(),
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
            let bytes = if self.chance(50) { 10 } else { broker::MAX_BODY_BYTES + 1 };
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
