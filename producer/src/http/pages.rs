//! The plain status page: what is there, what is wrong, and one page for each job. Works without
//! script and on a phone; the dashboard proper comes on top of the same rows.

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};

use super::html::Html;
use super::{Api, Problem, jobs};
use crate::readmodel::{Filter, JobSummary};
use crate::report::Report;
use crate::view::{AttemptView, duration};

/// Jobs on the front page.
const LATEST: usize = 20;

/// Problems in a browser are pages, too.
pub struct Page(Result<Html, Problem>);

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let problem = match self.0 {
            Ok(html) => return html.page(),
            Err(problem) => problem,
        };
        let mut html = Html::new(&problem.title);
        html.text("p", &problem.detail).text("p", &problem.hint).link("p", "/", "Overview");
        let mut response = html.page();
        if let Ok(status) = problem.status.try_into() {
            *response.status_mut() = status;
        }
        response
    }
}

/// `GET /`
pub async fn overview(State(api): State<Api>) -> Page {
    Page(overview_of(&api))
}

fn overview_of(api: &Api) -> Result<Html, Problem> {
    let counts = api.model.counts();
    let page = api.model.list(&Filter::default(), None, LATEST)?;
    let mut html = Html::new("Stoker");
    html.text("p", format!("as of {}", api.submitter.now()));
    html.raw("<table><tr>");
    for phase in counts.phases.keys() {
        html.text("th", phase);
    }
    html.raw("</tr><tr>");
    for n in counts.phases.values() {
        html.text("td", n);
    }
    html.raw("</tr></table>\n");
    if !counts.causes.is_empty() {
        html.text("h2", "Failing").raw("<ul>");
        for (cause, n) in &counts.causes {
            html.text("li", format!("{}: {n}", cause.title()));
        }
        html.raw("</ul>\n");
    }
    if counts.undecodable > 0 {
        html.text("p", format!("{} entries of the history could not be decoded.", counts.undecodable));
        html.link("p", "/v1/undecodable", "the latest of them");
    }
    html.text("h2", "Latest jobs");
    if page.jobs.is_empty() {
        html.text("p", "No jobs yet. Enqueue one:").text("pre", "stoker enqueue golden --wait");
        return Ok(html);
    }
    html.table(&["job", "phase", "image", "host", "attempts", "boot", "problem", "enqueued"]);
    for job in &page.jobs {
        row(&mut html, job);
    }
    html.raw("</table>\n");
    Ok(html)
}

fn row(html: &mut Html, job: &JobSummary) {
    let phase = if job.cancelling { format!("{}, cancelling", job.phase) } else { job.phase.to_string() };
    let cause = job.cause.map(|c| c.title()).unwrap_or_default();
    html.raw("<tr>").link("td", format_args!("/jobs/{}", job.id), job.id).text("td", phase).text("td", &job.image);
    html.text("td", job.host.as_deref().unwrap_or_default()).text("td", job.attempts);
    html.text("td", job.boot_ms.map(duration).unwrap_or_default()).text("td", cause).text("td", job.created);
    html.raw("</tr>\n");
}

/// `GET /jobs/{id}`
pub async fn job(State(api): State<Api>, Path(id): Path<String>) -> Page {
    let state = match api.state(&id) {
        Ok(state) => state,
        Err(problem) => return Page(Err(problem)),
    };
    let report = jobs::report_of(&api, &state).await;
    Page(Ok(job_page(&report)))
}

fn job_page(report: &Report) -> Html {
    let job = &report.job;
    let mut html = Html::new(&format!("Job {}", job.id));
    html.link("p", "/", "Overview").text("p", &report.verdict);
    for attempt in job.attempts.iter().rev() {
        attempt_section(&mut html, attempt);
    }
    html.text("h2", "Report").text("pre", report.to_markdown());
    html.link("p", format_args!("/v1/jobs/{}/report", job.id), "report as Markdown");
    html.link("p", format_args!("/v1/jobs/{}/events", job.id), "events as JSON");
    html.link("p", format_args!("/v1/jobs/{}/console", job.id), "console of the last attempt");
    html
}

fn attempt_section(html: &mut Html, a: &AttemptView) {
    let host = a.host.as_ref().map(|h| format!(" on {h}")).unwrap_or_default();
    let took = a.took_ms.map(|ms| format!(" after {}", duration(ms))).unwrap_or_default();
    html.text("h2", format!("Attempt {}: {}{took}{host}", a.attempt, a.outcome.as_str()));
    if let Some(d) = &a.diagnosis {
        html.text("h3", d.cause.title()).text("p", &d.summary).text("p", format!("Remedy: {}", d.remedy));
        html.raw("<ul>");
        for line in &d.evidence {
            html.raw("<li>").text("code", line).raw("</li>");
        }
        html.raw("</ul>\n");
    }
    html.table(&["stage", "took", "reached", "detail"]);
    for stage in &a.stages {
        let name = stage.name.replace('_', " ");
        html.raw("<tr>").text("td", name).text("td", duration(stage.took_ms));
        html.text("td", stage.at).text("td", &stage.detail).raw("</tr>\n");
    }
    html.raw("</table>\n");
    if !a.units.is_empty() {
        html.text("h3", "Services").raw("<ul>");
        for unit in &a.units {
            let mark = if unit.ok { "✓ started" } else { "✗ failed" };
            html.text("li", format!("{mark}: {}", unit.name));
        }
        html.raw("</ul>\n");
    }
}
