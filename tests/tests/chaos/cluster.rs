//! Three nodes that are one broker: its leaders killed and frozen, each node restarted in turn.

use std::time::Instant;

use stoker_schemas::{PoolName, spec::Priority, topology::Names};

use crate::{
    cluster_nodes::Cluster,
    load::Load,
    table::{Row, times},
};

/// Jobs confirmed between two faults.
const JOBS_BETWEEN: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; scripts/dev chaos runs it"]
async fn a_cluster_without_one_node_loses_nothing() {
    let Some(cluster) = Cluster::start("a_cluster_without_one_node_loses_nothing").await else { return };
    let load = Load::start(&cluster.url).await;
    let queue = Names::default().jobs_queue(&PoolName::default(), Priority::Normal);
    load.goes_on(JOBS_BETWEEN).await;

    let mut killed = Row::new("the leader of the jobs' queue killed (3 nodes)");
    for _ in 0..times(2, 20) {
        let leader = cluster.leader_of(&queue).await;
        leader.kill_9().await;
        let begun = Instant::now();
        load.works_again().await;
        killed.recovered(begun.elapsed());
        load.goes_on(JOBS_BETWEEN).await;
        leader.start_again().await;
        cluster.is_whole().await;
    }
    killed.end(load.end().await);

    let load = Load::start(&cluster.url).await;
    let mut frozen = Row::new("the leader of the jobs' queue frozen (3 nodes)");
    for _ in 0..times(1, 10) {
        load.goes_on(JOBS_BETWEEN).await;
        let leader = cluster.leader_of(&queue).await;
        leader.freeze().await;
        let begun = Instant::now();
        load.works_again().await;
        frozen.recovered(begun.elapsed());
        load.goes_on(JOBS_BETWEEN).await;
        leader.thaw().await;
        cluster.is_whole().await;
    }
    frozen.end(load.end().await);

    let load = Load::start(&cluster.url).await;
    let mut rolling = Row::new("every node restarted in turn (3 nodes)");
    for n in 0..times(1, 3) * 3 {
        let node = cluster.node(n);
        let begun = Instant::now();
        node.stop().await;
        node.start_again().await;
        load.works_again().await;
        rolling.recovered(begun.elapsed());
        cluster.is_whole().await;
    }
    rolling.end(load.end().await);
}
