//! A RabbitMQ node of the test's own, to be killed. Wiped with the test however it ends.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use stoker_tests::{setting, within};
use tokio::process::Command;
use uuid::Uuid;

/// The process in RabbitMQ that keeps the streams.
const COORDINATOR: &[u8] = b"rabbit_stream_coordinator";

pub struct Node {
    control: PathBuf,
    name: String,
    pub url: String,
}

impl Node {
    /// `None`, and said so, where no node can be made.
    pub async fn start(test: &str) -> Option<Self> {
        let control = setting(test, "STOKER_TEST_BROKER_CTL")?;
        // The pid in the name: a run that was killed could not wipe its node, the next one does.
        let name = format!("test-{}-{}", &Uuid::now_v7().simple().to_string()[24..], std::process::id());
        let mut node = Self { control, name, url: String::new() };
        node.url = node.tell("start").await;
        Some(node)
    }

    pub async fn kill_9(&self) {
        self.tell("kill9").await;
    }

    /// Waits until the node would know its streams after a kill. RabbitMQ writes the name of the
    /// process that keeps them to disk half a second after the very first stream was declared; a
    /// node killed before never finds that stream again (see `a_lost_history_stops_no_work`).
    pub async fn knows_its_streams(&self) {
        let data = PathBuf::from(self.tell("dir").await).join("mnesia");
        let known = async {
            // Another process writes the file: all one can do is look again.
            while !names_a_coordinator(&data) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within("the stream coordinator's name on disk", known).await;
    }

    /// Starts it again, on the same port with the same data.
    pub async fn start_again(&self) {
        assert_eq!(self.tell("start").await, self.url);
    }

    async fn tell(&self, verb: &str) -> String {
        let mut command = Command::new(&self.control);
        command.args(["broker", verb, "--name", &self.name]).stdin(Stdio::null());
        // The node outlives its starter and must not look like a left-over of this run.
        command.env_remove("STOKER_TEST_RUN");
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "broker {verb}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// `<data>/<node>/coordination/<node>/names.dets` lists what the node starts again.
fn names_a_coordinator(data: &Path) -> bool {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    inside(data.to_owned()).flat_map(|node| inside(node.join("coordination"))).any(|folder| {
        let names = std::fs::read(folder.join("names.dets")).unwrap_or_default();
        names.windows(COORDINATOR.len()).any(|bytes| bytes == COORDINATOR)
    })
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut command = std::process::Command::new(&self.control);
        let _ = command.args(["broker", "wipe", "--name", &self.name]).env_remove("STOKER_TEST_RUN").status();
    }
}
