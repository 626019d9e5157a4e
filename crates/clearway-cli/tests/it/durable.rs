//! Durable means on disk: between the request and its acknowledgement the system is told to sync,
//! and the acknowledgement leaves only after the sync has returned. Seen by `strace`, which lists
//! the calls in their order.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use clearway_testkit::{PATIENCE, SimOptions, World, until};
use serde_json::json;

use crate::{binary, last};

const SYNCS: [&str; 2] = ["fdatasync(", "fsync("];
const READS: [&str; 2] = ["read(", "recvfrom("];
const WRITES: [&str; 4] = ["write(", "writev(", "sendto(", "sendmsg("];

/// One finished call: its first part, with the arguments, and the line on which it returned.
#[derive(Debug)]
struct Call {
    text: String,
    begun: usize,
    done: usize,
}

/// Puts the halves of calls together that another thread interrupted.
fn calls(trace: &str) -> Vec<Call> {
    let mut open: BTreeMap<&str, (usize, String)> = BTreeMap::new();
    let mut calls = Vec::new();
    for (at, line) in trace.lines().enumerate() {
        let Some((thread, rest)) = line.trim_start().split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(text) = rest.strip_suffix("<unfinished ...>") {
            open.insert(thread, (at, text.to_owned()));
        } else if rest.starts_with("<... ") {
            if let Some((begun, text)) = open.remove(thread) {
                calls.push(Call { text: text + rest, begun, done: at });
            }
        } else {
            calls.push(Call { text: rest.to_owned(), begun: at, done: at });
        }
    }
    calls
}

impl Call {
    fn is(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.text.starts_with(name))
    }

    fn is_sync_of_the_store(&self) -> bool {
        self.is(&SYNCS) && self.text.contains("clearway.db") && self.text.ends_with("= 0")
    }
}

/// Checks that a sync lies wholly between the read of `heard` and the write of `said`.
fn synced_between(calls: &[Call], heard: &str, said: &str) -> Result<()> {
    let find = |names: &[&str], text: &str| {
        let found = calls.iter().find(|call| call.is(names) && call.text.contains(text));
        found.with_context(|| format!("nothing with {text:?} in the trace"))
    };
    let (heard, said) = (find(&READS, heard)?, find(&WRITES, said)?);
    let sync = calls.iter().find(|call| {
        call.is_sync_of_the_store() && call.begun > heard.done && call.done < said.begun
    });
    sync.map(drop).with_context(|| format!("{} was said before anything was on disk", said.text))
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_on_disk() -> Result<()> {
    let sim = SimOptions { tokens: Some(3), ..SimOptions::default() };
    let mut world = World::new(binary())
        .sim(sim)
        .through(&[
            "strace",
            "-f",
            "-y",
            "-qq",
            "-s",
            "4000",
            "-o",
            "trace.txt",
            "-e",
            "trace=fdatasync,fsync,read,recvfrom,write,writev,sendto,sendmsg",
            "-e",
            "signal=none",
        ])
        .start()
        .await?;
    // Bodies that can be told from everything else in the trace.
    let id = world.task(json!({"message": "the task in the trace"})).await?;
    world.ended(&id).await?;
    let events =
        world.stream("ann", "the stream in the trace").open().await?.ok().await?.rest().await?;
    assert_eq!(last(&events)["text"], "tok0 tok1 tok2");
    let run = world.newest_run().await?;
    world.stop(PATIENCE).await?;
    let path = world.scratch().path().join("trace.txt");
    until("the trace is written", PATIENCE, async || Ok(path.exists())).await?;
    let trace = fs::read_to_string(&path)?;
    let calls = calls(&trace);

    synced_between(&calls, "the task in the trace", &format!("task_id\\\":\\\"{id}"))?;
    synced_between(&calls, "the stream in the trace", &format!("x-run-id: {run}"))?;
    // The end of a run is told when it is on disk, too: after the provider's last word.
    let provider =
        calls.iter().rposition(|call| call.is(&READS) && call.text.contains("data: [DONE]"));
    let from = provider.context("the provider's last word is not in the trace")?;
    synced_between(&calls[from..], "data: [DONE]", "\\\"type\\\":\\\"final\\\"")?;
    world.finish().await
}
