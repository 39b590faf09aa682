//! Asking the read model: pages of jobs by filter, a job by the beginning of its id.

use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::{JobId, Phase};

use super::keys::Facet;
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
/// A phase with no more jobs than this is the quickest way in, whatever else is asked for.
const SMALL_PHASE: u64 = 1_000;

/// Which jobs. All that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// In this phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Booting this image (`golden` matches `golden@7`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// In this pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// With this label: `key` or `key=value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whose last failure has this cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// On this host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// With this text in id, image, host, labels, address, asker or problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Filter {
    /// The shortest index that holds all that match.
    fn index(&self, in_phase: u64) -> Vec<u8> {
        let phase = self.phase.map(keys::by_phase);
        if let Some(phase) = phase.clone().filter(|_| in_phase <= SMALL_PHASE) {
            return phase;
        }
        let label = self.label.as_deref().map(|wanted| match wanted.split_once('=') {
            Some((key, value)) => Facet::LabelValue(key, value),
            None => Facet::Label(wanted),
        });
        let narrow = label
            .or(self.cause.map(Facet::Cause))
            .or(self.host.as_deref().map(Facet::Host))
            .or(self.image.as_deref().map(Facet::Image));
        let wide = self.pool.as_deref().map(Facet::Pool);
        let facet = |facet: Option<Facet<'_>>| facet.map(keys::by_facet);
        facet(narrow).or(phase).or_else(|| facet(wide)).unwrap_or_else(|| keys::BY_TIME.to_vec())
    }

    /// Whether a job is one of those asked for.
    pub fn matches(&self, job: &JobSummary) -> bool {
        let same = |wanted: &Option<String>, is: &str| wanted.as_ref().is_none_or(|w| w == is);
        let image = self.image.as_ref().is_none_or(|wanted| {
            job.image == *wanted || job.image.split_once('@').is_some_and(|(name, _)| name == wanted)
        });
        let label = self.label.as_ref().is_none_or(|wanted| match wanted.split_once('=') {
            Some((key, value)) => job.labels.get(key).is_some_and(|v| v == value),
            None => job.labels.contains_key(wanted),
        });
        image
            && label
            && self.phase.is_none_or(|p| p == job.phase)
            && self.cause.is_none_or(|c| job.cause == Some(c))
            && same(&self.pool, &job.pool)
            && self.host.as_ref().is_none_or(|h| job.host.as_ref() == Some(h))
            && self.text.as_ref().is_none_or(|text| contains(job, &text.to_lowercase()))
    }
}

fn contains(job: &JobSummary, text: &str) -> bool {
    let labels = job.labels.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]);
    let optional = [&job.host, &job.agent, &job.problem].into_iter().filter_map(|o| o.as_deref());
    let fields = [&job.image, &job.by, &job.pool].map(String::as_str);
    let mut all = fields.into_iter().chain(optional).chain(labels);
    job.id.to_string().contains(text) || all.any(|field| field.to_lowercase().contains(text))
}

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
const SHOWN_CANDIDATES: usize = 5;

/// The jobs of a page. `in_phase` is how many jobs the filter's phase has, to choose the way by.
pub(super) fn list(
    store: &Store,
    filter: &Filter,
    in_phase: u64,
    cursor: Option<&str>,
    limit: usize,
) -> Result<Page, ReadModelError> {
    let limit = limit.clamp(1, MAX_PAGE);
    let after = cursor.map(|c| decode_cursor(c).ok_or(ReadModelError::Cursor)).transpose()?;
    let prefix = filter.index(in_phase);
    let mut page = Page::default();
    for (looked_at, key) in store.index(&prefix, after.as_deref()).enumerate() {
        let key = key?;
        let Some(id) = keys::job_of_index(&key) else { continue };
        // Between index and row a batch may have moved the job on; the row is what counts.
        if let Some(job) = store.summary(id)?.filter(|job| filter.matches(job)) {
            page.jobs.push(job);
        }
        if page.jobs.len() >= limit || looked_at + 1 >= MAX_SCAN {
            let tail = &key[prefix.len()..];
            let more = store.index(&prefix, Some(tail)).next().is_some();
            page.next = more.then(|| encode_cursor(tail));
            break;
        }
    }
    Ok(page)
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

fn encode_cursor(tail: &[u8]) -> String {
    use std::fmt::Write;
    tail.iter().fold(String::with_capacity(tail.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn decode_cursor(text: &str) -> Option<Vec<u8>> {
    let good = text.len() == keys::INDEX_TAIL * 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let byte = |i: usize| u8::from_str_radix(&text[i..i + 2], 16).ok();
    if good { (0..text.len()).step_by(2).map(byte).collect() } else { None }
}
