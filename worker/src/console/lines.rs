//! Bytes into lines of plain text, whatever pieces they come in: terminal control is removed,
//! long lines are cut.

/// What is looked at of one line, bytes; nothing that is recognised is longer.
pub const MAX_LINE_BYTES: usize = 4 * 1024;

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// In a control sequence (`ESC [ … letter`).
    Sequence,
    /// In a command to the terminal (`ESC ] … BEL`).
    Command,
}

/// A splitter with the line begun so far.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    state: State,
}

impl Lines {
    /// Takes bytes and hands on every line they complete.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&str)) {
        for &byte in bytes {
            self.state = match (self.state, byte) {
                // Also the end of a command that nobody terminated: it must not swallow the rest.
                (_, b'\n' | b'\r') => {
                    self.end_line(&mut each);
                    State::Text
                }
                (State::Escape, b'[') => State::Sequence,
                (State::Escape, b']' | b'P' | b'X' | b'^' | b'_') => State::Command,
                (State::Sequence, 0x40..=0x7e) | (State::Command, BEL) | (State::Escape, 0x30..=0x7e) => State::Text,
                (_, ESC) => State::Escape,
                (State::Text, _) => {
                    self.push(byte);
                    State::Text
                }
                (state, _) => state,
            };
        }
    }

    /// Hands on the line begun, which nothing will complete any more.
    pub fn finish(&mut self, mut each: impl FnMut(&str)) {
        self.end_line(&mut each);
    }

    fn push(&mut self, byte: u8) {
        let printable = byte == b'\t' || (byte >= 0x20 && byte != 0x7f);
        if printable && self.line.len() < MAX_LINE_BYTES {
            self.line.push(byte);
        }
    }

    fn end_line(&mut self, each: &mut impl FnMut(&str)) {
        if !self.line.is_empty() {
            each(&String::from_utf8_lossy(&self.line));
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &[u8]) -> Vec<String> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        lines.feed(bytes, |line| out.push(line.to_owned()));
        lines.finish(|line| out.push(line.to_owned()));
        out
    }

    #[test]
    fn terminal_control_is_removed() {
        assert_eq!(
            lines(b"[\x1b[0;32m  OK  \x1b[0m] Started\x1b]0;title\x07 X.\r\n\x1bcdone\x00"),
            ["[  OK  ] Started X.", "done"]
        );
        assert_eq!(lines(b"\x1b]0;never ended\nnext\n"), ["next"]);
    }

    #[test]
    fn long_lines_are_cut_and_bad_utf8_is_shown_as_such() {
        let long = [vec![b'a'; 3 * MAX_LINE_BYTES], b"\nb\xff\n".to_vec()].concat();
        let lines = lines(&long);
        assert_eq!(lines[0].len(), MAX_LINE_BYTES);
        assert_eq!(lines[1], "b\u{fffd}");
    }
}
