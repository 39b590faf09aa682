//! The read model's keys: one ordered tree, one letter per kind of row, so that an event, the
//! summaries and indexes that follow from it and the offset are written in one atomic batch.
//!
//! ```text
//! e job epoch step   -> seq, event      events of jobs
//! E host 0 step      -> seq, event      events of hosts and pools
//! s seq              -> keys of events   everything in order of arrival: a batch's, from this number on
//! j job              -> summary
//! p phase time job   -> (index)         newest first
//! t time job         -> (index)         newest first
//! f facet time job   -> (index)         newest first, of one cause, host, image, label or pool
//! r due job          -> (index)         soonest first
//! h host             -> state
//! q pool             -> what was said of it last
//! b minute           -> what happened in it
//! d job              -> (index)         a VM too many that was not told to go
//! l letter           -> what is known of it
//! k open time letter -> (index)         dead letters that are open (0) or not (1), the latest first
//! w job              -> letter          the dead letter about it
//! u job              -> (index)         a job that waits for a message that was given up
//! wj job             -> what it waits for
//! wi class seq job   -> (index)         of those, the urgent ones first, then by their last event
//! wl pool lane       -> number of the last event of the latest job that a host took
//! x offset index     -> what could not be decoded
//! m                  -> offset, next seq, counters
//! ```

use stoker_schemas::diagnosis::Cause;
use stoker_schemas::id::LetterId;
use stoker_schemas::spec::Priority;
use stoker_schemas::{Epoch, Event, JobId, Phase, PoolName, Time};
use uuid::Uuid;

/// The one row of bookkeeping.
pub const META: &[u8] = b"m";
/// Beginning of the rows of all hosts.
pub const HOSTS: &[u8] = b"h";
/// Beginning of the rows of all pools.
pub const POOLS: &[u8] = b"q";
/// Beginning of the rows of what could not be decoded.
pub const UNDECODABLE: &[u8] = b"x";
/// Beginning of the index of all jobs.
pub const BY_TIME: &[u8] = b"t";
/// Beginning of the index of jobs with a VM too many.
pub const CROWDED: &[u8] = b"d";
/// Beginning of the index of jobs that wait for an attempt.
pub const BY_DUE: &[u8] = b"r";
/// Beginning of the index of jobs that wait for a message that was given up.
pub const UNSETTLED: &[u8] = b"u";
/// Bytes of an index key behind its beginning: time and job.
pub const INDEX_TAIL: usize = 24;

/// What stands behind an index's beginning.
pub type Tail = [u8; INDEX_TAIL];

/// After every other: the oldest there could be.
pub const LAST_TAIL: Tail = [u8::MAX; INDEX_TAIL];

fn joined(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Where an event is kept. The same fact has the same key, however often it is told.
pub fn event(event: &Event) -> Vec<u8> {
    let step = event.step();
    match event.job() {
        Some(job) => joined(&[&events_of(job), &epoch(event.epoch), step.as_bytes()]),
        None => joined(&[b"E", event.subject.as_bytes(), &[0], step.as_bytes()]),
    }
}

fn epoch(epoch: Epoch) -> [u8; 8] {
    (u64::from(epoch.attempt) << 32 | u64::from(epoch.delivery)).to_be_bytes()
}

/// Beginning of all events of a job.
pub fn events_of(job: JobId) -> Vec<u8> {
    joined(&[b"e", job.0.as_bytes()])
}

/// The job whose event has this key; none for those of hosts.
pub fn job_of_event(key: &[u8]) -> Option<JobId> {
    let id = key.strip_prefix(b"e")?.get(..16)?;
    Uuid::from_slice(id).ok().map(JobId)
}

/// A place in the order of arrival.
pub fn seq(seq: u64) -> Vec<u8> {
    joined(&[b"s", &seq.to_be_bytes()])
}

/// Keys of events that came one after the other, in one row: a row for each would cost as much as the
/// events themselves. A key is shorter than a batch, which is shorter than 4 GiB.
pub fn joined_keys(keys: &[Vec<u8>]) -> Vec<u8> {
    let length = |key: &Vec<u8>| u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes();
    keys.iter().flat_map(|key| length(key).into_iter().chain(key.iter().copied())).collect()
}

/// The keys of such a row; what does not hold together ends them.
pub fn split_keys(mut row: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = row.split_first_chunk::<4>()?;
        let (key, rest) = rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        row = rest;
        Some(key)
    })
}

/// The number that a row of arrivals begins with.
pub fn seq_of(key: &[u8]) -> Option<u64> {
    key.get(1..)?.try_into().ok().map(u64::from_be_bytes)
}

/// A job's summary.
pub fn job(job: JobId) -> Vec<u8> {
    joined(&[b"j", job.0.as_bytes()])
}

/// Says that a job has a VM too many.
pub fn crowded(job: JobId) -> Vec<u8> {
    joined(&[CROWDED, job.0.as_bytes()])
}

/// A dead letter's row.
pub fn letter(id: LetterId) -> Vec<u8> {
    joined(&[b"l", id.0.as_bytes()])
}

/// Beginning of the index of dead letters that are open, or of those that are not.
pub fn letters(open: bool) -> Vec<u8> {
    vec![b'k', u8::from(!open)]
}

/// The place of a dead letter in its index: later deaths first.
pub fn by_letter_state(open: bool, died_at: Time, id: LetterId) -> Vec<u8> {
    joined(&[&letters(open), &index_tail(died_at, JobId(id.0))])
}

/// Where the event of a letter's death is kept.
pub fn letter_death(id: LetterId, died_at: Time) -> Vec<u8> {
    let step = format!("message.dead-lettered@{}", died_at.unix_micros());
    joined(&[b"E", id.to_string().as_bytes(), &[0], step.as_bytes()])
}

/// Says which dead letter is about a job.
pub fn letter_of(job: JobId) -> Vec<u8> {
    joined(&[b"w", job.0.as_bytes()])
}

/// Says that a job waits for a message that was given up.
pub fn unsettled(job: JobId) -> Vec<u8> {
    joined(&[UNSETTLED, job.0.as_bytes()])
}

/// What a job waits for.
pub fn awaited(job: JobId) -> Vec<u8> {
    joined(&[b"wj", job.0.as_bytes()])
}

/// Beginning of the index of jobs for which something is to come.
pub fn by_awaited(is_urgent: bool) -> Vec<u8> {
    joined(&[b"wi", &[u8::from(!is_urgent)]])
}

/// The place of such a job in its index.
pub fn awaited_since(is_urgent: bool, seq: u64, job: JobId) -> Vec<u8> {
    joined(&[&by_awaited(is_urgent), &seq.to_be_bytes(), job.0.as_bytes()])
}

/// How far a lane has come.
pub fn lane(pool: &PoolName, lane: Priority) -> Vec<u8> {
    joined(&[b"wl", pool.as_str().as_bytes(), &[0], lane.as_str().as_bytes()])
}

/// A host's row.
pub fn host(name: &str) -> Vec<u8> {
    joined(&[HOSTS, name.as_bytes()])
}

/// A pool's row.
pub fn pool(name: &str) -> Vec<u8> {
    joined(&[POOLS, name.as_bytes()])
}

/// What could not be decoded.
pub fn undecodable(offset: u64, index: u32) -> Vec<u8> {
    joined(&[UNDECODABLE, &offset.to_be_bytes(), &index.to_be_bytes()])
}

/// Beginning of the index of one phase.
pub fn by_phase(phase: Phase) -> Vec<u8> {
    vec![b'p', phase as u8]
}

/// What lists can be narrowed by without looking at every job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Facet<'a> {
    /// Cause of the last failure.
    Cause(Cause),
    /// Where it runs, or last ran.
    Host(&'a str),
    /// Image, with or without its version.
    Image(&'a str),
    /// A label, by key.
    Label(&'a str),
    /// A label, by key and value.
    LabelValue(&'a str, &'a str),
    /// Pool.
    Pool(&'a str),
}

/// Beginning of the index of one facet. Names hold no zero byte; should one ever, the rows found
/// are a few too many, and each is looked at before it is shown.
pub fn by_facet(facet: Facet<'_>) -> Vec<u8> {
    match facet {
        Facet::Cause(cause) => joined(&[b"fc", cause.as_str().as_bytes(), &[0]]),
        Facet::Host(name) => joined(&[b"fh", name.as_bytes(), &[0]]),
        Facet::Image(name) => joined(&[b"fi", name.as_bytes(), &[0]]),
        Facet::Label(key) => joined(&[b"fl", key.as_bytes(), &[0]]),
        Facet::LabelValue(key, value) => joined(&[b"fv", key.as_bytes(), b"=", value.as_bytes(), &[0]]),
        Facet::Pool(name) => joined(&[b"fp", name.as_bytes(), &[0]]),
    }
}

/// What stands behind an index's beginning: later times first.
pub fn index_tail(created: Time, job: JobId) -> Vec<u8> {
    let micros = u64::try_from(created.unix_micros()).unwrap_or(0);
    joined(&[&(!micros).to_be_bytes(), job.0.as_bytes()])
}

/// The first tail of those before a time, that time not included.
pub fn tail_before(until: Time) -> Tail {
    let micros = u64::try_from(until.unix_micros()).unwrap_or(0).saturating_sub(1);
    filled(!micros, 0)
}

/// The last tail of those at a time or later.
pub fn tail_since(since: Time) -> Tail {
    let micros = u64::try_from(since.unix_micros()).unwrap_or(0);
    filled(!micros, u8::MAX)
}

fn filled(time: u64, job: u8) -> Tail {
    let mut tail = [job; INDEX_TAIL];
    let (head, _) = tail.split_at_mut(size_of::<u64>());
    head.copy_from_slice(&time.to_be_bytes());
    tail
}

/// The tail of an index key.
pub fn tail_of(key: &[u8]) -> Option<Tail> {
    key.last_chunk().copied()
}

/// A job that is due at a time.
pub fn by_due(due: Time, job: JobId) -> Vec<u8> {
    let micros = u64::try_from(due.unix_micros()).unwrap_or(0);
    joined(&[BY_DUE, &micros.to_be_bytes(), job.0.as_bytes()])
}

/// What happened in a minute.
pub fn minute(minute: u64) -> Vec<u8> {
    joined(&[b"b", &minute.to_be_bytes()])
}

/// The job that an index key names.
pub fn job_of_index(key: &[u8]) -> Option<JobId> {
    let start = key.len().checked_sub(16)?;
    Uuid::from_slice(&key[start..]).ok().map(JobId)
}

/// Both ends of the job ids that begin with these hex digits (dashes do not matter); `None` when
/// the text cannot begin an id.
pub fn id_range(prefix: &str) -> Option<(JobId, JobId)> {
    let digits: String = prefix.chars().filter(|c| *c != '-').collect();
    if digits.is_empty() || digits.len() > 32 || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let bound = |fill: &str| {
        let text = format!("{digits}{}", fill.repeat(32 - digits.len()));
        u128::from_str_radix(&text, 16).ok().map(|n| JobId(Uuid::from_u128(n)))
    };
    Some((bound("0")?, bound("f")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_jobs_come_first_in_an_index() {
        let id = JobId::from_key("default", "a");
        let old = index_tail(Time::from_unix_micros(1), id);
        let new = index_tail(Time::from_unix_micros(2), id);
        assert!(new < old);
        assert_eq!(old.len(), INDEX_TAIL);
        assert_eq!(job_of_index(&new), Some(id));
    }

    #[test]
    fn a_time_bounds_the_tails_of_its_jobs() {
        let id = |text: &str| text.parse().unwrap();
        let ids = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"];
        let at = Time::from_unix_micros;
        for id in ids.map(id) {
            let tail = |micros: i64| index_tail(at(micros), id);
            assert!(tail(7) <= tail_since(at(7)).to_vec() && tail(6) > tail_since(at(7)).to_vec());
            assert!(tail(6) >= tail_before(at(7)).to_vec() && tail(7) < tail_before(at(7)).to_vec());
            assert!(tail(-5) >= tail_before(at(-4)).to_vec(), "before 1970 is all the same");
        }
    }

    #[test]
    fn a_death_is_found_where_its_event_is_kept() {
        let event = stoker_schemas::event::sample("message.dead-lettered").unwrap();
        let stoker_schemas::EventData::MessageDeadLettered(death) = &event.data else { unreachable!() };
        assert_eq!(letter_death(event.letter().unwrap(), death.died_at), super::event(&event));
    }

    #[test]
    fn joined_keys_come_apart_again() {
        let keys = [b"e1".to_vec(), Vec::new(), vec![0; 300]];
        let row = joined_keys(&keys);
        assert!(split_keys(&row).eq(keys.iter().map(Vec::as_slice)));
        assert_eq!(split_keys(&row[..row.len() - 1]).count(), 2, "half a key is none");
        assert_eq!(seq_of(&seq(u64::MAX - 1)), Some(u64::MAX - 1));
    }

    #[test]
    fn prefixes_span_exactly_their_ids() {
        let id: JobId = "01920000-0000-7000-8000-00000000abcd".parse().unwrap();
        for prefix in ["0", "0192", "01920000-0000-7", &id.to_string()] {
            let (low, high) = id_range(prefix).unwrap();
            assert!(low <= id && id <= high, "{prefix}");
        }
        assert!(id_range("0193").unwrap().0 > id);
        for bad in ["", "xyz", "../", &"0".repeat(33)] {
            assert!(id_range(bad).is_none(), "{bad}");
        }
    }
}
