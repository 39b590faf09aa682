//! The frame of every page: navigation, search, the live button, and what a problem looks like.

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use stoker_schemas::{JobId, Phase};

use super::assets::{CSS_PATH, ICON_PATH, JS_PATH};
use super::parts;
use crate::http::access::Caller;
use crate::http::{Api, Problem};

/// Nothing from elsewhere, nothing inline: what a guest prints can never run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

/// Pages in the navigation, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tab {
    Overview,
    Jobs,
    Retries,
    Dead,
    Hosts,
    Webhooks,
    Log,
}

impl Tab {
    const ALL: [Self; 7] =
        [Self::Overview, Self::Jobs, Self::Retries, Self::Dead, Self::Hosts, Self::Webhooks, Self::Log];

    const fn link(self) -> (&'static str, &'static str) {
        match self {
            Self::Overview => ("/", "Overview"),
            Self::Jobs => ("/jobs", "Jobs"),
            Self::Retries => ("/retries", "Retries"),
            Self::Dead => ("/dead", "Dead"),
            Self::Hosts => ("/hosts", "Hosts"),
            Self::Webhooks => ("/webhooks", "Webhooks"),
            Self::Log => ("/log", "Log"),
        }
    }

    /// The number behind its name, where there is one that a person should know.
    const fn phase(self) -> Option<Phase> {
        match self {
            Self::Retries => Some(Phase::Retrying),
            Self::Dead => Some(Phase::Dead),
            _ => None,
        }
    }
}

/// A page, or the problem that took its place.
pub struct Page(Result<Markup, (StatusCode, Markup)>);

impl Page {
    /// What a page is made of.
    pub fn of(api: &Api, frame: Frame<'_>, body: Result<Markup, Problem>) -> Self {
        match body {
            Ok(body) => Self(Ok(frame.around(api, &body))),
            Err(problem) => Self::problem(api, frame.tab, &problem),
        }
    }

    /// What is wrong, and the way on.
    pub fn problem(api: &Api, tab: Tab, problem: &Problem) -> Self {
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = html! {
            h1 { (problem.title) }
            p { (problem.detail) }
            @if !problem.hint.is_empty() { p { "What to do: " (problem.hint) "." } }
            @if !problem.errors.is_empty() { (parts::field_errors(&problem.errors)) }
            p { a href="/" { "Overview" } " · " a href="/jobs" { "Jobs" } }
        };
        let frame = Frame { title: &problem.title, tab, search: "", job: None };
        Self(Err((status, frame.around(api, &body))))
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let (status, markup) = match self.0 {
            Ok(markup) => (StatusCode::OK, markup),
            Err(problem) => problem,
        };
        secured(status, markup)
    }
}

/// A page with the headers that keep it ours.
pub fn secured(status: StatusCode, markup: Markup) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "same-origin"),
    ];
    (status, headers, markup.into_string()).into_response()
}

/// Whether the answer to a request should be a page.
pub fn wants_page(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|accept| accept.contains("text/html"))
}

/// What stands around a page's content.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    /// Of the window.
    pub title: &'a str,
    /// Where in the navigation it belongs.
    pub tab: Tab,
    /// What was searched for.
    pub search: &'a str,
    /// The one job it is about: only its news are news.
    pub job: Option<JobId>,
}

impl<'a> Frame<'a> {
    /// A page about many jobs.
    pub const fn new(title: &'a str, tab: Tab) -> Self {
        Self { title, tab, search: "", job: None }
    }

    fn around(self, api: &Api, body: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" data-job=[self.job] {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) " · Stoker" }
                    link rel="icon" href=(ICON_PATH);
                    link rel="stylesheet" href=(CSS_PATH);
                    script src=(JS_PATH) defer {}
                }
                body {
                    a.skip href="#main" { "Skip to content" }
                    header.top {
                        a.brand href="/" { "Stoker" }
                        (self.navigation(api))
                        form role="search" action="/jobs" {
                            input #search type="search" name="text" value=(self.search) size="24"
                                placeholder="search, or an id" aria-label="Search jobs";
                        }
                        button.live #live type="button" aria-pressed="false" title="Pause or resume live updates" { "○ not live" }
                    }
                    main #main tabindex="-1" { (body) }
                    p.foot #asof { (as_of(api)) }
                    p.foot { a href="/docs" { "HTTP API" } " · " kbd { "?" } " lists the keys" }
                    (signed_in())
                    (keys())
                }
            }
        }
    }

    fn navigation(self, api: &Api) -> Markup {
        let counts = api.model().counts();
        html! {
            nav #nav aria-label="Pages" {
                @for tab in Tab::ALL {
                    @let (path, name) = tab.link();
                    @let jobs = tab.phase().and_then(|phase| counts.phases.get(&phase)).copied().unwrap_or(0);
                    @let n = jobs + if tab == Tab::Dead { counts.dead_letters.values().sum() } else { 0 };
                    a href=(path) aria-current=[(tab == self.tab).then_some("page")] {
                        (name) @if n > 0 { " (" (parts::number(n)) ")" }
                    }
                }
            }
        }
    }
}

/// How current the rows are. A history that is away is said at once.
fn as_of(api: &Api) -> Markup {
    html! {
        "As of " (parts::time(api.now()))
        @if let Some(heard) = api.model().heard_at() { ", last event heard " (parts::ago(heard)) }
        @if let Some(why) = api.broker_trouble() { " · " strong { "broker: " (why) "; what you see may be old" } }
    }
}

/// Who is logged in, where one logs in at all.
fn signed_in() -> Markup {
    let Some(caller) = Caller::current() else { return html! {} };
    html! {
        form.foot.inline method="post" action="/logout" {
            (parts::form_guard())
            (caller.name) " (" (caller.role) ") "
            @if caller.csrf.is_some() { button { "Log out" } }
        }
    }
}

fn keys() -> Markup {
    const KEYS: [(&str, &str); 12] = [
        ("/", "search"),
        ("g o", "overview"),
        ("g j", "jobs"),
        ("g r", "retries"),
        ("g d", "dead letters"),
        ("g h", "hosts"),
        ("g w", "webhooks"),
        ("g l", "log"),
        ("j k", "next, previous row"),
        ("x", "select the row"),
        ("r", "retry"),
        ("?", "this list"),
    ];
    html! {
        dialog #keys aria-label="Keys" {
            h2 { "Keys" }
            table { tbody { @for (key, what) in KEYS { tr { td { kbd { (key) } } td { (what) } } } } }
            form method="dialog" { button { "Close" } }
        }
    }
}
