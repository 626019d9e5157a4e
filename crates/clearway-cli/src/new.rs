//! `clearway new agent|workflow NAME`: a skeleton at the end of the configuration, and its prompt.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clearway::config::{Config, Env, FILE};
use serde_json::json;

use crate::cli::{NewArgs, NewKind};
use crate::exit::Exit;
use crate::output::Output;

pub(crate) fn run(args: &NewArgs, output: Output) -> Result<Exit> {
    let name = args.name.as_str();
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(sound) {
        bail!("`{name}` cannot be a name: up to 64 letters, digits, `_` and `-`");
    }
    let file = args.folder.join(FILE);
    let before = match file.exists() {
        true => std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?,
        false => String::new(),
    };
    if !before.is_empty() {
        // A name that is there already, and a file that is broken anyhow, are told before anything
        // is written.
        let config = match Config::load(&file, &Env::process()) {
            Ok(config) => config,
            Err(report) => {
                output.error(&report.render(output.colour_of_errors()));
                return Ok(Exit::Failed);
            }
        };
        if config.agents.contains_key(name) || config.workflows.contains_key(name) {
            bail!("there is an agent or a workflow `{name}` already");
        }
    }
    let prompt = format!("prompts/{name}.md");
    let (table, text) = match args.kind {
        NewKind::Agent => (agent(name, &prompt), AGENT_PROMPT),
        NewKind::Workflow => (workflow(name, &prompt), WORKFLOW_PROMPT),
    };
    let path = args.folder.join(&prompt);
    let new_prompt = !path.exists();
    if new_prompt {
        write(&path, text)?;
    }
    let gap = if before.is_empty() { "" } else { "\n" };
    write(&file, &format!("{before}{gap}{table}"))?;
    if output.json {
        let files = if new_prompt { vec![FILE, &prompt] } else { vec![FILE] };
        output.print(&json!({"name": name, "written": files}).to_string());
        return Ok(Exit::Ok);
    }
    output.note(&format!("wrote {FILE}"));
    if new_prompt {
        output.note(&format!("wrote {prompt}"));
    }
    output.print(&match args.kind {
        NewKind::Agent => "clearway check && clearway dev".to_owned(),
        NewKind::Workflow => format!("clearway graph {name} --config {}", args.folder.display()),
    });
    Ok(Exit::Ok)
}

fn write(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(failed)?;
    }
    std::fs::write(path, text).with_context(failed)
}

fn agent(name: &str, prompt: &str) -> String {
    format!(
        "[agents.{name}]\ntitle    = \"{name}\"\nprompt   = {{ file = \"{prompt}\" }}\ndeadline = \"120s\"\n"
    )
}

fn workflow(name: &str, prompt: &str) -> String {
    format!(
        "[workflows.{name}]\ntitle = \"{name}\"\ninput = {{ topic = \"string\" }}\n\n\
         [workflows.{name}.steps.draft]\ndo     = \"llm\"\nprompt = {{ file = \"{prompt}\" }}\n\n\
         [workflows.{name}.steps.page]\nneeds   = [\"draft\"]\ndo      = \"template\"\n\
         text    = \"# {{{{ input.topic }}}}\\n\\n{{{{ draft }}}}\\n\"\nsave_as = \"{{{{ input.topic | slug }}}}.md\"\n"
    )
}

const AGENT_PROMPT: &str =
    "You are {{ agent.title }}. Today is {{ today }}.\n\nBe concrete and brief.\n";
const WORKFLOW_PROMPT: &str = "Write three short paragraphs about {{ input.topic }}.\n";
