//! One file per command: its flags, and what it does.

pub mod completions;
pub mod control;
pub mod dead;
pub mod doctor;
pub mod enqueue;
pub mod front;
pub mod hooks;
pub mod hosts;
pub mod image;
pub mod list;
pub mod log;
pub mod logs;
pub mod man;
pub mod pools;
pub mod report;
pub mod serve;
pub mod show;
pub mod spec_flags;
pub mod token;
pub mod up;
pub mod wait;
pub mod watch;
