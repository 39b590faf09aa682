//! A RabbitMQ node of the test's own, to be killed. Wiped with the test however it ends.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use stoker_tests::{setting, within};
use stoker_worker::broker::amqp::remove_record;
use tokio::{
    process::Command,
    sync::{Mutex, MutexGuard},
};
use uuid::Uuid;

use crate::table::FILE as TABLE;

/// Where RabbitMQ lists the processes that it starts again: the one that keeps the streams, and
/// the quorum queues. It writes the list half a second after a declaration; what is declared and
/// not listed when the node is killed stays down for ever.
const STREAMS: (&str, &str) = ("coordination", "rabbit_stream_coordinator");
const QUORUM_QUEUES: &str = "quorum";
/// Between two looks at what another process counts.
const LOOK: Duration = Duration::from_millis(500);
/// What a node writes that is to wait for the others.
const PAUSED: &str = "Cluster minority/secondary status detected";
/// Name of the policy that limits a queue.
const LIMIT: &str = "limit";

/// One node at a time: three that start, die and recover beside each other take a small machine to
/// where nothing is in time.
pub static TURN: Mutex<()> = Mutex::const_new(());

pub struct Node {
    control: PathBuf,
    name: String,
    pub url: String,
    /// What every command for it gets, besides what the tests have.
    environment: Vec<(String, String)>,
    /// None: its cluster's.
    _turn: Option<MutexGuard<'static, ()>>,
}

impl Node {
    /// `None`, and said so, where no node can be made.
    pub async fn start(test: &str) -> Option<Self> {
        Self::start_with(test, &[]).await
    }

    /// With more in RabbitMQ's environment.
    pub async fn start_with(test: &str, environment: &[(&str, &str)]) -> Option<Self> {
        let control = setting(test, "STOKER_TEST_BROKER_CTL")?;
        Some(Self::begin(control, Some(TURN.lock().await), environment).await)
    }

    /// Another one, that knows nothing of this one.
    pub async fn beside(&self, environment: &[(&str, &str)]) -> Self {
        Self::begin(self.control.clone(), None, environment).await
    }

    async fn begin(control: PathBuf, turn: Option<MutexGuard<'static, ()>>, environment: &[(&str, &str)]) -> Self {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut node = Self { control, name: new_name(), url: String::new(), environment, _turn: turn };
        node.url = node.tell("start").await;
        node
    }

    pub async fn kill_9(&self) {
        self.tell("kill9").await;
    }

    /// Its process, for [`kill_9_at_once`].
    pub async fn pid(&self) -> String {
        let file = PathBuf::from(self.tell("dir").await).join("pid");
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    }

    /// Ends it in order.
    pub async fn stop(&self) {
        self.tell("stop").await;
    }

    /// It stays connected and does nothing (SIGSTOP).
    pub async fn freeze(&self) {
        self.tell("pause").await;
    }

    pub async fn thaw(&self) {
        self.tell("resume").await;
    }

    /// Beyond this it takes nothing from who publishes; `1MiB` is less than it has when it does nothing.
    pub async fn allow_memory(&self, limit: &str) {
        self.tell_with("ctl", &["--", "set_vm_memory_high_watermark", "absolute", limit]).await;
    }

    /// A queue takes this many messages at most, until `lift_limit`.
    pub async fn limit_queue(&self, queue: &str, messages: u32) {
        let (pattern, limit) = (format!("^{}$", queue.replace('.', r"\.")), format!("{{\"max-length\": {messages}}}"));
        self.tell_with("ctl", &["--", "set_policy", LIMIT, &pattern, &limit, "--apply-to", "queues"]).await;
    }

    pub async fn lift_limit(&self) {
        self.tell_with("ctl", &["--", "clear_policy", LIMIT]).await;
    }

    /// Deliveries of a queue that nobody has settled.
    pub async fn unsettled(&self, queue: &str) -> u64 {
        let all = self.tell_with("ctl", &["--", "list_queues", "-q", "name", "messages_unacknowledged"]).await;
        let of_queue = all.lines().find_map(|line| line.strip_prefix(queue)?.trim().parse().ok());
        of_queue.unwrap_or_else(|| panic!("{queue} is not in {all}"))
    }

    /// Queues that hold messages, the history apart.
    pub async fn queues_in_use(&self) -> Vec<String> {
        let all = self.ctl(&["list_queues", "-q", "--no-table-headers", "name", "messages", "type"]).await;
        let in_use = all.lines().filter(|line| messages_of_work(line).is_some_and(|messages| messages > 0));
        in_use.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
    }

    /// Messages that are in any queue but the history, once none is or after `patience`.
    pub async fn kept_messages(&self, patience: Duration) -> usize {
        let last = Instant::now() + patience;
        loop {
            let all =
                self.ctl_or_nothing(&["list_queues", "-q", "--no-table-headers", "name", "messages", "type"]).await;
            let kept: usize = all.lines().filter_map(messages_of_work).sum();
            if !all.is_empty() && kept == 0 {
                return 0;
            }
            if Instant::now() >= last {
                eprintln!("still there: {all}");
                return kept.max(1);
            }
            // Another process counts them, now and then: all one can do is look again.
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until nobody takes from a queue.
    pub async fn has_no_consumer(&self, queue: &str) {
        loop {
            let all = self.ctl_or_nothing(&["list_queues", "-q", "--no-table-headers", "name", "consumers"]).await;
            let consumers = all.lines().find_map(|line| line.strip_prefix(queue)?.trim().parse::<u32>().ok());
            if consumers == Some(0) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the node would find its streams again after a kill (if not, see
    /// `a_lost_history_stops_no_work`).
    pub async fn knows_its_streams(&self) {
        self.lists(STREAMS.0, STREAMS.1).await;
    }

    /// Did it? Once it is dead the answer does not change.
    pub async fn knew_its_streams(&self) -> bool {
        is_listed(&self.data().await, STREAMS.0, STREAMS.1)
    }

    /// Waits until it would find a quorum queue again.
    pub async fn knows_queue(&self, queue: &str) {
        self.lists(QUORUM_QUEUES, queue).await;
    }

    async fn lists(&self, kind: &str, name: &str) {
        let data = self.data().await;
        let listed = async {
            // Another process writes the file: all one can do is look again.
            while !is_listed(&data, kind, name) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(&format!("{name} on the node's disk"), listed).await;
    }

    /// Removes the record of a queue that cannot be deleted because its node is "down".
    pub async fn forget_queue(&self, queue: &str) {
        let eval = remove_record("/", queue);
        self.tell_with("ctl", &["--", "eval", &eval]).await;
    }

    /// Starts it again, on the same port with the same data.
    pub async fn start_again(&self) {
        assert_eq!(self.tell("start").await, self.url);
    }

    async fn data(&self) -> PathBuf {
        PathBuf::from(self.tell("dir").await).join("mnesia")
    }

    /// What `rabbitmqctl` says.
    pub async fn ctl(&self, arguments: &[&str]) -> String {
        self.tell_with("ctl", &[&["--"], arguments].concat()).await
    }

    /// The same, of a node that may not be there.
    pub async fn ctl_or_nothing(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.control);
        command.envs(self.environment.iter().cloned());
        command.args(["broker", "ctl", "--name", &self.name, "--"]).args(arguments).env_remove("STOKER_TEST_RUN");
        let output = command.output().await.unwrap();
        if output.status.success() { String::from_utf8(output.stdout).unwrap() } else { String::new() }
    }

    /// A node of a cluster that was started by this name.
    pub async fn of_cluster(control: &Path, name: String) -> Self {
        let mut node =
            Self { control: control.to_owned(), name, url: String::new(), environment: Vec::new(), _turn: None };
        let status = node.tell("status").await;
        node.url = status.split(' ').nth(1).expect("running URL pid N").to_owned();
        node
    }

    /// Whether Erlang knows it by this name.
    pub fn is_called(&self, erlang: &str) -> bool {
        erlang.split('@').next().is_some_and(|name| name.strip_prefix("stoker-") == Some(&self.name))
    }

    /// Name of the cluster that it is a node of.
    pub fn cluster_name(&self) -> &str {
        self.name.rsplit_once('-').expect("a node of a cluster").0
    }

    /// Where it listens, as its network knows it.
    pub fn address(&self) -> &str {
        let after = self.url.rsplit('@').next().expect("an address");
        after.split('/').next().expect("an address")
    }

    /// Takes it away from the other nodes; clients still reach it.
    pub async fn cut(&self) {
        self.tell("cut").await;
    }

    pub async fn heal(&self) {
        self.tell("heal").await;
    }

    /// How often it has noticed that it is in a minority. It takes no clients then; its tools may not answer.
    pub async fn pauses(&self) -> usize {
        let folder = PathBuf::from(self.tell("dir").await).join("log");
        let files = std::fs::read_dir(folder).unwrap().flatten().filter(|file| file.file_name() != "console.log");
        let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
        texts.map(|text| text.matches(PAUSED).count()).sum()
    }

    /// Waits until it has noticed it once more than so often.
    pub async fn pauses_again(&self, before: usize) {
        let paused = async {
            while self.pauses().await <= before {
                tokio::time::sleep(LOOK).await;
            }
        };
        within("the minority pauses", paused).await;
    }

    /// Copies what the node wrote beside the table of `scripts/dev chaos`, for whoever looks for the reason of a failure.
    pub fn keep_log(&self) {
        let Some(table) = std::env::var_os(TABLE) else { return };
        let mut command = std::process::Command::new(&self.control);
        let dir = command.args(["broker", "dir", "--name", &self.name]).output().unwrap().stdout;
        let (from, to) = (PathBuf::from(String::from_utf8(dir).unwrap().trim()).join("log"), PathBuf::from(table));
        let to = to.with_file_name(format!("{}-{}", self.name, Uuid::now_v7().simple()));
        let copied = std::process::Command::new("cp").arg("-r").args([&from, &to]).status().unwrap();
        eprintln!("what the node wrote: {} ({copied})", to.display());
    }

    async fn tell(&self, verb: &str) -> String {
        self.tell_with(verb, &[]).await
    }

    async fn tell_with(&self, verb: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(&self.control);
        command.envs(self.environment.iter().cloned());
        command.args(["broker", verb, "--name", &self.name]).args(arguments).stdin(Stdio::null());
        // The node outlives its starter and must not look like a left-over of this run.
        command.env_remove("STOKER_TEST_RUN");
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "broker {verb}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// Kills a node's process without the script, whose own start takes too long where a node must die in time.
pub async fn kill_9_at_once(pid: &str) {
    let killed = Command::new("kill").args(["-KILL", pid]).status().await.unwrap();
    assert!(killed.success(), "no process {pid}");
}

/// `<data>/<node>/<kind>/<node>/names.dets` lists what the node starts again.
fn is_listed(data: &Path, kind: &str, name: &str) -> bool {
    let inside = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    inside(data.to_owned()).flat_map(|node| inside(node.join(kind))).any(|folder| {
        let names = std::fs::read(folder.join("names.dets")).unwrap_or_default();
        names.windows(name.len()).any(|bytes| bytes == name.as_bytes())
    })
}

/// Of a line "name messages type"; streams keep what was read.
fn messages_of_work(line: &str) -> Option<usize> {
    let mut words = line.split_whitespace();
    let (messages, kind) = (words.nth(1)?, words.next()?);
    if kind == "stream" { None } else { messages.parse().ok() }
}

/// The pid in the name: a run that was killed could not wipe its node, the next one does.
pub fn new_name() -> String {
    format!("test-{}-{}", &Uuid::now_v7().simple().to_string()[24..], std::process::id())
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_log();
        }
        let mut command = std::process::Command::new(&self.control);
        let _ = command.args(["broker", "wipe", "--name", &self.name]).env_remove("STOKER_TEST_RUN").status();
    }
}
