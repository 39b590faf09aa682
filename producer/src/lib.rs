//! Stoker's front: submitting jobs, the read model over the history, the HTTP API and the command
//! line. Everything here talks to the broker through its trait; nothing here boots a VM.
//!
//! The way through: [`submit`] turns a request into a confirmed `job.enqueued` event;
//! [`readmodel`] adds up what the history says; [`http`] serves both; [`cli`] is a client of that.
//! [`hooks`] turns deliveries of others into jobs, [`callbacks`] tells others what became of them.
//! [`supersede`] has the second VM of a job removed, which only a reader of all hosts can see; [`pools`]
//! tells hosts that come later what holds for theirs; [`reconcile`] drives or ends jobs that nothing is heard of;
//! [`dead_letters`] sees to the messages that no worker can work on; [`work`] says when jobs wait and nothing starts.

pub mod callbacks;
pub mod cli;
pub mod clock;
pub mod compose;
pub mod console;
pub mod control_plane;
mod dashboard;
pub mod dead_letters;
mod first_vm;
#[doc(hidden)]
pub mod fuzz;
pub mod hooks;
pub mod http;
pub mod pools;
pub mod progress;
pub mod readmodel;
pub mod reconcile;
pub mod report;
pub mod serve;
pub mod submit;
pub mod supersede;
mod unheard;
pub mod up;
pub mod view;
pub mod webhooks;
pub mod work;
