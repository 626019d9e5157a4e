//! Standard output and standard error: results go to the first, everything else to the second.

use std::io::{IsTerminal, Write};

use clearway::config::Colour;

/// How to talk to whoever started the process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Output {
    /// A result.
    pub(crate) fn print(self, text: &str) {
        put(&mut std::io::stdout().lock(), text);
    }

    /// Part of a line of a result.
    pub(crate) fn print_part(self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        // Nobody reads any more; the exit code still counts.
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }

    /// Something worth knowing that is no result.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            put(&mut std::io::stderr().lock(), text);
        }
    }

    pub(crate) fn error(self, text: &str) {
        put(&mut std::io::stderr().lock(), text);
    }

    pub(crate) fn colour_of_errors(self) -> Colour {
        if !self.json && may_colour(std::io::stderr().is_terminal()) {
            Colour::Always
        } else {
            Colour::Never
        }
    }
}

/// Shows how far something is, on standard error, without ending the line.
pub(crate) fn put_progress(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Nobody looks any more; the work goes on.
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

fn put(stream: &mut impl Write, text: &str) {
    // A closed pipe is the reader's choice and no failure of ours.
    let _ = writeln!(stream, "{text}").and_then(|()| stream.flush());
}

/// Colour only on a terminal, and never when somebody said no.
pub(crate) fn may_colour(is_terminal: bool) -> bool {
    let said_no = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    is_terminal && !said_no
}
