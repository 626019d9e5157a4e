//! Starting: what is in the way is said in words, with an exit code, and nothing is damaged.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Result, ensure};
use clearway_testkit::{
    Command, PATIENCE, Scratch, World, free_port, is_root, make_readable, reserve_port,
};

use crate::binary;

/// Starts a server that must refuse to run; returns what it says.
async fn refused(command: &Command, log: &Path, code: i32) -> Result<String> {
    let mut server = command.spawn(free_port()?, log)?;
    let exit = server.process().exit(PATIENCE).await?;
    let said = server.log();
    ensure!(exit.code == Some(code), "{exit:?} instead of {code}: {said}");
    ensure!(!said.contains("panicked"), "it panicked: {said}");
    server.process().passed();
    Ok(said)
}

fn contains_all(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing: {text}");
    }
}

#[tokio::test]
async fn a_data_directory_has_one_server() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let said = refused(world.command(), &world.log_path("second"), 1).await?;
    contains_all(&said, &["data", "another"]);
    world.chat("ann", "hello").send().await?.expect(200)?;
    world.finish().await
}

#[tokio::test]
async fn a_damaged_file_is_named_and_left_alone() -> Result<()> {
    let mut world = World::new(binary()).start().await?;
    world.chat("ann", "hello").send().await?.expect(200)?;
    world.stop(PATIENCE).await?;
    let path = world.scratch().path().join("data/clearway.db");
    let mut bytes = fs::read(&path)?;
    bytes[..512].fill(b'x');
    fs::write(&path, &bytes)?;
    let said = refused(world.command(), &world.log_path("damaged"), 1).await?;
    contains_all(&said, &["clearway.db", "damaged"]);
    assert_eq!(fs::read(&path)?, bytes, "it was changed");
    world.finish().await
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_is_named() -> Result<()> {
    let scratch = Scratch::new()?;
    let binary_here = scratch.path().join("clearway");
    fs::copy(binary().path(), &binary_here)?;
    make_readable(scratch.path())?;
    make_readable(&binary_here)?;
    fs::create_dir(scratch.path().join("data"))?;
    fs::set_permissions(scratch.path().join("data"), fs::Permissions::from_mode(0o555))?;
    scratch.write("clearway.toml", "[server]\ndata = \"data\"\n")?;
    let mut command =
        Command::new(&clearway_testkit::Binary::new(&binary_here), "serve", scratch.path());
    if is_root() {
        // Permissions do not stop root, so somebody else starts it.
        command.wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
            .map(Into::into)
            .into();
    }
    let said = refused(&command, &scratch.path().join("server.log"), 1).await?;
    contains_all(&said, &["data", "permission"]);
    Ok(())
}

#[tokio::test]
async fn a_taken_port_is_said() -> Result<()> {
    let scratch = Scratch::new()?;
    let (address, _taken) = reserve_port()?;
    let command =
        Command::new(&binary(), "serve", scratch.path()).arg("--listen").arg(address.to_string());
    let said = refused(&command, &scratch.path().join("server.log"), 1).await?;
    contains_all(&said, &[&address.to_string(), "in use"]);
    Ok(())
}

#[tokio::test]
async fn other_machines_are_not_served_by_accident() -> Result<()> {
    let scratch = Scratch::new()?;
    let address = free_port()?;
    let everywhere = format!("0.0.0.0:{}", address.port());
    let command = Command::new(&binary(), "serve", scratch.path()).arg("--listen").arg(&everywhere);
    let said = refused(&command, &scratch.path().join("refused.log"), 1).await?;
    contains_all(&said, &["--insecure", "keys"]);

    let mut server =
        command.arg("--insecure").start(address, &scratch.path().join("server.log")).await?;
    server.client().get("/health").send().await?.expect(200)?;
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    server.process().passed();
    Ok(())
}

#[tokio::test]
async fn a_closed_terminal_stops_a_server_as_sigterm_does() -> Result<()> {
    for command in ["dev", "serve"] {
        let scratch = Scratch::new()?;
        let log = scratch.path().join("server.log");
        let command = Command::new(&binary(), command, scratch.path());
        let mut server = command.start(free_port()?, &log).await?;
        hang_up(server.process().pid())?;
        let exit = server.process().exit(PATIENCE).await?;
        let said = server.log();
        ensure!(exit.code == Some(0), "{exit:?}: {said}");
        contains_all(&said, &["SIGHUP", "stopping", "stopped"]);
        server.process().passed();
    }
    Ok(())
}

#[tokio::test]
async fn a_server_behind_nohup_outlives_its_terminal() -> Result<()> {
    let scratch = Scratch::new()?;
    let log = scratch.path().join("server.log");
    let mut command = Command::new(&binary(), "serve", scratch.path());
    command.wrapper = vec!["nohup".to_owned()];
    let mut server = command.start(free_port()?, &log).await?;
    // `nohup` has become the server.
    hang_up(server.process().pid())?;
    server.client().get("/health").send().await?.expect(200)?;
    let exit = server.stop(PATIENCE).await?;
    ensure!(exit.code == Some(0), "{exit:?}: {}", server.log());
    contains_all(&server.log(), &["SIGTERM"]);
    server.process().passed();
    Ok(())
}

fn hang_up(process: u32) -> Result<()> {
    let line = format!("kill -HUP {process}");
    let status = std::process::Command::new("sh").args(["-c", &line]).status()?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}

#[tokio::test]
async fn what_serve_refuses_is_not_fine() -> Result<()> {
    let scratch = Scratch::new()?;
    let agent = "[agents.a]\n";
    for (file, words) in [
        ("[server]\nlisten = \"0.0.0.0:0\"\n", ["listen = ", "--insecure"]),
        ("[doors.cofounder]\n[doors.b]\ndialect = \"cofounder\"\n", ["[doors.b]", "`cofounder`"]),
        ("[doors.cofounder]\nmount = \"/a/../b\"\n", ["mount = ", "`..`"]),
    ] {
        scratch.write("clearway.toml", format!("{file}{agent}"))?;
        let checked = binary().run(scratch.path(), &["check"]).await?.expect(1)?;
        contains_all(&checked.stderr, &words);
    }
    // A flag goes before the file.
    scratch.write("clearway.toml", format!("[server]\nlisten = \"0.0.0.0:0\"\n{agent}"))?;
    let address = free_port()?;
    let command = Command::new(&binary(), "serve", scratch.path())
        .arg("--insecure")
        .arg("--port")
        .arg(address.port().to_string());
    let mut server = command.start(address, &scratch.path().join("server.log")).await?;
    ensure!(server.stop(PATIENCE).await?.code == Some(0), "{}", server.log());
    server.process().passed();
    Ok(())
}

const WRONG: &str = r#"
[server]
lisen = "127.0.0.1:8123"

[agents.helper]
modell = "default"
deadline = "none"

[doors.cofounder]
agent = "helpr"
"#;

#[tokio::test]
async fn a_wrong_configuration_is_underlined() -> Result<()> {
    let scratch = Scratch::new()?;
    scratch.write("clearway.toml", WRONG)?;
    let checked = binary().run(scratch.path(), &["check"]).await?.expect(1)?;
    let said = checked.stdout + &checked.stderr;
    contains_all(
        &said,
        &[
            "clearway.toml:3",
            "did you mean `listen`",
            "`model`",
            "deadline",
            "helpr",
            "helper",
            "─",
        ],
    );

    let command =
        Command::new(&binary(), "serve", scratch.path()).arg("--config").arg("clearway.toml");
    let started = refused(&command, &scratch.path().join("server.log"), 1).await?;
    contains_all(&started, &["did you mean `listen`", "clearway.toml:3"]);
    assert!(!scratch.path().join("data").exists(), "something was made before the check");

    scratch.write("clearway.toml", "[agents.helper]\nprompt = \"Be brief.\"\n")?;
    binary().run(scratch.path(), &["check"]).await?.expect(0)?;
    binary().run(scratch.path(), &["check", "nowhere.toml"]).await?.expect(2)?;
    Ok(())
}

/// A provider of the environment is enough; no file is needed.
#[tokio::test]
async fn a_provider_of_the_environment_is_used() -> Result<()> {
    let world = World::new(binary()).start().await?;
    let scratch = Scratch::new()?;
    let mut command = Command::new(&binary(), "serve", scratch.path());
    command.env = vec![
        ("OPENAI_BASE_URL".to_owned(), world.sim().url()),
        ("OPENAI_API_KEY".to_owned(), "sk-test-secret".to_owned()),
        ("CLEARWAY_COLOUR".to_owned(), "blue".to_owned()),
    ];
    let mut server = command.start(free_port()?, &scratch.path().join("server.log")).await?;
    let body = serde_json::json!({"user_id": "ann", "message": "the blue bicycle"});
    let answer = server.client().post("/chat").json(&body).send().await?.expect(200)?;
    assert!(answer.text().contains("the blue bicycle"), "{}", answer.text());
    assert_eq!(
        world.sim().count("requests").await?,
        1,
        "somebody else answered, or it was asked unasked"
    );
    assert_eq!(server.stop(PATIENCE).await?.code, Some(0));
    let log = server.log();
    assert!(log.contains("CLEARWAY_COLOUR"), "an unknown variable is not warned of: {log}");
    assert!(!log.contains("sk-test-secret"), "the key is in the log");
    server.process().passed();
    world.finish().await
}

#[tokio::test]
async fn wrong_usage_is_said() -> Result<()> {
    let scratch = Scratch::new()?;
    for args in
        [vec!["sevre"], vec!["serve", "--colour"], vec!["sim", "--fault", "stal:3"], vec!["runs"]]
    {
        let output = binary().run(scratch.path(), &args).await?.expect(2)?;
        assert!(!output.stderr.trim().is_empty(), "{args:?}");
    }
    let version = binary().run(scratch.path(), &["--version"]).await?.expect(0)?;
    assert!(version.stdout.starts_with("clearway "), "{}", version.stdout);
    // Nobody is there to ask.
    let url = format!("http://{}", free_port()?);
    let mut command = binary().command(scratch.path());
    command.args(["runs", "ls"]).env("CLEARWAY_SERVER", url);
    let output = command.output().await?;
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
