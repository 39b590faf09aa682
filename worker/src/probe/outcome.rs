//! What came of a try: errors by what the operating system said, answers by what the job asked.

use std::{error::Error, io};

use stoker_schemas::{VmId, id::Mac};

use crate::ports::probe::{Answer, ProbeOutcome, ProbeTarget, WrongAnswer};

/// Names a failed request. reqwest wraps the system's error several times over; it is the innermost
/// that tells a refusal from a missing route.
pub(super) fn of_error(error: &reqwest::Error) -> ProbeOutcome {
    let cause = io_cause(error);
    match cause.map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => return ProbeOutcome::Refused,
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown) => {
            return ProbeOutcome::Unreachable(words(error));
        }
        _ => {}
    }
    if error.is_connect() {
        // Our patience or the kernel's: no answer to a SYN.
        let timed_out = error.is_timeout() || cause.is_some_and(|e| e.kind() == io::ErrorKind::TimedOut);
        return if timed_out { ProbeOutcome::ConnectTimeout } else { ProbeOutcome::Unreachable(words(error)) };
    }
    if error.is_timeout() {
        return ProbeOutcome::ReadTimeout;
    }
    // Reset, closed without an answer, or an answer that is not HTTP.
    ProbeOutcome::Reset(words(error))
}

fn io_cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e io::Error> {
    chain(error).filter_map(|e| e.downcast_ref::<io::Error>()).last()
}

fn words(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |e: &&'e (dyn Error + 'static)| (*e).source())
}

/// The `vmId` of a JSON answer.
pub(crate) fn vm_id(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Identity {
        #[serde(rename = "vmId")]
        vm_id: Option<String>,
    }
    serde_json::from_slice::<Identity>(body).ok()?.vm_id
}

/// Who answered, as far as it can be told.
pub(crate) enum Identity {
    /// The answer says so.
    Named(String),
    /// The host sent its request to this MAC.
    At(Mac),
    /// The port reaches this VM only.
    Private,
    /// No telling.
    Unknown,
}

/// Whether an answer counts. `body` is what was read of it, `answer` keeps less.
pub(crate) fn of_answer(target: &ProbeTarget, answer: Answer, body: &str, identity: &Identity) -> ProbeOutcome {
    let asked = &target.readiness;
    let wrong = if answer.status != asked.expected_status {
        Some(WrongAnswer::Status)
    } else if asked.body_contains.as_ref().is_some_and(|text| !body.contains(text.as_str())) {
        Some(WrongAnswer::Body)
    } else if asked.check_identity {
        stranger(target, identity).map(WrongAnswer::Identity)
    } else {
        None
    };
    match wrong {
        Some(why) => ProbeOutcome::Wrong(answer, why),
        None => ProbeOutcome::Ready(answer),
    }
}

/// Who it was, if not the VM asked.
fn stranger(target: &ProbeTarget, identity: &Identity) -> Option<String> {
    match identity {
        Identity::Named(name) if name.parse::<VmId>() == Ok(target.vm) => None,
        Identity::Named(name) => Some(name.clone()),
        Identity::At(mac) if *mac == target.mac => None,
        Identity::At(mac) => Some(mac.to_string()),
        Identity::Private => None,
        Identity::Unknown => Some("unknown: no vmId in the answer, no MAC for the address".to_owned()),
    }
}
