//! The one place that writes to the user: answers on stdout, everything else on stderr. On a
//! terminal tables and colour; else tab-separated lines that `cut` and `awk` take, or JSON.

use std::io::{BufWriter, IsTerminal, Read, Write};

use comfy_table::Table;
use serde::Serialize;
use stoker_schemas::Phase;

use super::CliError;
use crate::report::text::plain;

/// Where a command reads and writes.
pub struct Io {
    /// Standard input.
    pub stdin: Box<dyn Read + Send>,
    /// Standard output.
    pub stdout: Box<dyn Write + Send>,
    /// Standard error.
    pub stderr: Box<dyn Write + Send>,
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Colour is welcome there.
    pub colour: bool,
}

impl Io {
    /// The process' own.
    pub fn of_process() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Self {
            stdin: Box::new(std::io::stdin()),
            stdout: Box::new(BufWriter::new(std::io::stdout())),
            stderr: Box::new(std::io::stderr()),
            terminal,
            colour: terminal && !no_color,
        }
    }
}

/// Says what clap has to say: help on stdout, complaints on stderr.
pub fn usage(mut io: Io, error: &clap::Error) -> u8 {
    let text = error.render();
    let text = if io.colour { text.ansi().to_string() } else { text.to_string() };
    let out = if error.use_stderr() { &mut io.stderr } else { &mut io.stdout };
    // Nobody is left to be told that telling failed.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if error.use_stderr() { 2 } else { 0 }
}

/// Writes for one command.
pub struct Printer {
    io: Io,
    json: bool,
    colour: bool,
}

impl Printer {
    pub fn new(io: Io, json: bool, no_color: bool) -> Self {
        let colour = io.colour && !no_color && !json;
        Self { io, json, colour }
    }

    /// Whether answers are JSON.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether a person looks at it.
    pub fn terminal(&self) -> bool {
        self.io.terminal && !self.json
    }

    /// Everything on standard input, if it is no more than `max` bytes.
    pub fn read_stdin(&mut self, max: usize) -> Result<Option<String>, CliError> {
        let mut text = String::new();
        let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
        let read = self.io.stdin.as_mut().take(limit).read_to_string(&mut text);
        read.map_err(|e| CliError::usage(format!("standard input cannot be read: {e}"), "send UTF-8 text"))?;
        Ok((text.len() <= max).then_some(text))
    }

    /// A value as JSON.
    pub fn value(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| CliError::system("the answer cannot be written as JSON", e, ""))?;
        self.raw(text.as_bytes())?;
        self.raw(b"\n")
    }

    /// A value as one line of JSON, for streams.
    pub fn json_line(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(|e| CliError::system("the answer cannot be written", e, ""))?;
        self.raw(text.as_bytes())?;
        self.raw(b"\n")?;
        self.flush()
    }

    /// A line of the answer. Text from guests and users cannot command the terminal.
    pub fn line(&mut self, text: &str) -> Result<(), CliError> {
        Ok(writeln!(self.io.stdout, "{}", plain(text))?)
    }

    /// Many lines, each as it is but harmless.
    pub fn lines(&mut self, text: &str) -> Result<(), CliError> {
        text.lines().try_for_each(|line| self.line(line))
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        Ok(self.io.stdout.write_all(bytes)?)
    }

    /// Console bytes: as they are into a file, harmless on a terminal.
    pub fn console(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        if self.io.terminal {
            let text = String::from_utf8_lossy(bytes);
            for piece in text.split_inclusive('\n') {
                let line_end = if piece.ends_with('\n') { "\n" } else { "" };
                write!(self.io.stdout, "{}{line_end}", plain(piece))?;
            }
            return Ok(());
        }
        self.raw(bytes)
    }

    /// Rows. The first column may hold a phase, which has a colour.
    pub fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> Result<(), CliError> {
        if !self.io.terminal {
            return rows.iter().try_for_each(|row| {
                let cells: Vec<_> = row.iter().map(|cell| plain(cell)).collect();
                Ok(writeln!(self.io.stdout, "{}", cells.join("\t"))?)
            });
        }
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
        for row in &rows {
            table.add_row(row.iter().map(|cell| plain(cell)));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        // The header, then a line per row: cells have no line breaks, so nothing wraps.
        for (i, line) in table.lines().enumerate() {
            let phase = i.checked_sub(1).and_then(|i| rows.get(i)).and_then(|row| row.first());
            let painted = self.paint(line.trim_end(), phase.map(String::as_str));
            writeln!(self.io.stdout, "{painted}")?;
        }
        Ok(())
    }

    /// Colours a leading phase.
    fn paint(&self, line: &str, phase: Option<&str>) -> String {
        let code = match phase.filter(|p| self.colour && line.starts_with(p)) {
            Some("ready" | "up" | "ok") => "32",
            Some("booting") => "36",
            Some("failing" | "retrying" | "draining" | "warn") => "33",
            Some("dead" | "fail") => "31",
            _ => return line.to_owned(),
        };
        let length = phase.map_or(0, str::len);
        format!("\u{1b}[{code}m{}\u{1b}[0m{}", &line[..length], &line[length..])
    }

    /// A phase in its colour.
    pub fn phase(&self, phase: Phase) -> String {
        self.paint(phase.as_str(), Some(phase.as_str()))
    }

    /// A line with a phase before it.
    pub fn phase_line(&mut self, phase: Phase, rest: &str) -> Result<(), CliError> {
        let phase = self.phase(phase);
        Ok(writeln!(self.io.stdout, "{phase}{}", plain(rest))?)
    }

    /// A line for the person who waits; never part of the answer.
    pub fn note(&mut self, text: &str) -> Result<(), CliError> {
        writeln!(self.io.stderr, "{}", plain(text))?;
        Ok(self.io.stderr.flush()?)
    }

    /// An error, last thing before the end.
    pub fn error(&mut self, error: &CliError) {
        if matches!(error, CliError::BrokenPipe) {
            return;
        }
        let text = if self.json { format!("{}\n", error.json()) } else { error.text() };
        // Nobody is left to be told that telling failed.
        let _ = self.io.stdout.flush();
        let _ = self.io.stderr.write_all(text.as_bytes()).and_then(|()| self.io.stderr.flush());
    }

    /// Sends what was written on its way.
    pub fn flush(&mut self) -> Result<(), CliError> {
        Ok(self.io.stdout.flush()?)
    }
}
