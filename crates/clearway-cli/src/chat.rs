//! `clearway chat`: talk to the default agent of a running server.
//!
//! Each line is a background run, so what was asked is answered even when this program is not there
//! any more to read it.

use std::io::{IsTerminal, Write};

use anyhow::Result;
use clearway::client::Client;
use serde_json::{Value, json};

use crate::cli::ChatArgs;
use crate::exit::Exit;
use crate::output::Output;
use crate::runs::watch::{self, Show};
use crate::runs::{block_on, encode, exit_of};

pub(crate) fn run(args: &ChatArgs, output: Output) -> Result<Exit> {
    let client = args.client.client()?;
    // Only text is shown: events are for `runs watch`.
    let text_only = Output { quiet: true, ..output };
    let mut conversation = args
        .conversation
        .clone()
        .unwrap_or_else(|| format!("cli-{}-{}", clearway::now().0, std::process::id()));
    block_on(async {
        let say = async |conversation: &str, message: &str| {
            say(&client, &args.user, conversation, message, text_only).await
        };
        if let Some(message) = &args.message {
            return say(&conversation, message).await;
        }
        let is_terminal = std::io::stdin().is_terminal();
        if is_terminal {
            output.note(
                "type a line and press Enter; /help tells more, an empty line or Ctrl+D ends",
            );
        }
        loop {
            if is_terminal {
                output.print_part("> ");
            }
            let mut line = String::new();
            // Nothing else happens in this process, so waiting for a person here blocks nobody.
            let read = std::io::stdin().read_line(&mut line)?;
            if read == 0 || line.trim().is_empty() {
                std::io::stdout().flush()?;
                return Ok(Exit::Ok);
            }
            if let Some(command) = line.trim().strip_prefix('/') {
                match told(&client, &args.user, &mut conversation, command, output).await? {
                    Told::Go => continue,
                    Told::End => return Ok(Exit::Ok),
                }
            }
            let exit = say(&conversation, line.trim()).await?;
            if exit != Exit::Ok && !is_terminal {
                return Ok(exit);
            }
        }
    })
}

enum Told {
    Go,
    End,
}

/// A command of the conversation, as against something said in it.
async fn told(
    client: &Client,
    user: &str,
    conversation: &mut String,
    command: &str,
    output: Output,
) -> Result<Told> {
    match command.split_whitespace().next().unwrap_or_default() {
        "state" => {
            let path =
                format!("/state?user_id={}&conversation_id={}", encode(user), encode(conversation));
            match client.get(&path).await {
                Ok(state) => output.print(&format!("{state:#}")),
                Err(error) => output.error(&error.to_string()),
            }
        }
        "new" => {
            *conversation = format!("cli-{}-{}", clearway::now().0, std::process::id());
            output.note("a new conversation");
        }
        "quit" | "exit" => return Ok(Told::End),
        _ => output.note(
            "/state shows what the conversation came to, /new begins another one, \
             /quit ends; Ctrl+C leaves, and the answer is kept",
        ),
    }
    Ok(Told::Go)
}

/// One turn.
async fn say(
    client: &Client,
    user: &str,
    conversation: &str,
    message: &str,
    output: Output,
) -> Result<Exit> {
    let body = json!({"message": message, "user_id": user, "conversation_id": conversation});
    let accepted = client.post("/chat/async", Some(&body)).await?;
    let Some(id) = accepted["task_id"].as_str() else {
        anyhow::bail!("the server did not say which task it made of this: {accepted}");
    };
    let exit = watch::watch(client, id, None, Show::Text, output).await?;
    if exit != Exit::Ok {
        let (_, run) = exit_of(client, id).await?;
        output.error(&format!("error: {}", failure(&run)));
    }
    Ok(exit)
}

fn failure(run: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match run["error"]["message"].as_str() {
        Some(message) => format!("{}: {message}", text(&run["error"]["code"])),
        None => format!("the run has ended: {}", text(&run["status"])),
    }
}
