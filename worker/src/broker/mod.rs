//! Adapters of the broker port: RabbitMQ, and one inside this process for a single host.

pub mod amqp;
pub mod embedded;
