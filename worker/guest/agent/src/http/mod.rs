//! A small HTTP server: one thread per connection, one request per connection, everything
//! bounded. An async runtime would be most of a guest of this size.

pub(crate) mod request;
pub(crate) mod route;
mod server;

pub use route::Routes;
pub use server::{listen, serve};
