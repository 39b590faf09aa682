//! The host's addresses: one writer, derived from the log at start. An address given back is used
//! again as late as possible, so that stale neighbours elsewhere have forgotten it.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

/// Free and taken addresses.
#[derive(Debug, Default)]
pub struct AddressPool {
    free: VecDeque<Ipv4Addr>,
    taken: BTreeSet<Ipv4Addr>,
    /// Networks without a pool (user network) give no addresses and never run out.
    pooled: bool,
}

/// All addresses are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exhausted;

impl AddressPool {
    /// These addresses, all free.
    pub fn new(addresses: Vec<Ipv4Addr>) -> Self {
        Self { pooled: !addresses.is_empty(), free: addresses.into(), taken: BTreeSet::new() }
    }

    /// Takes the address that has been free longest.
    pub fn take(&mut self) -> Result<Option<Ipv4Addr>, Exhausted> {
        if !self.pooled {
            return Ok(None);
        }
        let address = self.free.pop_front().ok_or(Exhausted)?;
        self.taken.insert(address);
        Ok(Some(address))
    }

    /// Takes the address that a job brings along. One that is not ours is not ours to keep from
    /// others: the network says what is wrong with it.
    pub fn take_this(&mut self, address: Ipv4Addr) -> Result<Option<Ipv4Addr>, Exhausted> {
        if self.taken.contains(&address) {
            return Err(Exhausted);
        }
        if let Some(at) = self.free.iter().position(|free| *free == address) {
            self.free.remove(at);
            self.taken.insert(address);
        }
        Ok(self.pooled.then_some(address))
    }

    /// Marks an address that the log says is in use.
    pub fn claim(&mut self, address: Ipv4Addr) {
        self.free.retain(|free| *free != address);
        self.taken.insert(address);
    }

    /// Gives an address back. One that was not taken changes nothing.
    pub fn release(&mut self, address: Ipv4Addr) {
        if self.taken.remove(&address) {
            self.free.push_back(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_address_is_ever_held_twice(steps in proptest::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let all: Vec<_> = (2..10).map(|n| Ipv4Addr::new(10, 0, 0, n)).collect();
            let mut pool = AddressPool::new(all.clone());
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for (take, pick) in steps {
                if take {
                    match pool.take() {
                        Ok(address) => {
                            let address = address.expect("a pool gives addresses");
                            prop_assert!(!held.contains(&address));
                            held.push(address);
                        }
                        Err(Exhausted) => prop_assert_eq!(held.len(), all.len()),
                    }
                } else if !held.is_empty() {
                    let address = held.swap_remove(usize::from(pick) % held.len());
                    pool.release(address);
                    pool.release(address);
                }
            }
        }
    }

    #[test]
    fn an_address_that_a_job_brings_along_is_nobody_elses() {
        let [a, b, foreign] = [[10, 0, 0, 2], [10, 0, 0, 3], [10, 9, 9, 9]].map(Ipv4Addr::from);
        let mut pool = AddressPool::new(vec![a, b]);
        assert_eq!(pool.take_this(a), Ok(Some(a)));
        assert_eq!(pool.take_this(a), Err(Exhausted));
        assert_eq!(pool.take(), Ok(Some(b)));
        assert_eq!(pool.take_this(foreign), Ok(Some(foreign)));
        pool.release(foreign);
        assert_eq!(pool.take(), Err(Exhausted), "a foreign address did not become ours");
        pool.release(a);
        assert_eq!(pool.take_this(a), Ok(Some(a)));
        assert_eq!(AddressPool::new(Vec::new()).take_this(a), Ok(None), "a user network has no addresses");
    }

    #[test]
    fn the_address_given_back_last_is_used_last() {
        let mut pool = AddressPool::new(vec![Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 3)]);
        let first = pool.take().unwrap().unwrap();
        pool.release(first);
        assert_ne!(pool.take().unwrap().unwrap(), first);
    }
}
