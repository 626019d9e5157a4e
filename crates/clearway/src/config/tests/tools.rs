//! Mistakes in tools, MCP servers and what may call them.

use super::*;

#[test]
fn tools_that_name_nothing() {
    check(
        r#"
[agents.a]
tools = [
  "run:paln", "serach:company", "search:company", "set:notes", "plan", "run:plan", "run:plan",
  { tool = "mcp:crm/find_*", wait = true },
]
confirm = ["run:plna", "mcp:crm/*", "mcp:x"]

[agents.b]
tools = ["set:miletones"]
state = { milestones = { type = "object" }, bad = { type = "string" } }

[mcp.crm]
comand = ["crm"]

[mcp.both]
command = ["crm"]
url = "https://x.example/mcp"

[workflows.plan.steps.facts]
do = "search"
source = "company"
query = "{{ input.x }}"
"#,
        expect![[r#"
            error: there is no `paln` in `workflows`
             ╭─[clearway.toml:4:3]
            4 │   "run:paln", "serach:company", "search:company", "set:notes", "plan", "run:plan", "run:plan",
             ·   ─────┬────
             ·        ╰── not defined
             ╰────
            help: did you mean `run:plan`?

            error: there are no tools of the kind `serach`
             ╭─[clearway.toml:4:15]
            4 │   "run:paln", "serach:company", "search:company", "set:notes", "plan", "run:plan", "run:plan",
             ·               ────────┬───────
             ·                       ╰── not known
             ╰────
            help: did you mean `search:company`?

            error: there is no `company` in `knowledge`
             ╭─[clearway.toml:4:33]
            4 │   "run:paln", "serach:company", "search:company", "set:notes", "plan", "run:plan", "run:plan",
             ·                                 ────────┬───────
             ·                                         ╰── not defined
             ╰────
            help: add [knowledge.company]

            error: there is no `notes` in `state`
             ╭─[clearway.toml:4:51]
            4 │   "run:paln", "serach:company", "search:company", "set:notes", "plan", "run:plan", "run:plan",
             ·                                                   ─────┬─────
             ·                                                        ╰── not defined
             ╰────
            help: add state = { notes = { … } } to the agent

            error: `plan` does not say what kind of tool it is
             ╭─[clearway.toml:4:64]
            4 │   "run:paln", "serach:company", "search:company", "set:notes", "plan", "run:plan", "run:plan",
             ·                                                                ───┬──
             ·                                                                   ╰── here
             ╰────
            help: write one of run:NAME, mcp:NAME, set:NAME, search:NAME, graph:NAME, open:NAME

            error: `run:plan` is there twice
             ╭─[clearway.toml:4:84]
            4 │   "run:paln", "serach:company", "search:company", "set:notes", "plan", "run:plan", "run:plan",
             ·                                                                                    ─────┬────
             ·                                                                                         ╰── again
             ╰────
            help: leave one out

            error: only `run:` tools can wait
             ╭─[clearway.toml:5:37]
            5 │   { tool = "mcp:crm/find_*", wait = true },
             ·                                     ──┬─
             ·                                       ╰── not here
             ╰────
            help: leave it out

            error: no tool of this agent fits `run:plna`
             ╭─[clearway.toml:7:12]
            7 │ confirm = ["run:plna", "mcp:crm/*", "mcp:x"]
             ·            ─────┬────
             ·                 ╰── fits nothing
             ╰────
            help: did you mean `run:plan`?

            error: no tool of this agent fits `mcp:x`
             ╭─[clearway.toml:7:37]
            7 │ confirm = ["run:plna", "mcp:crm/*", "mcp:x"]
             ·                                     ───┬───
             ·                                        ╰── fits nothing
             ╰────
            help: it has: run:paln, search:company, set:notes, run:plan, run:plan, mcp:crm/find_*

            error: there is no `miletones` in `state`
              ╭─[clearway.toml:10:10]
            10 │ tools = ["set:miletones"]
              ·          ───────┬───────
              ·                 ╰── not defined
              ╰────
            help: did you mean `set:milestones`?

            error: a part of the state is an object or a list
              ╭─[clearway.toml:11:51]
            11 │ state = { milestones = { type = "object" }, bad = { type = "string" } }
              ·                                                   ─────────┬─────────
              ·                                                            ╰── here
              ╰────
            help: its schema has type = "object" with properties, or type = "array"

            error: `mcp.crm` has neither `command` nor `url`
              ╭─[clearway.toml:13:1]
            13 │ [mcp.crm]
              · ────┬────
              ·     ╰── here
              ╰────
            help: a program of yours: command = ["./bin/crm-mcp"]; or a server: url = "https://…/mcp"

            error: `mcp.crm` has no key `comand`
              ╭─[clearway.toml:14:1]
            14 │ comand = ["crm"]
              · ───┬──
              ·    ╰── unknown key
              ╰────
            help: did you mean `command`?

            error: `mcp.both` has both `command` and `url`
              ╭─[clearway.toml:16:1]
            16 │ [mcp.both]
              · ─────┬────
              ·      ╰── here
              ╰────
            help: a program of yours: command = ["./bin/crm-mcp"]; or a server: url = "https://…/mcp"

            error: there is no knowledge `company`
              ╭─[clearway.toml:22:10]
            22 │ source = "company"
              ·          ────┬────
              ·              ╰── not defined
              ╰────
            help: there is none: add [knowledge.company]

            error: step `facts` uses `input.x`, which does not exist
              ╭─[clearway.toml:23:9]
            23 │ query = "{{ input.x }}"
              ·         ───────┬───────
              ·                ╰── not defined
              ╰────
            help: `input` gives:"#]],
    );
}
