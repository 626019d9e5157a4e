//! `clearway chat [AGENT]`: talk to an agent of a running server.
//!
//! Each line is a background run, so what was asked is answered even when this program is not there any more to read
//! it. While an answer comes, a terminal's lines are read all the same: `/cancel` stops it, anything else is said next.
//!
//! Without an agent the server's default one is spoken to, in a conversation with a name; a named agent, and a fork, is a
//! thread with an id.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};

use anyhow::{Context as _, Result, bail};
use clearway::client::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::cli::ChatArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::runs::watch::{self, Show};
use crate::runs::{block_on, encode, exit_of, path};

const HELP: &str = "/fork goes on in a copy, the original stays; /state shows what the conversation came to; /cancel stops \
                    an answer that is coming; /new begins another conversation; /quit ends; Ctrl+C leaves, and the \
                    answer is kept";

/// Lines that were typed while an answer came.
const TYPED_AHEAD: usize = 16;

pub(crate) fn run(args: &ChatArgs, output: Output) -> Result<Exit> {
    let client = args.client.client()?;
    let place = match (&args.agent, &args.conversation) {
        (Some(agent), thread) => Place::Thread { agent: agent.clone(), id: thread.clone() },
        (None, Some(name)) => Place::Named(name.clone()),
        (None, None) => Place::named(),
    };
    let is_terminal = std::io::stdin().is_terminal();
    let lines = lines()?;
    let user = args.user.clone();
    let mut talk = Talk {
        client,
        output,
        user,
        place,
        last: None,
        lines,
        ahead: VecDeque::new(),
        is_terminal,
    };
    block_on(async {
        match &args.message {
            Some(message) => talk.say(message).await,
            None => talk.converse().await,
        }
    })
}

/// Where it is talked.
enum Place {
    /// A conversation with the default agent.
    Named(String),
    /// A thread; made with the first line when there is none yet.
    Thread { agent: String, id: Option<String> },
}

impl Place {
    fn named() -> Self {
        Self::Named(format!("cli-{}-{}", clearway::now().0, std::process::id()))
    }
}

struct Talk {
    client: Client,
    output: Output,
    user: String,
    place: Place,
    /// The newest run.
    last: Option<String>,
    lines: mpsc::Receiver<std::io::Result<String>>,
    ahead: VecDeque<String>,
    is_terminal: bool,
}

impl Talk {
    async fn converse(&mut self) -> Result<Exit> {
        if self.is_terminal {
            let hint =
                "type a line and press Enter; /help tells more, an empty line or Ctrl+D ends";
            self.output.note(hint);
        }
        loop {
            if self.is_terminal {
                self.output.print_part("> ");
            }
            let line = match self.ahead.pop_front() {
                Some(line) => Some(line),
                None => self.lines.recv().await.transpose()?,
            };
            let line = line.unwrap_or_default();
            let line = line.trim();
            if line.is_empty() || matches!(line, "/quit" | "/exit") {
                std::io::stdout().flush()?;
                return Ok(Exit::Ok);
            }
            if let Some(command) = line.strip_prefix('/') {
                // A command that fails ends no conversation.
                if let Err(error) = self.told(command).await {
                    self.output.error(&format!("error: {error:#}"));
                }
                continue;
            }
            let exit = self.say(line).await?;
            if exit != Exit::Ok && !self.is_terminal {
                return Ok(exit);
            }
        }
    }

    /// A command, as against something said.
    async fn told(&mut self, command: &str) -> Result<()> {
        match command.split_whitespace().next().unwrap_or_default() {
            "state" => {
                let state = match &self.place {
                    Place::Named(name) => {
                        let (user, name) = (encode(&self.user), encode(name));
                        let path = format!("/state?user_id={user}&conversation_id={name}");
                        self.client.get(&path).await?
                    }
                    Place::Thread { id: None, .. } => bail!("nothing has been said yet"),
                    Place::Thread { id: Some(id), .. } => {
                        let path = format!("/threads/{}/state", encode(id));
                        self.client.get(&path).await?["values"].clone()
                    }
                };
                self.output.print(&format!("{state:#}"));
            }
            "fork" => self.fork().await?,
            "new" => {
                self.place = match &self.place {
                    Place::Named(_) => Place::named(),
                    Place::Thread { agent, .. } => Place::Thread { agent: agent.clone(), id: None },
                };
                self.output.note("a new conversation");
            }
            "cancel" => self.output.note("nothing is being answered"),
            _ => self.output.note(HELP),
        }
        Ok(())
    }

    /// Goes on in a copy of the conversation.
    async fn fork(&mut self) -> Result<()> {
        let (agent, id) = match (&self.place, &self.last) {
            (Place::Thread { agent, id: Some(id) }, _) => (agent.clone(), id.clone()),
            (_, Some(run)) => {
                let run = self.client.get(&path(run, "")).await?;
                let text = |key: &str| run[key].as_str().map(ToOwned::to_owned);
                let agent = text("agent").context("a run without an agent")?;
                (agent, text("thread_id").context("a run without a thread")?)
            }
            (_, None) => bail!("nothing has been said yet"),
        };
        let path = format!("/threads/{}/copy", encode(&id));
        let copy = self.client.post(&path, Some(&json!({}))).await?;
        let copy = copy["thread_id"].as_str().context("a copy without an id")?.to_owned();
        self.output.note(&format!("going on in thread {copy}; thread {id} stays as it is"));
        self.place = Place::Thread { agent, id: Some(copy) };
        Ok(())
    }

    /// One turn.
    async fn say(&mut self, message: &str) -> Result<Exit> {
        let run = self.submit(message).await?;
        self.last = Some(run.clone());
        // Only text is shown: events are for `runs watch`.
        let output = Output { quiet: true, ..self.output };
        let Self { client, lines, ahead, is_terminal, .. } = self;
        let answer = watch::watch(client, &run, None, Show::Text, output);
        tokio::pin!(answer);
        let mut listening = *is_terminal;
        let exit = loop {
            tokio::select! {
                exit = &mut answer => break exit?,
                line = lines.recv(), if listening => match line.transpose()? {
                    Some(line) if line.trim() == "/cancel" => {
                        client.post(&path(&run, "/cancel"), None).await?;
                    }
                    Some(line) if ahead.len() < TYPED_AHEAD => ahead.push_back(line),
                    Some(_) => output.error("one thing after another: this line is forgotten"),
                    None => listening = false,
                }
            }
        };
        if exit != Exit::Ok {
            let (_, run) = exit_of(client, &run).await?;
            output.error(&format!("error: {}", failure(&run)));
        }
        Ok(exit)
    }

    /// Hands a line over; the run that answers it.
    async fn submit(&mut self, message: &str) -> Result<String> {
        let (accepted, key) = match &mut self.place {
            Place::Named(name) => {
                let body =
                    json!({"message": message, "user_id": self.user, "conversation_id": name});
                (self.client.post("/chat/async", Some(&body)).await?, "task_id")
            }
            Place::Thread { agent, id } => {
                let id = match id {
                    Some(id) => id,
                    None => {
                        let made = self.client.post("/threads", Some(&json!({}))).await?;
                        let made = made["thread_id"].as_str().context("a thread without an id")?;
                        id.insert(made.to_owned())
                    }
                };
                let said = json!([{"role": "user", "content": message}]);
                let body = json!({"assistant_id": agent, "input": {"messages": said}});
                let path = format!("/threads/{}/runs", encode(id));
                (self.client.post(&path, Some(&body)).await?, "run_id")
            }
        };
        let run = accepted[key].as_str();
        let run = run.with_context(|| format!("the answer has no `{key}`: {accepted}"))?;
        Ok(run.to_owned())
    }
}

/// Lines of the input, read in a thread of their own: a person who thinks keeps nothing from happening. It ends with
/// the input or with the process.
fn lines() -> Result<mpsc::Receiver<std::io::Result<String>>> {
    let (give, take) = mpsc::channel(TYPED_AHEAD);
    let read = move || {
        for line in std::io::stdin().lines() {
            if give.blocking_send(line).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("lines".into()).spawn(read).context("reading the input")?;
    Ok(take)
}

fn failure(run: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match run["error"]["message"].as_str() {
        Some(message) => format!("{}: {message}", text(&run["error"]["code"])),
        None => format!("the run has ended: {}", text(&run["status"])),
    }
}
