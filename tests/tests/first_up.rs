//! What the first command prints, its form held by snapshots, and the README's copy of it held to the same form.
//!
//! `scripts/dev up` runs here with a cargo that only plays a build, in a copy of the scripts; the VM of
//! `stoker up` is a real one. Numbers, ids and names of this machine are masked.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a failed expectation is a failed test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use stoker_tests::{setting, skipped};

const README: &str = include_str!("../../README.md");
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Plays a build of three crates as cargo shows it, slowly enough for a sign of life.
const CARGO: &str = r#"#!/bin/sh
case "$*" in
  *fetch*) exit 0 ;;
  *" --bin stoker-agent"*) mkdir -p "$CARGO_TARGET_DIR/debug" && echo agent >"$CARGO_TARGET_DIR/debug/stoker-agent" ;;
  *build*)
    printf '   Compiling one v1.0.0\n' >&2
    for built in 0 1 2; do
      printf '    Building [==>      ] %s/3: one                \r' "$built" >&2
      sleep 0.7
    done
    printf '\n    Finished `dev` profile\n' >&2 ;;
esac
"#;
/// What the scripts start in the end.
const STOKER: &str = "#!/bin/sh\necho \"Stoker 0.1.0 on host played\"\n";

fn program(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() { copy_all(&from, &to) } else { fs::copy(from, to).map(drop).unwrap() }
    }
}

/// A folder that the scripts take for a clone, with the downloads of the real one.
fn played_clone() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for part in ["scripts", "worker/guest"] {
        copy_all(&Path::new(ROOT).join(part), &dir.path().join(part));
    }
    for file in ["Cargo.toml", "Cargo.lock"] {
        fs::copy(Path::new(ROOT).join(file), dir.path().join(file)).unwrap();
    }
    program(&dir.path().join("tools/cargo"), CARGO);
    program(&dir.path().join("target/debug/stoker"), STOKER);
    dir
}

fn cache(test: &str) -> Option<PathBuf> {
    let cache = setting(test, "STOKER_TEST_IMAGES")?.parent()?.join("cache");
    if cache.join("deb").is_dir() || std::env::var_os("STOKER_CACHE").is_some() {
        return Some(std::env::var_os("STOKER_CACHE").map_or(cache, PathBuf::from));
    }
    skipped(test, "the guest kernel is missing (scripts/dev image linux-minimal fetches it)");
    None
}

#[test]
fn the_scripts_say_each_step_and_give_signs_of_life() {
    let Some(cache) = cache("the_scripts_say_each_step_and_give_signs_of_life") else { return };
    let clone = played_clone();
    let path = format!("{}:{}", clone.path().join("tools").display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(clone.path().join("scripts/dev"));
    command.args(["up", "--once"]).env("PATH", path).env("CARGO_TARGET_DIR", clone.path().join("target"));
    command.env("STOKER_CACHE", cache).env("STOKER_SIGN_OF_LIFE_S", "1").env_remove("STOKER_PROFILE");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "Stoker 0.1.0 on host played\n",
        "people's lines are on stderr"
    );
    insta::assert_snapshot!("scripts", masked(&text, &Names::default()));
}

/// Names of one run.
#[derive(Default)]
struct Names<'a> {
    host: Option<&'a str>,
    data: Option<&'a str>,
    namespace: Option<&'a str>,
}

impl<'a> Names<'a> {
    /// Those that a run's greeting shows.
    fn of(text: &'a str) -> Self {
        let after = |mark: &str| text.lines().find_map(|line| line.split_once(mark).map(|(_, rest)| rest.trim()));
        Self { host: after(" on host "), data: after("  data "), namespace: after(" in namespace ") }
    }
}

/// Without what differs from run to run; lines that then are the same as the one before are left out.
fn masked(text: &str, names: &Names<'_>) -> String {
    let mut text = text.to_owned();
    text = names.data.map_or_else(|| text.clone(), |data| text.replace(data, "DATA"));
    if let Some(namespace) = names.namespace {
        text = text.replace(&format!(" in namespace {namespace}\n"), " in namespace NAMESPACE\n");
    }
    if let Some(host) = names.host {
        text = text
            .replace(&format!(" on {host} "), " on HOST ")
            .replace(&format!(" on host {host}\n"), " on host HOST\n");
    }
    let mut lines: Vec<String> = text.lines().map(masked_line).collect();
    lines.dedup();
    // What happens at the same time may be seen in any order: a unit's line and the agent's answer.
    for stages in lines.chunk_by_mut(|one, next| one.starts_with("T ") && next.starts_with("T ")) {
        stages.sort();
    }
    lines.join("\n")
}

fn masked_line(line: &str) -> String {
    // Which accelerator a machine has, and why, is its own.
    if let Some((head, _)) = line.split_once("  hypervisor ") {
        return format!("{head}  hypervisor QEMU N, ACCELERATOR (WHY)");
    }
    let words: Vec<String> = line.split_whitespace().map(masked_word).collect();
    let out = without_times(words).join(" ");
    // How far a time is indented says how long it is.
    let indent = if line.starts_with("      ") && !out.starts_with("T ") { "      " } else { "" };
    format!("{indent}{out}")
}

/// A number and its unit are a time: `N min N s` is one, too.
fn without_times(words: Vec<String>) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for word in words {
        let unit = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
        let after_number = out.last().is_some_and(|last| last.ends_with('N'));
        if !(after_number && ["ms", "s", "min", "h"].contains(&unit)) {
            out.push(word);
            continue;
        }
        let rest = &word[unit.len()..];
        let number = out.pop().unwrap_or_default();
        match out.last_mut().filter(|earlier| number == "N" && earlier.ends_with('T')) {
            Some(earlier) => earlier.push_str(rest),
            None => out.push(format!("{}T{rest}", &number[..number.len() - 1])),
        }
    }
    out
}

/// Ids and numbers, inside of whatever stands around them.
fn masked_word(word: &str) -> String {
    let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let is_id = |id: &str| id.len() >= 12 && id.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    if is_id(bare.strip_prefix("st").unwrap_or(bare)) {
        return word.replace(bare, "ID");
    }
    // Steps and addresses keep their form.
    let mut out = String::new();
    let mut chars = word.chars().peekable();
    while let Some(c) = chars.next() {
        if !c.is_ascii_digit() {
            out.push(c);
            continue;
        }
        while chars.peek().is_some_and(|next| next.is_ascii_digit() || *next == '.') {
            let mut ahead = chars.clone();
            let dot = ahead.next() == Some('.');
            if dot && !ahead.next().is_some_and(|after| after.is_ascii_digit()) {
                break;
            }
            chars.next();
        }
        out.push('N');
    }
    out
}

/// The README's first run: what is printed after its prompt.
fn readme() -> &'static str {
    let (_, rest) = README.split_once("$ scripts/dev up --once\n").expect("the README shows a first run");
    rest.split_once("\n```").expect("and ends").0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_readme_shows_a_first_run_as_it_is() {
    let test = "the_readme_shows_a_first_run_as_it_is";
    let (script, stoker) = readme().split_once("\nStoker ").expect("the scripts' lines, then Stoker's");
    let script = masked(script, &Names::default());
    let snapshot = fs::read_to_string(Path::new(ROOT).join("tests/tests/snapshots/first_up__scripts.snap")).unwrap();
    let known = insta_text(&snapshot);
    for line in script.lines() {
        assert!(known.lines().any(|known| alike(known, line)), "not a line of the scripts: {line}\n{known}");
    }
    let Some(programs) = setting(test, "STOKER_TEST_BIN_DIR") else { return };
    let Some(images) = setting(test, "STOKER_TEST_IMAGES") else { return };
    if Command::new("id").arg("-u").output().unwrap().stdout.trim_ascii() != b"0" {
        return skipped(test, "needs root");
    }
    let dir = tempfile::tempdir().unwrap();
    let name = format!("st-{}", &uuid::Uuid::now_v7().simple().to_string()[24..]);
    let mut command = tokio::process::Command::new(programs.join("stoker"));
    command.args(["up", "--once", "--prewarm", "false", "--host", "played", "--listen", "127.0.0.1:0"]);
    command.args(["--namespace", &name]).arg("--data").arg(dir.path().join("data")).arg("--images").arg(images);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap();
    let _ = fs::remove_dir_all(Path::new("/run/stoker").join(format!("{name}-stbr0")));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}{errors}");
    assert_eq!(errors, "", "log lines do not stand between people's");
    let seen = masked(&text, &Names::of(&text));
    insta::assert_snapshot!("stoker", seen);
    let stoker = format!("Stoker {stoker}");
    assert_eq!(masked(&stoker, &Names::of(&stoker)).trim_end(), seen.trim_end(), "README.md shows another run");
}

/// The same words; which packages were missing is the machine's.
fn alike(known: &str, line: &str) -> bool {
    let packages = |text: &str| text.trim_start_matches("[N/N]").trim_start().starts_with("packages: ");
    known == line || (packages(known) && packages(line))
}

fn insta_text(snapshot: &str) -> &str {
    snapshot.splitn(3, "---\n").nth(2).unwrap_or_default()
}
