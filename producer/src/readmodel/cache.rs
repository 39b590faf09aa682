//! A bounded memory of job states: two generations, the older one dropped whole. Cruder than LRU
//! and with the same effect here: jobs with events arriving now stay.

use std::collections::HashMap;

use stoker_schemas::{JobId, JobState};

/// States per generation; a state is a few KiB, so both stay below some ten MiB.
const GENERATION: usize = 1_024;

/// States of the jobs touched lately.
#[derive(Debug, Default)]
pub struct Cache {
    young: HashMap<JobId, JobState>,
    old: HashMap<JobId, JobState>,
}

impl Cache {
    /// Takes a state out, to be changed and put back.
    pub fn take(&mut self, id: JobId) -> Option<JobState> {
        self.young.remove(&id).or_else(|| self.old.remove(&id))
    }

    /// A copy of a state.
    pub fn get(&self, id: JobId) -> Option<JobState> {
        self.young.get(&id).or_else(|| self.old.get(&id)).cloned()
    }

    /// Keeps a state.
    pub fn put(&mut self, state: JobState) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&state.id);
        self.young.insert(state.id, state);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_bounded_and_keeps_what_was_used_last() {
        let mut cache = Cache::default();
        let id = |n: usize| JobId::from_key("test", &n.to_string());
        for n in 0..10 * GENERATION {
            cache.put(JobState::new(id(n)));
            assert!(cache.len() <= 2 * GENERATION);
        }
        assert!(cache.get(id(10 * GENERATION - 1)).is_some());
        assert!(cache.get(id(0)).is_none());
    }
}
