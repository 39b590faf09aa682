//! Faults put in on purpose, to see that the deterministic simulation finds them. None is ever there in a release
//! build; in a debug build one thread may put one in for itself.

#[cfg(debug_assertions)]
use std::cell::Cell;

macro_rules! bugs {
    ($($(#[doc = $text:literal])+ $bug:ident,)+) => {
        /// A fault that can be put in.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Bug {
            $($(#[doc = $text])+ $bug,)+
        }

        impl Bug {
            /// Each once.
            pub const ALL: &[Self] = &[$(Self::$bug,)+];

            /// Its name, as it is asked for.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$bug => stringify!($bug),)+ }
            }

            /// What is wrong then.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$bug => concat!($($text),+),)+ }
            }
        }
    };
}

bugs! {
    /// Deliveries are acknowledged before the facts behind them are on disk.
    AckBeforeFlush,
    /// Deliveries are acknowledged before the broker has what follows from them.
    AckBeforePublish,
    /// A delivery of a job that runs here starts it a second time.
    SecondVm,
    /// The duplicate of a delivery replaces the one in hand, which is never settled.
    DuplicateReplaces,
    /// A delivery is attached to a job that has ended in the same turn, and forgotten with it.
    AttachedToEnded,
    /// The address of a VM that is gone stays taken.
    AddressKept,
    /// The room of a VM that is gone stays taken.
    RoomKept,
    /// The room of a VM that is gone is given back twice.
    RoomFreedTwice,
    /// A credit of nothing stays so while anything is up.
    CreditStaysZero,
    /// What waits for room is never looked at again.
    WaitersForgotten,
    /// What waits while its pool is paused is dropped.
    PauseDropsWaiting,
    /// A restart forgets that a pool is paused.
    PauseForgotten,
    /// A wish to cancel a job that is not here is not kept.
    CancelNotKept,
    /// A delivery does not see what came before it in the same turn.
    TurnNotSeen,
    /// A VM is not told to go although its job is cancelled.
    CancelNotObeyed,
    /// The time-to-live passes unnoticed.
    TtlIgnored,
    /// A retry does not wait.
    DelayIgnored,
    /// What fails while its message is away is never settled, though the message came back.
    LostStaysLost,
    /// A job that has died is started by a late message.
    DeadRunsAgain,
    /// An event that the broker does not take at once is given up.
    FailedIsDropped,
    /// A message that is refused holds back all others.
    RefusedBlocksAll,
    /// The outbox notes that it has published before it has.
    CursorTooEarly,
    /// What the history missed is not told later.
    GapForgotten,
    /// Dead jobs fill a queue that nobody reads, and the outbox stands still.
    DeadJobsFillQueue,
    /// What cannot be parked is put back at once, for ever.
    TooLargeRequeued,
    /// The rows' offset is stored before the rows.
    OffsetBeforeRows,
    /// The VM that stays is the one told to go.
    SupersedeWrongVm,
    /// The second VM of a job is never told to go.
    SupersedeNever,
    /// What a killed worker left running stays.
    NothingReaped,
    /// A VM that has lost its worker is not taken over.
    NotAdopted,
    /// A stopped VM's network card stays.
    CardKept,
    /// A job whose message is gone is not driven again.
    NotReconciled,
    /// The dead letters have no reader.
    DeadLettersUnread,
    /// A wish to stop counts only when it is later than the start by two machines' clocks.
    ClocksCompared,
    /// Each time a job does not fit is an event.
    DeferralsTold,
    /// A job that does not fit is held until it does.
    HeldForEver,
    /// A request in the turn in which its job begins takes the job out of the log's index.
    IndexForgotten,
    /// Jobs of high priority boot beside as many others as may.
    BootingPerLane,
}

#[cfg(debug_assertions)]
thread_local! {
    static PUT_IN: Cell<Option<Bug>> = const { Cell::new(None) };
}

/// Whether this one is put in. Compiled to `false` in a release build.
#[cfg(debug_assertions)]
pub fn is_on(bug: Bug) -> bool {
    PUT_IN.get() == Some(bug)
}

/// Never.
#[cfg(not(debug_assertions))]
pub const fn is_on(_: Bug) -> bool {
    false
}

/// Puts one in, for this thread; or takes it out.
#[cfg(debug_assertions)]
pub fn put_in(bug: Option<Bug>) {
    PUT_IN.set(bug);
}

/// Does nothing.
#[cfg(not(debug_assertions))]
pub const fn put_in(_: Option<Bug>) {}
