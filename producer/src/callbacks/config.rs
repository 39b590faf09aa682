//! Settings of callbacks: what they are signed with, and where besides public addresses they may go.

use std::path::Path;

use ipnet::IpNet;
use reqwest::Url;

use super::target::Allowed;
use crate::hooks::config::read_secrets;
use crate::hooks::reader::Reader;
use crate::hooks::secret::Secret;

/// Exceptions in one file; each is looked at for every connection.
const MAX_ALLOWED: usize = 100;

/// Settings of callbacks.
#[derive(Debug, Clone)]
pub struct CallbackConfig {
    /// Each signs: the old and the new while receivers change over.
    pub secrets: Vec<Secret>,
    /// Private places that may be called.
    pub allowed: Allowed,
}

impl CallbackConfig {
    /// Reads the table `[callbacks]`.
    pub fn read(reader: &mut Reader, folder: &Path, env: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let secrets = read_secrets(reader, true, folder, env);
        let mut allowed = Allowed::default();
        let entries = reader.texts("allow");
        if entries.len() > MAX_ALLOWED {
            reader.wrong("allow", &format!("at most {MAX_ALLOWED} are taken"));
        }
        for entry in entries {
            match read_allowed(&entry) {
                Some(Place::Net(net)) => allowed.nets.push(net),
                Some(Place::Host(host)) => allowed.hosts.push(host),
                None => {
                    reader.wrong("allow", &format!("{entry:?} is neither a network (10.1.0.0/16) nor a host's name"))
                }
            }
        }
        (!secrets.is_empty()).then_some(Self { secrets, allowed })
    }
}

enum Place {
    Net(IpNet),
    Host(String),
}

fn read_allowed(entry: &str) -> Option<Place> {
    if let Ok(net) = entry.parse::<IpNet>() {
        return Some(Place::Net(net.trunc()));
    }
    if let Ok(address) = entry.parse::<std::net::IpAddr>() {
        return Some(Place::Net(address.into()));
    }
    // As an address would write it: lower case, international names in ASCII.
    let url = Url::parse(&format!("http://{entry}/")).ok()?;
    let host = url.host_str().filter(|_| url.path() == "/" && url.port().is_none() && url.username().is_empty())?;
    host.parse::<std::net::IpAddr>().is_err().then(|| Place::Host(host.to_owned()))
}
