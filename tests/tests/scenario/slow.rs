//! Guests that still come up when their time is up.

use serde_json::json;
use stoker_schemas::Phase;
use stoker_schemas::diagnosis::Cause;

use super::begin;

fn slow(deadline_ms: u64, life: &str) -> serde_json::Value {
    json!({
        "image": "sim", "kernel_args": life, "readiness": {"deadline_ms": deadline_ms}, "retry": {"max_attempts": 1}
    })
}

#[tokio::test]
async fn one_that_comes_further_is_given_more_time() {
    let (_dir, _world, life) = begin(|_| {});
    // Its lease comes just before the end, its agent just after.
    let id = life.enqueue(slow(4_000, "sim.dhcp-ms=3950 sim.healthy-ms=4050")).await;
    let state = life.reaches(id, Phase::Ready).await;
    assert_eq!(state.attempts.len(), 1);
    life.drain().await;
}

#[tokio::test]
async fn one_that_comes_no_further_is_not() {
    let (_dir, _world, life) = begin(|_| {});
    let id = life.enqueue(slow(1_000, "sim.dhcp-ms=1 sim.agent=refused")).await;
    let state = life.reaches(id, Phase::Dead).await;
    let dead = state.dead.values().next().unwrap();
    let found = dead.value.diagnosis.as_ref().unwrap();
    assert_eq!(found.cause, Cause::AgentNotListening);
    assert!(!found.evidence.iter().any(|line| line.starts_with("deadline:")), "{found:#?}");
    life.drain().await;
}
