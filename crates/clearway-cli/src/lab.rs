//! `clearway lab`: one trap of calling providers at a time, met by what people write and by Clearway.
//!
//! Both meet the same simulated provider, each its own, on a loopback socket; Clearway is a whole
//! server in this process that is asked over HTTP, as anybody would ask it. Limits are seconds where
//! they would be minutes, so that each trap is seen in less than one.
//!
//! **Invariant:** the exit code says whether Clearway did what it promises; what the naive client
//! did decides nothing.
//!
//! Not here: measuring speed (`bench`), and the faults themselves (`clearway-sim`).

use std::time::Duration;

use anyhow::Result;

use crate::cli::{LabArgs, Trap};
use crate::exit::Exit;
use crate::limits;
use crate::output::Output;

mod crowd;
mod naive;
mod one;
mod progress;
mod provider;
mod report;
mod server;

use report::Report;

pub(crate) fn run(args: &LabArgs, output: Output) -> Result<Exit> {
    limits::raise_open_files();
    let runtime = clearway::runtime(None)?;
    let report = runtime.block_on(async {
        match args.trap {
            Trap::Hang => one::hang(output).await,
            Trap::Drip => one::drip(output).await,
            Trap::Storm => crowd::storm(output).await,
            Trap::Flap => crowd::flap(output).await,
            Trap::Truncate => one::truncate(output).await,
        }
    });
    runtime.shutdown_background();
    let report: Report = report?;
    if output.json {
        output.print(&report.as_json().to_string());
    } else if output.quiet {
        output.print(&report.verdict());
    } else {
        output.print(&report.text());
    }
    Ok(if report.kept() { Exit::Ok } else { Exit::Failed })
}

/// Seconds for people.
fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
