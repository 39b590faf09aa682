//! Asking a hypervisor's program what it is.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::boot_error;
use crate::ports::vm::VmError;

/// What is quoted of an unexpected answer, bytes.
const QUOTED_BYTES: usize = 80;

/// A program by path, or along PATH (and the sbin folders that unprivileged users' PATH lacks); as
/// it was named where it is not found, so that the error names it.
pub fn find(program: &Path) -> PathBuf {
    if program.components().count() > 1 {
        return program.to_owned();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = std::env::split_paths(&path).chain(extra).map(|dir| dir.join(program));
    places.find(|file| file.is_file()).unwrap_or_else(|| program.to_owned())
}

/// What `<binary> --version` says.
pub async fn version_output(driver: &'static str, binary: &Path, within: Duration) -> Result<String, VmError> {
    let failed = |error| boot_error::spawn(driver, &binary.display().to_string(), &error);
    let output = tokio::process::Command::new(binary).arg("--version").kill_on_drop(true).output();
    let output = tokio::time::timeout(within, output).await;
    let output = output.map_err(|_| failed(std::io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The program answered, but not like the one expected.
pub fn not_it(driver: &'static str, binary: &Path, answer: &str) -> VmError {
    let answer = stoker_schemas::limits::clip(answer, QUOTED_BYTES);
    let cause = format!("{} --version answers {answer:?}", binary.display());
    VmError::Spawn { driver, cause, hint: "is this the right program, for this architecture?" }
}

/// The version that follows a program's name in its `--version`, also as (major, minor).
pub fn version_after(text: &str, name: &str) -> Option<(String, (u32, u32))> {
    let (_, rest) = text.split_once(name)?;
    let version: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || ".-".contains(*c)).collect();
    let mut numbers = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let numbers = (numbers.next()?, numbers.next()?);
    Some((version, numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_programs_print() {
        let (version, numbers) = version_after("Firecracker v1.12.1\n\n2026 exiting", "Firecracker v").unwrap();
        assert_eq!((version.as_str(), numbers), ("1.12.1", (1, 12)));
        let debian = version_after("QEMU emulator version 7.2.22 (Debian 1:7.2)", "version ").unwrap();
        assert_eq!(debian.1, (7, 2));
        assert!(version_after("hello", "Firecracker v").is_none());
    }
}
