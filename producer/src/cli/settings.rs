//! What every command needs, resolved once from flags and environment.

use reqwest::Url;

use super::client::Client;
use super::{CliError, Global};

/// Longest name of a user that is sent along.
const MAX_USER_CHARS: usize = 64;

/// Resolved settings.
pub struct Settings {
    /// The server.
    pub client: Client,
    /// Who asks, for events (`cli/ada`).
    pub by: String,
}

impl Settings {
    pub fn resolve(global: &Global) -> Result<Self, CliError> {
        let wrong = |why: String| {
            CliError::usage(
                format!("--server {:?} is not an address of Stoker: {why}", global.server),
                "write it as http://127.0.0.1:7070",
            )
        };
        let url: Url = global.server.parse().map_err(|e| wrong(format!("{e}")))?;
        if url.scheme() != "http" || url.host_str().is_none() {
            return Err(wrong("only http is spoken, on this machine".to_owned()));
        }
        let user = std::env::var("USER").unwrap_or_default();
        // It becomes a header and stands in events.
        let user: String = user.chars().filter(char::is_ascii_graphic).take(MAX_USER_CHARS).collect();
        let by = if user.is_empty() { "cli".to_owned() } else { format!("cli/{user}") };
        Ok(Self { client: Client::new(url, &by, global.token.as_deref())?, by })
    }
}
