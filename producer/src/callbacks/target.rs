//! Where a callback may go. Its address comes from whoever enqueued the job, so it must not lead
//! into this machine or its private networks: neither as a number, nor through a name. A name is
//! resolved here, and the connection goes to the very address that was judged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use reqwest::Url;

/// Addresses of one name that are tried.
pub const MAX_ADDRESSES: usize = 4;

/// Exceptions: private places that may be called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Networks.
    pub nets: Vec<IpNet>,
    /// Names, whatever they resolve to.
    pub hosts: Vec<String>,
}

/// Why a target is not called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not an address that can be called.
    #[error("the callback's address is not one to call: {0}")]
    Address(&'static str),
    /// It leads to where callbacks may not go.
    #[error("{0} is {1}; callbacks go to public addresses unless [callbacks] allow names the network or host")]
    Forbidden(IpAddr, &'static str),
    /// The name has no address now.
    #[error("{0} cannot be resolved: {1}")]
    Unresolved(String, String),
}

impl TargetError {
    /// Not tried again; a name without an address may have one later.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Address(_) | Self::Forbidden(..))
    }
}

/// Where to connect, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Host as in the address, for `Host` and TLS.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// `https`.
    pub is_tls: bool,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Reads an address. Credentials are refused: they would be told to whoever answers, and the
    /// signature proves more.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let url: Url = url.parse().map_err(|_| TargetError::Address("it cannot be read"))?;
        let is_tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return Err(TargetError::Address("only http and https are called")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(TargetError::Address("it carries credentials; the signature takes their place"));
        }
        let host = url.host_str().ok_or(TargetError::Address("it names no host"))?.to_owned();
        let port = url.port_or_known_default().ok_or(TargetError::Address("it names no port"))?;
        let path = url.query().map_or_else(|| url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        Ok(Self { host, port, is_tls, path })
    }

    /// The addresses that may be connected to. One that may not be makes the name unfit: a name
    /// with a public and a private address is a trap, not a service.
    pub async fn resolve(&self, allowed: &Allowed) -> Result<Vec<SocketAddr>, TargetError> {
        let found: Vec<SocketAddr> = match self.literal() {
            Some(ip) => vec![SocketAddr::new(ip, self.port)],
            None => {
                let unresolved = |why: String| TargetError::Unresolved(self.host.clone(), why);
                let looked_up = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
                looked_up.map_err(|e| unresolved(e.to_string()))?.collect()
            }
        };
        for address in &found {
            allowed.check(&self.host, address.ip())?;
        }
        if found.is_empty() {
            return Err(TargetError::Unresolved(self.host.clone(), "it has no address".to_owned()));
        }
        Ok(found.into_iter().take(MAX_ADDRESSES).collect())
    }

    fn literal(&self) -> Option<IpAddr> {
        let bare = self.host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&self.host);
        bare.parse().ok()
    }

    /// For people and logs: without path and query, which often hold a token.
    pub fn shown(&self) -> String {
        let scheme = if self.is_tls { "https" } else { "http" };
        format!("{scheme}://{}", self.authority())
    }

    /// For `Host`.
    pub fn authority(&self) -> String {
        let usual = if self.is_tls { 443 } else { 80 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

impl Allowed {
    fn check(&self, host: &str, ip: IpAddr) -> Result<(), TargetError> {
        let Some(what) = special(ip) else { return Ok(()) };
        let ip = ip.to_canonical();
        let excepted = self.hosts.iter().any(|h| h == host) || self.nets.iter().any(|net| net.contains(&ip));
        if excepted { Ok(()) } else { Err(TargetError::Forbidden(ip, what)) }
    }
}

/// What an address is for, if it is not a public one (the registries of special-purpose addresses).
fn special(ip: IpAddr) -> Option<&'static str> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => special_v4(v4),
        IpAddr::V6(v6) => special_v6(v6),
    }
}

fn special_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let [a, b, c, _] = ip.octets();
    match (a, b, c) {
        (0, ..) => Some("this host"),
        (127, ..) => Some("loopback"),
        (10, ..) | (172, 16..=31, _) | (192, 168, _) => Some("a private address"),
        (100, 64..=127, _) => Some("a carrier's private address"),
        (169, 254, _) => Some("link-local"),
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18..=19, _) | (198, 51, 100) | (203, 0, 113) => Some("reserved"),
        (224..=239, ..) => Some("multicast"),
        (240..=255, ..) => Some("reserved"),
        _ => None,
    }
}

fn special_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let s = ip.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        special_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("this host"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("loopback"),
        // Addresses of version 4 within version 6: what they lead to counts.
        [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        [0x64, 0xff9b, 1, ..] => Some("a private address"),
        [0xfc00..=0xfdff, ..] => Some("a private address"),
        [0xfe80..=0xfebf, ..] => Some("link-local"),
        [0xfec0..=0xfeff, ..] => Some("a private address"),
        [0xff00..=0xffff, ..] => Some("multicast"),
        // Only 2000::/3 is given out; of that, these are not for use.
        [0x2001, 0..=0x01ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => Some("reserved"),
        [0x2000..=0x3fff, ..] => None,
        _ => Some("reserved"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:9.9.9.9"] {
            assert_eq!(special(public.parse().unwrap()), None, "{public}");
        }
        let private = [
            "127.0.0.1",
            "127.255.0.9",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
            "4000::1",
        ];
        for ip in private {
            assert!(special(ip.parse().unwrap()).is_some(), "{ip}");
        }
    }

    #[tokio::test]
    async fn disguised_addresses_are_seen_through() {
        let disguised = [
            "http://127.0.0.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://localhost/",
            "https://169.254.169.254/latest/meta-data",
        ];
        for url in disguised {
            let target = Target::parse(url).unwrap();
            let refused = target.resolve(&Allowed::default()).await.unwrap_err();
            assert!(matches!(refused, TargetError::Forbidden(..)), "{url}: {refused}");
        }
    }

    #[tokio::test]
    async fn exceptions_are_by_network_or_name() {
        let by_net = Allowed { nets: vec!["127.0.0.0/8".parse().unwrap()], hosts: vec![] };
        let by_name = Allowed { nets: vec![], hosts: vec!["localhost".to_owned()] };
        let (literal, name) =
            (Target::parse("http://127.0.0.1:9/").unwrap(), Target::parse("http://localhost:9/").unwrap());
        assert_eq!(literal.resolve(&by_net).await.unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        assert!(name.resolve(&by_name).await.is_ok());
        assert!(literal.resolve(&by_name).await.is_err());
        let mapped = Target::parse("http://[::ffff:127.0.0.1]:9/").unwrap();
        assert!(mapped.resolve(&by_net).await.is_ok(), "the same address in another form");
    }

    #[test]
    fn addresses_are_read_and_shown_without_what_may_be_secret() {
        let target = Target::parse("https://Hooks.Example:8443/in/t0ken?key=1").unwrap();
        assert_eq!((target.path.as_str(), target.shown().as_str()), ("/in/t0ken?key=1", "https://hooks.example:8443"));
        assert_eq!(Target::parse("http://a.example").unwrap().authority(), "a.example");
        for wrong in ["ftp://a.example/", "http://user:pw@a.example/", "https://", "nonsense"] {
            assert!(Target::parse(wrong).unwrap_err().is_final(), "{wrong}");
        }
    }
}
