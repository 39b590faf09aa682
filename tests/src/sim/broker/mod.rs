//! A model of RabbitMQ, as far as Stoker sees it: quorum queues with limits and delivery counts, delay
//! queues, dead letters, a stream, confirms and acknowledgements that take their time and can be lost
//! with their connection. It lives outside of the simulated processes and moves between their steps.
//!
//! What it promises is what the RabbitMQ adapter promises (`worker::broker::amqp`): publishes that were
//! not confirmed when a connection ended are sent again on the next one, in order; what was held goes
//! back to its queue once the broker has noticed; a stream that was made again is read from its beginning.

mod consume;
mod port;
mod publish;
pub mod queue;
pub mod route;
pub mod state;
pub mod stream;
mod trouble;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use port::SimBroker;
pub use publish::MAX_BODY_BYTES;
use state::State;
pub use state::{BrokerPlan, DEAD};

use super::trace::Trace;

/// The broker. Clones are the same.
#[derive(Clone)]
pub struct Model(Arc<Mutex<State>>);

impl Model {
    /// An empty broker.
    pub fn new(plan: BrokerPlan, seed: u64, trace: Trace) -> Self {
        let model = Self(Arc::new(Mutex::new(State::new(plan, seed, trace))));
        model.lock().me = Arc::downgrade(&model.0);
        model
    }

    /// Whole after every statement; there is one thread.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
