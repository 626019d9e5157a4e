//! What is said about files that are wrong.

use super::*;

#[test]
fn unknown_keys() {
    check(
        "[server]\nlisten = \"127.0.0.1:8123\"\nlog_format = \"json\"\nlistn = 1\n\n[agent.x]\n",
        expect![[r#"
            error: `server` has no key `log_format`
             ╭─[clearway.toml:3:1]
            3 │ log_format = "json"
             · ─────┬────
             ·      ╰── unknown key
             ╰────
            help: known here: allowed_hosts, data, drain, insecure, limits, listen, log, port, worker_threads

            error: `server` has no key `listn`
             ╭─[clearway.toml:4:1]
            4 │ listn = 1
             · ──┬──
             ·   ╰── unknown key
             ╰────
            help: did you mean `listen`?

            error: there is no table `agent`
             ╭─[clearway.toml:6:2]
            6 │ [agent.x]
             ·  ──┬──
             ·    ╰── unknown table
             ╰────
            help: did you mean `agents`?"#]],
    );
}

#[test]
fn the_table_of_the_mistake_is_named() {
    check(
        "[providers.openai]\nkind = \"openai\"\nlimits = { concurent = 10 }\n[providers.openai.deadline]\nfirst_tokn = \"1s\"\n",
        expect![[r#"
            error: `providers.openai.limits` has no key `concurent`
             ╭─[clearway.toml:3:12]
            3 │ limits = { concurent = 10 }
             ·            ────┬────
             ·                ╰── unknown key
             ╰────
            help: did you mean `concurrent`?

            error: `providers.openai.deadline` has no key `first_tokn`
             ╭─[clearway.toml:5:1]
            5 │ first_tokn = "1s"
             · ─────┬────
             ·      ╰── unknown key
             ╰────
            help: did you mean `first_token`?"#]],
    );
}

#[test]
fn wrong_types() {
    check(
        "[server]\nlisten = 8123\ninsecure = \"yes\"\nlimits = 5\n\n[models]\nwriter = \"gpt\"\n\n[pools.chat]\nslots = 1.5\nqueue = \"many\"\n",
        expect![[r#"
            error: `server.listen` must be a text in quotes
             ╭─[clearway.toml:2:10]
            2 │ listen = 8123
             ·          ──┬─
             ·            ╰── this is the number 8123
             ╰────

            error: `server.insecure` must be true or false, without quotes
             ╭─[clearway.toml:3:12]
            3 │ insecure = "yes"
             ·            ──┬──
             ·              ╰── this is a text
             ╰────

            error: `server.limits` must be a table
             ╭─[clearway.toml:4:10]
            4 │ limits = 5
             ·          ┬
             ·          ╰── this is the number 5
             ╰────

            error: `models.writer` must be a table
             ╭─[clearway.toml:7:10]
            7 │ writer = "gpt"
             ·          ──┬──
             ·            ╰── this is a text
             ╰────

            error: `pools.chat.slots` must be a whole number
              ╭─[clearway.toml:10:9]
            10 │ slots = 1.5
              ·         ─┬─
              ·          ╰── this is the number 1.5
              ╰────

            error: `pools.chat.queue` must be a whole number
              ╭─[clearway.toml:11:9]
            11 │ queue = "many"
              ·         ───┬──
              ·            ╰── this is a text
              ╰────"#]],
    );
}

#[test]
fn every_wait_needs_an_end() {
    check(
        r#"
[agents.a]
deadline = 0
[agents.b]
deadline = "none"
[agents.c]
deadline = "0s"
[agents.d]
deadline = 120
[agents.e]
deadline = "120"
[agents.f]
deadline = "two minutes"
[agents.g]
deadline = "400d"
"#,
        expect![[r#"
            error: `agents.a.deadline` must be above zero
             ╭─[clearway.toml:3:12]
            3 │ deadline = 0
             ·            ┬
             ·            ╰── no time at all
             ╰────
            help: from "1ms" to "30d"; zero does not mean without end

            error: `agents.b.deadline` has no end, and every wait needs an end
             ╭─[clearway.toml:5:12]
            5 │ deadline = "none"
             ·            ───┬──
             ·               ╰── this would wait for ever
             ╰────
            help: the longest is "30d"

            error: `agents.c.deadline` must be above zero
             ╭─[clearway.toml:7:12]
            7 │ deadline = "0s"
             ·            ──┬─
             ·              ╰── no time at all
             ╰────
            help: from "1ms" to "30d"; zero does not mean without end

            error: `agents.d.deadline` must be a duration in quotes with a unit
             ╭─[clearway.toml:9:12]
            9 │ deadline = 120
             ·            ─┬─
             ·             ╰── a number alone could mean anything
             ╰────
            help: write `"120s"` if you mean seconds

            error: `agents.e.deadline` is a duration and has no unit
              ╭─[clearway.toml:11:12]
            11 │ deadline = "120"
              ·            ──┬──
              ·              ╰── seconds? minutes?
              ╰────
            help: write `"120s"` if you mean seconds

            error: `agents.f.deadline` is no duration
              ╭─[clearway.toml:13:12]
            13 │ deadline = "two minutes"
              ·            ──────┬──────
              ·                  ╰── not understood
              ╰────
            help: write a number and a unit, such as "30s", "500ms" or "5m"

            error: `agents.g.deadline` must be from 1ms to 30d
              ╭─[clearway.toml:15:12]
            15 │ deadline = "400d"
              ·            ───┬──
              ·               ╰── out of range
              ╰────"#]],
    );
}

#[test]
fn names_that_lead_nowhere() {
    check(
        r#"
[providers.openai]
kind = "openai"

[models]
writer = { provider = "opnai", model = "gpt-5-mini" }

[agents.cofounder]
model = "writter"
pool = "chatt"

[agents.other]
model = "something"

[doors.cofounder]
agent = "cofouder"
"#,
        expect![[r#"
            error: there is no provider `opnai`
             ╭─[clearway.toml:6:23]
            6 │ writer = { provider = "opnai", model = "gpt-5-mini" }
             ·                       ───┬───
             ·                          ╰── not defined
             ╰────
            help: did you mean `openai`?

            error: there is no model `writter`
             ╭─[clearway.toml:9:9]
            9 │ model = "writter"
             ·         ────┬────
             ·             ╰── not defined
             ╰────
            help: did you mean `writer`?

            error: there is no pool `chatt`
              ╭─[clearway.toml:10:8]
            10 │ pool = "chatt"
              ·        ───┬───
              ·           ╰── not defined
              ╰────
            help: did you mean `chat`?

            error: there is no model `something`
              ╭─[clearway.toml:13:9]
            13 │ model = "something"
              ·         ─────┬─────
              ·              ╰── not defined
              ╰────
            help: there are: default, writer

            error: there is no agent `cofouder`
              ╭─[clearway.toml:16:9]
            16 │ agent = "cofouder"
              ·         ─────┬────
              ·              ╰── not defined
              ╰────
            help: did you mean `cofounder`?"#]],
    );
}

#[test]
fn a_key_twice() {
    check(
        "[server]\nlog = \"json\"\nlog = \"pretty\"\n[server]\n",
        expect![[r#"
        error: duplicate key
         ╭─[clearway.toml:3:1]
        3 │ log = "pretty"
         · ─┬─
         ·  ╰── here
         ╰────

        error: duplicate key
         ╭─[clearway.toml:4:2]
        4 │ [server]
         ·  ───┬──
         ·     ╰── here
         ╰────"#]],
    );
}

#[test]
fn broken_toml() {
    check(
        "[server\nlisten = \"x\n[agents.a]\n",
        expect![[r#"
        error: unclosed table, expected `]`
         ╭─[clearway.toml:1:7]
        1 │ [server
         ·       ┬
         ·       ╰── here
         ╰────"#]],
    );
}

#[test]
fn what_this_version_has_not() {
    check(
        r#"
[providers.openai]
kind = "openai"
limits = { concurrent = 10, per_day = 60 }
budget = { per_day = 5 }

[agents.cofounder]
when_busy = "roll"
temperature = 0.5

[workflows.campaign.steps.facts]
do = "worker"
"#,
        expect![[r#"
            error: `providers.openai.limits.per_day` is not supported by this version
             ╭─[clearway.toml:4:29]
            4 │ limits = { concurrent = 10, per_day = 60 }
             ·                             ───┬───
             ·                                ╰── not supported yet
             ╰────
            help: leave it out: it would have no effect, and silence would hide that

            error: `providers.openai.budget` is not supported by this version
             ╭─[clearway.toml:5:1]
            5 │ budget = { per_day = 5 }
             · ───┬──
             ·    ╰── not supported yet
             ╰────
            help: leave it out: it would have no effect, and silence would hide that

            error: `agents.cofounder.when_busy` cannot be `roll`
             ╭─[clearway.toml:8:13]
            8 │ when_busy = "roll"
             ·             ───┬──
             ·                ╰── not one of the choices
             ╰────
            help: one of: queue, enqueue, reject, interrupt, rollback

            error: `agents.cofounder.temperature` is a parameter of the model
             ╭─[clearway.toml:9:15]
            9 │ temperature = 0.5
             ·               ─┬─
             ·                ╰── not here
             ╰────
            help: write params = { temperature = … }

            error: workflow `campaign` has no steps
              ╭─[clearway.toml:11:12]
            11 │ [workflows.campaign.steps.facts]
              ·            ────┬───
              ·                ╰── here
              ╰────
            help: add [workflows.campaign.steps.first] with do = "llm"

            error: steps that do `worker` are not supported by this version
              ╭─[clearway.toml:12:6]
            12 │ do = "worker"
              ·      ────┬───
              ·          ╰── not supported yet
              ╰────
            help: llm, agent, search, http, tool, template, set, branch, ask, workflow, wait and fail are"#]],
    );
}

#[test]
fn choices() {
    check(
        "[providers.x]\nkind = \"opnai\"\n[providers.y]\nbase_url = \"http://x\"\n[server]\nlog = \"xml\"\n[agents.a]\nwhen_busy = \"rejct\"\n",
        expect![[r#"
            error: `providers.x.kind` cannot be `opnai`
             ╭─[clearway.toml:2:8]
            2 │ kind = "opnai"
             ·        ───┬───
             ·           ╰── not one of the choices
             ╰────
            help: did you mean `openai`?

            error: `providers.y` has no `kind`
             ╭─[clearway.toml:3:1]
            3 │ [providers.y]
             · ─────────────
             ╰────
            help: write kind = "openai", "openai-responses", "anthropic", "ollama" or "sim"

            error: `server.log` cannot be `xml`
             ╭─[clearway.toml:6:7]
            6 │ log = "xml"
             ·       ──┬──
             ·         ╰── not one of the choices
             ╰────
            help: one of: pretty, json

            error: `agents.a.when_busy` cannot be `rejct`
             ╭─[clearway.toml:8:13]
            8 │ when_busy = "rejct"
             ·             ───┬───
             ·                ╰── not one of the choices
             ╰────
            help: did you mean `reject`?"#]],
    );
}

#[test]
fn ranges() {
    check(
        "[pools.chat]\nslots = 0\nqueue = -1\n[server]\nworker_threads = 1000\n[server.limits]\nmax_body_bytes = 1\n",
        expect![[r#"
            error: `pools.chat.slots` must be from 1 to 1000000
             ╭─[clearway.toml:2:9]
            2 │ slots = 0
             ·         ┬
             ·         ╰── out of range
             ╰────

            error: `pools.chat.queue` must be from 0 to 10000000
             ╭─[clearway.toml:3:9]
            3 │ queue = -1
             ·         ─┬
             ·          ╰── out of range
             ╰────

            error: `server.worker_threads` must be from 1 to 256
             ╭─[clearway.toml:5:18]
            5 │ worker_threads = 1000
             ·                  ──┬─
             ·                    ╰── out of range
             ╰────

            error: `server.limits.max_body_bytes` must be from 1024 to 1073741824
             ╭─[clearway.toml:7:18]
            7 │ max_body_bytes = 1
             ·                  ┬
             ·                  ╰── out of range
             ╰────"#]],
    );
}

#[test]
fn deadlines_in_the_wrong_order() {
    check(
        "[providers.x]\nkind = \"sim\"\ndeadline = { connect = \"5s\", first_byte = \"3s\", total = \"2s\" }\n",
        expect![[r#"
            error: `providers.x.deadline.connect` is longer than `first_byte`, which contains it
             ╭─[clearway.toml:3:24]
            3 │ deadline = { connect = "5s", first_byte = "3s", total = "2s" }
             ·                        ──┬─
             ·                          ╰── never reached
             ╰────
            help: the order is connect <= first_byte <= first_token <= total

            error: `providers.x.deadline.first_byte` is longer than `total`, which contains it
             ╭─[clearway.toml:3:43]
            3 │ deadline = { connect = "5s", first_byte = "3s", total = "2s" }
             ·                                           ──┬─
             ·                                             ╰── never reached
             ╰────
            help: the order is connect <= first_byte <= first_token <= total"#]],
    );
}

#[test]
fn several_models_and_none_chosen() {
    check(
        r#"
[models]
fast = { provider = "openai", model = "gpt-5-mini" }
deep = { provider = "openai", model = "gpt-5" }
[agents.a]
"#,
        expect![[r#"
            error: `agents.a` has no `model`, and there are several
             ╭─[clearway.toml:5:1]
            5 │ [agents.a]
             · ─────┬────
             ·      ╰── which model?
             ╰────
            help: one of: deep, fast; or name one of them `default`"#]],
    );
}

#[test]
fn parameters_that_are_ours() {
    check(
        "[models]\nx = { provider = \"sim\", model = \"m\", params = { stream = false, n = 2, seed = 1979-05-27 } }\n",
        expect![[r#"
            error: the parameter `stream` is set by the server itself
             ╭─[clearway.toml:2:58]
            2 │ x = { provider = "sim", model = "m", params = { stream = false, n = 2, seed = 1979-05-27 } }
             ·                                                          ──┬──
             ·                                                            ╰── here
             ╰────
            help: leave it out

            error: the parameter `n` must be 1: a run has one answer
             ╭─[clearway.toml:2:69]
            2 │ x = { provider = "sim", model = "m", params = { stream = false, n = 2, seed = 1979-05-27 } }
             ·                                                                     ┬
             ·                                                                     ╰── here
             ╰────
            help: leave it out

            error: `models.x.params.seed` must be a text, number, true or false, list or table
             ╭─[clearway.toml:2:79]
            2 │ x = { provider = "sim", model = "m", params = { stream = false, n = 2, seed = 1979-05-27 } }
             ·                                                                               ─────┬────
             ·                                                                                    ╰── this is a date or time
             ╰────"#]],
    );
}

#[test]
fn names_and_mounts() {
    check(
        "[agents.\"my agent\"]\n[doors.cofounder]\nmount = \"cofounder/\"\n[agents.\"\"]\n",
        expect![[r#"
            error: `my agent` cannot be a name
             ╭─[clearway.toml:1:9]
            1 │ [agents."my agent"]
             ·         ─────┬────
             ·              ╰── here
             ╰────
            help: names have 1 to 64 letters, digits, `_`, `-` and `.`, and start with a letter or digit

            error: `doors.cofounder.mount`: `cofounder/` must begin with a slash; it is a path such as /cofounder
             ╭─[clearway.toml:3:9]
            3 │ mount = "cofounder/"
             ·         ──────┬─────
             ·               ╰── here
             ╰────

            error: `` cannot be a name
             ╭─[clearway.toml:4:9]
            4 │ [agents.""]
             ·         ─┬
             ·          ╰── here
             ╰────
            help: names have 1 to 64 letters, digits, `_`, `-` and `.`, and start with a letter or digit"#]],
    );
}

#[test]
fn doors() {
    check(
        "[agents.a]\n[doors.cofuonder]\n[doors.openai]\n[doors.support]\nmount = \"/support\"\n[doors.x]\ndialect = \"slack\"\non_disconnect = \"cancel\"\n",
        expect![[r#"
            error: there is no dialect `cofuonder`
             ╭─[clearway.toml:2:1]
            2 │ [doors.cofuonder]
             · ─────────────────
             ╰────
            help: did you mean `cofounder`?

            error: the door `openai` is not supported by this version
             ╭─[clearway.toml:3:1]
            3 │ [doors.openai]
             · ──────────────
             ╰────
            help: leave it out

            error: there is no dialect `support`
             ╭─[clearway.toml:4:1]
            4 │ [doors.support]
             · ───────────────
             ╰────
            help: say which dialect it speaks: dialect = "cofounder" or "campaigns" or "knowledge"

            error: `doors.x.dialect` cannot be `slack`
             ╭─[clearway.toml:7:11]
            7 │ dialect = "slack"
             ·           ───┬───
             ·              ╰── not one of the choices
             ╰────
            help: one of: cofounder, campaigns, knowledge

            error: `on_disconnect = "cancel"` is not supported by this version
             ╭─[clearway.toml:8:17]
            8 │ on_disconnect = "cancel"
             ·                 ────┬───
             ·                     ╰── not supported yet
             ╰────
            help: clients can ask for it: /chat/stream?on_disconnect=cancel"#]],
    );
}

#[test]
fn connections_must_do_for_the_calls() {
    check(
        "[providers.x]\nkind = \"sim\"\nlimits = { concurrent = 20 }\npool = { connections = 10, idle_expiry = \"30s\" }\n",
        expect![[r#"
            error: `providers.x.pool.connections` is less than `limits.concurrent`
             ╭─[clearway.toml:4:24]
            4 │ pool = { connections = 10, idle_expiry = "30s" }
             ·                        ─┬
             ·                         ╰── too few
             ╰────
            help: each call has a connection of its own: a call that may start must find one"#]],
    );
}

#[test]
fn providers_that_cannot_be_meant() {
    check(
        r#"
[providers.a]
kind = "openai"
api_key = "${OPENAI_API_KEY}"
keys = []
limits = { per_minute = 10, burst = 11 }
retry = { attempts = 0, on = ["timeout", "5xx"] }
breaker = { failures = 0, recovery = "2h" }
[providers.b]
kind = "anthropic"
keys = ["sk-very-secret", { name = "x", key = "${OPENAI_API_KEY}" }, { name = "x", key = "${OPENAI_API_KEY}" }]
limits = { burst = 3 }
retry = { on = ["timout"] }
headers = { x-api-key = "sk-very-secret", Host = "x", "a b" = "c", x-note = "zwei\nZeilen" }
[providers.c]
kind = "sim"
flap = { up = "20s" }
base_url = "http://x"
"#,
        expect![[r#"
            error: `providers.a` has `api_key` and `keys`
             ╭─[clearway.toml:5:8]
            5 │ keys = []
             ·        ─┬
             ·         ╰── which?
             ╰────
            help: put all into `keys`

            error: `providers.a.limits.burst` is more than `per_minute`
             ╭─[clearway.toml:6:37]
            6 │ limits = { per_minute = 10, burst = 11 }
             ·                                     ─┬
             ·                                      ╰── too many
             ╰────

            error: `providers.a.retry.attempts` must be from 1 to 10
             ╭─[clearway.toml:7:22]
            7 │ retry = { attempts = 0, on = ["timeout", "5xx"] }
             ·                      ┬
             ·                      ╰── out of range
             ╰────

            error: `providers.a.breaker.failures` must be from 1 to 1000
             ╭─[clearway.toml:8:24]
            8 │ breaker = { failures = 0, recovery = "2h" }
             ·                        ┬
             ·                        ╰── out of range
             ╰────

            error: `providers.a.breaker.recovery` must be from 100ms to 1h
             ╭─[clearway.toml:8:38]
            8 │ breaker = { failures = 0, recovery = "2h" }
             ·                                      ──┬─
             ·                                        ╰── out of range
             ╰────

            error: `providers.b.keys[0]` is a secret and must come from the environment
              ╭─[clearway.toml:11:9]
            11 │ keys = [****************, { name = "x", key = "${OPENAI_API_KEY}" }, { name = "x", key = "${OPENAI_API_KEY}" }]
              ·         ────────┬───────
              ·                 ╰── a secret does not belong in a file
              ╰────
            help: put it into an environment variable and write `"${API_KEY}"`

            error: there are two keys `x`
              ╭─[clearway.toml:11:79]
            11 │ keys = [****************, { name = "x", key = "${OPENAI_API_KEY}" }, { name = "x", key = "${OPENAI_API_KEY}" }]
              ·                                                                               ─┬─
              ·                                                                                ╰── the second
              ╰────

            error: `providers.b.limits.burst` needs a `per_minute`
              ╭─[clearway.toml:12:20]
            12 │ limits = { burst = 3 }
              ·                    ┬
              ·                    ╰── a burst of what?
              ╰────
            help: it says how many of a minute's requests may go at once

            error: `providers.b.retry.on[0]` cannot be `timout`
              ╭─[clearway.toml:13:17]
            13 │ retry = { on = ["timout"] }
              ·                 ────┬───
              ·                     ╰── not one of the choices
              ╰────
            help: did you mean `timeout`?

            error: `providers.b.headers.x-api-key` is a secret and must come from the environment
              ╭─[clearway.toml:14:25]
            14 │ headers = { x-api-key = ****************, Host = "x", "a b" = ***, x-note = ************** }
              ·                         ────────┬───────
              ·                                 ╰── a secret does not belong in a file
              ╰────
            help: put it into an environment variable and write `"${API_KEY}"`

            error: the header `Host` is set by the server itself
              ╭─[clearway.toml:14:50]
            14 │ headers = { x-api-key = ****************, Host = "x", "a b" = ***, x-note = ************** }
              ·                                                  ─┬─
              ·                                                   ╰── here
              ╰────
            help: leave it out

            error: `a b` cannot be a header
              ╭─[clearway.toml:14:63]
            14 │ headers = { x-api-key = ****************, Host = "x", "a b" = ***, x-note = ************** }
              ·                                                               ─┬─
              ·                                                                ╰── its name is wrong
              ╰────

            error: `providers.b.headers.x-note` cannot be sent in a header
              ╭─[clearway.toml:14:77]
            14 │ headers = { x-api-key = ****************, Host = "x", "a b" = ***, x-note = ************** }
              ·                                                                             ───────┬──────
              ·                                                                                    ╰── it has a line break, or letters beyond ASCII
              ╰────

            error: `providers.c.flap` has no `down`
              ╭─[clearway.toml:17:8]
            17 │ flap = { up = "20s" }
              ·        ──────────────
              ╰────
            help: write flap = { up = "20s", down = "5s" }

            error: `providers.c` has no key `base_url`
              ╭─[clearway.toml:18:1]
            18 │ base_url = "http://x"
              · ────┬───
              ·     ╰── unknown key
              ╰────
            help: known here: breaker, deadline, flap, jitter, kind, limits, max_concurrent, pool, retry, rpm, script,
                  token_interval, tokens, tpm, ttft"#]],
    );
}

#[test]
fn models_that_cannot_be_meant() {
    check(
        r#"
[providers.house]
kind = "ollama"
[models]
fast = { provider = "openai", model = "a", fallback = ["fast", "deap", "deep", "deep", "vectors"], commit = "restat" }
deep = { provider = "openai", model = "b", price = { input = -1, cached_input = 0.0000001, output = nan } }
free = { provider = "openai", model = "c", price = { input = 1e3, output = 0x10 } }
half = { provider = "openai", model = "d", price = { input = 1.5 } }
vectors = { provider = "house", model = "nomic", dimensions = 768, fallback = ["fast"] }
embed = { provider = "openai", model = "e", embedding = false }
both = { provider = "openai", model = "f", embedding = false, dimensions = 5 }
[agents.a]
model = "vectors"
"#,
        expect![[r#"
            error: `models.fast.fallback`: it cannot be its own fallback
             ╭─[clearway.toml:5:56]
            5 │ fast = { provider = "openai", model = "a", fallback = ["fast", "deap", "deep", "deep", "vectors"], commit = "restat" }
             ·                                                        ───┬──
             ·                                                           ╰── itself
             ╰────

            error: there is no model `deap`
             ╭─[clearway.toml:5:64]
            5 │ fast = { provider = "openai", model = "a", fallback = ["fast", "deap", "deep", "deep", "vectors"], commit = "restat" }
             ·                                                                ───┬──
             ·                                                                   ╰── not defined
             ╰────
            help: did you mean `deep`?

            error: `models.fast.fallback` names `deep` twice
             ╭─[clearway.toml:5:80]
            5 │ fast = { provider = "openai", model = "a", fallback = ["fast", "deap", "deep", "deep", "vectors"], commit = "restat" }
             ·                                                                                ───┬──
             ·                                                                                   ╰── the second
             ╰────
            help: a model that could not answer is not asked again

            error: `models.fast.fallback`: a model that embeds cannot answer instead
             ╭─[clearway.toml:5:88]
            5 │ fast = { provider = "openai", model = "a", fallback = ["fast", "deap", "deep", "deep", "vectors"], commit = "restat" }
             ·                                                                                        ────┬────
             ·                                                                                            ╰── embeds
             ╰────

            error: `models.fast.commit` cannot be `restat`
             ╭─[clearway.toml:5:109]
            5 │ fast = { provider = "openai", model = "a", fallback = ["fast", "deap", "deep", "deep", "vectors"], commit = "restat" }
             ·                                                                                                             ────┬───
             ·                                                                                                                 ╰── not one of the choices
             ╰────
            help: did you mean `restart`?

            error: `models.deep.price.input` must be an amount from 0 to 1000000000
             ╭─[clearway.toml:6:62]
            6 │ deep = { provider = "openai", model = "b", price = { input = -1, cached_input = 0.0000001, output = nan } }
             ·                                                              ─┬
             ·                                                               ╰── no such amount
             ╰────
            help: such as 0.25, with at most six digits behind the point

            error: `models.deep.price.cached_input` must be an amount from 0 to 1000000000
             ╭─[clearway.toml:6:81]
            6 │ deep = { provider = "openai", model = "b", price = { input = -1, cached_input = 0.0000001, output = nan } }
             ·                                                                                 ────┬────
             ·                                                                                     ╰── no such amount
             ╰────
            help: such as 0.25, with at most six digits behind the point

            error: `models.deep.price.output` must be an amount from 0 to 1000000000
             ╭─[clearway.toml:6:101]
            6 │ deep = { provider = "openai", model = "b", price = { input = -1, cached_input = 0.0000001, output = nan } }
             ·                                                                                                     ─┬─
             ·                                                                                                      ╰── no such amount
             ╰────
            help: such as 0.25, with at most six digits behind the point

            error: `models.free.price.input` must be an amount from 0 to 1000000000
             ╭─[clearway.toml:7:62]
            7 │ free = { provider = "openai", model = "c", price = { input = 1e3, output = 0x10 } }
             ·                                                              ─┬─
             ·                                                               ╰── no such amount
             ╰────
            help: such as 0.25, with at most six digits behind the point

            error: `models.free.price.output` must be an amount from 0 to 1000000000
             ╭─[clearway.toml:7:76]
            7 │ free = { provider = "openai", model = "c", price = { input = 1e3, output = 0x10 } }
             ·                                                                            ──┬─
             ·                                                                              ╰── no such amount
             ╰────
            help: such as 0.25, with at most six digits behind the point

            error: `models.half.price` has no `output`
             ╭─[clearway.toml:8:52]
            8 │ half = { provider = "openai", model = "d", price = { input = 1.5 } }
             ·                                                    ───────────────
             ╰────
            help: price = { input = 0.25, output = 2.0 }, per million tokens

            error: providers of the kind `ollama` have no embeddings
             ╭─[clearway.toml:9:24]
            9 │ vectors = { provider = "house", model = "nomic", dimensions = 768, fallback = ["fast"] }
             ·                        ───┬───
             ·                           ╰── cannot embed
             ╰────
            help: Ollama has them at /v1: add a provider with kind = "openai" and base_url = "http://127.0.0.1:11434/v1"

            error: `models.vectors.fallback`: vectors of different models do not compare
             ╭─[clearway.toml:9:80]
            9 │ vectors = { provider = "house", model = "nomic", dimensions = 768, fallback = ["fast"] }
             ·                                                                                ───┬──
             ·                                                                                   ╰── a model that embeds has none
             ╰────

            error: `models.embed.embedding` is false, and the model's name says that it embeds
              ╭─[clearway.toml:10:57]
            10 │ embed = { provider = "openai", model = "e", embedding = false }
              ·                                                         ──┬──
              ·                                                           ╰── which?
              ╰────
            help: give it a name without `embed`

            error: `models.both.embedding` is false, and only models that embed have `dimensions`
              ╭─[clearway.toml:11:56]
            11 │ both = { provider = "openai", model = "f", embedding = false, dimensions = 5 }
              ·                                                        ──┬──
              ·                                                          ╰── which?
              ╰────
            help: leave one of them out

            error: the model `vectors` embeds texts, and an agent needs one that answers
              ╭─[clearway.toml:13:9]
            13 │ model = "vectors"
              ·         ────┬────
              ·             ╰── embeds
              ╰────"#]],
    );
}

#[test]
fn equals_are_models_that_answer() {
    let text = r#"
[models]
wide = { provider = "openai", model = "a", spread = ["wide", "deap", "vectors", "deep", "deep"] }
deep = { provider = "openai", model = "b" }
vectors = { provider = "openai", model = "e", embedding = true }
[providers.house]
kind = "ollama"
deadline = { rate_floor = 0 }
"#;
    let report = Config::parse(FILE, text, &env()).expect_err("should be refused").to_string();
    for said in [
        "`models.wide.spread`: it is one of them anyway",
        "there is no model `deap`",
        "`models.wide.spread`: a model that embeds cannot answer instead",
        "`models.wide.spread` names `deep` twice",
        "`providers.house.deadline.rate_floor` must be above 0",
    ] {
        assert!(report.contains(said), "{said}: {report}");
    }
}
