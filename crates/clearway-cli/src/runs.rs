//! `clearway runs`: look at runs of a server, and end them.

use anyhow::Result;
use clearway::client::{Client, Error};
use serde_json::{Value, json};

use crate::cli::{LsArgs, RunsArgs, RunsCommand};
use crate::exit::Exit;
use crate::output::Output;

pub(crate) mod steps;
pub(crate) mod watch;

pub(crate) fn run(args: &RunsArgs, output: Output) -> Result<Exit> {
    let client = args.client.client()?;
    block_on(async {
        match &args.command {
            RunsCommand::Ls(args) => list(&client, args, output).await,
            RunsCommand::Show(args) => show(&client, &args.id, output).await,
            RunsCommand::Watch(args) => {
                let (_, run) = exit_of(&client, &args.id).await?;
                // A chat is its text, a workflow its steps and files.
                let by_steps = matches!(run["door"].as_str(), Some("runs" | "campaign"));
                let show = if by_steps { watch::Show::steps_of(&run) } else { watch::Show::Text };
                let show = if output.json { watch::Show::Text } else { show };
                let text_only = show == watch::Show::Text;
                let exit = watch::watch(&client, &args.id, args.after.clone(), show, output);
                let exit = exit.await?;
                match text_only {
                    false => crate::workflow::finish(&client, &args.id, output).await,
                    true => Ok(exit),
                }
            }
            RunsCommand::Cancel(args) => cancel(&client, &args.id, output).await,
            RunsCommand::Why(args) => why(&client, &args.id, output).await,
            RunsCommand::Answer(args) => {
                let body = json!({"answer": loose(&args.answer)});
                told(&client, &args.id, "/answer", &body, output).await
            }
            RunsCommand::Resolve(args) => {
                let mut body = match &args.done {
                    Some(done) => json!({"done": loose(done)}),
                    None => json!({"retry": true}),
                };
                for (name, value) in [("node", &args.node), ("key", &args.key)] {
                    if let Some(value) = value {
                        body[name] = value.as_str().into();
                    }
                }
                told(&client, &args.id, "/resolve", &body, output).await
            }
            RunsCommand::Wake(args) => told(&client, &args.id, "/wake", &Value::Null, output).await,
            RunsCommand::Signal(args) => {
                let value = args.value.as_deref().map(loose).unwrap_or_default();
                let rest = format!("/signals/{}", encode(&args.name));
                told(&client, &args.id, &rest, &value, output).await
            }
            RunsCommand::Budget(args) => {
                let budget = json!({"tokens": args.tokens, "cost": args.cost, "calls": args.calls});
                let run = client.patch(&path(&args.id, ""), &json!({"budget": budget})).await?;
                output.print(&if output.json { run.to_string() } else { shown(&run) });
                Ok(Exit::Ok)
            }
        }
    })
}

/// JSON if it is some, else the text itself.
pub(crate) fn loose(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// Tells a run something, and shows what became of it.
async fn told(client: &Client, id: &str, rest: &str, body: &Value, output: Output) -> Result<Exit> {
    let run = client.post(&path(id, rest), Some(body)).await?;
    output.print(&if output.json { run.to_string() } else { shown(&run) });
    Ok(Exit::Ok)
}

/// A runtime for one command: one thread is enough.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    result
}

/// A run's address. An id is one segment whatever was typed.
pub(crate) fn path(id: &str, rest: &str) -> String {
    format!("/runs/{}{rest}", encode(id))
}

/// Percent-encodes all but letters, digits and `-._~`.
pub(crate) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

async fn list(client: &Client, args: &LsArgs, output: Output) -> Result<Exit> {
    let mut query = String::new();
    for status in &args.status {
        query += &format!("&status={}", format!("{status:?}").to_lowercase());
    }
    for (name, value) in [("agent", &args.agent), ("thread_id", &args.thread)] {
        if let Some(value) = value {
            query += &format!("&{name}={}", encode(value));
        }
    }
    let page = async |limit: u32, after: Option<String>| {
        let after = after.map(|after| format!("&after={}", encode(&after))).unwrap_or_default();
        client.get(&format!("/runs?limit={limit}{after}{query}")).await
    };
    if output.json {
        let mut runs = Vec::new();
        let next = in_pages(args.limit, page, |run| runs.push(run)).await?;
        output.print(&json!({"runs": runs, "next": next}).to_string());
        return Ok(Exit::Ok);
    }
    // Of each run only what is shown.
    let mut rows = Vec::new();
    let next = in_pages(args.limit, page, |run| rows.push(row(&run))).await?;
    if rows.is_empty() {
        output.note("no runs");
        return Ok(Exit::Ok);
    }
    output.print(&table(&["RUN", "STATUS", "AGENT", "CREATED", ""], &rows));
    if next.is_some() {
        output.note(&format!("there are more: --limit {}", args.limit.saturating_mul(5).min(1000)));
    }
    Ok(Exit::Ok)
}

/// Runs that are asked for at once. A server ends a page early when it is large, and older ones do not.
const PAGE: u32 = 20;

/// Gives up to `limit` runs to `take`, and answers where the next ones would begin. An answer that
/// cannot be read is asked for again with half as many: one of a single run can.
async fn in_pages(
    limit: u32,
    mut page: impl AsyncFnMut(u32, Option<String>) -> Result<Value, Error>,
    mut take: impl FnMut(Value),
) -> Result<Option<String>, Error> {
    let (mut left, mut size) = (limit, PAGE);
    let mut after = None;
    loop {
        let asked = size.min(left);
        let mut body = match page(asked, after.clone()).await {
            Err(Error::Unexpected { .. }) if asked > 1 => {
                size = asked / 2;
                continue;
            }
            answer => answer?,
        };
        let runs = body["runs"].as_array_mut().map(std::mem::take).unwrap_or_default();
        left = left.saturating_sub(u32::try_from(runs.len()).unwrap_or(u32::MAX));
        let is_empty = runs.is_empty();
        runs.into_iter().for_each(&mut take);
        after = body["next"].as_str().map(ToOwned::to_owned);
        if left == 0 || after.is_none() || is_empty {
            return Ok(after);
        }
    }
}

fn row(run: &Value) -> [String; 5] {
    let text = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
    let remark = match (run["waiting_on"]["sentence"].as_str(), run["error"]["code"].as_str()) {
        (Some(sentence), _) => sentence.split(';').next().unwrap_or(sentence).to_owned(),
        (None, Some(code)) => code.to_owned(),
        (None, None) => String::new(),
    };
    [text("run_id"), text("status"), text("agent"), time(&text("created_at")), remark]
}

/// A time to the second.
pub(crate) fn time(text: &str) -> String {
    text.get(..19).unwrap_or(text).replace('T', " ")
}

/// Columns, as wide as what is in them.
pub(crate) fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            line += &format!("{cell:width$}  ");
        }
        line.trim_end().to_owned()
    };
    let mut lines = vec![line(*head)];
    lines.extend(rows.iter().map(|row| line(std::array::from_fn(|at| row[at].as_str()))));
    lines.join("\n")
}

async fn show(client: &Client, id: &str, output: Output) -> Result<Exit> {
    let mut run = client.get(&path(id, "")).await?;
    let attempts = client.get(&path(id, "/attempts?limit=1000")).await?["attempts"].take();
    if output.json {
        run["attempts"] = attempts;
        output.print(&run.to_string());
        return Ok(Exit::Ok);
    }
    output.print(&shown(&run));
    let rows: Vec<_> = attempts.as_array().into_iter().flatten().map(attempt).collect();
    if !rows.is_empty() {
        output.print("");
        let head = ["ENDED", "NODE", "ROUTE", "OUTCOME", "TOKENS", "COST", "TOOK"];
        output.print(&table(&head, &rows));
    }
    Ok(Exit::Ok)
}

/// One attempt at a provider call, in a line.
fn attempt(attempt: &Value) -> [String; 7] {
    let text = |key: &str| attempt[key].as_str().unwrap_or_default();
    let number = |key: &str| attempt[key].as_u64().unwrap_or_default();
    let tokens = match text("source") {
        "none" => String::new(),
        source => {
            let (input, output) = (number("input_tokens"), number("output_tokens"));
            let guessed = if source == "provider" { "" } else { ", estimated" };
            format!("{input} in, {output} out{guessed}")
        }
    };
    [
        time(text("at")),
        text("node").to_owned(),
        format!("{}/{}", text("provider"), text("model")),
        text("outcome").to_owned(),
        tokens,
        attempt["cost"].as_f64().map(|cost| format!("{cost:.6}")).unwrap_or_default(),
        format!("{:.1} s", number("ms") as f64 / 1000.0),
    ]
}

/// A run for people: what is there, and nothing that is not.
fn shown(run: &Value) -> String {
    let keys = [
        ("run", "run_id"),
        ("status", "status"),
        ("agent", "agent"),
        ("door", "door"),
        ("thread", "thread_id"),
        ("pool", "pool"),
        ("created", "created_at"),
        ("started", "started_at"),
        ("ended", "ended_at"),
        ("deadline", "deadline_at"),
        ("attempt", "attempt"),
        ("ahead", "queue_position"),
    ];
    let mut lines = Vec::new();
    let mut put = |name: &str, text: String| lines.push(format!("{name:<9} {text}"));
    for (name, key) in keys {
        match &run[key] {
            Value::Null => {}
            Value::String(text) => put(name, text.clone()),
            other => put(name, other.to_string()),
        }
    }
    if let Some(spent) = run["spent_ms"].as_object().filter(|spent| !spent.is_empty()) {
        let seconds = |(kind, ms): (&String, &Value)| {
            format!("{kind} {:.1} s", ms.as_f64().unwrap_or(0.0) / 1000.0)
        };
        put("spent", spent.iter().map(seconds).collect::<Vec<_>>().join(", "));
    }
    let tokens = |key: &str| run["usage"][key].as_u64().unwrap_or(0);
    if tokens("calls") > 0 {
        put(
            "tokens",
            format!(
                "{} in, {} out, {} calls",
                tokens("input_tokens"),
                tokens("output_tokens"),
                tokens("calls")
            ),
        );
    }
    if let Some(sentence) = run["waiting_on"]["sentence"].as_str() {
        put("waits", sentence.to_owned());
    }
    for write in run["undecided"].as_array().into_iter().flatten() {
        let text = |name: &str| write[name].as_str().unwrap_or_default();
        put("undecided", format!("write of `{}`, key {}", text("node"), text("idempotency_key")));
    }
    if let Some(message) = run["error"]["message"].as_str() {
        put("error", format!("{}: {message}", run["error"]["code"].as_str().unwrap_or_default()));
    }
    lines.join("\n")
}

async fn cancel(client: &Client, id: &str, output: Output) -> Result<Exit> {
    let run = client.post(&path(id, "/cancel?wait=1"), None).await?;
    if output.json {
        output.print(&run.to_string());
    } else {
        let after = run["receipt"]["ms"].as_u64().map(|ms| format!(" after {ms} ms"));
        let status = run["status"].as_str().unwrap_or("ended");
        output.print(&format!("{id} {status}{}", after.unwrap_or_default()));
    }
    Ok(Exit::Ok)
}

async fn why(client: &Client, id: &str, output: Output) -> Result<Exit> {
    let run = client.get(&path(id, "")).await?;
    if output.json {
        let why = serde_json::json!({
            "run_id": run["run_id"],
            "status": run["status"],
            "waiting_on": run["waiting_on"],
            "error": run["error"],
            "sentence": reason(&run),
        });
        output.print(&why.to_string());
    } else {
        output.print(&reason(&run));
    }
    Ok(Exit::Ok)
}

/// One sentence.
fn reason(run: &Value) -> String {
    if let Some(sentence) = run["waiting_on"]["sentence"].as_str() {
        return sentence.to_owned();
    }
    let status = run["status"].as_str().unwrap_or_default();
    match run["error"]["message"].as_str() {
        Some(message) => {
            format!(
                "it has ended: {status}, {}: {message}",
                run["error"]["code"].as_str().unwrap_or_default()
            )
        }
        None => format!("it has ended: {status}"),
    }
}

/// How a run ended, by the server's last word.
pub(crate) async fn exit_of(client: &Client, id: &str) -> Result<(Exit, Value), Error> {
    let run = client.get(&path(id, "")).await?;
    Ok((Exit::of_status(run["status"].as_str().unwrap_or_default()), run))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn ids_stay_one_segment() {
        assert_eq!(path("../../x?y", "/cancel"), "/runs/..%2F..%2Fx%3Fy/cancel");
    }

    /// A list of `count` runs, of which a page holds `most`; everything that was asked for.
    async fn pages(count: u32, most: u32, limit: u32) -> (Result<usize, Error>, Vec<u32>, bool) {
        let mut asked = Vec::new();
        let mut ids = Vec::new();
        let page = async |size: u32, after: Option<String>| {
            asked.push(size);
            if size > most {
                let problem = "the answer is too long".to_owned();
                return Err(Error::Unexpected { server: "here".to_owned(), problem });
            }
            let from: u32 = after.map_or(0, |after| after.parse().unwrap());
            let to = (from + size).min(count);
            let runs: Vec<Value> = (from..to).map(|id| json!({"run_id": id})).collect();
            Ok(json!({"runs": runs, "next": (to < count).then(|| to.to_string())}))
        };
        let next = in_pages(limit, page, |run| ids.push(run["run_id"].clone())).await;
        let in_order = ids.iter().zip(0..).all(|(id, at)| *id == json!(at));
        assert!(in_order, "{ids:?}");
        let more = matches!(next, Ok(Some(_)));
        (next.map(|_| ids.len()), asked, more)
    }

    #[tokio::test]
    async fn long_lists_come_in_pages_that_can_be_read() {
        let (found, asked, more) = pages(100, 1000, 50).await;
        assert_eq!((found.unwrap(), asked, more), (50, vec![20, 20, 10], true));
        let (found, asked, more) = pages(7, 1000, 50).await;
        assert_eq!((found.unwrap(), asked, more), (7, vec![20], false));
        let (found, asked, more) = pages(12, 5, 11).await;
        assert_eq!((found.unwrap(), asked, more), (11, vec![11, 5, 5, 1], true));
        let (found, asked, _) = pages(1, 0, 20).await;
        assert!(matches!(found, Err(Error::Unexpected { .. })), "{found:?}");
        assert_eq!(asked, [20, 10, 5, 2, 1], "a server that answers nonsense is left soon");
    }

    #[test]
    fn a_table_for_people() {
        let runs = [
            json!({"run_id": "0192", "status": "running", "agent": "cofounder", "created_at": "2026-11-20T20:46:29.363+00:00",
                   "waiting_on": {"sentence": "waiting for a slot in pool chat: 2 ahead, 1.0 s so far; an operator can"}}),
            json!({"run_id": "0193", "status": "error", "agent": "a", "created_at": "2026-11-20T20:46:30.000+00:00",
                   "error": {"code": "upstream.stream_truncated"}}),
        ];
        let rows: Vec<_> = runs.iter().map(row).collect();
        expect![[r#"
            RUN   STATUS   AGENT      CREATED
            0192  running  cofounder  2026-11-20 20:46:29  waiting for a slot in pool chat: 2 ahead, 1.0 s so far
            0193  error    a          2026-11-20 20:46:30  upstream.stream_truncated"#]].assert_eq(&table(&["RUN", "STATUS", "AGENT", "CREATED", ""], &rows));
    }

    #[test]
    fn a_run_for_people() {
        let run = json!({
            "run_id": "0193", "status": "error", "agent": "a", "ended_at": null, "attempt": 1,
            "spent_ms": {"first_byte": 2500, "slot": 100}, "usage": {"calls": 1, "input_tokens": 10, "output_tokens": 2},
            "error": {"code": "deadline_exceeded", "message": "2.6 s spent"},
        });
        expect![[r#"
            run       0193
            status    error
            agent     a
            attempt   1
            spent     first_byte 2.5 s, slot 0.1 s
            tokens    10 in, 2 out, 1 calls
            error     deadline_exceeded: 2.6 s spent"#]]
        .assert_eq(&shown(&run));
        expect!["it has ended: error, deadline_exceeded: 2.6 s spent"].assert_eq(&reason(&run));
        assert_eq!(reason(&json!({"status": "success"})), "it has ended: success");
    }
}
