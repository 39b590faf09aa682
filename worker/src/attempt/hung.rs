//! A VM that is up, and a VMM that hangs: its guest may look alive, and nothing can be asked of it any
//! more. It is ended like one that ended by itself.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::ports::vm::Vm;

/// How often it is asked.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// An idle VMM answers within a millisecond.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);
/// Unanswered in a row, after which it hangs. A host may be that busy once, hardly for so long.
const UNANSWERED: u32 = 3;
/// What is said of its end.
pub(super) const HUNG: &str = "the hypervisor did not answer three times in a row and was killed";

/// Returns when the VMM hangs.
pub(super) async fn hangs(vm: &dyn Vm) {
    let mut ask = interval(ASK_EVERY);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once, and it has just been heard of.
    ask.reset();
    let mut unanswered = 0;
    while unanswered < UNANSWERED {
        ask.tick().await;
        let responds = timeout(ANSWERS_WITHIN, vm.responds()).await.unwrap_or(false);
        unanswered = if responds { 0 } else { unanswered + 1 };
    }
}
