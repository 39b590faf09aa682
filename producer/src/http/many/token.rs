//! The promise between a count that was shown and the deed: good for one action on one filter with
//! that count, for a few minutes, from this process only.

use std::sync::{Arc, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use stoker_schemas::Time;

use crate::http::Problem;

/// How long a person looks at a number before it must be asked for again, s.
pub const GOOD_FOR_S: u64 = 600;
const KEY_BYTES: usize = 64;
const MAC_BYTES: usize = 32;
const NUMBER_BYTES: usize = 8;

/// Signs promises. The key is made when the first is given.
#[derive(Debug, Clone, Default)]
pub struct Promises(Arc<OnceLock<[u8; KEY_BYTES]>>);

/// What was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promise {
    /// Jobs that matched.
    pub count: u64,
    /// Until when it is good.
    pub expires_at: Time,
}

impl Promises {
    /// A token for what is wanted, in its canonical words.
    pub fn give(&self, wanted: &str, promise: Promise) -> Result<String, Problem> {
        if self.0.get().is_none() {
            let mut key = [0; KEY_BYTES];
            getrandom::fill(&mut key).map_err(|e| Problem::internal(format!("no randomness: {e}")))?;
            // Somebody else's, made meanwhile, is as good.
            let _ = self.0.set(key);
        }
        let key = self.0.get().ok_or_else(|| Problem::internal("no key"))?;
        let head = head(promise);
        let mac = mac(key, &head, wanted).finalize().into_bytes();
        Ok(URL_SAFE_NO_PAD.encode([head.as_slice(), mac.as_slice()].concat()))
    }

    /// What a token promises, if it is one of ours for what is wanted.
    pub fn read(&self, wanted: &str, token: &str) -> Option<Promise> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (head, told) = bytes.split_last_chunk::<MAC_BYTES>()?;
        let head: [u8; 2 * NUMBER_BYTES] = head.try_into().ok()?;
        mac(self.0.get()?, &head, wanted).verify_slice(told).ok()?;
        let (count, expires) = head.split_first_chunk::<NUMBER_BYTES>()?;
        let expires = i64::from_be_bytes(expires.try_into().ok()?);
        Some(Promise { count: u64::from_be_bytes(*count), expires_at: Time::from_unix_micros(expires) })
    }
}

fn head(promise: Promise) -> [u8; 2 * NUMBER_BYTES] {
    let mut head = [0; 2 * NUMBER_BYTES];
    let (count, expires) = head.split_at_mut(NUMBER_BYTES);
    count.copy_from_slice(&promise.count.to_be_bytes());
    expires.copy_from_slice(&promise.expires_at.unix_micros().to_be_bytes());
    head
}

fn mac(key: &[u8; KEY_BYTES], head: &[u8], wanted: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new(&(*key).into());
    mac.update(head);
    mac.update(wanted.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_what_it_was_given_for_and_nothing_else() {
        let promises = Promises::default();
        let promise = Promise { count: 7, expires_at: Time::from_unix_micros(1_764_000_000_000_001) };
        assert_eq!(promises.read("retry {}", "AAAA"), None, "before the first was given");
        let token = promises.give("retry {}", promise).unwrap();
        assert_eq!(promises.read("retry {}", &token), Some(promise));
        assert_eq!(promises.read("cancel {}", &token), None);
        assert_eq!(Promises::default().read("retry {}", &token), None);
        let other = Promises::default();
        other.give("retry {}", promise).unwrap();
        assert_eq!(other.read("retry {}", &token), None, "another process");
        let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        bytes[7] = 8;
        assert_eq!(promises.read("retry {}", &URL_SAFE_NO_PAD.encode(bytes)), None, "another count");
        for bad in ["", "!", &token[1..], &format!("{token}AAAA")] {
            assert_eq!(promises.read("retry {}", bad), None, "{bad}");
        }
    }
}
