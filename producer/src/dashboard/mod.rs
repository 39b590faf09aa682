//! The dashboard: pages for people, made on the server from the same rows as the API's answers.
//! Usable without script (forms post, links filter); with it, pages keep themselves current.

#![expect(clippy::result_large_err, reason = "a problem ends a request; it is not on a hot path")]

mod actions;
mod assets;
mod attempt;
mod bulk;
mod console;
mod dead;
mod docs;
mod hosts;
mod job;
mod jobs;
mod layout;
mod letters;
mod live;
mod log;
mod login;
mod overview;
mod parts;
mod pools;
mod retries;
mod warm;
mod webhooks;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::http::{Api, MAX_FORM_BYTES, guard};

pub(crate) use layout::wants_page;
pub(crate) use login::{bare_problem, go_on_to};

/// Pages, their forms and what they load.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/", get(overview::page))
        .route("/jobs", get(jobs::page))
        .route("/jobs/{id}", get(job::page))
        .route("/jobs/{id}/edit", get(actions::edit))
        .route("/jobs/{id}/{action}", post(actions::one))
        .route("/jobs/act", post(actions::many))
        .route("/bulk/{id}", get(bulk::page))
        .route("/retries", get(retries::page))
        .route("/dead", get(dead::page))
        .route("/dead-letters", get(letters::page))
        .route("/dead-letters/{id}", get(letters::one))
        .route("/dead-letters/{id}/{action}", post(letters::act))
        .route("/hosts", get(hosts::page))
        .route("/hosts/{host}/drain", post(actions::drain))
        .route("/pools/{pool}/{action}", post(pools::act))
        .route("/webhooks", get(webhooks::page))
        .route("/webhooks/{n}/replay", post(webhooks::replay))
        .route("/log", get(log::page))
        .route("/live", get(live::ticks))
        .route("/assets/{name}", get(assets::file))
        .route("/login", get(login::page).post(login::log_in))
        .route("/logout", post(login::log_out))
        .merge(docs::routes())
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
}

/// Nothing is there: said in the form that was asked for.
pub async fn missing(State(api): State<Api>, request: Request) -> Response {
    let page = wants_page(request.headers());
    let problem = guard::not_found(request).await;
    if page {
        layout::Page::problem(&api, layout::Tab::Overview, &problem).into_response()
    } else {
        problem.into_response()
    }
}
