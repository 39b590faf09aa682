//! What happened, line by line. The same seed gives the same lines, byte for byte.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Lines kept of a recorded trace; a run that writes more has its hash.
const MAX_LINES: usize = 2_000_000;

/// Clones write into the same trace.
#[derive(Debug, Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    now_ms: u64,
    hasher: DefaultHasher,
    /// `None` where only the hash is wanted.
    lines: Option<Vec<String>>,
    count: u64,
}

impl Trace {
    /// An empty trace; `record` keeps its lines as well as their hash.
    pub fn new(record: bool) -> Self {
        let lines = record.then(Vec::new);
        // Its keys are fixed: the same lines have the same hash in every process.
        let hasher = DefaultHasher::new();
        Self(Arc::new(Mutex::new(Inner { now_ms: 0, hasher, lines, count: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtual time that lines carry from now on.
    pub fn set_now(&self, now_ms: u64) {
        self.lock().now_ms = now_ms;
    }

    /// Adds a line.
    pub fn line(&self, text: std::fmt::Arguments<'_>) {
        let mut inner = self.lock();
        let line = format!("{:>8} {text}", inner.now_ms);
        line.hash(&mut inner.hasher);
        inner.count += 1;
        if let Some(lines) = &mut inner.lines
            && lines.len() < MAX_LINES
        {
            lines.push(line);
        }
    }

    /// Lines written so far: it moves whenever something happens.
    pub fn count(&self) -> u64 {
        self.lock().count
    }

    /// Hash of all lines.
    pub fn hash(&self) -> u64 {
        self.lock().hasher.finish()
    }

    /// The lines, where they were kept.
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.clone().unwrap_or_default()
    }
}

/// Writes a line: `say!(trace, "h-1 killed")`.
#[macro_export]
macro_rules! say {
    ($trace:expr, $($text:tt)+) => { $trace.line(format_args!($($text)+)) };
}
