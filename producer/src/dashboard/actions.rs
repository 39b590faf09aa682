//! What buttons do. A form posts, the log decides, and the browser is sent where the outcome shows.

use axum::extract::{Form, Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;
use stoker_schemas::{JobId, JobSpec};

use super::layout::{Frame, Page, Tab};
use super::parts;
use crate::http::access::is_own_path;
use crate::http::bulk::{self, Action, Chosen, Outcome};
use crate::http::many::{self, Order};
use crate::http::{Api, ListQuery, Problem, asker, control};
use crate::readmodel::Filter;

/// Above this many jobs, a person types the number before anything happens.
const TYPED_ABOVE: u64 = 100;

/// A form about one job. The button of a row sends the form around its table, too: what is not ours is left.
#[derive(Debug, Default, Deserialize)]
pub struct OneForm {
    /// An edited spec, as JSON.
    spec: Option<String>,
    /// The page to go back to; without it, the job's.
    back: Option<String>,
}

/// `POST /jobs/{id}/{action}`
pub async fn one(
    State(api): State<Api>,
    Path((id, action)): Path<(String, String)>,
    headers: HeaderMap,
    Form(form): Form<OneForm>,
) -> Response {
    let edited = form.spec.clone();
    let back = form.back.clone().filter(|back| is_own_path(back));
    match carry_out(&api, &id, &action, form, &headers).await {
        Ok(id) => Redirect::to(&back.unwrap_or_else(|| format!("/jobs/{id}"))).into_response(),
        Err(problem) => match (edited, api.state(&id)) {
            (Some(text), Ok(state)) => edit_page(&api, state.id, &text, Some(&problem)).into_response(),
            _ => Page::problem(&api, Tab::Jobs, &problem).into_response(),
        },
    }
}

async fn carry_out(api: &Api, id: &str, action: &str, form: OneForm, headers: &HeaderMap) -> Result<JobId, Problem> {
    let action = Action::parse(action, api.now())?;
    let spec = form.spec.map(|text| read_spec(&text)).transpose()?;
    let state = api.state(id)?;
    let asker = asker(headers);
    let events = control::settle(api, &state, action.command(&asker, "", spec), &asker).await?;
    control::shown(api, &events).await;
    Ok(state.id)
}

fn read_spec(text: &str) -> Result<JobSpec, Problem> {
    let value: Value = serde_json::from_str(text)
        .map_err(|e| Problem::bad_request(format!("the spec is not JSON: {e}"), "mend it in the form below"))?;
    Ok(JobSpec::from_value(&value)?)
}

/// `GET /jobs/{id}/edit`
pub async fn edit(State(api): State<Api>, Path(id): Path<String>) -> Page {
    let found = api.state(&id).and_then(|state| {
        let spec = state.spec().ok_or_else(|| Problem::not_found("the job's spec is not known yet", ""))?;
        Ok((state.id, serde_json::to_string_pretty(spec).unwrap_or_default()))
    });
    match found {
        Ok((id, text)) => edit_page(&api, id, &text, None),
        Err(problem) => Page::problem(&api, Tab::Jobs, &problem),
    }
}

fn edit_page(api: &Api, id: JobId, text: &str, problem: Option<&Problem>) -> Page {
    let body = html! {
        h1 { "Edit and retry job " code { (id) } }
        @if let Some(problem) = problem {
            div.flash.bad role="alert" { b { (problem.title) ": " } (problem.detail) (parts::field_errors(&problem.errors)) }
        }
        form method="post" action={ "/jobs/" (id) "/retry" } {
            (parts::form_guard())
            label for="spec-edit" { "Spec, JSON. The next attempt uses it; the earlier ones keep theirs." }
            textarea #spec-edit name="spec" spellcheck="false" { (text) }
            div.row { button.main { "Retry with this spec" } a href={ "/jobs/" (id) } { "Back" } }
        }
    };
    Page::of(api, Frame::new("Edit and retry", Tab::Jobs), Ok(body))
}

/// A form about ticked rows, or all that match.
#[derive(Debug, Default)]
pub struct ManyForm {
    action: String,
    filter: String,
    back: String,
    ids: Vec<String>,
    confirmed: Option<String>,
}

impl ManyForm {
    /// Ticked boxes share one name, which a map of fields cannot hold.
    fn of(pairs: Vec<(String, String)>) -> Self {
        let mut form = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "action" => form.action = value,
                "filter" => form.filter = value,
                "back" => form.back = value,
                "id" => form.ids.push(value),
                "confirmed" => form.confirmed = Some(value),
                _ => {}
            }
        }
        form
    }

    /// Where to go from here: a page of ours, never somewhere else.
    fn back(&self) -> &str {
        if is_own_path(&self.back) { &self.back } else { "/jobs" }
    }

    fn filter(&self) -> Result<Filter, Problem> {
        let mut query = ListQuery::from_address(&self.filter)?;
        query.forget_empty();
        query.filter()
    }
}

/// `POST /jobs/act`
pub async fn many(State(api): State<Api>, headers: HeaderMap, Form(pairs): Form<Vec<(String, String)>>) -> Response {
    let form = ManyForm::of(pairs);
    match act(&api, &form, &headers).await {
        Ok(page) => page,
        Err(problem) => Page::problem(&api, Tab::Jobs, &problem).into_response(),
    }
}

async fn act(api: &Api, form: &ManyForm, headers: &HeaderMap) -> Result<Response, Problem> {
    let (action, all) = match form.action.strip_suffix("-all") {
        Some(action) => (action, true),
        None => (form.action.as_str(), false),
    };
    let action = Action::parse(action, api.now())?;
    let asker = asker(headers);
    let mut chosen = Chosen::Ids(form.ids.clone());
    if all {
        let filter = form.filter()?;
        let total = many::count(api, &filter).await?;
        if form.confirmed.as_deref() != Some(total.to_string().as_str()) {
            return Ok(confirm(api, form, action, total).into_response());
        }
        if total > bulk::MAX_JOBS as u64 {
            // More than one request can wait for: it goes on by itself, and a page says how far it is.
            let id = many::start(api, Order { action, filter, total, reason: String::new(), asker })?;
            return Ok(Redirect::to(&format!("/bulk/{id}")).into_response());
        }
        chosen = Chosen::Filter(filter);
    }
    let outcome = bulk::run(api, action, &chosen, &asker).await?;
    Ok(result(api, form, action, &outcome).into_response())
}

/// Nothing happens to many jobs before their number was seen; to very many, before it was typed.
fn confirm(api: &Api, form: &ManyForm, action: Action, n: u64) -> Page {
    let typed = n > TYPED_ABOVE;
    let title = format!("{} {} {}", action.verb(), parts::number(n), if n == 1 { "job" } else { "jobs" });
    let filter = form.filter.trim_end_matches('&');
    let body = html! {
        h1 { (title) "?" }
        p { "They match: " code { @if filter.is_empty() { "everything" } @else { (filter) } } ". Jobs that cannot be "
            (action.participle()) " are left as they are, and named." }
        @if let Action::Snooze(until) = action { p { "None of them starts before " (parts::time(until)) "." } }
        @if n == 0 { p { "Nothing matches any longer." } p { a href=(form.back()) { "Back" } } } @else {
            form method="post" action="/jobs/act" {
                (parts::form_guard())
                input type="hidden" name="action" value=(form.action);
                input type="hidden" name="filter" value=(form.filter);
                input type="hidden" name="back" value=(form.back());
                @if typed {
                    p { label { "Type " b { (n) } " to confirm: " input name="confirmed" inputmode="numeric" autocomplete="off" size="8"; } }
                } @else { input type="hidden" name="confirmed" value=(n); }
                div.row { button.main { (title) } a href=(form.back()) { "Back" } }
            }
        }
    };
    Page::of(api, Frame::new(&title, Tab::Jobs), Ok(body))
}

fn result(api: &Api, form: &ManyForm, action: Action, outcome: &Outcome) -> Page {
    let title = format!("{} {}", parts::number(outcome.done.len() as u64), action.participle());
    let body: Markup = html! {
        h1 { (title) }
        @if outcome.more { p { "There are more that match: do it again for the next of them." } }
        @if !outcome.skipped.is_empty() {
            h2 { (outcome.skipped.len()) " left as they are" }
            table { tbody { @for skipped in outcome.skipped.iter().take(100) {
                tr { td.mono { (skipped.id) } td { (skipped.reason) } }
            } } }
        }
        p { a href=(form.back()) { "Back" } }
    };
    Page::of(api, Frame::new(&title, Tab::Jobs), Ok(body))
}

/// `POST /hosts/{host}/drain`
pub async fn drain(State(api): State<Api>, Path(host): Path<String>, headers: HeaderMap) -> Response {
    match control::request_drain(&api, &host, "", &asker(&headers)).await {
        Ok(_) => Redirect::to("/hosts").into_response(),
        Err(problem) => Page::problem(&api, Tab::Hosts, &problem).into_response(),
    }
}
