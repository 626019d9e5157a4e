//! What both providers see while a trap is shown, on one line of a terminal.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::provider::{Provider, Seen};
use crate::output::Output;

const EVERY: Duration = Duration::from_millis(200);

/// Runs `work`, and shows meanwhile what is going on.
pub(crate) async fn while_shown<T>(
    output: Output,
    (naive, clearway): (&Provider, &Provider),
    work: impl Future<Output = T>,
) -> T {
    if output.json || output.quiet || !std::io::stderr().is_terminal() {
        return work.await;
    }
    let began = Instant::now();
    let show = async {
        loop {
            line(&format!(
                "{:5.1} s   naive: {}   clearway: {}",
                began.elapsed().as_secs_f64(),
                shown(naive.seen()),
                shown(clearway.seen())
            ));
            tokio::time::sleep(EVERY).await;
        }
    };
    let done = tokio::select! {
        done = work => done,
        never = show => never,
    };
    line("");
    done
}

fn shown(seen: Seen) -> String {
    format!("{:>5} requests, {:>3} open", seen.requests, seen.open)
}

/// Writes over the line before.
fn line(text: &str) {
    let mut stderr = std::io::stderr().lock();
    // Only a show: a terminal that is gone is nothing to fail for.
    let _ = write!(stderr, "\r\x1b[2K{text}").and_then(|()| stderr.flush());
}
