//! Work that blocks (a database, a large file), kept off the threads that serve everything else.
//!
//! A deterministic simulation runs all of a process on one thread and asks for such work to be done
//! in place: a thread pool would finish it at any moment.

use std::cell::Cell;

use tokio::task::{JoinError, spawn_blocking};

thread_local! {
    static IN_PLACE: Cell<bool> = const { Cell::new(false) };
}

/// Does such work and returns its result.
///
/// # Errors
/// When it panicked.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    if IN_PLACE.get() { Ok(work()) } else { spawn_blocking(work).await }
}

/// From now on this thread does such work in place (simulation).
pub fn in_place_on_this_thread() {
    IN_PLACE.set(true);
}
