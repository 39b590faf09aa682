//! Sessions of the dashboard: a random id in a cookie, kept here as its fingerprint. They live in
//! memory: after a restart people log in again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stoker_schemas::Time;

use super::secret::{self, Fingerprint, NoRandomness};
use super::tokens::Token;

/// A session's whole life: a working day. It is not prolonged by use.
pub const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// Sessions at once; then the one that would end first gives way.
const MAX_SESSIONS: usize = 1_000;

/// One session.
#[derive(Debug, Clone)]
pub struct Session {
    /// The token it was opened with: when that is gone, so is this.
    pub token: Fingerprint,
    /// What every form of its pages must bring back.
    pub csrf: String,
    ends: Time,
}

/// All sessions of this process, by the fingerprint of their id in hexadecimal: looking one up by
/// a hash tells nothing about the id, however long it takes.
#[derive(Default)]
pub struct Sessions(Mutex<HashMap<String, Session>>);

impl Sessions {
    fn all(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        // Nothing panics while holding it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens one; its id, for the cookie.
    pub fn open(&self, token: &Token, now: Time) -> Result<String, NoRandomness> {
        let (id, csrf) = (secret::random()?, secret::random()?);
        let mut all = self.all();
        all.retain(|_, session| session.ends > now);
        if all.len() >= MAX_SESSIONS
            && let Some(first) = all.iter().min_by_key(|(_, session)| session.ends).map(|(key, _)| key.clone())
        {
            all.remove(&first);
        }
        all.insert(key(&id), Session { token: token.fingerprint, csrf, ends: now.plus(LIFETIME) });
        Ok(id)
    }

    /// The session with this id, while it lives.
    pub fn find(&self, id: &str, now: Time) -> Option<Session> {
        self.all().get(&key(id)).filter(|session| session.ends > now).cloned()
    }

    /// Ends one.
    pub fn close(&self, id: &str) {
        self.all().remove(&key(id));
    }
}

fn key(id: &str) -> String {
    Fingerprint::of(id).to_string()
}

#[cfg(test)]
mod tests {
    use super::super::role::Role;
    use super::*;

    fn token() -> Token {
        Token { name: "ada".into(), role: Role::Read, fingerprint: Fingerprint::of("x"), expires: None }
    }

    #[test]
    fn a_session_ends_after_its_life_or_when_asked() {
        let (sessions, start) = (Sessions::default(), Time::UNIX_EPOCH);
        let id = sessions.open(&token(), start).unwrap();
        let other = sessions.open(&token(), start).unwrap();
        let almost = start.plus(LIFETIME - Duration::from_millis(1));
        assert_eq!(sessions.find(&id, almost).unwrap().token, token().fingerprint);
        assert!(sessions.find(&id, start.plus(LIFETIME)).is_none());
        assert_ne!(sessions.find(&id, start).unwrap().csrf, sessions.find(&other, start).unwrap().csrf);
        sessions.close(&id);
        assert!(sessions.find(&id, start).is_none() && sessions.find(&other, start).is_some());
    }

    #[test]
    fn there_are_never_more_than_so_many() {
        let (sessions, start) = (Sessions::default(), Time::UNIX_EPOCH);
        let first = sessions.open(&token(), start).unwrap();
        for _ in 0..MAX_SESSIONS {
            sessions.open(&token(), start.plus(Duration::from_secs(1))).unwrap();
        }
        assert_eq!(sessions.all().len(), MAX_SESSIONS);
        assert!(sessions.find(&first, start).is_none(), "the one that would end first gives way");
    }
}
