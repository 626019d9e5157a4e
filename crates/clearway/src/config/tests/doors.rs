//! Where doors may be.

use std::future::ready;

use clearway_server::BindError;

use super::*;
use crate::{Clearway, Options, StartError};

const AGENTS: &str = "[providers.x]\nkind = \"openai\"\nbase_url = \"http://127.0.0.1:1\"\n[models]\ndefault = { provider = \"x\", model = \"m\" }\n[agents.a]\n";

#[test]
fn two_doors_on_one_mount() {
    check(
        r#"[agents.a]
[doors.zebra]
dialect = "cofounder"
mount = "/x"
[doors.ant]
dialect = "knowledge"
mount = "/x"
[doors.cofounder]
[doors.campaigns]
"#,
        expect![[r#"
            error: the door `ant` needs POST /x/chat, which the door `zebra` has already
             ╭─[clearway.toml:7:9]
            7 │ mount = "/x"
             ·         ──┬─
             ·           ╰── taken
             ╰────
            help: give one of them another mount

            error: the door `campaigns` needs GET /health, which the door `cofounder` has already
             ╭─[clearway.toml:9:1]
            9 │ [doors.campaigns]
             · ────────┬────────
             ·         ╰── taken
             ╰────
            help: give one of them another mount"#]],
    );
}

#[test]
fn addresses_that_are_taken_at_other_mounts() {
    check(
        r#"[agents.a]
[doors.one]
dialect = "campaigns"
mount = "/one"
[doors.two]
dialect = "campaigns"
mount = "/two"
[doors.root]
dialect = "knowledge"
mount = "/"
[doors.notes]
dialect = "knowledge"
mount = "/k"
[doors.settings]
dialect = "knowledge"
mount = "/k/config"
"#,
        expect![[r#"
            error: the door `two` needs GET /campaigns/view/{campaign_id}, which the door `one` has already
             ╭─[clearway.toml:7:9]
            7 │ mount = "/two"
             ·         ───┬──
             ·            ╰── taken
             ╰────
            help: leave one of them out: a server has one door of this dialect

            error: the door `root` needs POST /chat/async, which every server has already
              ╭─[clearway.toml:10:9]
            10 │ mount = "/"
              ·         ─┬─
              ·          ╰── taken
              ╰────
            help: give it another mount, such as /knowledge-agent

            error: the door `settings` needs GET /k/config/notes, which the door `notes` has already
              ╭─[clearway.toml:16:9]
            16 │ mount = "/k/config"
              ·         ─────┬─────
              ·              ╰── taken
              ╰────
            help: give one of them another mount"#]],
    );
}

#[test]
fn mounts_are_plain_paths() {
    let mounts = ["x", "/x/", "/a//b", "/a/../b", "/.", "/a b", "/{id}", "/*", "/ü", "", "/%2e"];
    let mut said = Vec::new();
    for mount in mounts {
        let text = format!("[agents.a]\n[doors.cofounder]\nmount = \"{mount}\"\n");
        let report = Config::parse(FILE, &text, &env()).unwrap_err();
        let [problem] = report.problems.as_slice() else { panic!("{report}") };
        let place = problem.place.as_ref().unwrap();
        assert_eq!(place.source.text()[place.span.clone()], format!("\"{mount}\""));
        said.push(problem.message.clone());
    }
    expect![[r#"
        `doors.cofounder.mount`: `x` must begin with a slash; it is a path such as /cofounder
        `doors.cofounder.mount`: `/x/` must not end with a slash; it is a path such as /cofounder
        `doors.cofounder.mount`: `/a//b` has two slashes with nothing between; it is a path such as /cofounder
        `doors.cofounder.mount`: `/a/../b` has a `.` or `..`, which clients resolve before they ask; it is a path such as /cofounder
        `doors.cofounder.mount`: `/.` has a `.` or `..`, which clients resolve before they ask; it is a path such as /cofounder
        `doors.cofounder.mount`: `/a b` has something else than letters, digits, and - _ . ~ between its slashes; it is a path such as /cofounder
        `doors.cofounder.mount`: `/{id}` has something else than letters, digits, and - _ . ~ between its slashes; it is a path such as /cofounder
        `doors.cofounder.mount`: `/*` has something else than letters, digits, and - _ . ~ between its slashes; it is a path such as /cofounder
        `doors.cofounder.mount`: `/ü` has something else than letters, digits, and - _ . ~ between its slashes; it is a path such as /cofounder
        `doors.cofounder.mount`: `` must begin with a slash; it is a path such as /cofounder
        `doors.cofounder.mount`: `/%2e` has something else than letters, digits, and - _ . ~ between its slashes; it is a path such as /cofounder"#]].assert_eq(&said.join("\n"));
    for mount in ["/", "/a", "/a/b-c_d.e~f", "/...", "/.well-known/x"] {
        parse(&format!("[agents.a]\n[doors.cofounder]\nmount = \"{mount}\"\n"));
    }
}

#[test]
fn a_wrong_mount_is_no_collision_as_well() {
    let text = "[agents.a]\n[doors.cofounder]\n[doors.x]\ndialect = \"cofounder\"\nmount = \"x\"\n";
    let report = Config::parse(FILE, text, &env()).unwrap_err();
    assert_eq!(report.problems.len(), 1, "{report}");
}

/// The rules here and those of the server are two texts, which must say the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_fine_here_is_fine_to_a_server() {
    let dialects = ["cofounder", "campaigns", "knowledge"];
    let mounts = [("/x", "/x"), ("/x", "/y"), ("/x", "/x/config"), ("/", "/x"), ("/", "/")];
    let mut refused = 0;
    for one in dialects {
        for other in dialects {
            for (first, second) in mounts {
                let doors = |first: &str, second: &str| {
                    format!(
                        "{AGENTS}[doors.a]\ndialect = \"{one}\"\nmount = \"{first}\"\n[doors.b]\ndialect = \"{other}\"\nmount = \"{second}\"\n"
                    )
                };
                let here = Config::parse(FILE, &doors(first, second), &env());
                let mut config = match &here {
                    Ok(config) => config.clone(),
                    Err(_) => {
                        // The same without the rules.
                        let text = doors("/p", "/q").replace("\"campaigns\"", "\"cofounder\"");
                        let mut config = parse(&text);
                        let dialect = |name: &str| match name {
                            "cofounder" => Dialect::CoFounder,
                            "campaigns" => Dialect::Campaign,
                            _ => Dialect::Knowledge,
                        };
                        let wanted = [("a", one, first), ("b", other, second)];
                        for (name, speaks, mount) in wanted {
                            let door = config.doors.get_mut(name).unwrap();
                            (door.dialect, door.mount) = (dialect(speaks), mount.to_owned());
                        }
                        config
                    }
                };
                let data = tempfile::tempdir().unwrap();
                config.server.listen = Some("127.0.0.1:0".parse().unwrap());
                config.server.data = Some(data.path().join("data"));
                let there = Clearway::start(config, Options::default()).await;
                let what = format!("{one} at {first}, {other} at {second}");
                match (here, there) {
                    (Ok(_), Ok(clearway)) => clearway.shutdown(Duration::ZERO, ready(())).await,
                    (Err(report), Err(StartError::Bind(BindError::AddressTaken(address)))) => {
                        refused += 1;
                        let report = report.to_string();
                        assert!(report.contains("taken"), "{what}: {address}: {report}");
                    }
                    (here, there) => {
                        panic!("{what}: {:?}, {:?}", here.map(drop), there.map(drop))
                    }
                }
            }
        }
    }
    assert!(refused > 18, "{refused}");
}
