//! What a token may do, and what a route needs. Each role may do what those before it may.

use std::fmt;
use std::str::FromStr;

use axum::http::Method;
use serde::{Deserialize, Serialize};

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See everything.
    Read,
    /// Also enqueue, retry, cancel, stop, snooze, redrive, dismiss; pause and limit pools.
    Operate,
    /// Also what concerns hosts and the system itself.
    Admin,
}

impl Role {
    /// Its name in files and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::Read, Self::Operate, Self::Admin];
        all.into_iter().find(|role| role.as_str() == text).ok_or_else(|| "one of read, operate, admin".to_owned())
    }
}

/// Reachable by everybody: probes, what the login page needs, and webhooks, which prove themselves
/// with their own signatures.
const FREE: [&str; 4] = ["/health", "/ready", "/assets/{name}", "/login"];
const FREE_BELOW: &str = "/hooks/";
/// Writes about jobs and what waits for them. Every other write needs an admin, so that a route that nobody thought of
/// here is shut rather than open.
const OPERATE_BELOW: [&str; 9] = [
    "/v1/jobs",
    "/v1/dead",
    "/v1/dead-letters",
    "/v1/pools",
    "/jobs",
    "/dead-letters",
    "/pools",
    "/v1/hooks",
    "/webhooks",
];
/// Ending one's own session changes nothing for others.
const LOGOUT: &str = "/logout";

/// What a route needs: a role, or nothing. `pattern` is the route's own, not the address that was
/// asked for: however an address is spelled, it counts as what the router took it for.
pub fn needed(method: &Method, pattern: Option<&str>) -> Option<Role> {
    let pattern = pattern.unwrap_or_default();
    if FREE.contains(&pattern) || pattern.starts_with(FREE_BELOW) {
        return None;
    }
    let below = |top: &str| pattern.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if method.is_safe() || pattern == LOGOUT {
        Some(Role::Read)
    } else if OPERATE_BELOW.iter().any(|top| below(top)) {
        Some(Role::Operate)
    } else {
        Some(Role::Admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_need_what_they_do() {
        let of = |method: &Method, pattern: &str| needed(method, Some(pattern));
        for free in ["/health", "/ready", "/login", "/assets/{name}", "/hooks/{name}"] {
            assert_eq!(of(&Method::GET, free), None, "{free}");
            assert_eq!(of(&Method::POST, free), None, "{free}");
        }
        for read in ["/", "/v1/jobs", "/jobs/{id}", "/metrics", "/live", "/v1/events", "/hooks"] {
            assert_eq!(of(&Method::GET, read), Some(Role::Read), "{read}");
            assert_eq!(of(&Method::HEAD, read), Some(Role::Read), "{read}");
        }
        for write in [
            "/v1/jobs",
            "/v1/jobs/{id}/retry",
            "/jobs/act",
            "/jobs/{id}/{action}",
            "/v1/dead/redrive",
            "/v1/dead-letters/{id}/dismiss",
            "/dead-letters/{id}/{action}",
            "/webhooks/{n}/replay",
            "/v1/pools/{pool}/pause",
            "/pools/{pool}/{action}",
        ] {
            assert_eq!(of(&Method::POST, write), Some(Role::Operate), "{write}");
        }
        for rule in ["/v1/hosts/{host}/drain", "/hosts/{host}/drain", "/v1/poolsomething", "/v1/jobsomething", ""] {
            assert_eq!(of(&Method::POST, rule), Some(Role::Admin), "{rule}");
        }
        assert_eq!(needed(&Method::GET, None), Some(Role::Read), "what is not there is not told to everybody");
        assert_eq!(needed(&Method::DELETE, None), Some(Role::Admin));
    }

    #[test]
    fn roles_are_ordered_and_named() {
        assert!(Role::Read < Role::Operate && Role::Operate < Role::Admin);
        assert_eq!("operate".parse(), Ok(Role::Operate));
        assert!("root".parse::<Role>().unwrap_err().contains("admin"));
    }
}
