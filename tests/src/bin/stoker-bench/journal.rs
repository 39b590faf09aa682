//! Notes when which event of which job became durable, by following the log's head.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use stoker_schemas::JobId;
use stoker_worker::log::EventLog;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use uuid::Uuid;

use crate::{DEADLINE, Fallible};

/// Events read at a time.
const PAGE: usize = 1_024;
/// How an event's kind stands in its JSON.
const TYPE_FIELD: &str = "\"type\":\"dev.stoker.";

type Noted = HashMap<(Uuid, &'static str), Instant>;

/// The notes. Dropping them ends the following.
pub struct Journal {
    noted: Arc<Mutex<Noted>>,
    count: watch::Receiver<usize>,
    task: AbortHandle,
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(noted: &Mutex<Noted>) -> MutexGuard<'_, Noted> {
    // Every critical section leaves the map whole.
    noted.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one of `kinds` that this payload is of; nothing is decoded, the measured work needs the CPU.
fn kind_of(payload: &[u8], kinds: &'static [&'static str]) -> Option<&'static str> {
    let text = std::str::from_utf8(payload).ok()?;
    let kind = &text[text.find(TYPE_FIELD)? + TYPE_FIELD.len()..];
    kinds.iter().copied().find(|known| kind.strip_prefix(known).is_some_and(|rest| rest.starts_with(".v")))
}

impl Journal {
    /// Notes events of these kinds from now on.
    pub fn follow(log: EventLog, kinds: &'static [&'static str]) -> Self {
        let noted = Arc::new(Mutex::new(Noted::new()));
        let (tell, count) = watch::channel(0);
        let notes = Arc::clone(&noted);
        let task = tokio::spawn(async move {
            let mut head = log.head();
            let mut next = *head.borrow() + 1;
            while head.wait_for(|head| *head >= next).await.is_ok() {
                // All that is read now was durable by now; the earliest of it is judged late, never early.
                let now = Instant::now();
                let Ok(records) = log.scan(next, PAGE) else { return };
                let mut notes = lock(&notes);
                for record in records {
                    next = record.position + 1;
                    if let Some(kind) = kind_of(&record.payload, kinds) {
                        notes.entry((record.stream, kind)).or_insert(now);
                    }
                }
                tell.send_replace(notes.len());
            }
        });
        Self { noted, count, task: task.abort_handle() }
    }

    /// When the job's first event of this kind was durable; waits for it.
    pub async fn wait(&self, job: JobId, kind: &'static str) -> Fallible<Instant> {
        let seen = || lock(&self.noted).get(&(job.0, kind)).copied();
        let mut count = self.count.clone();
        let waiting = async {
            loop {
                count.borrow_and_update();
                if let Some(at) = seen() {
                    return Ok(at);
                }
                count.changed().await.map_err(|_| "the log cannot be followed any further")?;
            }
        };
        let overdue = |_| format!("{kind} of job {job} did not come within {DEADLINE:?}");
        tokio::time::timeout(DEADLINE, waiting).await.map_err(overdue)?
    }

    /// Waits until so many events were noted; when that was.
    pub async fn wait_count(&self, events: usize) -> Fallible<Instant> {
        let mut count = self.count.clone();
        let seen = tokio::time::timeout(DEADLINE, count.wait_for(|count| *count >= events)).await;
        match seen {
            Ok(Ok(_)) => Ok(Instant::now()),
            Ok(Err(_)) => Err("the log cannot be followed any further".into()),
            Err(_) => Err(format!("{} of {events} events within {DEADLINE:?}", *self.count.borrow()).into()),
        }
    }
}
