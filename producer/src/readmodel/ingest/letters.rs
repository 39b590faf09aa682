//! Dead letters of a batch: their rows, and which jobs wait for a message that will not come.

use stoker_schemas::id::LetterId;
use stoker_schemas::{Event, EventData, JobId, JobState, Phase, Time, letter};

use super::Ingest;
use crate::readmodel::letters::{LetterRow, LetterState, LetterSummary, MAX_LETTERS};
use crate::readmodel::store::corrupt;
use crate::readmodel::{ReadModelError, keys};

/// What of one letter changed in a batch.
pub(super) struct TouchedLetter {
    before: Option<LetterSummary>,
    row: LetterRow,
}

impl Ingest<'_> {
    /// Adds an event of a letter.
    pub(super) fn letter(&mut self, id: LetterId, event: &Event, fresh: bool) -> Result<(), ReadModelError> {
        self.touched_letter(id)?.row.apply(event, fresh);
        Ok(())
    }

    fn touched_letter(&mut self, id: LetterId) -> Result<&mut TouchedLetter, ReadModelError> {
        let known =
            if self.letters.contains_key(&id) { None } else { Some(self.store.letter(id)?.unwrap_or_default()) };
        Ok(self.letters.entry(id).or_insert_with(|| {
            let row = known.unwrap_or_default();
            TouchedLetter { before: row.summary(id), row }
        }))
    }

    /// A job changed: a letter about it is looked at again.
    pub(super) fn touch_letter_of(&mut self, job: JobId) -> Result<(), ReadModelError> {
        if let Some(id) = self.store.letter_of(job)? {
            self.touched_letter(id)?;
        }
        Ok(())
    }

    /// Writes the rows of letters. The jobs of the batch are written before.
    pub(super) fn settle_letters(&mut self) -> Result<(), ReadModelError> {
        for (id, TouchedLetter { before, mut row }) in std::mem::take(&mut self.letters) {
            self.settled_letters.insert(id);
            if let Some(work) = row.work().cloned() {
                let state = self.state_with(id, work.job, &row)?;
                let is_past = state.is_past(work.attempt);
                row.set_overtaken(is_past && state.phase() != Phase::Dead);
                self.mark_unsettled(id, work.job, is_past, row.summary(id).as_ref())?;
            }
            let after = row.summary(id);
            self.index_letter(before.as_ref(), after.as_ref());
            self.batch.insert(keys::letter(id), serde_json::to_vec(&row).map_err(corrupt)?);
            self.meta.letters.moved(before.as_ref(), after.as_ref());
        }
        Ok(())
    }

    /// The job as the history knows it, and as the message itself says.
    fn state_with(&self, id: LetterId, job: JobId, row: &LetterRow) -> Result<JobState, ReadModelError> {
        let mut state = match self.cache.get(job) {
            Some(state) => state,
            None => self.replay(job)?.0,
        };
        if let Some(died_at) = row.summary(id).map(|summary| summary.died_at)
            && let Some(body) = self.body_of(id, died_at)?
            && let Ok(work) = letter::work(&body, Time::UNIX_EPOCH)
        {
            state.apply(&work.event);
        }
        Ok(state)
    }

    fn body_of(&self, id: LetterId, died_at: Time) -> Result<Option<Vec<u8>>, ReadModelError> {
        let key = keys::letter_death(id, died_at);
        let stored = match self.events.get(&key) {
            Some(stored) => Some(stored.clone()),
            None => self.store.event(&key)?,
        };
        let Some(stored) = stored else { return Ok(None) };
        match stored.event()?.data {
            EventData::MessageDeadLettered(death) if !death.body.truncated => Ok(death.body.bytes()),
            _ => Ok(None),
        }
    }

    /// A row as long as the job waits for the message and nothing was done about that: with the events
    /// in one batch, so that no crash loses it.
    fn mark_unsettled(
        &mut self,
        id: LetterId,
        job: JobId,
        is_past: bool,
        letter: Option<&LetterSummary>,
    ) -> Result<(), ReadModelError> {
        let redriven = letter.is_some_and(|letter| letter.state == LetterState::Redriven);
        if is_past || redriven {
            self.batch.remove(keys::unsettled(job));
        } else {
            self.batch.insert(keys::unsettled(job), &[]);
            self.unsettled = true;
        }
        self.batch.insert(keys::letter_of(job), id.0.as_bytes());
        Ok(())
    }

    fn index_letter(&mut self, before: Option<&LetterSummary>, after: Option<&LetterSummary>) {
        let key = |l: &LetterSummary| keys::by_letter_state(l.state == LetterState::Open, l.died_at, l.id);
        let (stale, kept) = (before.map(key), after.map(key));
        if stale == kept {
            return;
        }
        if let Some(stale) = stale {
            self.batch.remove(stale);
        }
        if let Some(kept) = kept {
            self.batch.insert(kept, &[]);
        }
    }

    /// Takes the oldest rows out where there are too many; their events stay.
    pub(super) fn trim_letters(&mut self) -> Result<(), ReadModelError> {
        for open in [true, false] {
            let surplus = self.meta.letters.of(open).saturating_sub(MAX_LETTERS);
            for id in self.store.oldest_letters(open, usize::try_from(surplus).unwrap_or(usize::MAX))? {
                let Some(letter) = self.store.letter(id)?.and_then(|row| row.summary(id)) else { continue };
                if self.settled_letters.contains(&id) {
                    continue;
                }
                self.batch.remove(keys::letter(id));
                self.batch.remove(keys::by_letter_state(open, letter.died_at, id));
                if let Some(work) = &letter.work {
                    self.batch.remove(keys::letter_of(work.job));
                }
                self.meta.letters.moved(Some(&letter), None);
            }
        }
        Ok(())
    }
}
