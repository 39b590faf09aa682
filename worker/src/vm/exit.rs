//! What a VMM's end means, in words, with the last thing it said itself.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

use super::process::Ended;
use crate::ports::vm::VmExit;

/// How much of a VMM's own output is looked at, bytes: its end is what matters.
const TAIL_BYTES: u64 = 4 * 1024;
/// Last words kept, bytes; more does not help and every event carries it.
const WORDS_BYTES: usize = 600;
/// Lines of last words.
const WORDS_LINES: usize = 4;

/// Names exit codes; `None` when a code has no meaning of its own.
pub type NameCode = fn(i32) -> Option<&'static str>;

/// The end of a VMM in words.
pub fn describe(ended: Ended, name: NameCode, logs: &[PathBuf]) -> VmExit {
    let what = match (ended.code, ended.signal) {
        (_, Some(signal)) => format!("killed by signal {signal} ({})", signal_name(signal)),
        (Some(code), None) => match name(code) {
            Some(meaning) => format!("exit code {code}: {meaning}"),
            None => format!("exit code {code}"),
        },
        (None, None) => "ended (its exit code went to an earlier worker)".to_owned(),
    };
    let words = last_words(logs);
    let reason = if words.is_empty() { what } else { format!("{what}; last words: {words}") };
    VmExit { code: ended.code, signal: ended.signal, reason }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        9 => "SIGKILL: stopped by Stoker or, if it was not, by the kernel for lack of memory",
        11 => "SIGSEGV",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => "see signal(7)",
    }
}

/// The last lines of the first of these files that has any.
pub fn last_words(logs: &[PathBuf]) -> String {
    logs.iter().map(|log| tail(log)).find(|words| !words.is_empty()).unwrap_or_default()
}

fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // Without last words the code still says something.
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let from = lines.len().saturating_sub(WORDS_LINES);
    let plain: String = lines[from..].join(" | ").chars().filter(|c| !c.is_control()).collect();
    stoker_schemas::limits::clip(&plain, WORDS_BYTES)
}

/// A jailed VMM owns the folder of its log: neither a link to another file nor a pipe without a
/// writer, put there in the log's place, must be followed or waited for.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_log_with_words_is_quoted_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        std::fs::write(dir.path().join("full"), "old\n".repeat(5000) + "\u{1b}[31mlast").unwrap();
        let logs = |names: &[&str]| names.iter().map(|name| dir.path().join(name)).collect::<Vec<_>>();
        assert_eq!(last_words(&logs(&["none", "empty"])), "");
        let words = last_words(&logs(&["none", "empty", "full"]));
        assert_eq!(words, "old | old | old | [31mlast");
        std::fs::write(dir.path().join("long"), "x".repeat(10_000)).unwrap();
        assert!(last_words(&logs(&["long"])).len() <= WORDS_BYTES);
    }

    #[test]
    fn what_a_vmm_puts_in_its_logs_place_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, log) = (dir.path().join("secret"), dir.path().join("log"));
        std::fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, &log).unwrap();
        assert_eq!(last_words(&[log, dir.path().to_owned()]), "");
        assert_eq!(last_words(&[secret]), "secret");
    }

    #[test]
    fn an_unknown_end_is_not_called_a_success() {
        let exit = describe(Ended::default(), |_| None, &[]);
        assert_eq!(exit.code, None);
        assert!(exit.reason.contains("earlier worker"));
    }
}
