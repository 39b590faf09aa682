//! Handles of deliveries: each is settled exactly once, or it is known that it was not.
//!
//! A delivery that is neither acknowledged nor given back takes a place of the credit for ever, and a lane
//! that has lost all of its credit delivers nothing any more. So adapters wrap what settles a
//! delivery here: the handles that are out are counted, and one that is dropped gives its delivery back.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::broker::{Ack, BrokerError, Delivery, NotDeferred, Source};
use crate::counts::{DELIVERIES_DROPPED, JOBS_UNACKNOWLEDGED, Level, OTHERS_UNACKNOWLEDGED};

/// Issues the handles of one subscription, or of one channel of it.
#[derive(Clone)]
pub struct Handles {
    inner: Arc<Inner>,
}

struct Inner {
    source: Source,
    /// The subscription's end: closed once the subscriber takes no more.
    out: mpsc::WeakSender<Delivery>,
    /// The broker's end.
    closing: CancellationToken,
    alive: AtomicUsize,
    dropped: AtomicU64,
}

impl Handles {
    /// For deliveries that leave through `out`, of a broker that ends at `closing`.
    pub fn new(source: Source, out: &mpsc::Sender<Delivery>, closing: CancellationToken) -> Self {
        let (alive, dropped) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { inner: Arc::new(Inner { source, out: out.downgrade(), closing, alive, dropped }) }
    }

    /// A handle for one delivery.
    pub fn issue(&self, ack: Box<dyn Ack>) -> Handle {
        self.inner.alive.fetch_add(1, Ordering::Relaxed);
        self.inner.unacknowledged().up();
        Handle { ack: Some((ack, Alive(Arc::clone(&self.inner)))), holds: None }
    }

    /// Handles that are out and not settled yet.
    pub fn alive(&self) -> usize {
        self.inner.alive.load(Ordering::Relaxed)
    }

    /// Handles that were dropped unsettled.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }
}

impl Inner {
    /// All of its kind in this process.
    fn unacknowledged(&self) -> &'static Level {
        if matches!(self.source, Source::Jobs(..)) { &JOBS_UNACKNOWLEDGED } else { &OTHERS_UNACKNOWLEDGED }
    }

    /// Once the subscriber or the broker has ended, all that is open goes back by itself.
    fn is_open(&self) -> bool {
        !self.closing.is_cancelled() && self.out.upgrade().is_some_and(|out| !out.is_closed())
    }
}

/// Counts one handle until it is settled.
struct Alive(Arc<Inner>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.alive.fetch_sub(1, Ordering::Relaxed);
        self.0.unacknowledged().down();
    }
}

/// Settles one delivery. Dropping it unsettled while its subscription and broker are open is a fault of the program:
/// it stops a debug build; elsewhere it is counted, logged, and the delivery goes back to its queue.
#[must_use = "a delivery must be settled"]
pub struct Handle {
    /// `None` once settled.
    ack: Option<(Box<dyn Ack>, Alive)>,
    /// Dropped with it.
    holds: Option<Box<dyn Any + Send + Sync>>,
}

impl Handle {
    /// Done: the broker forgets it.
    ///
    /// # Errors
    /// [`BrokerError::Stale`] if its connection is gone: it comes again.
    pub async fn ack(mut self) -> Result<(), BrokerError> {
        match self.ack.take() {
            Some((ack, _alive)) => ack.ack().await,
            None => Err(BrokerError::Stale),
        }
    }

    /// Not now: back to the queue.
    ///
    /// # Errors
    /// As [`Handle::ack`].
    pub async fn requeue(mut self) -> Result<(), BrokerError> {
        match self.ack.take() {
            Some((ack, _alive)) => ack.requeue().await,
            None => Err(BrokerError::Stale),
        }
    }

    /// Not for a while: see [`Ack::defer`].
    ///
    /// # Errors
    /// [`NotDeferred`] with the handle: the delivery is still the caller's.
    pub async fn defer(mut self, delay: Duration) -> Result<(), NotDeferred<Self>> {
        let Some((ack, alive)) = self.ack.take() else {
            return Err(NotDeferred { ack: self, error: BrokerError::Stale });
        };
        match ack.defer(delay).await {
            Ok(()) => Ok(()),
            Err(NotDeferred { ack, error }) => {
                self.ack = Some((ack, alive));
                Err(NotDeferred { ack: self, error })
            }
        }
    }

    /// The handle, with something that is dropped when it is settled.
    pub fn holding(self, what: impl Any + Send + Sync) -> Self {
        let mut handle = self;
        handle.holds = Some(Box::new(what));
        handle
    }

    /// Never: see [`Ack::dead_letter`].
    ///
    /// # Errors
    /// As [`Handle::ack`].
    pub async fn dead_letter(mut self) -> Result<(), BrokerError> {
        match self.ack.take() {
            Some((ack, _alive)) => ack.dead_letter().await,
            None => Err(BrokerError::Stale),
        }
    }

    /// What it was delivered from.
    pub fn source(&self) -> Option<&Source> {
        self.ack.as_ref().map(|(_, alive)| &alive.0.source)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Some((ack, alive)) = self.ack.take() else { return };
        let inner = Arc::clone(&alive.0);
        if !inner.is_open() {
            return;
        }
        // Without a runtime, or in one that is ending, the process is: the broker notices that by itself.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let begun = Arc::new(AtomicBool::new(false));
        let begins = Arc::clone(&begun);
        let giving_back = runtime.spawn(async move {
            begins.store(true, Ordering::Release);
            let _alive = alive;
            if let Err(error) = ack.requeue().await {
                tracing::debug!(%error, "dropped delivery not given back, it comes again");
            }
        });
        if giving_back.is_finished() && !begun.load(Ordering::Acquire) {
            return;
        }
        inner.dropped.fetch_add(1, Ordering::Relaxed);
        DELIVERIES_DROPPED.add();
        tracing::warn!(source = ?inner.source, "a delivery was dropped unsettled; it goes back to its queue");
        debug_assert!(std::thread::panicking(), "a delivery of {:?} was dropped unsettled", inner.source);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;

    /// Notes what was done.
    #[derive(Clone, Default)]
    struct Notes(Arc<Mutex<Vec<&'static str>>>);

    #[async_trait]
    impl Ack for Notes {
        async fn ack(self: Box<Self>) -> Result<(), BrokerError> {
            self.0.lock().unwrap().push("ack");
            Ok(())
        }
        async fn requeue(self: Box<Self>) -> Result<(), BrokerError> {
            self.0.lock().unwrap().push("requeue");
            Ok(())
        }
        async fn dead_letter(self: Box<Self>) -> Result<(), BrokerError> {
            self.0.lock().unwrap().push("dead_letter");
            Ok(())
        }
        async fn defer(self: Box<Self>, _: Duration) -> Result<(), NotDeferred> {
            self.0.lock().unwrap().push("defer");
            Ok(())
        }
    }

    fn subscription() -> (Handles, mpsc::Receiver<Delivery>, mpsc::Sender<Delivery>, CancellationToken) {
        let (out, deliveries) = mpsc::channel(1);
        let closing = CancellationToken::new();
        (Handles::new(Source::Dead, &out, closing.clone()), deliveries, out, closing)
    }

    /// Drops a handle; whether that was taken for a fault.
    fn is_fault_to_drop<T>(handles: &Handles, dropped: T) -> bool {
        let before = handles.dropped();
        let dropping = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(dropped)));
        let is_fault = handles.dropped() > before;
        assert_eq!(dropping.is_err(), cfg!(debug_assertions) && is_fault);
        is_fault
    }

    #[tokio::test]
    async fn a_dropped_handle_is_a_fault_and_its_delivery_goes_back() {
        let (handles, _deliveries, _out, _closing) = subscription();
        let notes = Notes::default();
        let handle = handles.issue(Box::new(notes.clone()));
        assert_eq!(handles.alive(), 1);
        assert!(is_fault_to_drop(&handles, handle));
        while handles.alive() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*notes.0.lock().unwrap(), ["requeue"]);
    }

    #[tokio::test]
    async fn a_settled_handle_is_no_fault() {
        let (handles, _deliveries, _out, _closing) = subscription();
        let notes = Notes::default();
        handles.issue(Box::new(notes.clone())).ack().await.unwrap();
        handles.issue(Box::new(notes.clone())).requeue().await.unwrap();
        handles.issue(Box::new(notes.clone())).dead_letter().await.unwrap();
        assert_eq!((handles.alive(), notes.0.lock().unwrap().clone()), (0, vec!["ack", "requeue", "dead_letter"]));
    }

    #[tokio::test]
    async fn a_word_that_was_never_sent_is_a_fault_too() {
        let (handles, _deliveries, _out, _closing) = subscription();
        let handle = handles.issue(Box::new(Notes::default()));
        assert!(is_fault_to_drop(&handles, handle.ack()));
    }

    /// Both give back all that is open.
    #[tokio::test]
    async fn after_the_end_of_the_subscription_or_the_broker_it_is_none() {
        let (handles, deliveries, _out, _closing) = subscription();
        let handle = handles.issue(Box::new(Notes::default()));
        drop(deliveries);
        assert!(!is_fault_to_drop(&handles, handle));

        let (handles, _deliveries, _out, closing) = subscription();
        let handle = handles.issue(Box::new(Notes::default()));
        closing.cancel();
        assert!(!is_fault_to_drop(&handles, handle));
    }

    #[test]
    fn nor_when_the_process_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (handles, _deliveries, _out, _closing) = subscription();
        let (kept, held) = (handles.issue(Box::new(Notes::default())), handles.issue(Box::new(Notes::default())));
        runtime.spawn(async move {
            std::future::pending::<()>().await;
            drop(held);
        });
        drop(runtime);
        assert!(!is_fault_to_drop(&handles, kept));
        assert_eq!(handles.alive(), 0);
    }
}
