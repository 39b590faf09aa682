//! Asking the read model: pages of jobs by filter, a job by the beginning of its id.
//!
//! Every index has the same tail, enqueue time (later first) and job. A page is a merge of the
//! indexes that its filter needs, from the cursor (or the end of the time asked for) to the
//! beginning of that time; a cursor is a tail, whatever index it was taken from.

use std::ops::Bound;

use serde::{Deserialize, Serialize};
use stoker_schemas::JobId;
use stoker_schemas::event::DeadLetterReason;
use stoker_schemas::id::LetterId;

use super::filter::Filter;
use super::keys::Tail;
use super::letters::{LetterPage, LetterState};
use super::store::Store;
use super::summary::JobSummary;
use super::{ReadModelError, keys};

/// Rows of one page, at most.
pub const MAX_PAGE: usize = 500;
/// Rows of one page when nobody says.
pub const DEFAULT_PAGE: usize = 50;
/// Rows looked at for one page: a filter that matches almost nothing answers with a short page and
/// a cursor instead of holding the reader up. Some tens of milliseconds' worth.
const MAX_SCAN: usize = 2_000;

/// Some jobs, newest first.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<JobSummary>,
    /// Where the next page begins; none when this is the last one.
    pub next: Option<String>,
}

/// What an id, or the beginning of one, names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// One job.
    One(JobId),
    /// Several; some of them.
    Several(Vec<JobId>),
    /// None.
    Nothing,
}

/// Ids shown when a beginning is not unique.
pub(super) const SHOWN_CANDIDATES: usize = 5;

/// The jobs of a page. `in_phases` is how many jobs the filter's phases have, to choose the way by.
pub(super) fn list(
    store: &Store,
    filter: &Filter,
    in_phases: u64,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Page, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let after = cursor.map(|c| decode_cursor(c).ok_or(ReadModelError::Cursor)).transpose()?;
    let newest = filter.until.map(keys::tail_before);
    let from = match (after, newest) {
        (Some(after), newest) if newest.is_none_or(|newest| after >= newest) => Bound::Excluded(after),
        (_, Some(newest)) => Bound::Included(newest),
        (_, None) => Bound::Unbounded,
    };
    let to = filter.since.map_or(keys::LAST_TAIL, keys::tail_since);
    let runs = filter.indexes(in_phases).into_iter().map(|prefix| store.index(&prefix, from, to));
    let mut tails = Merged::new(runs.collect::<Result<Vec<_>, _>>()?.into_iter())?;
    let mut page = Page::default();
    let mut before = None;
    for looked_at in 1.. {
        let Some(tail) = tails.next()? else { break };
        // A job that changed its phase meanwhile may stand in two indexes.
        if before.replace(tail) != Some(tail)
            && let Some(id) = keys::job_of_index(&tail)
            // Between index and row a batch may have moved the job on; the row is what counts.
            && let Some(job) = store.summary(id)?.filter(|job| filter.matches(job))
        {
            page.jobs.push(job);
        }
        if page.jobs.len() >= limit || looked_at >= MAX_SCAN {
            page.next = tails.next()?.map(|_| encode_cursor(&tail));
            break;
        }
    }
    Ok(page)
}

/// A page of dead letters, those that died last first.
pub(super) fn letters(
    store: &Store,
    open: bool,
    reason: Option<DeadLetterReason>,
    cursor: Option<&str>,
    limit: usize,
) -> Result<LetterPage, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let after = cursor.map(|c| decode_cursor(c).ok_or(ReadModelError::Cursor)).transpose()?;
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    let mut tails = store.index(&keys::letters(open), from, keys::LAST_TAIL)?;
    let mut page = LetterPage::default();
    for looked_at in 1.. {
        let Some(tail) = tails.next().transpose()? else { break };
        // Between index and row a batch may have moved the letter on; the row is what counts.
        if let Some(id) = keys::job_of_index(&tail).map(|id| LetterId(id.0))
            && let Some(letter) = store.letter(id)?.and_then(|row| row.summary(id))
            && (letter.state == LetterState::Open) == open
            && reason.is_none_or(|reason| reason == letter.reason)
        {
            page.letters.push(letter);
        }
        if page.letters.len() >= limit || looked_at >= MAX_SCAN {
            page.next = tails.next().transpose()?.map(|_| encode_cursor(&tail));
            break;
        }
    }
    Ok(page)
}

/// Ordered runs of tails, as one.
struct Merged<I> {
    /// Each with the tail that it goes on with.
    runs: Vec<(Tail, I)>,
}

impl<I: Iterator<Item = Result<Tail, ReadModelError>>> Merged<I> {
    fn new(all: impl Iterator<Item = I>) -> Result<Self, ReadModelError> {
        let mut runs = Vec::new();
        for mut run in all {
            if let Some(first) = run.next().transpose()? {
                runs.push((first, run));
            }
        }
        Ok(Self { runs })
    }

    /// The least. As many runs as there are phases, at most: looking at each costs nothing.
    fn next(&mut self) -> Result<Option<Tail>, ReadModelError> {
        let Some(at) = (0..self.runs.len()).min_by_key(|&i| self.runs[i].0) else { return Ok(None) };
        let (tail, run) = &mut self.runs[at];
        let least = *tail;
        match run.next().transpose()? {
            Some(next) => *tail = next,
            None => drop(self.runs.swap_remove(at)),
        }
        Ok(Some(least))
    }
}

/// Finds a job by the beginning of its id.
pub(super) fn find(store: &Store, text: &str) -> Result<Found, ReadModelError> {
    let Some((low, high)) = keys::id_range(text) else { return Ok(Found::Nothing) };
    let ids = store.ids(low, high, SHOWN_CANDIDATES)?;
    Ok(match ids.as_slice() {
        [] => Found::Nothing,
        [one] => Found::One(*one),
        _ => Found::Several(ids),
    })
}

pub(crate) fn encode_cursor(tail: &[u8]) -> String {
    use std::fmt::Write;
    tail.iter().fold(String::with_capacity(tail.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub(crate) fn decode_cursor(text: &str) -> Option<Tail> {
    let good = text.len() == keys::INDEX_TAIL * 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).ok();
    let bytes: Vec<u8> = if good { (0..text.len()).step_by(2).map(byte).collect() } else { None }?;
    bytes.try_into().ok()
}
