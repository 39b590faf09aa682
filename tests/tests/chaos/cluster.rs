//! Three nodes that are one broker: its leaders killed, frozen and cut off, each node restarted in turn.

use std::time::Instant;

use stoker_schemas::{PoolName, spec::Priority, topology::Names};

use crate::{
    cluster_nodes::Cluster,
    load::Load,
    node::kill_9_at_once,
    table::{Row, times},
};

/// Jobs confirmed between two faults.
const JOBS_BETWEEN: usize = 100;

/// The jobs' queue, whose leader each of its messages passes.
fn queue() -> String {
    Names::default().jobs_queue(&PoolName::default(), Priority::Normal)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn a_cluster_whose_leader_is_killed_loses_nothing() {
    let Some(cluster) = Cluster::start("a_cluster_whose_leader_is_killed_loses_nothing").await else { return };
    let mut row = Row::new("the leader of the jobs' queue killed (3 nodes)");
    let load = Load::start(&cluster.url).await;
    for _ in 0..times("LEADER_KILLED", 2, 20) {
        load.goes_on(JOBS_BETWEEN).await;
        let leader = cluster.leader_of(&queue()).await;
        let (pid, begun) = (leader.pid().await, Instant::now());
        kill_9_at_once(&pid).await;
        row.recovered(load.works_again(begun).await);
        load.goes_on(JOBS_BETWEEN).await;
        leader.start_again().await;
        cluster.is_whole(leader).await;
    }
    row.end(load.end(cluster.node(0)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn a_cluster_whose_leader_freezes_loses_nothing() {
    let Some(cluster) = Cluster::start("a_cluster_whose_leader_freezes_loses_nothing").await else { return };
    let mut row = Row::new("the leader of the jobs' queue frozen (3 nodes)");
    let load = Load::start(&cluster.url).await;
    for _ in 0..times("LEADER_FROZEN", 1, 3) {
        load.goes_on(JOBS_BETWEEN).await;
        let leader = cluster.leader_of(&queue()).await;
        let begun = Instant::now();
        leader.freeze().await;
        row.recovered(load.works_again(begun).await);
        load.goes_on(JOBS_BETWEEN).await;
        leader.thaw().await;
        cluster.is_whole(leader).await;
    }
    row.end(load.end(cluster.node(0)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn a_cluster_whose_nodes_are_restarted_in_turn_loses_nothing() {
    let test = "a_cluster_whose_nodes_are_restarted_in_turn_loses_nothing";
    let Some(cluster) = Cluster::start(test).await else { return };
    let mut row = Row::new("every node restarted in turn (3 nodes)");
    let load = Load::start(&cluster.url).await;
    for n in 0..times("ROLLING_RESTART", 1, 2) * 3 {
        load.goes_on(JOBS_BETWEEN).await;
        let (node, begun) = (cluster.node(n), Instant::now());
        node.stop().await;
        node.start_again().await;
        row.recovered(load.works_again(begun).await);
        cluster.is_whole(node).await;
    }
    row.end(load.end(cluster.node(0)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn a_cluster_in_two_parts_loses_nothing() {
    let Some(cluster) = Cluster::start_apart("a_cluster_in_two_parts_loses_nothing").await else { return };
    let mut row = Row::new("the leader of the jobs' queue cut off from the majority (3 nodes)");
    let load = Load::start(&cluster.url).await;
    for _ in 0..times("LEADER_CUT_OFF", 1, 4) {
        load.goes_on(JOBS_BETWEEN).await;
        let leader = cluster.leader_of(&queue()).await;
        let (before, begun) = (leader.pauses().await, Instant::now());
        leader.cut().await;
        // It notices after some seconds and goes; until then it may hold on to clients.
        let (recovered, ()) = tokio::join!(load.works_again(begun), leader.pauses_again(before));
        row.recovered(recovered);
        load.goes_on(JOBS_BETWEEN).await;
        leader.heal().await;
        cluster.is_whole(leader).await;
    }
    row.end(load.end(cluster.node(0)).await);
}
