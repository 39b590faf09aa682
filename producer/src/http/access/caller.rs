//! Who makes the request that is being answered. Known to whatever runs within it, so that a form
//! deep in a page can carry its guard without every function in between handing it on.

use std::future::Future;

use super::role::Role;

tokio::task_local! {
    static CALLER: Caller;
}

/// Who makes a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// With a session: what its forms bring back.
    pub csrf: Option<String>,
}

impl Caller {
    /// Runs the rest of a request as this caller's.
    pub async fn run<F: Future>(self, rest: F) -> F::Output {
        CALLER.scope(self, rest).await
    }

    /// Who makes the request that runs here; nobody in particular without tokens.
    pub fn current() -> Option<Self> {
        CALLER.try_with(Clone::clone).ok()
    }
}
