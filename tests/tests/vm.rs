//! The hypervisor suite on simulated guests, real Firecracker (jailed and not) and real QEMU; and
//! Firecracker's side of the contract: its API, its jailer.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a failed expectation is a failed test")]

#[path = "vm/accel.rs"]
mod accel;
#[path = "vm/contract.rs"]
mod contract;
#[path = "vm/jailed.rs"]
mod jailed;
#[path = "vm/real.rs"]
mod real;
#[path = "net/sandbox.rs"]
#[allow(dead_code, reason = "this binary needs its namespace only")]
mod sandbox;
#[path = "vm/simulated.rs"]
mod simulated;

/// One test per requirement, for a subject that may not be available here.
macro_rules! conformance {
    ($subject:expr) => {
        conformance!(@each $subject;
            boots_speaks_and_stops, stops_within_grace, exit_is_noticed, crash_is_noticed,
            adopted_after_a_restart, reused_pid_is_not_adopted, refusal_is_typed_and_clean,
            cancelled_boot_leaves_nothing, two_are_independent);
    };
    (@each $subject:expr; $($case:ident),+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let test = concat!(module_path!(), "::", stringify!($case));
                if let Some(subject) = $subject(test).await {
                    stoker_tests::conformance::vm::$case(&subject).await;
                }
            }
        )+
    };
}
pub(crate) use conformance;
