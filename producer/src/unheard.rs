//! The output of what runs on: that nobody reads it any more (`stoker serve | head -1`) ends a command
//! that only prints, but not a server.

use std::io::{self, ErrorKind, Write};

/// Writes as long as somebody reads.
pub struct Unheard<'a>(pub &'a mut (dyn Write + Send));

/// A closed pipe has taken everything.
fn taken<T>(result: io::Result<T>, all: T) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(all),
        other => other,
    }
}

impl Write for Unheard<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        taken(self.0.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        taken(self.0.flush(), ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_closed_pipe_is_not_noticed_and_a_full_disk_is() {
        let mut closed = Failing(ErrorKind::BrokenPipe);
        let mut out = Unheard(&mut closed);
        writeln!(out, "address").unwrap();
        out.flush().unwrap();
        let mut full = Failing(ErrorKind::StorageFull);
        assert!(writeln!(Unheard(&mut full), "address").is_err());
    }
}
