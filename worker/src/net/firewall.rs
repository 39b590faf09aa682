//! What guests may reach: nothing of the host's but its DHCP server, no other guest, no address of a
//! cloud's metadata service; unless their image says so.
//!
//! The rules stand once per bridge and know its taps by their device group, so that an ordinary boot
//! costs nothing here. Only the taps of images with exceptions are named in sets. All of it lies in
//! two tables of Stoker's own, within the VMs' namespace:
//!
//! ```text
//! bridge: frame from a tap -> metadata? -> may it reach the host? -> mark    tap to tap: both must say so
//! inet:   packet from the bridge to the host -> answer, DHCP or marked, else dropped
//! ```

use std::{
    collections::HashSet,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use stoker_schemas::image::Reach;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::{namespace::Namespace, system};
use crate::{ports::net::NetError, vm::program};

/// How long a change may take (3 ms when idle).
const WITHIN: Duration = Duration::from_secs(10);
/// What is quoted of nft's complaints, bytes.
const MAX_WORDS_BYTES: usize = 400;
/// On packets of guests that may reach the host. Only ever compared as a whole.
const MARK: u32 = 0x5374_6f6b;
/// On frames from one guest to another that were let through: where the host has br_netfilter, they
/// pass the packets' rules too, and look there as if they were routed.
const BRIDGED: u32 = 0x5374_6f6c;
/// Cloud metadata services live here; instance credentials, too.
const METADATA: &str = "169.254.169.254";
/// The tables' own order: after what the host may have for these hooks' raw stages, before its filters.
const PRIORITY: i32 = -10;
/// Whether an image's wishes include one.
type Allows = fn(&Reach) -> bool;
/// Sets of exceptions, by what they allow.
const SETS: [(&str, Allows); 3] =
    [("reach_host", |reach| reach.host), ("reach_vms", |reach| reach.vms), ("reach_metadata", |reach| reach.metadata)];

/// The rules of one bridge.
pub(super) struct Firewall {
    namespace: Namespace,
    table: String,
    /// Taps with exceptions: the only ones that anything need be done for.
    excepted: Mutex<HashSet<String>>,
}

impl Firewall {
    /// Puts the rules in place, in one step, instead of whatever an earlier worker left of them.
    pub async fn open(namespace: &Namespace, bridge: &str, group: u32) -> Result<Self, NetError> {
        let table = table_of(bridge);
        let firewall = Self { namespace: namespace.clone(), table, excepted: Mutex::default() };
        firewall.nft(rules(&firewall.table, bridge, group)).await?;
        Ok(firewall)
    }

    /// Makes a tap's exceptions, if its image has any.
    pub async fn admit(&self, tap: &str, reach: &Reach) -> Result<(), NetError> {
        let change = self.elements("add", tap, |allows| allows(reach));
        if change.is_empty() {
            return Ok(());
        }
        // Noted before: what may be there is removed.
        self.excepted().insert(tap.to_owned());
        self.nft(change).await
    }

    /// Takes back a tap's exceptions. Idempotent; free for taps without any.
    pub async fn forget(&self, tap: &str) -> Result<(), NetError> {
        if !self.excepted().contains(tap) {
            return Ok(());
        }
        // Added first, because removing what is not there fails, and with it the whole step.
        let change = self.elements("add", tap, |_| true) + &self.elements("delete", tap, |_| true);
        self.nft(change).await?;
        self.excepted().remove(tap);
        Ok(())
    }

    /// Removes the rules; for the end of the network, not of the worker.
    pub async fn destroy(&self) -> Result<(), NetError> {
        self.nft(removal(&self.table)).await
    }

    fn excepted(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.excepted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elements(&self, verb: &str, tap: &str, chosen: impl Fn(Allows) -> bool) -> String {
        let table = &self.table;
        let line = |set: &str| format!("{verb} element bridge {table} {set} {{ \"{tap}\" }}\n");
        SETS.iter().filter(|(_, allows)| chosen(*allows)).map(|(set, _)| line(set)).collect()
    }

    /// One transaction: all of it, or nothing.
    async fn nft(&self, script: String) -> Result<(), NetError> {
        let ran = self.namespace.within(async move { timeout(WITHIN, run(script)).await });
        ran.await.unwrap_or_else(|_| Err(failed(format!("nft did not end within {WITHIN:?}"))))
    }
}

fn failed(cause: String) -> NetError {
    NetError::System { what: "set up the firewall of the VMs".to_owned(), cause }
}

async fn run(script: String) -> Result<(), NetError> {
    let mut command = Command::new(program::find("nft".as_ref()));
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => NetError::Missing {
            what: "nft".to_owned(),
            hint: "install nftables; or set firewall = false under [network], and VMs reach the host and each other"
                .to_owned(),
        },
        _ => system("start nft", &e),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        // Where it ended early, its own words say more than this would.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| system("run nft", &e))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    if words.contains("Operation not permitted") {
        return Err(NetError::Permission { what: "set up the firewall of the VMs".to_owned() });
    }
    let words = stoker_schemas::limits::clip(words.trim(), MAX_WORDS_BYTES);
    Err(failed(format!("{words}; a kernel without nf_tables needs firewall = false under [network]")))
}

/// nft takes letters, digits, `_` and `.` in names; a bridge's may hold others.
fn table_of(bridge: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '.' };
    format!("stoker_{}", bridge.chars().map(plain).collect::<String>())
}

/// Removing what may not be there: made first, in the same step.
fn removal(table: &str) -> String {
    ["bridge", "inet"].map(|family| format!("table {family} {table}\ndelete table {family} {table}\n")).concat()
}

fn rules(table: &str, bridge: &str, group: u32) -> String {
    let sets: String = SETS.iter().map(|(set, _)| format!("  set {set} {{ type ifname; }}\n")).collect();
    format!(
        r#"{removal}table bridge {table} {{
{sets}  chain from_guests {{
    type filter hook prerouting priority {PRIORITY}; policy accept;
    iifgroup != {group} accept
    ip daddr {METADATA} iifname != @reach_metadata drop
    arp daddr ip {METADATA} iifname != @reach_metadata drop
    iifname @reach_host meta mark set {MARK}
  }}
  chain between_guests {{
    type filter hook forward priority {PRIORITY}; policy accept;
    iifgroup != {group} accept
    oifgroup != {group} accept
    iifname @reach_vms oifname @reach_vms meta mark set {BRIDGED} accept
    drop
  }}
}}
table inet {table} {{
  chain to_host {{
    type filter hook input priority {PRIORITY}; policy accept;
    iifname != "{bridge}" accept
    ct state established,related accept
    udp sport 68 udp dport 67 accept
    meta mark {MARK} accept
    drop
  }}
  chain through_host {{
    type filter hook forward priority {PRIORITY}; policy accept;
    iifname "{bridge}" oifname "{bridge}" meta mark != {BRIDGED} drop
  }}
}}
"#,
        removal = removal(table)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_named_after_their_bridge_as_nft_likes_it() {
        assert_eq!(table_of("stbr0"), "stoker_stbr0");
        assert_eq!(table_of("st-br_0"), "stoker_st.br_0");
    }

    #[test]
    fn the_rules_replace_the_former_ones_in_one_step() {
        let text = rules("stoker_st0", "st0", 7);
        let made = text.find("table bridge stoker_st0 {").unwrap();
        assert!(text.find("delete table bridge stoker_st0\n").unwrap() < made);
        assert!(text.contains("iifgroup != 7 accept") && text.contains("iifname != \"st0\" accept"));
    }
}
