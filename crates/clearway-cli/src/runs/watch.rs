//! Following a run's events to its end, across broken connections and restarted servers.

use std::time::Duration;

use anyhow::Result;
use clearway::client::{Client, Error, ServerEvent};
use serde_json::Value;

use super::steps::Steps;
use super::{exit_of, path};
use crate::exit::Exit;
use crate::output::Output;

/// How often in a row a broken stream is taken up again.
const ATTEMPTS: u32 = 20;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// How a run is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// What it says, and a line for everything else.
    Text,
    /// Its steps; these are the ones by which it is followed.
    Steps(Vec<String>),
}

impl Show {
    /// By the server's word about a run.
    pub(crate) fn steps_of(run: &Value) -> Self {
        let names = run["step_names"].as_array().into_iter().flatten();
        Self::Steps(names.filter_map(Value::as_str).map(ToOwned::to_owned).collect())
    }
}

/// Shows a run and what happens to it; ends as the run does.
pub(crate) async fn watch(
    client: &Client,
    id: &str,
    after: Option<String>,
    show: Show,
    output: Output,
) -> Result<Exit> {
    let steps = match show {
        Show::Steps(names) => Some(Steps::new(output, names)),
        Show::Text => None,
    };
    let mut view = View { output, last: after, open_line: false, steps };
    let mut attempts = 0;
    loop {
        let seen = view.last.clone();
        let broken = match follow(client, id, &mut view).await {
            Ok(()) => {
                let (exit, run) = exit_of(client, id).await?;
                if has_ended(&run) {
                    view.finish();
                    return Ok(exit);
                }
                None
            }
            Err(error @ (Error::Problem(_) | Error::Url { .. })) => return Err(error.into()),
            Err(error) => Some(error),
        };
        attempts = if view.last == seen { attempts + 1 } else { 1 };
        if attempts > ATTEMPTS || (attempts > 1 && view.last.is_none()) {
            return Err(match broken {
                Some(error) => error.into(),
                None => anyhow::anyhow!(
                    "the server ends the stream again and again before the run has ended"
                ),
            });
        }
        if let Some(error) = broken {
            view.say(&format!("{error}; going on where it broke off"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Reads one stream to its end.
async fn follow(client: &Client, id: &str, view: &mut View) -> Result<(), Error> {
    let mut events = client.events(&path(id, "/events"), view.last.as_deref()).await?;
    while let Some(event) = events.next().await? {
        view.show(&event);
    }
    Ok(())
}

fn has_ended(run: &Value) -> bool {
    matches!(run["status"].as_str(), Some("success" | "error" | "timeout" | "cancelled"))
}

/// What was shown so far.
struct View {
    output: Output,
    /// The last event's id.
    last: Option<String>,
    /// Whether text stands on the current line.
    open_line: bool,
    steps: Option<Steps>,
}

impl View {
    fn show(&mut self, event: &ServerEvent) {
        if event.id.is_some() {
            self.last.clone_from(&event.id);
        }
        let body = || -> Value { serde_json::from_str(&event.data).unwrap_or_default() };
        if let Some(steps) = &mut self.steps {
            steps.event(&event.name, &body()["data"]);
            return;
        }
        if self.output.json {
            self.output.print(&event.data);
            return;
        }
        let body = body();
        let data = &body["data"];
        if event.name == "message.delta" {
            if let Some(text) = data["text"].as_str().filter(|_| data["part"] == "text") {
                self.output.print_part(text);
                self.open_line = !text.ends_with('\n');
            }
            return;
        }
        if !self.output.quiet {
            self.finish();
            self.output.note(&remark(&event.name, data));
        }
    }

    fn say(&self, text: &str) {
        match &self.steps {
            Some(steps) => steps.line(text),
            None => self.output.note(text),
        }
    }

    fn finish(&mut self) {
        if let Some(steps) = &mut self.steps {
            steps.finish();
        }
        if std::mem::take(&mut self.open_line) {
            self.output.print_part("\n");
        }
    }
}

/// One line about an event that is no text.
fn remark(name: &str, data: &Value) -> String {
    let facts = data
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_object() && !value.is_null());
    let facts: Vec<String> = facts
        .map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        })
        .collect();
    let failure = data["error"]["message"].as_str().map(|message| format!(": {message}"));
    format!("-- {name} {}{}", facts.join(" "), failure.unwrap_or_default()).trim_end().to_owned()
}
