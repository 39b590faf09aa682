//! Sending what is due: several at a time, few to one receiver, so that one that is slow holds up
//! only itself.

use std::collections::{BTreeMap, BTreeSet};

use stoker_schemas::Time;
use stoker_schemas::limits::clip;
use tokio::task::JoinSet;

use super::schedule;
use super::send::{Answer, SendError};
use super::store::{Call, CallState, LastTry};
use super::{CallbackError, Callbacks};
use crate::clock::Clock;

/// Callbacks under way at once, in all and to one receiver.
const AT_ONCE: usize = 16;
const AT_ONCE_PER_RECEIVER: usize = 4;
/// Bytes kept of why a try failed.
const MAX_WORDS: usize = 300;

type Tried = (Call, Result<Answer, SendError>);

/// What is under way.
#[derive(Default)]
struct UnderWay {
    tasks: JoinSet<Tried>,
    numbers: BTreeSet<u64>,
    receivers: BTreeMap<String, usize>,
}

impl UnderWay {
    fn wants(&self, n: u64, receiver: &str) -> bool {
        !self.numbers.contains(&n) && self.receivers.get(receiver).is_none_or(|count| *count < AT_ONCE_PER_RECEIVER)
    }

    fn ended(&mut self, call: &Call) {
        self.numbers.remove(&call.n);
        let receiver = call.target();
        if let Some(count) = self.receivers.get_mut(&receiver) {
            *count -= 1;
            if *count == 0 {
                self.receivers.remove(&receiver);
            }
        }
    }
}

impl Callbacks {
    /// Sends until nothing is due any longer. When the next one will be.
    pub async fn deliver_due(&self, clock: &Clock) -> Result<Option<Time>, CallbackError> {
        let mut under_way = UnderWay::default();
        loop {
            while under_way.tasks.len() < AT_ONCE
                && let Some(call) = self.store.due(clock(), |n, receiver| under_way.wants(n, receiver))?
            {
                under_way.numbers.insert(call.n);
                *under_way.receivers.entry(call.target()).or_default() += 1;
                let (sender, now) = (self.sender.clone(), clock());
                under_way.tasks.spawn(async move {
                    let answer = sender.send(&call.id, &call.url, &call.body, now).await;
                    (call, answer)
                });
            }
            let ended = tokio::select! {
                ended = under_way.tasks.join_next() => ended,
                // What comes meanwhile need not wait for who is slow.
                () = self.news.notified(), if !under_way.tasks.is_empty() => continue,
            };
            match ended {
                None => return Ok(self.store.next_due()?),
                Some(Err(error)) => return Err(CallbackError::Step(error.to_string())),
                Some(Ok((call, answer))) => {
                    under_way.ended(&call);
                    self.settle(call, answer, clock())?;
                }
            }
        }
    }

    /// Writes down what a try came to.
    fn settle(&self, call: Call, answer: Result<Answer, SendError>, now: Time) -> Result<(), CallbackError> {
        // One that was disabled while it was under way stays so.
        if self.store.get(call.n)?.is_none_or(|row| row.due.is_none()) {
            return Ok(());
        }
        let after = outcome(&call, answer, now);
        let last = after.last.as_ref();
        tracing::info!(job = %after.job, kind = %after.kind, target = %after.target(), tries = after.tries,
            state = after.state.as_str(), status = last.and_then(|l| l.status), "callback");
        let mut changes = Vec::new();
        if after.state == CallState::Disabled {
            // Those that wait for the same receiver about the same job end with it.
            for other in self.store.of_job(after.job)? {
                if other.n != after.n && other.url == after.url && other.due.is_some() {
                    let disabled = Call { state: CallState::Disabled, due: None, ..other.clone() };
                    changes.push((other, disabled));
                }
            }
        }
        changes.push((call, after));
        Ok(self.store.update(&changes)?)
    }
}

fn outcome(call: &Call, answer: Result<Answer, SendError>, now: Time) -> Call {
    let tries = call.tries + 1;
    let (status, words, asked) = match &answer {
        Ok(answer) => (Some(answer.status), answer.words.clone(), answer.retry_after),
        Err(error) => (None, clip(&error.to_string(), MAX_WORDS), None),
    };
    // Only a receiver that is throttling us is asked for its own time.
    let asked = asked.filter(|_| matches!(status, Some(429 | 503)));
    let again = || match schedule::next(now, tries, asked, seed(&call.id)) {
        Some(due) => (CallState::Waiting, Some(due)),
        None => (CallState::GivenUp, None),
    };
    let (state, due) = match &answer {
        Ok(answer) if (200..300).contains(&answer.status) => (CallState::Delivered, None),
        Ok(answer) if answer.status == 410 => (CallState::Disabled, None),
        Err(SendError::Target(target)) if target.is_final() => (CallState::Refused, None),
        Ok(_) | Err(_) => again(),
    };
    let words = match status {
        Some(300..400) => format!("redirects are not followed. {words}"),
        _ => words,
    };
    Call { state, tries, due, last: Some(LastTry { at: now, status, words }), ..call.clone() }
}

/// From the random part of the id: every callback has its own jitter, the same after a restart.
fn seed(id: &str) -> u64 {
    id.get(4..20).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0)
}
