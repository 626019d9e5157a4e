//! `clearway doctor`: it finds what would keep a server from running, and changes nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clearway_testkit::{
    Output, PATIENCE, Process, Scratch, Sim, SimOptions, World, free_port, is_root, make_readable,
    reserve_port,
};
use serde_json::Value;

use crate::binary;

/// Everything that a check of this name found.
fn findings(output: &Output, check: &str) -> Result<Vec<Value>> {
    let report = output.json()?;
    let all = report["findings"].as_array().context("no findings")?;
    Ok(all.iter().filter(|finding| finding["check"] == check).cloned().collect())
}

fn finding(output: &Output, check: &str) -> Result<Value> {
    findings(output, check)?.pop().with_context(|| format!("no {check}: {}", output.stdout))
}

async fn doctor(folder: &Path, args: &[&str]) -> Result<Output> {
    let all = [&["doctor", "--json"], args].concat();
    binary().run(folder, &all).await
}

#[tokio::test]
async fn an_empty_folder_is_fine_and_stays_empty() -> Result<()> {
    let scratch = Scratch::new()?;
    let port = free_port()?.port().to_string();
    let output = doctor(scratch.path(), &["--port", &port]).await?.expect(0)?;
    assert_eq!(output.json()?["ok"], true, "{}", output.stdout);
    let checks = [
        "version",
        "configuration",
        "environment",
        "threads",
        "open files",
        "memory",
        "clock",
        "data",
        "disk space",
        "disk speed",
        "database",
        "lock",
        "port",
    ];
    for check in checks {
        let finding = finding(&output, check)?;
        assert!(finding["level"] != "fail", "{finding}");
        for key in ["found", "why"] {
            assert!(finding[key].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
        }
        assert_eq!(finding["level"] == "ok", finding["fix"].is_null(), "{finding}");
    }
    assert!(findings(&output, "net")?.is_empty(), "nothing is called without --net");
    assert_eq!(fs::read_dir(scratch.path())?.count(), 0, "something was left behind");
    let text = binary().run(scratch.path(), &["doctor", "--port", &port]).await?.expect(0)?;
    assert!(text.stdout.contains("\nok    port          127.0.0.1:"), "{}", text.stdout);
    Ok(())
}

#[tokio::test]
async fn a_missing_key_fails_and_no_value_is_printed() -> Result<()> {
    let scratch = Scratch::new()?;
    scratch.write(
        "clearway.toml",
        "[providers.house]\nkind = \"openai\"\nbase_url = \"https://models.example/v1\"\n\
         api_key = \"${HOUSE_KEY}\"\n",
    )?;
    let port = free_port()?.port().to_string();
    let broken = doctor(scratch.path(), &["--port", &port, "--net", "house"]).await?.expect(1)?;
    let finding = finding(&broken, "configuration")?;
    assert_eq!(finding["level"], "fail");
    assert!(finding["found"].as_str().is_some_and(|found| found.contains("HOUSE_KEY")));
    assert_eq!(findings(&broken, "net")?[0]["level"], "warn", "there is nothing to call");

    let mut command = binary().command(scratch.path());
    command.args(["doctor", "--port", &port]);
    command.env("HOUSE_KEY", "sk-top-secret").env("HTTPS_PROXY", "http://me:sk-top-secret@proxy");
    command
        .env("CLEARWAY_THREADS", "sk-top-secret")
        .env("BC_API_OPENAI_NO_THREAD", "sk-top-secret");
    let output = command.output().await?;
    let said = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(!said.contains("top-secret"), "{said}");
    for words in ["there is a key", "HTTPS_PROXY", "CLEARWAY_THREADS", "BC_API_OPENAI_NO_THREAD"] {
        assert!(said.contains(words), "`{words}` is missing: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_running_server_is_recognised_and_not_disturbed() -> Result<()> {
    let mut world = World::new(binary()).start().await?;
    world.chat("ann", "hello").send().await?.expect(200)?;
    let port = world.server()?.address().port().to_string();
    let pid = world.server()?.process().pid().to_string();
    let output = doctor(world.scratch().path(), &["--port", &port]).await?.expect(0)?;
    for check in ["lock", "port"] {
        let finding = finding(&output, check)?;
        assert_eq!(finding["level"], "warn");
        assert!(finding["found"].as_str().is_some_and(|found| found.contains(&pid)), "{finding}");
    }
    assert_eq!(finding(&output, "database")?["level"], "ok");
    world.chat("ann", "hello again").send().await?.expect(200)?;
    world.finish().await
}

#[tokio::test]
async fn a_damaged_database_and_a_foreign_port_fail() -> Result<()> {
    let scratch = Scratch::new()?;
    fs::create_dir(scratch.path().join("data"))?;
    scratch.write("data/clearway.db", [b'x'; 8192])?;
    let (address, _taken) = reserve_port()?;
    let port = address.port().to_string();
    let output = doctor(scratch.path(), &["--port", &port]).await?.expect(1)?;
    let database = finding(&output, "database")?;
    assert_eq!(database["level"], "fail");
    assert!(database["fix"].as_str().is_some_and(|fix| fix.contains("backup")), "{database}");
    let taken = finding(&output, "port")?;
    assert_eq!(taken["level"], "fail");
    assert!(
        taken["found"]
            .as_str()
            .is_some_and(|found| found.contains(&std::process::id().to_string())),
        "{taken}"
    );
    Ok(())
}

#[tokio::test]
async fn the_way_to_a_provider_is_timed_without_asking_a_model() -> Result<()> {
    let scratch = Scratch::new()?;
    let sim = Sim::start(&binary(), scratch.path(), &SimOptions::default()).await?;
    let text = format!("[providers.house]\nkind = \"openai\"\nbase_url = \"{}\"\n", sim.url());
    scratch.write("clearway.toml", text)?;
    let port = free_port()?.port().to_string();
    let output = doctor(scratch.path(), &["--port", &port, "--net", "house"]).await?.expect(0)?;
    let net = finding(&output, "net")?;
    assert_eq!(net["data"]["status"], 200, "{net}");
    let phases = net["data"]["phases"].as_array().context("no phases")?;
    let names: Vec<_> = phases.iter().filter_map(|phase| phase["phase"].as_str()).collect();
    assert_eq!(names, ["dns", "connect", "first byte"]);
    assert_eq!(sim.count("requests").await?, 0, "a model was asked");
    let unknown = binary().run(scratch.path(), &["doctor", "--port", &port, "--net", "x"]).await?;
    assert!(unknown.expect(2)?.stderr.contains("one of: house, sim"));
    Ok(())
}

/// A user's threads are counted, so these run as nobody in particular; that takes root.
#[tokio::test]
async fn without_threads_both_the_server_and_the_doctor_say_what_to_raise() -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let copy = scratch.path().join("clearway");
    fs::copy(binary().path(), &copy)?;
    make_readable(scratch.path())?;
    make_readable(&copy)?;
    let user = 300_000 + std::process::id();
    let listen = free_port()?.to_string();
    for (args, words) in [
        (vec!["serve", "--data", "nowhere"], ["log", "ulimit -u"]),
        (vec!["doctor", "--data", "nowhere"], ["fail  threads", "ulimit -u"]),
    ] {
        let mut command = tokio::process::Command::new("prlimit");
        command.args(["--nproc=1", "setpriv"]);
        command.args([format!("--reuid={user}"), format!("--regid={user}")]);
        command.args(["--clear-groups", "--"]).arg(&copy);
        command.args(args).args(["--listen", &listen]).current_dir(scratch.path());
        let log = scratch.path().join("log");
        let mut process = Process::spawn("limited", command, &log)?;
        let exit = process.exit(PATIENCE).await?;
        let said = process.log();
        assert_eq!(exit.code, Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "`{word}` is missing: {said}");
        }
        process.passed();
    }
    Ok(())
}
