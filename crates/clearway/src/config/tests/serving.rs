//! What a server would refuse at its start, told before it starts.

use super::*;

fn judge(text: &str, env: &Env, judged: Judged) -> Result<Config, Report> {
    read::config(Source::new(FILE, text), &read::Files::Folder(PathBuf::from(".")), env, judged)
}

#[test]
fn strangers_need_keys() {
    let text = "[server]\nlisten = \"0.0.0.0:8123\"\n[agents.a]\n";
    let report = judge(text, &env(), Judged::Alone).unwrap_err();
    expect![[r#"
        error: `server.listen` is reachable from other machines and no keys are configured
         ╭─[clearway.toml:2:10]
        2 │ listen = "0.0.0.0:8123"
         ·          ───────┬──────
         ·                 ╰── a server refuses to listen here
         ╰────
        help: configure keys ([auth]), listen on 127.0.0.1, or write insecure = true (or start with --insecure) if everybody
              who reaches it may use it"#]]
    .assert_eq(&report.to_string());
    // A flag may still allow it.
    let config = judge(text, &env(), Judged::UnderFlags).unwrap();
    assert!(!config.server.insecure);

    let listen = |listen: &str, more: &str| {
        let text = format!("[server]\nlisten = \"{listen}\"\n{more}[agents.a]\n");
        let secret = ("ANN_KEY", "0123456789abcdef0123456789abcdef");
        judge(&text, &Env::new([secret]), Judged::Alone).map(drop).map_err(|report| {
            report.problems.iter().map(|problem| problem.message.clone()).collect::<Vec<_>>()
        })
    };
    for reachable in ["[::]:1", "192.168.1.7:1", "[fe80::1]:1", "my-host:1"] {
        assert_eq!(listen(reachable, "").unwrap_err().len(), 1, "{reachable}");
        listen(reachable, "insecure = true\n").unwrap();
        listen(reachable, "[auth]\nkeys = [{ name = \"ann\", key = \"${ANN_KEY}\" }]\n").unwrap();
    }
    for own in ["127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1"] {
        listen(own, "").unwrap();
    }
    // One mistake is one error.
    for mistake in ["insecure = \"yes\"\n", "[auth]\nkeys = []\n"] {
        assert_eq!(listen("0.0.0.0:1", mistake).unwrap_err().len(), 1, "{mistake}");
    }
}

#[test]
fn the_environment_may_open_or_close_it() {
    let text = "[server]\nlisten = \"0.0.0.0:8123\"\n[agents.a]\n";
    let with =
        |name: &str, value: &str| judge(text, &Env::new([(name, value)]), Judged::Alone).map(drop);
    with("CLEARWAY_SERVER__INSECURE", "true").unwrap();
    with("CLEARWAY_SERVER__LISTEN", "127.0.0.1:1").unwrap();
    let report = with("CLEARWAY_SERVER__LISTEN", "0.0.0.0:1").unwrap_err().to_string();
    assert!(report.contains("CLEARWAY_SERVER__LISTEN: "), "{report}");
}

#[test]
fn nothing_waits_no_time_at_all() {
    check(
        "[server.limits]\nbody_timeout = \"0s\"\n[webhooks]\nbackoff = \"0ms\"\n[agents.a]\ndeadline = \"0s\"\n",
        expect![[r#"
            error: `server.limits.body_timeout` must be above zero
             ╭─[clearway.toml:2:16]
            2 │ body_timeout = "0s"
             ·                ──┬─
             ·                  ╰── no time at all
             ╰────
            help: from "1ms" to "30d"; zero does not mean without end

            error: `webhooks.backoff` must be above zero
             ╭─[clearway.toml:4:11]
            4 │ backoff = "0ms"
             ·           ──┬──
             ·             ╰── no time at all
             ╰────
            help: from "10ms" to "1h"; zero does not mean without end

            error: `agents.a.deadline` must be above zero
             ╭─[clearway.toml:6:12]
            6 │ deadline = "0s"
             ·            ──┬─
             ·              ╰── no time at all
             ╰────
            help: from "1ms" to "30d"; zero does not mean without end"#]],
    );
}
