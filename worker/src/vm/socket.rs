//! Connecting to a VMM's socket as soon as it listens.
//!
//! A thread of the blocking pool tries every 0.2 ms: tokio's timer cannot do better than 1-2 ms,
//! and an inotify instance per boot was worse than both: every boot took 10 ms longer, all of it in
//! dropping the instance (closing one seems to wait for a grace period of the kernel).

use std::{
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::process::VmmProcess;

/// Between tries while the VMM is expected any moment (Firecracker listens 1 ms after its start).
const EAGER: Duration = Duration::from_micros(200);
/// How long it is expected any moment.
const EAGER_FOR: Duration = Duration::from_millis(50);
/// Between tries after that: the host is busy and should not be kept busier.
const PATIENT: Duration = Duration::from_millis(2);

/// Connects; an error of kind `TimedOut` after `within`, or the last error once the VMM has ended.
pub async fn connect(socket: PathBuf, process: VmmProcess, within: Duration) -> io::Result<UnixStream> {
    let attempt = move || {
        let begun = Instant::now();
        loop {
            // Looked at before the try: a VMM that ends in between had its last chance.
            let ended = process.ended().is_some();
            match UnixStream::connect(&socket) {
                Ok(stream) => return Ok(stream),
                Err(error) if ended => return Err(error),
                Err(_) if begun.elapsed() >= within => return Err(io::ErrorKind::TimedOut.into()),
                Err(_) => std::thread::sleep(if begun.elapsed() < EAGER_FOR { EAGER } else { PATIENT }),
            }
        }
    };
    tokio::task::spawn_blocking(attempt).await.map_err(io::Error::other)?
}
