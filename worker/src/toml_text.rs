//! TOML from files that people write: parsed on any thread, however the text nests.
//!
//! The parser, what it makes and what reads that call themselves once for each level. `toml` bounds brackets
//! and the parts of a key at 80 each, but they multiply: keys of 79 parts within 79 brackets are 6,000 levels,
//! more than the 2 MiB stack of a thread takes. JSON needs nothing like it: `serde_json` refuses more than
//! 128 levels by itself, whatever they are made of, and nothing here switches that off.

use std::fmt;

use serde::de::DeserializeOwned;
use toml_parser::Source;
use toml_parser::lexer::TokenKind;

/// Levels of one statement: its brackets, and the dots of the keys that it stands under. Settings have six.
pub const MAX_LEVELS: usize = 16;

/// Why a text is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TomlError {
    /// It nests too deep.
    #[error(
        "line {line}: nests more than {MAX_LEVELS} levels deep, which no setting does; look for a bracket that is \
         not closed or a key with too many dots"
    )]
    TooDeep {
        /// Where, counted from 1.
        line: usize,
    },
    /// It is not TOML, or not what was asked for. The words quote the line.
    #[error("{}", .0.to_string().trim_end())]
    Wrong(#[from] toml::de::Error),
}

impl TomlError {
    /// What is wrong, without a word of the text: a line may hold a secret.
    pub fn unquoted<'a>(&'a self, text: &'a str) -> impl fmt::Display + use<'a> {
        Unquoted { error: self, text }
    }
}

struct Unquoted<'a> {
    error: &'a TomlError,
    text: &'a str,
}

impl fmt::Display for Unquoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.error {
            TomlError::TooDeep { .. } => self.error.fmt(f),
            TomlError::Wrong(error) => {
                let line = error.span().map_or(1, |span| line_of(self.text, span.start));
                write!(f, "line {line}: {}", error.message())
            }
        }
    }
}

fn line_of(text: &str, place: usize) -> usize {
    1 + text.as_bytes().iter().take(place).filter(|byte| **byte == b'\n').count()
}

/// Reads a text. Its length is for the caller to bound.
///
/// # Errors
/// It nests more than [`MAX_LEVELS`] deep, or is not what was asked for.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, TomlError> {
    match first_too_deep(text) {
        Some(place) => Err(TomlError::TooDeep { line: line_of(text, place) }),
        None => Ok(toml::from_str(text)?),
    }
}

/// Where a statement nests too deep. By the parser's own tokens, so that both mean the same by a text or a comment.
fn first_too_deep(text: &str) -> Option<usize> {
    // Each open bracket, with the levels around it.
    let mut open: Vec<(TokenKind, usize)> = Vec::new();
    let mut levels = 0;
    for token in Source::new(text).lex() {
        let inside = |open: &[(TokenKind, usize)]| open.last().map_or(0, |(_, around)| around + 1);
        match token.kind() {
            // A float's point counts as well: it is one, and gone with the next comma.
            TokenKind::Dot => levels += 1,
            opening @ (TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket) => {
                open.push((opening, levels));
                levels += 1;
            }
            closing @ (TokenKind::RightSquareBracket | TokenKind::RightCurlyBracket) => {
                let opening = match closing {
                    TokenKind::RightSquareBracket => TokenKind::LeftSquareBracket,
                    _ => TokenKind::LeftCurlyBracket,
                };
                // One that closes nothing is for the parser to refuse; it may have stayed inside.
                if let Some((_, around)) = open.pop_if(|(kind, _)| *kind == opening) {
                    levels = around;
                }
            }
            TokenKind::Comma | TokenKind::Newline => levels = inside(&open),
            _ => {}
        }
        if levels > MAX_LEVELS {
            return Some(token.span().start());
        }
    }
    None
}

#[cfg(test)]
mod tests;
