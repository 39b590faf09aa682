//! What each kind of event carries, on the wire and in memory alike.

macro_rules! payload {
    ($(#[$doc:meta])* struct $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
    };
}

mod attempt;
mod host;
mod job;
mod message;
mod pool;
mod warm;

pub use attempt::*;
pub use host::*;
pub use job::*;
pub use message::*;
pub use pool::*;
pub use warm::*;
