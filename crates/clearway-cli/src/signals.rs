//! Requests to stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT and SIGHUP, the same to us.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// `None` when whoever started the process had it ignored, as `nohup` does: then the process is
    /// to outlive its terminal, and listening would undo that.
    hang_up: Option<Signal>,
}

impl Signals {
    /// From now on the signals do not end the process by themselves.
    pub(crate) fn new() -> io::Result<Self> {
        let hang_up = SignalKind::hangup();
        Ok(Self {
            hang_up: (!is_ignored(hang_up)).then(|| signal(hang_up)).transpose()?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one and says which.
    pub(crate) async fn next(&mut self) -> &'static str {
        let hang_up = self.hang_up.as_mut();
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            Some(_) = async { hang_up?.recv().await } => "SIGHUP",
        }
    }

    /// Waits for somebody who does not want to wait. A terminal that closes is told by the kernel and
    /// by its shell, so a second SIGHUP means nothing more than the first.
    pub(crate) async fn insist(&mut self) {
        while self.next().await == "SIGHUP" {}
    }
}

/// Whether the process was started with this signal ignored. Only Linux tells without unsafe code;
/// elsewhere nothing is.
fn is_ignored(signal: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, signal.as_raw_value())
}

/// `SigIgn` in a process's `status` is a set in hexadecimal, whose lowest bit is signal 1.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_stands_in_a_mask() {
        let status = "Name:\tclearway\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001001\n";
        assert!(ignores(status, 1) && ignores(status, 13));
        assert!(!ignores(status, 2) && !ignores("", 1) && !ignores("SigIgn:\tx\n", 1));
    }
}
