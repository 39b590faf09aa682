//! Asking agents over HTTP: [`HttpProber`] asks, `outcome` names what came of it, `pace` says when
//! to ask again and how long to wait for a connection.

mod http;
pub(crate) mod outcome;
mod pace;

pub use http::HttpProber;
