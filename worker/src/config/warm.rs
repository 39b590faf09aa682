//! `[[warm]]` and `--warm`: VMs to keep up for jobs to come.

use std::str::FromStr;

use serde::Deserialize;
use stoker_schemas::JobSpec;
use stoker_schemas::spec::RawSpec;

use super::{Capacity, Warm};

/// Kinds of VMs; each is looked at for each job.
const MAX_KINDS: usize = 32;

/// One `[[warm]]` of the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWarm {
    image: String,
    vcpus: Option<u64>,
    memory_mib: Option<u64>,
    count: u32,
}

/// `IMAGE=N`, of the size that jobs have by default.
impl FromStr for RawWarm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(image, count)| Some((image, count.parse().ok()?)));
        let (image, count) = parsed
            .ok_or_else(|| format!("{text:?} is not IMAGE=N, such as golden=2 (other sizes: [[warm]] in the file)"))?;
        Ok(Self { image: image.to_owned(), vcpus: None, memory_mib: None, count })
    }
}

/// Checks them, each and all together: what can never be there at once is a mistake.
pub(super) fn resolve(given: Vec<RawWarm>, total: Capacity, errors: &mut Vec<String>) -> Vec<Warm> {
    if given.len() > MAX_KINDS {
        errors.push(format!("warm: {} kinds of VMs, at most {MAX_KINDS}", given.len()));
        return Vec::new();
    }
    let mut warm: Vec<Warm> = Vec::new();
    for RawWarm { image, vcpus, memory_mib, count } in given {
        let raw = RawSpec { image: Some(image.clone()), vcpus, memory_mib, ..RawSpec::default() };
        match JobSpec::from_raw(raw) {
            Ok(_) if count == 0 => errors.push(format!("warm {image}: count 0 keeps none; 1 or more, or leave it out")),
            Ok(spec) if warm.iter().any(|known| known.spec == spec) => {
                errors.push(format!("warm {image}: the same image and size stands there twice; add the counts up"));
            }
            Ok(spec) => warm.push(Warm { spec, count }),
            Err(wrong) => errors.extend(wrong.to_string().lines().map(|line| format!("warm {image}: {line}"))),
        }
    }
    let sum = |of: fn(&Warm) -> u32| warm.iter().map(|w| u64::from(of(w)) * u64::from(w.count)).sum::<u64>();
    let wants = [
        ("slots", sum(|_| 1), total.slots),
        ("vcpus", sum(|w| w.spec.vcpus), total.vcpus),
        ("memory_mib", sum(|w| w.spec.memory_mib), total.memory_mib),
    ];
    for (field, wanted, there) in wants {
        if wanted > u64::from(there) {
            errors.push(format!("warm: all of them need {wanted} {field}, this host has {there} in all; keep fewer"));
        }
    }
    warm
}
