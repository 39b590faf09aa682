//! How many VMs boot at once on a host: for jobs, as warm VMs, and by drivers on their own account.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of one host. Clones share them.
#[derive(Debug, Clone)]
pub struct Boots {
    places: Arc<Semaphore>,
    most: u32,
}

/// A boot that is under way; dropping it gives its place back.
#[derive(Debug)]
pub struct Booting {
    _place: OwnedSemaphorePermit,
}

impl Boots {
    /// At most so many at once.
    pub fn new(most: u32) -> Self {
        let places = usize::try_from(most).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(places)), most }
    }

    /// The limit.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Takes a place, if one is free and no one waits for it.
    pub fn try_begin(&self) -> Option<Booting> {
        Arc::clone(&self.places).try_acquire_owned().ok().map(|place| Booting { _place: place })
    }

    /// Waits for a place; those who wait get theirs in order, before any [`Boots::try_begin`].
    pub async fn begin(&self) -> Booting {
        match Arc::clone(&self.places).acquire_owned().await {
            Ok(place) => Booting { _place: place },
            // Only a closed semaphore refuses, and nothing closes this one.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_caller_that_waits_is_not_passed_by() {
        let boots = Boots::new(1);
        let first = boots.try_begin().unwrap();
        assert!(boots.try_begin().is_none());
        let mut waits = std::pin::pin!(boots.begin());
        assert!((&mut waits).now_or_never().is_none());
        drop(first);
        assert!(boots.try_begin().is_none(), "the place is the other one's");
        drop(waits.await);
        assert!(boots.try_begin().is_some());
    }
}
