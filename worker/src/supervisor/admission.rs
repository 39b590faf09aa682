//! What a host can still take: slots, vCPUs, memory. Pure counting.

use std::fmt;

use stoker_schemas::JobSpec;

/// An amount of host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capacity {
    /// VMs.
    pub slots: u32,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
}

impl Capacity {
    /// What one VM of this spec takes.
    pub fn of(spec: &JobSpec) -> Self {
        Self { slots: 1, vcpus: spec.vcpus, memory_mib: spec.memory_mib }
    }

    pub(super) fn fits(self, room: Self) -> bool {
        self.slots <= room.slots && self.vcpus <= room.vcpus && self.memory_mib <= room.memory_mib
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} slots, {} vCPUs, {} MiB", self.slots, self.vcpus, self.memory_mib)
    }
}

/// Why a VM does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Not now.
    ForNow(Capacity),
    /// Not even on the empty host.
    Ever(Capacity),
}

/// The books of one host.
#[derive(Debug, Clone)]
pub struct Admission {
    total: Capacity,
    used: Capacity,
}

impl Admission {
    /// An empty host.
    pub fn new(total: Capacity) -> Self {
        Self { total, used: Capacity::default() }
    }

    /// What is free. Adopted VMs may use more than a lowered total: then nothing is.
    pub fn free(&self) -> Capacity {
        Capacity {
            slots: self.total.slots.saturating_sub(self.used.slots),
            vcpus: self.total.vcpus.saturating_sub(self.used.vcpus),
            memory_mib: self.total.memory_mib.saturating_sub(self.used.memory_mib),
        }
    }

    /// Takes a VM in, if it fits.
    pub fn take(&mut self, need: Capacity) -> Result<(), Full> {
        if need.fits(self.free()) {
            self.force(need);
            Ok(())
        } else if need.fits(self.total) {
            Err(Full::ForNow(self.free()))
        } else {
            Err(Full::Ever(self.total))
        }
    }

    /// Counts a VM that is there anyway.
    pub fn force(&mut self, need: Capacity) {
        self.used.slots += need.slots;
        self.used.vcpus += need.vcpus;
        self.used.memory_mib += need.memory_mib;
    }

    /// A VM is gone.
    pub fn release(&mut self, had: Capacity) {
        self.used.slots = self.used.slots.saturating_sub(had.slots);
        self.used.vcpus = self.used.vcpus.saturating_sub(had.vcpus);
        self.used.memory_mib = self.used.memory_mib.saturating_sub(had.memory_mib);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: Capacity = Capacity { slots: 1, vcpus: 2, memory_mib: 512 };

    #[test]
    fn full_for_now_and_too_large_for_ever_are_told_apart() {
        let mut books = Admission::new(Capacity { slots: 2, vcpus: 4, memory_mib: 1_024 });
        assert_eq!(books.take(VM), Ok(()));
        assert_eq!(books.take(VM), Ok(()));
        assert!(matches!(books.take(VM), Err(Full::ForNow(_))));
        assert!(matches!(books.take(Capacity { vcpus: 5, ..VM }), Err(Full::Ever(_))));
        books.release(VM);
        assert_eq!(books.take(VM), Ok(()));
    }

    #[test]
    fn adopted_vms_may_exceed_a_lowered_total() {
        let mut books = Admission::new(Capacity { slots: 1, vcpus: 1, memory_mib: 100 });
        books.force(VM);
        assert_eq!(books.free(), Capacity::default());
        books.release(VM);
        assert_eq!(books.free().memory_mib, 100);
    }
}
