//! A fuzzer that needs nothing but stable Rust: valid inputs of each parser, changed at random where their
//! form allows it, for a bounded time. It does not see which code an input reaches, so it finds less than
//! libFuzzer would in the same time. The targets are plain functions, which libFuzzer can call as well.

mod mutate;
mod run;

pub use mutate::Mutator;
pub use run::{Failure, Report, fuzz, input_folder};
use stoker_schemas::fuzz::Target;

/// The guest agent's parsers. It knows nothing of the other crates, so that its guest stays small.
const AGENT: [Target; 3] = [
    Target { name: "agent-request", run: stoker_agent::fuzz::request, samples: stoker_agent::fuzz::requests },
    Target { name: "agent-dhcp", run: stoker_agent::fuzz::dhcp, samples: stoker_agent::fuzz::dhcp_answers },
    Target { name: "agent-line", run: stoker_agent::fuzz::line, samples: stoker_agent::fuzz::lines },
];

/// Every parser of bytes from outside, in the order of the crates.
pub fn targets() -> Vec<Target> {
    let (schemas, worker, producer) =
        (stoker_schemas::fuzz::TARGETS, stoker_worker::fuzz::TARGETS, stoker_producer::fuzz::TARGETS);
    schemas.into_iter().chain(AGENT).chain(worker).chain(producer).collect()
}
