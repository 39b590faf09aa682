//! Logging in with a token, and out again. These pages show nothing of what is behind them.

use axum::extract::{Form, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{DOCTYPE, Markup, html};
use serde::Deserialize;

use super::assets::{CSS_PATH, ICON_PATH};
use super::layout::secured;
use crate::http::access::{self, Denied};
use crate::http::{Access, Api, Problem};

/// Where to go afterwards.
#[derive(Debug, Default, Deserialize)]
pub struct Next {
    #[serde(default)]
    next: String,
}

impl Next {
    /// A page of ours, never somewhere else.
    fn path(&self) -> &str {
        if access::is_own_path(&self.next) { &self.next } else { "/" }
    }
}

/// What is filled in.
#[derive(Deserialize)]
pub struct Filled {
    token: String,
    #[serde(flatten)]
    next: Next,
}

/// `GET /login`
pub async fn page(State(api): State<Api>, headers: HeaderMap, Query(next): Query<Next>) -> Response {
    match api.access() {
        Access::Open => Redirect::to("/").into_response(),
        Access::Closed(gate) if gate.is_logged_in(&headers, api.now()) => Redirect::to(next.path()).into_response(),
        Access::Closed(_) => form(StatusCode::OK, next.path(), None),
    }
}

/// `POST /login`
pub async fn log_in(State(api): State<Api>, parts: Parts, Form(filled): Form<Filled>) -> Response {
    let Access::Closed(gate) = api.access() else { return Redirect::to("/").into_response() };
    // Another site must not log its visitors in as somebody else.
    if let Err(problem) = access::refuse_cross_site(&parts.headers, true) {
        return bare_problem(&problem);
    }
    let next = filled.next.path();
    let id = match gate.log_in(&filled.token, access::peer_of(&parts.extensions), api.now()) {
        Ok(id) => id,
        Err(denied) => return refused(next, denied),
    };
    let cookie = access::give_cookie(&id, &parts.headers).map(|cookie| [(header::SET_COOKIE, cookie)]);
    (cookie, Redirect::to(next)).into_response()
}

fn refused(next: &str, denied: Denied) -> Response {
    let problem = denied.problem();
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::UNAUTHORIZED);
    let mut page = form(status, next, Some(&problem.detail));
    if let Some(seconds) = problem.retry_after_s {
        page.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    page
}

/// `POST /logout`
pub async fn log_out(State(api): State<Api>, parts: Parts) -> Response {
    if let Access::Closed(gate) = api.access() {
        gate.log_out(&parts.headers);
    }
    let cookie = access::forget_cookie(&parts.headers).map(|cookie| [(header::SET_COOKIE, cookie)]);
    (cookie, Redirect::to("/login")).into_response()
}

fn form(status: StatusCode, next: &str, wrong: Option<&str>) -> Response {
    let body = html! {
        form.login method="post" action="/login" {
            h1 { "Stoker" }
            @if let Some(wrong) = wrong { div.flash.bad role="alert" { (wrong) } }
            label for="token" { "Token" }
            input #token type="password" name="token" required autofocus autocomplete="current-password" maxlength="256";
            input type="hidden" name="next" value=(next);
            button.main { "Log in" }
            p.dim { "Tokens are made with " code { "stoker token new" } " by whoever runs this server." }
        }
    };
    secured(status, bare("Log in", &body, None))
}

/// A problem in a page that shows nothing else.
pub fn bare_problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = html! {
        div.login {
            h1 { (problem.title) }
            p { (problem.detail) }
            @if !problem.hint.is_empty() { p { "What to do: " (problem.hint) "." } }
            p { a href="/" { "Overview" } " · " a href="/login" { "Log in" } }
        }
    };
    let mut page = secured(status, bare(&problem.title, &body, None));
    if let Some(seconds) = problem.retry_after_s {
        page.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    page
}

/// Has the browser go on by itself: one of our own pages is the cause then, and a session's cookie
/// comes along, which it does not after a redirect of another site's link.
pub fn go_on_to(path: &str) -> Response {
    let body = html! { p.login { a href=(path) { "Continue" } } };
    secured(StatusCode::OK, bare("Stoker", &body, Some(path)))
}

fn bare(title: &str, body: &Markup, go_on: Option<&str>) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                @if let Some(path) = go_on { meta http-equiv="refresh" content={ "0; url=" (path) }; }
                title { (title) " · Stoker" }
                link rel="icon" href=(ICON_PATH);
                link rel="stylesheet" href=(CSS_PATH);
            }
            body { main #main { (body) } }
        }
    }
}
