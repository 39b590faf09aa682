//! Dead letters as a file: one a line in JSON, or as a table for a spreadsheet. Written as it is
//! sent, some rows at a time, so that it costs the same memory however many there are.

use std::collections::BTreeMap;
use std::io;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use stoker_schemas::diagnosis::Cause;
use stoker_schemas::event::DeadReason;
use stoker_schemas::{JobId, JobSpec, JobState, Phase, Time};
use tokio::sync::OwnedSemaphorePermit;

use super::{Api, Problem};
use crate::readmodel::{Filter, ReadModelError};
use crate::view::JobView;

/// Jobs written at once: each is added up from its events, some of them a few hundred.
const PIECE: usize = 50;

/// The table's first row.
const COLUMNS: [&str; 11] =
    ["id", "image", "pool", "labels", "reason", "cause", "summary", "remedy", "attempts", "enqueued_at", "died_at"];

/// How a list is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A page of them.
    Json,
    /// All of them, one a line, with their specs.
    Ndjson,
    /// All of them, as a table.
    Csv,
}

impl Format {
    /// What a request wants: what it says, or else what it accepts.
    pub fn wanted(asked: Option<Self>, headers: &HeaderMap) -> Self {
        let accepts = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let by_kind = || {
            let kinds = accepts.split(',').map(|kind| kind.split(';').next().unwrap_or_default().trim());
            kinds.into_iter().find_map(|kind| match kind {
                "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Some(Self::Ndjson),
                "text/csv" => Some(Self::Csv),
                "application/json" => Some(Self::Json),
                _ => None,
            })
        };
        asked.or_else(by_kind).unwrap_or(Self::Json)
    }

    const fn kind(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }

    const fn suffix(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Ndjson => "ndjson",
            Self::Csv => "csv",
        }
    }
}

/// A dead letter with everything that one needs to judge it elsewhere.
#[derive(Debug, Serialize, schemars::JsonSchema)]
pub struct DeadRow {
    id: JobId,
    image: String,
    pool: String,
    labels: BTreeMap<String, String>,
    reason: DeadReason,
    cause: Option<Cause>,
    summary: Option<String>,
    remedy: Option<String>,
    attempts: u32,
    enqueued_at: Option<Time>,
    died_at: Time,
    spec: Option<JobSpec>,
}

impl DeadRow {
    /// None for a job that was sent round again meanwhile.
    fn of(state: &JobState) -> Option<Self> {
        let JobView { id, enqueued_at, spec, attempts, dead, .. } = JobView::of(state);
        let dead = dead?;
        let last = attempts.into_iter().rev().find_map(|attempt| attempt.diagnosis);
        let diagnosis = last.or_else(|| state.dead.values().next_back()?.value.diagnosis.clone());
        let detail = Some(dead.detail).filter(|detail| !detail.is_empty());
        let named = |of: fn(&JobSpec) -> String| spec.as_ref().map(of).unwrap_or_default();
        Some(Self {
            id,
            image: named(|spec| spec.image.to_string()),
            pool: named(|spec| spec.pool.to_string()),
            labels: spec.as_ref().map(|spec| spec.labels.clone()).unwrap_or_default(),
            reason: dead.reason,
            cause: diagnosis.as_ref().map(|d| d.cause),
            summary: diagnosis.as_ref().map(|d| d.summary.clone()).or(detail),
            remedy: diagnosis.map(|d| d.remedy),
            attempts: state.last_attempt(),
            enqueued_at,
            died_at: dead.at,
            spec,
        })
    }

    fn write(&self, format: Format, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        if format != Format::Csv {
            serde_json::to_writer(&mut *out, self)?;
            out.push(b'\n');
            return Ok(());
        }
        let labels: Vec<_> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let reason = serde_json::to_value(self.reason)?;
        row(
            out,
            [
                &self.id.to_string(),
                &self.image,
                &self.pool,
                &labels.join(";"),
                reason.as_str().unwrap_or_default(),
                self.cause.map_or("", Cause::as_str),
                self.summary.as_deref().unwrap_or_default(),
                self.remedy.as_deref().unwrap_or_default(),
                &self.attempts.to_string(),
                &self.enqueued_at.map(|at| at.to_string()).unwrap_or_default(),
                &self.died_at.to_string(),
            ],
        );
        Ok(())
    }
}

/// One row of a table, as RFC 4180 has it.
fn row(out: &mut Vec<u8>, cells: [&str; COLUMNS.len()]) {
    out.extend_from_slice(cells.map(cell).join(",").as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// A spreadsheet runs what begins like a formula, and a guest may have written it: an apostrophe
/// makes it text.
fn cell(text: &str) -> String {
    let guard = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { "'" } else { "" };
    if text.contains([',', '"', '\r', '\n']) {
        format!("\"{guard}{}\"", text.replace('"', "\"\""))
    } else {
        format!("{guard}{text}")
    }
}

/// All dead jobs that match, as a file.
pub fn dead_letters(api: &Api, filter: Filter, format: Format) -> Result<Response, Problem> {
    let begun = api.now().to_string();
    // 2026-11-23T16:00:00.000000Z -> 20261123T160000Z
    let stamp: String = begun.chars().take_while(|c| *c != '.').filter(|c| !matches!(c, '-' | ':')).collect();
    let disposition = format!("attachment; filename=\"stoker-dead-{stamp}Z.{}\"", format.suffix());
    let export = Export {
        api: api.clone(),
        filter: Filter { phase: Some(Phase::Dead.into()), ..filter },
        format,
        place: Place::Beginning,
        _permit: api.take_stream()?,
    };
    let pieces = stream::try_unfold(export, |export| async move {
        // Reading takes milliseconds: not on a thread that serves requests.
        tokio::task::spawn_blocking(move || export.next()).await.map_err(io::Error::other)?
    });
    let headers = [(header::CONTENT_TYPE, format.kind().to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

enum Place {
    Beginning,
    At(String),
    End,
}

struct Export {
    api: Api,
    filter: Filter,
    format: Format,
    place: Place,
    /// Held until the last row is sent.
    _permit: OwnedSemaphorePermit,
}

impl Export {
    /// The next piece. An error cuts the answer short, and whoever reads it sees that it is.
    fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let mut out = Vec::new();
        if matches!((&self.place, self.format), (Place::Beginning, Format::Csv)) {
            row(&mut out, COLUMNS);
        }
        while out.is_empty() || matches!(self.place, Place::Beginning) {
            if self.api.stopping.is_cancelled() {
                return Err(io::Error::other("the server stops"));
            }
            let failed = |cause: &io::Error| tracing::error!(%cause, "an export ends early");
            if !self.page(&mut out).inspect_err(failed)? {
                break;
            }
        }
        Ok((!out.is_empty()).then(|| (Bytes::from(out), self)))
    }

    /// Writes a page of rows; `false` when there is none.
    fn page(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        let cursor = match &self.place {
            Place::Beginning => None,
            Place::At(cursor) => Some(cursor.as_str()),
            Place::End => return Ok(false),
        };
        let broken = |cause: ReadModelError| io::Error::other(cause.to_string());
        let page = self.api.model.list(&self.filter, cursor, PIECE).map_err(broken)?;
        for job in page.jobs {
            let state = self.api.model.job(job.id).map_err(broken)?;
            if let Some(row) = state.as_ref().and_then(DeadRow::of) {
                row.write(self.format, out)?;
            }
        }
        self.place = page.next.map_or(Place::End, Place::At);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_quoted_and_no_formula_runs() {
        for (text, written) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("say \"hi\"", "\"say \"\"hi\"\"\""),
            ("two\nlines", "\"two\nlines\""),
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\t=1"),
            ("=HYPERLINK(\"x\",\"y\")", "\"'=HYPERLINK(\"\"x\"\",\"\"y\"\")\""),
            ("a=b", "a=b"),
        ] {
            assert_eq!(cell(text), written);
        }
    }

    #[test]
    fn what_is_said_counts_before_what_is_accepted() {
        let wanted = |asked, accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            Format::wanted(asked, &headers)
        };
        assert_eq!(wanted(None, "text/csv;q=0.9, */*"), Format::Csv);
        assert_eq!(wanted(None, "application/x-ndjson"), Format::Ndjson);
        assert_eq!(wanted(None, "*/*"), Format::Json);
        assert_eq!(wanted(Some(Format::Csv), "application/x-ndjson"), Format::Csv);
    }
}
