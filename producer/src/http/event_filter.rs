//! Which events are meant, by what they say and by the job they are about.

use schemars::{Schema, SchemaGenerator, json_schema};
use stoker_schemas::limits::clip;
use stoker_schemas::{EventData, JobId};

use super::{Api, Problem};
use crate::readmodel::{Filter, ReadModel, ReadModelError, Stored};

/// As asked for in a query; flat, since a query string has no nesting.
#[derive(Debug, Default)]
pub struct Wanted<'a> {
    /// About this job (its id or the beginning of it).
    pub job: Option<&'a str>,
    /// Of these kinds, with commas between.
    pub kind: Option<&'a str>,
    /// Told by this host, or about it.
    pub host: Option<&'a str>,
    /// About jobs with this label.
    pub label: Option<&'a str>,
    /// About jobs of this pool.
    pub pool: Option<&'a str>,
}

/// What a list of kinds looks like.
pub fn kinds_schema(_: &mut SchemaGenerator) -> Schema {
    let names: Vec<_> = EventData::KINDS.iter().map(|(kind, _)| kind.replace('.', "\\.")).collect();
    let name = names.join("|");
    json_schema!({ "type": "string", "pattern": format!("^({name})(,({name}))*$") })
}

/// Which events. All that is given must hold.
#[derive(Debug, Default)]
pub struct EventFilter {
    /// About this job.
    pub job: Option<JobId>,
    kinds: Vec<&'static str>,
    host: Option<String>,
    of_jobs: Option<Filter>,
}

impl EventFilter {
    /// What a query asks for.
    pub fn of(api: &Api, wanted: &Wanted<'_>) -> Result<Self, Problem> {
        let text = |text: Option<&str>| text.map(str::to_owned);
        let of_jobs = Filter { label: text(wanted.label), pool: text(wanted.pool), ..Filter::default() };
        Ok(Self {
            job: wanted.job.map(|id| api.resolve(id)).transpose()?,
            kinds: wanted.kind.map_or(Ok(Vec::new()), |list| list.split(',').map(kind).collect())?,
            host: text(wanted.host),
            of_jobs: Some(of_jobs).filter(|filter| *filter != Filter::default()),
        })
    }

    /// Whether an event is one of those asked for. What costs least is looked at first.
    pub fn holds(&self, model: &ReadModel, stored: &Stored) -> Result<bool, ReadModelError> {
        if self.job.is_some() && stored.job != self.job {
            return Ok(false);
        }
        if let Some(filter) = &self.of_jobs {
            let Some(job) = stored.job else { return Ok(false) };
            if !model.summary(job)?.is_some_and(|job| filter.matches(&job)) {
                return Ok(false);
            }
        }
        if self.kinds.is_empty() && self.host.is_none() {
            return Ok(true);
        }
        let event = stored.event()?;
        let told_by = event.source.strip_prefix("/hosts/");
        let about = stored.job.is_none().then_some(event.subject.as_str());
        let host = self.host.as_deref().is_none_or(|host| told_by == Some(host) || about == Some(host));
        Ok(host && (self.kinds.is_empty() || self.kinds.contains(&event.data.kind())))
    }
}

fn kind(name: &str) -> Result<&'static str, Problem> {
    let mut known = EventData::KINDS.iter().map(|(kind, _)| *kind);
    known.find(|kind| *kind == name.trim()).ok_or_else(|| {
        let all: Vec<_> = EventData::KINDS.iter().map(|(kind, _)| *kind).collect();
        let detail = format!("kind: {:?} is none of {}", clip(name, 40), all.join(", "));
        Problem::bad_request(detail, "as in kind=attempt.ready,attempt.failed")
    })
}
