//! What is said about what a file draws on: secrets, prompts, scripts, the environment, other files.

use super::*;

#[test]
fn secrets_come_from_the_environment() {
    check(
        r#"
[providers.one]
kind = "openai"
api_key = "sk-123456"
[providers.two]
kind = "openai"
api_key = "${HOUSE_KEY}"
[providers.three]
kind = "openai"
api_key = "${HOUSE KEY}"
base_url = "api.example.com/v1"
[providers.four]
kind = "openai"
base_url = "https://user:very-secret@example.com/v1"
"#,
        expect![[r#"
            error: `providers.one.api_key` is a secret and must come from the environment
             ╭─[clearway.toml:4:11]
            4 │ api_key = ***********
             ·           ─────┬─────
             ·                ╰── a secret does not belong in a file
             ╰────
            help: put it into an environment variable and write `"${API_KEY}"`

            error: the environment variable HOUSE_KEY is not set
             ╭─[clearway.toml:7:11]
            7 │ api_key = "${HOUSE_KEY}"
             ·           ───────┬──────
             ·                  ╰── needed here
             ╰────
            help: run with HOUSE_KEY=… in the environment

            error: `providers.three.api_key` has a broken `${…}`
              ╭─[clearway.toml:10:11]
            10 │ api_key = "${HOUSE KEY}"
              ·           ───────┬──────
              ·                  ╰── here
              ╰────
            help: write `${NAME}`

            error: `providers.three.base_url`: it is not a URL: invalid format
              ╭─[clearway.toml:11:12]
            11 │ base_url = ********************
              ·            ──────────┬─────────
              ·                      ╰── here
              ╰────
            help: such as https://api.openai.com/v1

            error: `providers.four.base_url`: credentials do not belong into a URL: use api_key or headers
              ╭─[clearway.toml:14:12]
            14 │ base_url = *****************************************
              ·            ────────────────────┬────────────────────
              ·                                ╰── here
              ╰────
            help: such as https://api.openai.com/v1"#]],
    );
}

#[test]
fn prompts_inline() {
    check(
        r#"
[agents.a]
prompt = "You are {{ agent.titel }}, today is {{ tody }}."
[agents.b]
prompt = """
Hello.
You are {{ agent.name "}}.
"""
[agents.c]
prompt = "{{ agent.titel }}"
[agents.d]
prompt = "{{ now | nosuchfilter }}"
[agents.e]
prompt = 7
[agents.f]
prompt = { fil = "x.md" }
"#,
        expect![[r#"
            error: there is no variable `tody`
             ╭─[clearway.toml:3:50]
            3 │ prompt = "You are {{ agent.titel }}, today is {{ tody }}."
             ·                                                  ──┬─
             ·                                                    ╰── not defined
             ╰────
            help: did you mean `today`?

            error: template error: unexpected end of string
             ╭─[clearway.toml:7:26]
            7 │ You are {{ agent.name "}}.
             ·                          ┬
             ·                          ╰── here
             ╰────

            error: there is no variable `agent.titel`
              ╭─[clearway.toml:10:14]
            10 │ prompt = "{{ agent.titel }}"
              ·              ─────┬─────
              ·                   ╰── not defined
              ╰────
            help: a prompt can use: agent (agent.name, agent.title), context (what the run's caller set for it alone), model
                  (the model's name), now (date and time in UTC), run_id (this run), state (the agent's state, as its tools
                  wrote it down), thread_id (this conversation), today (date in UTC), turn (the user's messages so far)

            error: template error: filter nosuchfilter is unknown
              ╭─[clearway.toml:12:20]
            12 │ prompt = "{{ now | nosuchfilter }}"
              ·                    ──────┬─────
              ·                          ╰── here
              ╰────

            error: `agents.e.prompt` must be a text in quotes
              ╭─[clearway.toml:14:10]
            14 │ prompt = 7
              ·          ┬
              ·          ╰── this is the number 7
              ╰────

            error: `agents.f.prompt` has no `file`
              ╭─[clearway.toml:16:10]
            16 │ prompt = { fil = "x.md" }
              ·          ────────────────
              ╰────
            help: write prompt = { file = "prompts/name.md" } or the text itself

            error: `agents.f.prompt` has no key `fil`
              ╭─[clearway.toml:16:12]
            16 │ prompt = { fil = "x.md" }
              ·            ─┬─
              ·             ╰── unknown key
              ╰────
            help: did you mean `file`?"#]],
    );
}

#[test]
fn prompts_in_files() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("prompts")).unwrap();
    std::fs::write(
        folder.path().join("prompts/cofounder.md"),
        "# Who\n\nYou are {{ agnt.name }}.\n",
    )
    .unwrap();
    let file = folder.path().join(FILE);
    let text = "[agents.a]\nprompt = { file = \"prompts/cofounder.md\" }\n[agents.b]\nprompt = { file = \"prompts/cofunder.md\" }\n";
    std::fs::write(&file, text).unwrap();
    let report = Config::load(&file, &env()).unwrap_err().to_string();
    expect![[r#"
        error: there is no file prompts/cofunder.md
         ╭─[clearway.toml:4:19]
        4 │ prompt = { file = "prompts/cofunder.md" }
         ·                   ──────────┬──────────
         ·                             ╰── not found
         ╰────
        help: did you mean `prompts/cofounder.md`?

        error: there is no variable `agnt`
         ╭─[prompts/cofounder.md:3:12]
        3 │ You are {{ agnt.name }}.
         ·            ──┬─
         ·              ╰── not defined
         ╰────
        help: did you mean `agent`?"#]]
    .assert_eq(&report);
}

#[test]
fn one_mistake_is_one_error() {
    check(
        "[agents.a]\nprompt = \"{{ tody }}\"\n[doors.cofounder]\nagent = \"a\"\n",
        expect![[r#"
            error: there is no variable `tody`
             ╭─[clearway.toml:2:14]
            2 │ prompt = "{{ tody }}"
             ·              ──┬─
             ·                ╰── not defined
             ╰────
            help: did you mean `today`?"#]],
    );
}

#[test]
fn scripts_of_the_simulator() {
    check(
        "[providers.sim]\nkind = \"sim\"\nttft = \"none\"\nscript = [{ match = \"x\" }, { reply = \"{{ message \" }, { reply = \"fine\", mach = \"x\" }]\n",
        expect![[r#"
            error: `providers.sim.ttft` has no end, and every wait needs an end
             ╭─[clearway.toml:3:8]
            3 │ ttft = "none"
             ·        ───┬──
             ·           ╰── this would wait for ever
             ╰────
            help: the longest is "1h"

            error: `providers.sim.script[0]` has no `reply`
             ╭─[clearway.toml:4:11]
            4 │ script = [{ match = "x" }, { reply = "{{ message " }, { reply = "fine", mach = "x" }]
             ·           ───────────────
             ╰────
            help: say what to answer: { match = "price", reply = "It is free." }

            error: template error in a reply: unexpected end of input, expected end of variable block
             ╭─[clearway.toml:4:38]
            4 │ script = [{ match = "x" }, { reply = "{{ message " }, { reply = "fine", mach = "x" }]
             ·                                      ──────┬──────
             ·                                            ╰── here
             ╰────

            error: `providers.sim.script[2]` has no key `mach`
             ╭─[clearway.toml:4:73]
            4 │ script = [{ match = "x" }, { reply = "{{ message " }, { reply = "fine", mach = "x" }]
             ·                                                                         ──┬─
             ·                                                                           ╰── unknown key
             ╰────
            help: did you mean `match`?"#]],
    );
}

#[test]
fn the_environment_is_checked_too() {
    let env = Env::new([
        ("CLEARWAY_SERVER__DRAIN", "0"),
        ("CLEARWAY_SERVER__LISTEN", "everywhere"),
        ("CLEARWAY_SERVER__LIMITS__MAX_BODY_BYTES", "big"),
        ("PORT", "http"),
    ]);
    check_with(
        "",
        &env,
        expect![[r#"
        error: CLEARWAY_SERVER__LISTEN: `server.listen`: `everywhere` is not HOST:PORT, such as 127.0.0.1:8123

        error: CLEARWAY_SERVER__DRAIN: `server.drain` must be above zero
        help: from "1ms" to "30d"; zero does not mean without end

        error: CLEARWAY_SERVER__LIMITS__MAX_BODY_BYTES: `server.limits.max_body_bytes` must be from 1024 to 1073741824"#]],
    );
    check_with(
        "",
        &Env::new([
            ("OPENAI_BASE_URL", "me:very-secret@host/v1"),
            ("OLLAMA_HOST", "http://me:very-secret@host"),
        ]),
        expect![[r#"
            error: OPENAI_BASE_URL: it is not a URL: invalid format
            help: such as https://api.openai.com/v1

            error: OLLAMA_HOST: credentials do not belong into a URL: use api_key or headers
            help: such as http://127.0.0.1:11434"#]],
    );
    check_with(
        "",
        &Env::new([("PORT", "http")]),
        expect![[r#"
        error: PORT: `http` is no port
        help: set it to a number from 0 to 65535"#]],
    );
}

#[test]
fn missing_files_and_folders() {
    let folder = tempfile::tempdir().unwrap();
    let scrub =
        |report: Report| report.to_string().replace(&folder.path().display().to_string(), "DIR");
    let missing = Config::load(&folder.path().join("none.toml"), &env()).unwrap_err();
    expect![[r#"
        error: cannot read DIR/none.toml: there is no such file
        help: give the file with --config, or run in a folder that has a clearway.toml"#]]
    .assert_eq(&scrub(missing));
    let missing = Config::load_folder(&folder.path().join("none"), &env()).unwrap_err();
    expect![[r#"
        error: there is no folder DIR/none
        help: create it, or leave the argument out"#]]
    .assert_eq(&scrub(missing));
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, b"a = \"\xff\"").unwrap();
    expect![[r#"
        error: cannot read DIR/binary.toml: it is not UTF-8 (byte 5)
        help: save it as UTF-8"#]]
    .assert_eq(&scrub(Config::load(&binary, &env()).unwrap_err()));
}
