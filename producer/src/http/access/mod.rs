//! Who may come in. Without tokens: whoever is on this machine, to everything, which is for the
//! embedded default only. With tokens: whoever shows one (`Authorization: Bearer`), or logged in
//! with one and sends the session's cookie, to what the token's role allows.

mod admit;
mod caller;
mod cookie;
pub(crate) mod cross_site;
mod form;
mod limit;
mod role;
mod secret;
mod session;
pub(crate) mod tokens;
mod watched;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use axum::http::HeaderMap;
use stoker_schemas::Time;

pub use admit::admit;
pub(crate) use admit::peer_of;
pub use caller::Caller;
pub(crate) use cookie::{forget as forget_cookie, give as give_cookie};
pub(crate) use cross_site::{is_own_path, refuse as refuse_cross_site};
pub(crate) use form::FIELD as CSRF_FIELD;
pub use role::Role;
pub(super) use role::needed;
pub use secret::{Fingerprint, NoRandomness, new_token};
pub use session::LIFETIME as SESSION_LIFETIME;
pub use tokens::{Token, TokenErrors, check_name};

use super::Problem;
pub(crate) use limit::{Deliveries, TooOften};
use limit::{Kind, Limits};
use session::Sessions;
use watched::Watched;

/// Who may come in.
#[derive(Clone, Default)]
pub enum Access {
    /// Everybody on this machine; nobody else.
    #[default]
    Open,
    /// Who has a token.
    Closed(Arc<Gate>),
}

impl Access {
    /// Those in a file of tokens.
    pub fn from_file(path: &Path) -> Result<Self, TokenErrors> {
        let gate = Gate { tokens: Watched::open(path)?, sessions: Sessions::default(), limits: Limits::default() };
        Ok(Self::Closed(Arc::new(gate)))
    }

    /// As told: with a file or without.
    pub fn new(file: Option<&Path>) -> Result<Self, TokenErrors> {
        file.map_or(Ok(Self::Open), Self::from_file)
    }

    /// Whether there are tokens.
    pub const fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

/// Lets in who has a token.
pub struct Gate {
    tokens: Watched,
    sessions: Sessions,
    limits: Limits,
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// No token, no session.
    Nobody,
    /// A token that is none of ours (any more).
    Wrong,
    /// Wrong ones too often.
    TooOften(u32),
    /// A session cannot be made.
    NoRandomness,
}

impl Gate {
    /// The token that a secret belongs to. Wrong ones are counted; a right one always passes, so
    /// that nobody can lock others out from behind the same proxy.
    fn by_secret(&self, secret: &str, peer: IpAddr, now: Time) -> Result<Token, Denied> {
        let found = if secret.len() > secret::MAX_SECRET_BYTES {
            None
        } else {
            let shown = Fingerprint::of(secret);
            self.tokens.tokens().iter().find(|token| token.fingerprint == shown).cloned()
        };
        if let Some(token) = found.filter(|token| !token.is_over(now)) {
            return Ok(token);
        }
        match self.limits.peer(Kind::Failure, peer) {
            Ok(()) => Err(Denied::Wrong),
            Err(TooOften(wait)) => Err(Denied::TooOften(wait)),
        }
    }

    /// Opens a session for a secret; its id, for the cookie.
    pub(crate) fn log_in(&self, secret: &str, peer: IpAddr, now: Time) -> Result<String, Denied> {
        let token = self.by_secret(secret.trim(), peer, now)?;
        let id = self.sessions.open(&token, now).map_err(|error| {
            tracing::error!(%error, "nobody can log in");
            Denied::NoRandomness
        })?;
        tracing::info!(token = %token.name, role = %token.role, "logged in");
        Ok(id)
    }

    /// Whether a request brings a session that lives.
    pub(crate) fn is_logged_in(&self, headers: &HeaderMap, now: Time) -> bool {
        self.by_session(headers, now).is_some()
    }

    /// Ends the session of a request.
    pub(crate) fn log_out(&self, headers: &HeaderMap) {
        if let Some(id) = cookie::of(headers) {
            self.sessions.close(id);
        }
    }

    /// Who a request is from.
    fn identify(&self, headers: &HeaderMap, peer: IpAddr, now: Time) -> Result<Caller, Denied> {
        if let Some(bearer) = bearer(headers) {
            let token = self.by_secret(bearer, peer, now)?;
            return Ok(Caller { name: token.name, role: token.role, csrf: None });
        }
        self.by_session(headers, now).ok_or(Denied::Nobody)
    }

    fn by_session(&self, headers: &HeaderMap, now: Time) -> Option<Caller> {
        let session = cookie::of(headers).and_then(|id| self.sessions.find(id, now))?;
        // The token decides, not what it was when the session began.
        let tokens = self.tokens.tokens();
        let token = tokens.iter().find(|token| token.fingerprint == session.token && !token.is_over(now))?;
        Some(Caller { name: token.name.clone(), role: token.role, csrf: Some(session.csrf) })
    }
}

/// The secret after `Authorization: Bearer`; another scheme is a wrong secret, not nobody.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(axum::http::header::AUTHORIZATION)?.to_str().unwrap_or_default();
    match value.split_once(' ') {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => Some(secret.trim()),
        _ => Some(""),
    }
}

impl Denied {
    /// As an answer.
    pub(crate) fn problem(self) -> Problem {
        match self {
            Self::Nobody => Problem::unauthorized("this server asks for a token"),
            Self::Wrong => Problem::unauthorized("this token is not known here, or its time is over"),
            Self::TooOften(wait) => Problem::too_often("wrong tokens, too many of them", wait),
            Self::NoRandomness => Problem::internal("the system gives no random bytes for a session"),
        }
    }
}
