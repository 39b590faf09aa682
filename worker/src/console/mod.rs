//! A VM's serial console: followed while it runs, parsed into [`ConsoleEvent`]s, kept within
//! bounds, readable by people during and after the attempt.

mod capture;
mod lines;
mod signs;
mod store;

pub use capture::Capture;
pub use signs::{ConsoleEvent, Parser};
pub use store::{
    ConsoleSlice, HEAD_BYTES, MAX_SLICE_BYTES, TAIL_BYTES, keep, read_kept, read_kept_tail, read_range, read_tail,
};
