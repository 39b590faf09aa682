//! About a pool.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::HostName;

payload! {
    /// Payload of `pool.configured`: what holds for a pool (the subject) from now on, all of it.
    struct PoolConfigured {
        /// No new attempt starts; what boots or is up stays.
        paused: bool,
        /// VMs of the pool that each host may have at once; absent for as many as fit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max_per_host: Option<u32>,
        /// The host that this is retold to, because it came later; absent for all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<HostName>,
        /// Who asked.
        by: String,
        /// Why, in their words.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    }
}
