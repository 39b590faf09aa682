//! One suite per port; every adapter, real or simulated, goes through it.

pub mod broker;
pub mod net;
pub mod vm;
