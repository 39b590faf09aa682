//! The RabbitMQ adapter: the conformance suite, what only a network broker can do wrong, and chaos.
//!
//! Needs `STOKER_TEST_AMQP_URL` (`scripts/dev broker start` prints one). Every case has a prefix of
//! its own and deletes its queues.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

#[path = "broker_amqp/chaos.rs"]
mod chaos;
#[path = "broker_amqp/faults.rs"]
mod faults;
#[path = "chaos/host.rs"]
mod host;
#[path = "broker_amqp/long.rs"]
mod long;
#[path = "broker_amqp/nested.rs"]
mod nested;
#[path = "broker_amqp/proxy.rs"]
mod proxy;
#[path = "broker_amqp/rabbit.rs"]
mod rabbit;
#[path = "broker_amqp/returns.rs"]
mod returns;

stoker_tests::broker_conformance!(rabbit::setup);
