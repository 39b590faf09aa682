//! Names and ids. Names from outside are validated once, here; everything a host derives from an
//! id (MAC, tap, directory) is a pure function of it, so that an orphan can be traced to its job.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

use crate::time::Time;

/// Namespace of job ids made from idempotency keys (UUIDv5).
const KEY_NAMESPACE: Uuid = Uuid::from_u128(0x5b1f_6f0e_0a52_5c0e_9d1c_7a4b_3b0d_5e11);
/// Namespace of dead letters (UUIDv5).
const LETTER_NAMESPACE: Uuid = Uuid::from_u128(0x8f0a_1c65_33d1_5b7e_a4f2_0d6c_91e8_2b44);
/// Namespace of VM ids (UUIDv5).
const VM_NAMESPACE: Uuid = Uuid::from_u128(0x2c2f_8a54_6e0b_5a3b_8d55_19e3_f1a0_7c42);

/// A job: UUIDv7, or UUIDv5 of its idempotency key, so that the same key is the same job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct JobId(pub Uuid);

impl JobId {
    /// The job that an idempotency key names within its scope (a pool, a webhook source).
    pub fn from_key(scope: &str, key: &str) -> Self {
        // The length keeps ("a", "b/c") and ("a/b", "c") apart.
        Self(Uuid::new_v5(&KEY_NAMESPACE, format!("{}:{scope}/{key}", scope.len()).as_bytes()))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// A dead letter: derived from what it is, so that the same message is the same letter, however often it is handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct LetterId(pub Uuid);

impl LetterId {
    /// The message with this id and body that waited in this queue.
    pub fn derive(queue: &str, message_id: &str, body: &[u8]) -> Self {
        // The lengths keep the parts apart.
        let head = format!("{}:{queue}/{}:{message_id}/", queue.len(), message_id.len());
        Self(Uuid::new_v5(&LETTER_NAMESPACE, &[head.as_bytes(), body].concat()))
    }
}

impl fmt::Display for LetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LetterId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// One try at a job: which attempt, and how often the broker had given that attempt out before.
/// Two hosts can never hold the same epoch, because a redelivery counts up `delivery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch {
    /// Attempt number, from 1; counted by Stoker, raised only by a scheduled retry.
    pub attempt: u32,
    /// Earlier deliveries of the same attempt (a crashed host's), from 0.
    pub delivery: u32,
}

impl Epoch {
    /// Attempt `attempt`, delivered for the first time.
    pub const fn first(attempt: u32) -> Self {
        Self { attempt, delivery: 0 }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.attempt, self.delivery)
    }
}

impl FromStr for Epoch {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let parsed =
            s.split_once('.').and_then(|(a, d)| Some(Self { attempt: a.parse().ok()?, delivery: d.parse().ok()? }));
        parsed.ok_or_else(|| format!("{s:?} is not an epoch: expected <attempt>.<delivery>"))
    }
}

/// One VM: derived from its job and epoch, or from its host where it was up before its job came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct VmId(pub Uuid);

impl VmId {
    /// The VM of this job in this epoch on this host.
    pub fn derive(job: JobId, epoch: Epoch, host: &HostName) -> Self {
        Self(Uuid::new_v5(&VM_NAMESPACE, format!("{job}/{epoch}@{host}").as_bytes()))
    }

    /// The VM that a host boots for a job to come, by when its worker began and how many it had booted.
    pub fn warm(host: &HostName, since: Time, number: u64) -> Self {
        Self(Uuid::new_v5(&VM_NAMESPACE, format!("warm/{}/{number}@{host}", since.unix_micros()).as_bytes()))
    }

    /// A locally administered unicast MAC address.
    pub fn mac(self) -> Mac {
        let b = self.0.as_bytes();
        Mac([0x02, b[0], b[1], b[2], b[3], b[4]])
    }

    /// Name of its tap device: 14 of the 15 bytes Linux allows.
    pub fn tap(self) -> String {
        let b = self.0.as_bytes();
        format!("st{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}", b[0], b[1], b[2], b[3], b[4], b[5])
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for VmId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(s).map(Self)
    }
}

/// An Ethernet address, displayed as `02:aa:bb:cc:dd:ee`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bytes: Vec<u8> = s
            .split(':')
            .map(|part| if part.len() == 2 { u8::from_str_radix(part, 16).ok() } else { None })
            .collect::<Option<_>>()
            .ok_or_else(|| format!("{s:?} is not a MAC address"))?;
        bytes.try_into().map(Self).map_err(|_| format!("{s:?} is not a MAC address"))
    }
}

/// What is wrong with a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a valid {kind}: {rule}")]
pub struct NameError {
    kind: &'static str,
    rule: &'static str,
    given: String,
}

fn lower_words(s: &str, extra: &[u8], max: usize) -> bool {
    let ok = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.contains(b);
    (1..=max).contains(&s.len())
        && s.as_bytes()[0].is_ascii_alphanumeric()
        && s.as_bytes()[s.len() - 1].is_ascii_alphanumeric()
        && s.as_bytes().iter().all(ok)
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $rule:literal, $pattern:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                let check: fn(&str) -> bool = $check;
                if check(s) {
                    Ok(Self(s.to_owned()))
                } else {
                    let given = crate::limits::clip(s, 80);
                    Err(NameError { kind: $kind, rule: $rule, given })
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "description": $rule })
            }
        }
    };
}

name!(
    /// A host that runs VMs; part of queue names, so without dots.
    HostName, "host name",
    "1-40 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
    |s| lower_words(s, b"-", 40)
);
name!(
    /// A pool of hosts with one queue; part of routing keys, so without dots.
    PoolName, "pool name",
    "1-40 of a-z, 0-9 and '-', starting and ending with a letter or digit",
    "^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
    |s| lower_words(s, b"-", 40)
);
name!(
    /// An image, optionally with a version (`golden@7`): a folder name below the image store and
    /// never a path.
    ImageName, "image name",
    "1-80 of a-z, 0-9, '-', '.', '_', optionally '@' and a version of the same; no path, no '..'",
    "^[a-z0-9]([a-z0-9._-]*[a-z0-9])?(@[a-z0-9]([a-z0-9._-]*[a-z0-9])?)?$",
    |s| {
        let (name, version) = s.split_once('@').map_or((s, "0"), |(n, v)| (n, v));
        lower_words(name, b"-._", 80) && lower_words(version, b"-._", 40) && !s.contains("..") && s.len() <= 80
    }
);

impl Default for PoolName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_refuse_paths_and_shell() {
        for bad in ["", "../etc", "a/b", "Golden", "a..b", "-a", "a b", "a;rm", "a@", "@1", "é"] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?} was accepted");
        }
        for good in ["golden", "golden@7", "linux-minimal", "a.b_c@1.2"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn derived_names_fit_linux() {
        let host: HostName = "h-01".parse().unwrap();
        let vm = VmId::derive(JobId::from_key("default", "k"), Epoch::first(1), &host);
        assert!(vm.tap().len() <= 15);
        assert_eq!(vm.mac().0[0] & 0b11, 0b10, "locally administered, unicast");
        assert_eq!(vm.mac().to_string().parse::<Mac>().unwrap(), vm.mac());
    }

    #[test]
    fn epochs_order_by_attempt_then_delivery() {
        assert!(Epoch::first(2) > Epoch { attempt: 1, delivery: 9 });
        assert_eq!("2.3".parse::<Epoch>().unwrap(), Epoch { attempt: 2, delivery: 3 });
        assert!("2".parse::<Epoch>().is_err());
    }

    #[test]
    fn keys_in_different_scopes_are_different_jobs() {
        assert_ne!(JobId::from_key("a", "b/c"), JobId::from_key("a/b", "c"));
    }
}
