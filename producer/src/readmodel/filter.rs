//! Which jobs are meant: all that is given must hold.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::limits::clip;
use stoker_schemas::{Phase, Time};

use super::keys::{self, Facet};
use super::summary::JobSummary;

/// Phases with no more jobs than this are the quickest way in, whatever else is asked for.
const SMALL_PHASES: u64 = 1_000;

/// Some phases, at least one. As text: their names with commas between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Phases(BTreeSet<Phase>);

impl Phases {
    /// Each once.
    pub fn iter(&self) -> impl Iterator<Item = Phase> + '_ {
        self.0.iter().copied()
    }

    /// Whether this is one of them.
    pub fn contains(&self, phase: Phase) -> bool {
        self.0.contains(&phase)
    }

    /// The phase, where it is one.
    pub fn only(&self) -> Option<Phase> {
        self.0.first().copied().filter(|_| self.0.len() == 1)
    }
}

impl From<Phase> for Phases {
    fn from(phase: Phase) -> Self {
        Self([phase].into())
    }
}

impl FromStr for Phases {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &str| Phase::ALL.into_iter().find(|phase| phase.as_str() == name.trim());
        let unknown = |name| {
            let all: Vec<_> = Phase::ALL.iter().map(|phase| phase.as_str()).collect();
            format!("{:?} is none of {}", clip(name, 40), all.join(", "))
        };
        text.split(',').map(|name| named(name).ok_or_else(|| unknown(name))).collect::<Result<_, _>>().map(Self)
    }
}

impl JsonSchema for Phases {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Phases".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = Phase::ALL.map(Phase::as_str).join("|");
        json_schema!({ "type": "string", "pattern": format!("^({names})(,({names}))*$") })
    }
}

impl TryFrom<String> for Phases {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Phases> for String {
    fn from(phases: Phases) -> Self {
        phases.to_string()
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Phase::as_str).collect();
        f.write_str(&names.join(","))
    }
}

/// In an event a cause that nobody knows is read as an unknown one; who asks for it made a mistake.
fn known_cause<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cause>, D::Error> {
    let text = Option::<String>::deserialize(from)?;
    text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
}

/// Which jobs. All that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// In this phase, or one of these (`dead`, `failing,retrying`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phases>,
    /// Booting this image (`golden` matches `golden@7`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// In this pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// With this label: `key` or `key=value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whose last failure has this cause.
    #[serde(default, deserialize_with = "known_cause", skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// On this host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// With this text in id, image, host, labels, address, asker or problem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Enqueued at this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Enqueued before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

impl Filter {
    /// All jobs in a phase.
    pub fn in_phase(phase: Phase) -> Self {
        Self { phase: Some(phase.into()), ..Self::default() }
    }

    /// The shortest indexes that together hold all that match. They are all in the same order, so
    /// a place in one is a place in all of them.
    pub(super) fn indexes(&self, in_phases: u64) -> Vec<Vec<u8>> {
        let phases = self.phase.as_ref().map(|phases| phases.iter().map(keys::by_phase).collect::<Vec<_>>());
        if let Some(phases) = phases.clone().filter(|_| in_phases <= SMALL_PHASES) {
            return phases;
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
        let facet = |facet: Option<Facet<'_>>| facet.map(|facet| vec![keys::by_facet(facet)]);
        facet(narrow).or(phases).or_else(|| facet(wide)).unwrap_or_else(|| vec![keys::BY_TIME.to_vec()])
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
            && self.phase.as_ref().is_none_or(|phases| phases.contains(job.phase))
            && self.cause.is_none_or(|c| job.cause == Some(c))
            && same(&self.pool, &job.pool)
            && self.host.as_ref().is_none_or(|h| job.host.as_ref() == Some(h))
            && self.since.is_none_or(|since| job.created >= since)
            && self.until.is_none_or(|until| job.created < until)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_a_list_of_names() {
        let phases: Phases = "ready, dead,ready".parse().unwrap();
        assert_eq!((phases.to_string(), phases.only()), ("ready,dead".to_owned(), None));
        assert_eq!(Phases::from(Phase::Dead).only(), Some(Phase::Dead));
        for bad in ["", "dead,", "Dead", "dead;ready"] {
            assert!(bad.parse::<Phases>().unwrap_err().contains("queued"), "{bad}");
        }
        let filter: Filter = serde_json::from_str(r#"{"phase":"dead"}"#).unwrap();
        assert_eq!(filter, Filter::in_phase(Phase::Dead));
    }
}
