//! What the worker's core needs of the world, as traits. Each has a real adapter and a simulated
//! one, and a conformance suite (in the tests package) that both pass.

pub mod broker;
pub mod handle;
pub mod net;
pub mod probe;
pub mod vm;
