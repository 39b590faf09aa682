//! One node, killed again and again under load.

use std::time::Instant;

use crate::{
    load::Load,
    node::Node,
    table::{Row, times},
};

/// Jobs confirmed between two kills: each kill then falls into publishing and booting.
const JOBS_BETWEEN_KILLS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dying_broker_confirmed_boots_once() {
    let Some(node) = Node::start("what_a_dying_broker_confirmed_boots_once").await else { return };
    let mut row = Row::new("the only node killed");
    let load = Load::start(&node.url).await;
    node.knows_its_streams().await;
    for _ in 0..times("NODE_KILLED", 5, 12) {
        load.goes_on(JOBS_BETWEEN_KILLS).await;
        node.kill_9().await;
        let begun = Instant::now();
        node.start_again().await;
        row.recovered(load.works_again(begun).await);
    }
    load.goes_on(JOBS_BETWEEN_KILLS).await;
    row.end(load.end(&node).await);
}
