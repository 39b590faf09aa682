//! The command line as a user meets it: every help text, and for each command the exit code, what
//! is on stdout and what is on stderr, against a server in this process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../producer/tests/support/mod.rs"]
mod support;

use std::io::{self, Cursor, Write};
use std::sync::{Arc, Mutex};

use stoker_producer::cli::{self, Io};
use stoker_producer::http::Access;
use stoker_producer::http::access::Fingerprint;
use stoker_schemas::letter::{Death, GivenUpBy, Letter, dead_lettered};
use stoker_schemas::{Event, Time};
use stoker_worker::ports::broker::BrokerStatus;
use support::story::{Story, host_started, warm_vms};
use support::{SOON, Server};

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One run of the command.
struct Run {
    args: Vec<String>,
    stdin: String,
    terminal: bool,
}

fn stoker(args: &str) -> Run {
    Run { args: args.split_whitespace().map(str::to_owned).collect(), stdin: String::new(), terminal: false }
}

impl Run {
    fn terminal(self) -> Self {
        Self { terminal: true, ..self }
    }

    fn stdin(self, text: &str) -> Self {
        Self { stdin: text.to_owned(), ..self }
    }

    async fn at(self, server: &str) -> String {
        let (stdout, stderr) = (Captured::default(), Captured::default());
        let io = Io {
            stdin: Box::new(Cursor::new(self.stdin.into_bytes())),
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(stderr.clone()),
            terminal: self.terminal,
            colour: false,
        };
        let mut args = vec!["stoker".to_owned()];
        args.extend(self.args);
        args.push(format!("--server={server}"));
        let code = cli::run(args, io).await;
        format!("exit {code}\n--- stdout\n{}--- stderr\n{}", stdout.text(), stderr.text())
    }

    async fn on(self, server: &Server) -> String {
        self.at(&format!("http://{}", server.address)).await
    }
}

/// What differs from run to run. Ids of stories do not.
fn stable() -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "[NEW-JOB]");
    settings.add_filter(r"127\.0\.0\.1:\d{5}\b", "[SERVER]");
    settings.add_filter(r"\b\d+ d\b *", "[AGE] ");
    settings.add_filter(r"AGE +", "AGE ");
    settings.add_filter(r"(said .* at )[0-9TZ:.-]+Z", "$1[NOW]");
    settings.add_filter(r"cli/[!-9;-~]+", "cli/[USER]");
    settings.bind_to_scope()
}

macro_rules! check {
    ($name:expr, $text:expr) => {{
        let text = $text;
        let _guard = stable();
        insta::assert_snapshot!($name, text);
    }};
}

/// A server that knows one job of each kind.
async fn full() -> Server {
    let server = Server::start().await;
    server.tell(&[host_started("h-01"), host_started("h-02")]).await;
    server.tell(&warm_vms("h-02")).await;
    let stories = [
        Story::of("queued").enqueued(),
        Story::ready_at_first("ready").later(1),
        Story::failed_then_ready("second").later(2),
        Story::conflict("dead").later(3),
        Story::of("cancelled").later(4).enqueued().cancelled(10),
    ];
    for story in stories {
        server.tell(&story.events).await;
    }
    server
}

/// A message that died, as a control plane tells of it.
fn dead_letter(body: &[u8], by: GivenUpBy, seconds: u64) -> Event {
    let at = Story::of("letters").at(seconds * 1_000);
    let death = Death {
        by,
        queue: "stoker.jobs.default.normal".to_owned(),
        exchange: "stoker.events".to_owned(),
        routing_key: "job.enqueued.default.normal".to_owned(),
        count: 1,
        at: Some(at),
    };
    dead_lettered(Letter { death: &death, message_id: Some("m-7"), content_type: None, body }, "/producers/serve", at)
}

#[tokio::test]
async fn dead_letters_in_words() {
    let server = Server::start().await;
    let waiting = Story::of("expired").enqueued();
    let job = waiting.events[0].encode().unwrap();
    server.tell(&waiting.events).await;
    server.tell(&Story::conflict("dead").later(3).events).await;
    let died = [
        dead_letter(b"not json", GivenUpBy::Worker("not a CloudEvent in structured JSON".to_owned()), 10),
        dead_letter(&[0xff; 100], GivenUpBy::Worker("not a CloudEvent in structured JSON".to_owned()), 11),
        dead_letter(&job, GivenUpBy::Broker("expired".to_owned()), 12),
        dead_letter(&vec![b'x'; 70_000], GivenUpBy::Broker("rejected".to_owned()), 13),
    ];
    server.tell(&died).await;
    let [not_json, bytes, expired, large] = died.map(|event| event.subject);
    check!("dead_list_both", stoker("dead list").terminal().on(&server).await);
    check!("dead_list_both_piped", stoker("dead list").on(&server).await);
    check!("dead_list_both_json", stoker("dead list --json -n 1").on(&server).await);
    check!("dead_show_text", stoker(&format!("dead show {not_json}")).on(&server).await);
    check!("dead_show_bytes", stoker(&format!("dead show {bytes}")).on(&server).await);
    check!("dead_show_work", stoker(&format!("dead show {expired}")).on(&server).await);
    check!("dead_show_job", stoker(&format!("dead show {}", id("dead"))).on(&server).await);
    check!("dead_show_nothing", stoker("dead show 00000000").on(&server).await);
    check!("dead_redrive_unreadable", stoker(&format!("dead redrive {not_json}")).on(&server).await);
    check!("dead_redrive_large", stoker(&format!("dead redrive {large}")).on(&server).await);
    check!("dead_redrive_work", stoker(&format!("dead redrive {expired}")).on(&server).await);
    check!("dead_redrive_work_again", stoker(&format!("dead redrive {expired} --json")).on(&server).await);
    check!("dead_dismiss_which", stoker("dead dismiss").on(&server).await);
    check!("dead_dismiss", stoker(&format!("dead dismiss {not_json} --reason mistake")).on(&server).await);
    check!("dead_dismiss_kind", stoker("dead dismiss --kind too_large").on(&server).await);
    check!("dead_dismiss_bad_kind", stoker("dead dismiss --kind strange").on(&server).await);
    check!("dead_show_dismissed", stoker(&format!("dead show {not_json}")).on(&server).await);
}

fn id(name: &str) -> String {
    Story::of(name).id.to_string()
}

#[tokio::test]
async fn help_of_every_command() {
    let mut commands = vec![String::new()];
    let top = cli::command();
    for command in top.get_subcommands() {
        commands.push(command.get_name().to_owned());
        commands.extend(command.get_subcommands().map(|sub| format!("{} {}", command.get_name(), sub.get_name())));
    }
    for command in commands {
        let name = format!("help {command}").trim().replace(' ', "_");
        check!(name, stoker(&format!("{command} --help")).at("http://127.0.0.1:7070").await);
    }
}

#[tokio::test]
async fn reading_commands() {
    let server = full().await;
    for (name, run) in [
        ("list", stoker("list").terminal()),
        ("list_piped", stoker("list")),
        ("list_filtered", stoker("list --phase dead --image golden --json")),
        ("list_page", stoker("list -n 2")),
        ("list_nothing", stoker("list --text nowhere")),
        ("dead_list", stoker("dead list").terminal()),
        ("hosts", stoker("hosts").terminal()),
        ("hosts_json", stoker("hosts --json")),
        ("pools", stoker("pools").terminal()),
        ("pools_piped", stoker("pools")),
        ("doctor", stoker("doctor").terminal()),
        ("log_tail", stoker("log tail -n 6")),
        ("log_tail_json", stoker("log tail -n 2 --json")),
        ("log_export", stoker("log export --from 17")),
    ] {
        check!(name, run.on(&server).await);
    }
    for name in ["queued", "ready", "second", "dead", "cancelled"] {
        check!(format!("show_{name}"), stoker(&format!("show {}", id(name))).terminal().on(&server).await);
    }
    check!("show_json", stoker(&format!("show --json {}", id("ready"))).on(&server).await);
    check!("logs", stoker(&format!("logs {}", id("second"))).on(&server).await);
    check!("report", stoker(&format!("report {}", id("dead"))).on(&server).await);
    check!("watch_dead", stoker(&format!("watch {}", id("dead"))).on(&server).await);
}

#[tokio::test]
async fn a_console_commands_no_terminal() {
    let server = full().await;
    let vm = Story::of("ready").vm(1);
    server.consoles.write(vm, b"[  \x1b[0;32mOK\x1b[0m  ] Started agent\n\x1b]0;owned\x07done\n");
    let args = format!("logs --console {}", id("ready"));
    check!("console_terminal", stoker(&args).terminal().on(&server).await);
    let piped = stoker(&args).on(&server).await;
    assert!(piped.contains("\x1b[0;32mOK\x1b[0m"), "bytes as they are into a file");
    check!("console_absent", stoker(&format!("logs --console {}", id("dead"))).on(&server).await);
}

#[tokio::test]
async fn writing_commands() {
    let server = full().await;
    let ready = id("ready");
    for (name, args) in [
        ("cancel", format!("cancel {} --reason typo", id("queued"))),
        ("cancel_again", format!("cancel {}", id("queued"))),
        ("cancel_dead", format!("cancel {}", id("dead"))),
        ("stop", format!("stop {ready}")),
        ("retry_ready", format!("retry {ready}")),
        ("retry_unknown", "retry ffffffff".to_owned()),
        ("retry_partly", format!("retry {} {}", id("cancelled"), ready)),
        ("redrive_which", "dead redrive".to_owned()),
        ("redrive_cause", "dead redrive --cause conflicting_network".to_owned()),
        ("redrive_none", "dead redrive --all --json".to_owned()),
        ("drain", "hosts drain h-01 --reason disk".to_owned()),
        ("drain_unknown", "hosts drain h-77".to_owned()),
        ("snooze", format!("snooze {} --for 1h", id("dead"))),
        ("snooze_how_long", format!("snooze {ready}")),
        ("snooze_bad_time", format!("snooze {ready} --for soon")),
        ("pool_pause", "pool pause default --reason disk".to_owned()),
        ("pool_limit", "pool limit default --max-per-host 8".to_owned()),
        ("pool_limit_again", "pool limit default --max-per-host 8 --json".to_owned()),
        ("pool_resume", "pool resume default".to_owned()),
        ("pool_unknown", "pool pause defualt".to_owned()),
    ] {
        check!(name, stoker(&args).on(&server).await);
    }
}

#[tokio::test]
async fn enqueue_says_what_is_wrong_and_what_was_done() {
    let server = Server::start().await;
    let jobs = "image: golden\n---\n- image: golden@7\n- {image: a, vcpus: 2}\n";
    for (name, run) in [
        ("enqueue", stoker("enqueue golden --label team=web --unit agent.service --retry-cause slow_boot=5")),
        ("enqueue_json", stoker("enqueue golden --json")),
        ("enqueue_many", stoker("enqueue --file - --pool default").stdin(jobs)),
        ("enqueue_key", stoker("enqueue golden --idempotency-key k1")),
        ("enqueue_key_again", stoker("enqueue golden --idempotency-key k1")),
        ("enqueue_key_reused", stoker("enqueue other --idempotency-key k1")),
        ("enqueue_refused", stoker("enqueue Golden --vcpus 99 --kernel-args ip=10.0.0.2 --priority urgent")),
        ("enqueue_refused_json", stoker("enqueue golden --vcpus 99 --json")),
        ("enqueue_refused_list", stoker("enqueue --file -").stdin("[{\"image\": \"a\"}, {\"imag\": \"a\"}]")),
        ("enqueue_no_image", stoker("enqueue")),
        ("enqueue_bad_label", stoker("enqueue golden --label team")),
        ("enqueue_no_file", stoker("enqueue --file does-not-exist.yaml")),
        ("enqueue_empty_file", stoker("enqueue --file -")),
        ("enqueue_bad_file", stoker("enqueue --file -").stdin("{\"image\": ")),
        ("enqueue_bad_broker", stoker("enqueue golden --broker http://x")),
    ] {
        check!(name, run.on(&server).await);
    }
    server.broker.status.send_replace(BrokerStatus::Blocked("memory alarm".to_owned()));
    check!("enqueue_blocked", stoker("enqueue golden").on(&server).await);
    check!("doctor_blocked", stoker("doctor").terminal().on(&server).await);
    check!("doctor_blocked_json", stoker("doctor --json").on(&server).await);
}

#[tokio::test]
async fn wrong_usage() {
    let server = Server::start().await;
    for (name, args) in [
        ("no_command", ""),
        ("unknown_command", "enqeue golden"),
        ("unknown_flag", "list --colour"),
        ("bad_phase", "list --phase asleep"),
        ("bad_cause", "list --cause gremlins"),
        ("bad_cursor", "list --cursor xyz"),
        ("unknown_job", "show 0123abcd"),
        ("not_an_id", "show ../../etc/passwd"),
        ("verify_nothing", "log verify does-not-exist"),
    ] {
        check!(name, stoker(args).on(&server).await);
    }
    check!("bad_server", stoker("list").at("ftp://127.0.0.1:7070").await);
    check!("no_server", stoker("list").at("http://127.0.0.1:1").await);
    check!("no_server_json", stoker("list --json").at("http://127.0.0.1:1").await);
}

#[tokio::test]
async fn tokens_are_asked_for_and_their_roles_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokens.toml");
    let sha256 = Fingerprint::of("stk_eye");
    std::fs::write(&path, format!("[[token]]\nname = \"eye\"\nrole = \"read\"\nsha256 = \"{sha256}\"\n")).unwrap();
    let server = Server::start_with(Access::from_file(&path).unwrap()).await;
    for (name, args) in [
        ("token_absent", "list"),
        ("token_wrong", "list --token stk_other"),
        ("token_good", "list --token stk_eye"),
        ("token_role", "enqueue golden --token stk_eye"),
        ("token_bad_name", "token new --name Ada --role admin"),
        ("token_bad_role", "token new --name ada --role root"),
        ("serve_no_tokens", "serve --broker amqp://127.0.0.1:1 --tokens does-not-exist.toml"),
    ] {
        check!(name, stoker(args).on(&server).await);
    }
    let made = stoker("token new --name ada --role admin").on(&server).await;
    let (entry, rest) = made.strip_prefix("exit 0\n--- stdout\n").unwrap().split_once("--- stderr\n").unwrap();
    let secret = rest.split_whitespace().find(|word| word.starts_with("stk_")).unwrap();
    assert!(entry.contains(&format!("sha256 = \"{}\"", Fingerprint::of(secret))), "{made}");
    assert!(!entry.contains(secret), "{made}");
    std::fs::write(&path, entry).unwrap();
    Access::from_file(&path).unwrap();
}

#[tokio::test]
async fn images_are_listed_and_verified() {
    let root = tempfile::tempdir().unwrap();
    let image = root.path().join("small");
    std::fs::create_dir(&image).unwrap();
    std::fs::write(image.join("vmlinux"), "kernel").unwrap();
    let mut manifest = serde_json::json!({
        "schema": "dev.stoker.image.v1", "name": "small", "kernel": "vmlinux", "min_memory_mib": 64, "prewarmed": true,
        "digests": {"vmlinux": "sha256:2f7f2cbebae58a4bb3ac4cc5ba0ee24ae9aa1ad5a1a4d1a3a4d7bbd6b3eb94a5"},
    });
    let write = |manifest: &serde_json::Value| std::fs::write(image.join("image.json"), manifest.to_string()).unwrap();
    write(&manifest);
    let images = root.path().display().to_string();
    let run = async |args: &str| {
        let shown = stoker(&format!("image --images {images} {args}")).at("http://127.0.0.1:1").await;
        shown.replace(&images, "[IMAGES]")
    };
    check!("image_list", run("list").await);
    check!("image_verify_damaged", run("verify").await);
    check!("image_verify_damaged_json", run("verify small --json").await);
    let found = stoker_worker::images::digest_of(&image.join("vmlinux")).unwrap();
    manifest["digests"]["vmlinux"] = found.into();
    write(&manifest);
    check!("image_verify_right", run("verify").await);
    check!("image_verify_missing", run("verify other").await);
    std::fs::write(image.join("image.json"), "{}").unwrap();
    check!("image_list_unusable", run("list").await);
    write(&manifest);
    let store = root.path().join("store").display().to_string();
    let import = async |args: &str| {
        let shown =
            stoker(&format!("image --images {store} import {images}/small {args}")).at("http://127.0.0.1:1").await;
        shown.replace(&store, "[STORE]").replace(&images, "[IMAGES]")
    };
    check!("image_import", import("--name mine").await);
    check!("image_import_again", import("--name mine").await);
    check!("image_import_replace", import("--name mine --replace --json").await);
    check!("image_import_bad_name", import("--name ../mine").await);
    check!("image_no_folder", stoker("image --images /does/not/exist list").at("http://127.0.0.1:1").await);
}

#[tokio::test]
async fn images_are_built_and_old_ones_go() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("kernel"), "kernel").unwrap();
    let (store, here) = (root.path().join("store").display().to_string(), root.path().display().to_string());
    let run = async |args: &str| {
        let args = format!("image --images {store} {}", args.replace("HERE", &here));
        let shown = stoker(&args).at("http://127.0.0.1:1").await;
        shown.replace(&store, "[STORE]").replace(&here, "[HERE]")
    };
    check!(
        "image_build",
        run("build mine@1 --kernel HERE/kernel --unit Agent --shutdown /shutdown --driver qemu").await
    );
    check!("image_build_again", run("build mine@1 --kernel HERE/kernel").await);
    check!("image_build_no_kernel", run("build mine@2 --kernel HERE/nothing").await);
    check!("image_build_bad_shutdown", run("build mine@2 --kernel HERE/kernel --shutdown here").await);
    for version in [2, 3] {
        run(&format!("build mine@{version} --kernel HERE/kernel")).await;
    }
    check!("image_gc", run("gc").await);
    check!("image_gc_delete", run("gc --delete --json").await);
    check!("image_gc_nothing", run("gc --delete").await);
}

/// Plays the rest of a job's life once it was enqueued.
async fn play(server: &Server, rest: impl FnOnce(Story) -> Story) {
    let mut news = server.model.changes();
    let change = tokio::time::timeout(SOON, news.recv()).await.unwrap().unwrap();
    let stored = server.model.stored_events(change.job.unwrap()).unwrap();
    let enqueued = Event::decode(&stored[0].json, Time::UNIX_EPOCH).unwrap();
    server.tell(&rest(Story::after(&enqueued)).events).await;
}

#[tokio::test]
async fn waiting_shows_the_stages_and_ends_with_the_outcome() {
    let address = "192.168.100.17";
    let server = Server::start().await;
    let good = play(&server, |s| s.started(1, 3, address).booted(1, 3, address).ready(1, 1_933, address));
    let (shown, ()) = tokio::join!(stoker("enqueue golden --wait").on(&server), good);
    check!("wait_ready", shown);

    let bad = play(&server, |s| {
        let failed = s.started(1, 3, address).booted(1, 3, address).failed(1, 9_000, Story::conflicting());
        failed.dead(1, 9_050, Story::conflicting())
    });
    let (shown, ()) = tokio::join!(stoker("enqueue golden --wait").on(&server), bad);
    check!("wait_dead", shown);
    // How much is shown before time is up depends on the machine; how it ends does not.
    let shown = stoker("enqueue golden --wait --timeout-s 0").on(&server).await;
    assert!(shown.starts_with("exit 3\n--- stdout\n--- stderr\n"), "{shown}");
    assert!(shown.contains("error: 1 of 1 jobs were not settled within 0 s\n"), "{shown}");
}

/// A reader that has gone.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_closed_pipe_is_no_error_and_no_noise() {
    let server = full().await;
    let stderr = Captured::default();
    let io = Io {
        stdin: Box::new(Cursor::new(Vec::new())),
        stdout: Box::new(Closed),
        stderr: Box::new(stderr.clone()),
        terminal: false,
        colour: false,
    };
    let args = ["stoker".to_owned(), "log".into(), "export".into(), format!("--server=http://{}", server.address)];
    assert_eq!(cli::run(args, io).await, 0);
    assert_eq!(stderr.text(), "");
}

#[tokio::test]
async fn colour_is_for_terminals_that_want_it() {
    let server = full().await;
    let shown = async |colour: bool, flag: &str| {
        let stdout = Captured::default();
        let io = Io {
            stdin: Box::new(Cursor::new(Vec::new())),
            stdout: Box::new(stdout.clone()),
            stderr: Box::new(Captured::default()),
            terminal: true,
            colour,
        };
        let args = format!("stoker list {flag} --server=http://{}", server.address);
        assert_eq!(cli::run(args.split_whitespace().map(str::to_owned), io).await, 0);
        stdout.text()
    };
    assert!(shown(true, "").await.contains("\x1b[31mdead\x1b[0m"));
    assert!(!shown(true, "--no-color").await.contains('\x1b'));
    assert!(!shown(true, "--json").await.contains('\x1b'));
    assert!(!shown(false, "").await.contains('\x1b'));
}

#[tokio::test]
async fn completions_and_man_pages_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = "http://127.0.0.1:1";
    for shell in ["bash", "zsh", "fish"] {
        let script = stoker(&format!("completions {shell}")).at(nowhere).await;
        assert!(script.starts_with("exit 0") && script.contains("enqueue"), "{shell}");
    }
    let written = stoker(&format!("man --dir {}", dir.path().display())).at(nowhere).await;
    assert_eq!(written, "exit 0\n--- stdout\n--- stderr\n");
    for page in ["stoker.1", "stoker-enqueue.1", "stoker-dead-redrive.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
}
