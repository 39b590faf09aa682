//! What can go wrong for a user: the message, the cause beneath it and what to do, with the exit
//! code that a script sees.

use std::fmt::Write;

use crate::compose::ComposeError;
use crate::http::Problem;
use crate::report::text::plain;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command line, a file or an id is wrong.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The server refused the request.
    #[error("{}{}", if .0.errors.is_empty() { "" } else { "job refused: " }, .0.detail)]
    Refused(Box<Problem>),
    /// A job did not come to what was asked of it.
    #[error("{message}")]
    JobFailed {
        /// Which and how.
        message: String,
        /// Why.
        cause: String,
        /// The remedy.
        hint: String,
    },
    /// Stoker, the broker or this machine failed.
    #[error("{message}")]
    System {
        /// What failed.
        message: String,
        /// The words of what failed.
        cause: String,
        /// What to do.
        hint: String,
    },
    /// Whoever read our output has gone.
    #[error("output was closed")]
    BrokenPipe,
}

impl CliError {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: hint.into() }
    }

    /// The system failed.
    pub fn system(message: impl Into<String>, cause: impl ToString, hint: impl Into<String>) -> Self {
        Self::System { message: message.into(), cause: cause.to_string(), hint: hint.into() }
    }

    /// What a script sees.
    pub fn exit_code(&self) -> u8 {
        match self {
            // `stoker list | head` is not an error.
            Self::BrokenPipe => 0,
            Self::JobFailed { .. } => 1,
            Self::Usage { .. } => 2,
            Self::Refused(problem) if problem.status < 500 => 2,
            Self::Refused(_) | Self::System { .. } => 3,
        }
    }

    /// For people: message, cause, hint, each on its line.
    pub fn text(&self) -> String {
        let mut out = format!("error: {}\n", plain(&self.to_string()));
        let mut line = |key: &str, value: &str| {
            if !value.is_empty() {
                // Writing to a String cannot fail.
                let _ = writeln!(out, "  {key}: {}", plain(value));
            }
        };
        match self {
            Self::Usage { hint, .. } => line("hint", hint),
            Self::JobFailed { cause, hint, .. } | Self::System { cause, hint, .. } => {
                line("cause", cause);
                line("hint", hint);
            }
            Self::Refused(problem) => {
                for error in &problem.errors {
                    line(&error.field, &error.message);
                    line("  hint", &error.hint);
                }
                if !problem.confirmed.is_empty() {
                    let ids: Vec<_> = problem.confirmed.iter().map(ToString::to_string).collect();
                    line("accepted before that", &ids.join(" "));
                }
                line("hint", &problem.hint);
            }
            Self::BrokenPipe => {}
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> serde_json::Value {
        let exit_code = self.exit_code();
        match self {
            Self::Refused(problem) => serde_json::json!({ "error": problem, "exit_code": exit_code }),
            Self::Usage { message, hint } => {
                serde_json::json!({ "error": { "detail": message, "hint": hint }, "exit_code": exit_code })
            }
            Self::JobFailed { message, cause, hint } | Self::System { message, cause, hint } => serde_json::json!({
                "error": { "detail": message, "cause": cause, "hint": hint }, "exit_code": exit_code
            }),
            Self::BrokenPipe => serde_json::Value::Null,
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::BrokenPipe;
        }
        Self::system("output cannot be written", error, "is the disk full?")
    }
}

impl From<ComposeError> for CliError {
    fn from(error: ComposeError) -> Self {
        match error {
            ComposeError::Usage { message, hint } => Self::Usage { message, hint },
            ComposeError::Failed { message, cause, hint } => Self::System { message, cause, hint },
            ComposeError::NotReady => Self::JobFailed {
                message: "the first VM did not become ready".to_owned(),
                cause: "its report is above".to_owned(),
                hint: "do what the report's remedy says, then try again".to_owned(),
            },
        }
    }
}
