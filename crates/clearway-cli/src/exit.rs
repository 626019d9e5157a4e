//! How a command ends: its exit code, and the one place where errors are printed.

use std::fmt;
use std::process::ExitCode;

use clearway::{Report, client};
use serde_json::json;

use crate::output::Output;

/// Exit codes, a contract with scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    Failed,
    Usage,
    NotFound,
    TimedOut,
    Cancelled,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::TimedOut => 4,
            Exit::Cancelled => 5,
        })
    }
}

impl Exit {
    /// For a run that ended with this status.
    pub(crate) fn of_status(status: &str) -> Self {
        match status {
            "success" => Self::Ok,
            "timeout" => Self::TimedOut,
            "cancelled" => Self::Cancelled,
            _ => Self::Failed,
        }
    }

    fn of(error: &anyhow::Error) -> Self {
        match error.downcast_ref::<client::Error>() {
            Some(client::Error::Timeout { .. }) => Self::TimedOut,
            Some(client::Error::Url { .. }) => Self::Usage,
            Some(client::Error::Problem(problem)) if problem.status == 404 => Self::NotFound,
            Some(_) => Self::Failed,
            None if error.is::<Usage>() => Self::Usage,
            None => Self::Failed,
        }
    }
}

/// A command that was called wrongly; the second text says how to call it.
#[derive(Debug)]
pub(crate) struct Usage {
    pub(crate) problem: String,
    pub(crate) help: String,
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)
    }
}

impl std::error::Error for Usage {}

/// Prints what went wrong, and says how the process ends.
pub(crate) fn report(error: &anyhow::Error, output: Output) -> Exit {
    let exit = Exit::of(error);
    if let Some(report) = error.downcast_ref::<Report>() {
        output.error(report.render(output.colour_of_errors()).trim_end());
        return exit;
    }
    // Causes that only say again what is above them are left out.
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    let help = help(error);
    if output.json {
        let code = match error.downcast_ref::<client::Error>() {
            Some(client::Error::Problem(problem)) => Some(problem.code.clone()),
            Some(_) | None => None,
        };
        output
            .error(&json!({"error": {"message": message, "code": code, "hint": help}}).to_string());
        return exit;
    }
    output.error(&format!("error: {message}"));
    if let Some(help) = help {
        output.error(&format!("help: {help}"));
    }
    exit
}

/// What to do about it.
fn help(error: &anyhow::Error) -> Option<String> {
    if let Some(usage) = error.downcast_ref::<Usage>() {
        return Some(usage.help.clone()).filter(|help| !help.is_empty());
    }
    match error.downcast_ref::<client::Error>()? {
        client::Error::Problem(problem) => problem.hint.clone(),
        client::Error::Unreachable { .. } => Some(
            "start a server with `clearway dev`, or name a running one with --server URL"
                .to_owned(),
        ),
        client::Error::Url { .. } => Some("such as http://127.0.0.1:8123".to_owned()),
        client::Error::Timeout { .. } | client::Error::Unexpected { .. } | _ => None,
    }
}
