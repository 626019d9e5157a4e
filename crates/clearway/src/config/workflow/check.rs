//! Whether a workflow as a whole makes sense: names, fields, reachability, bounds.

use std::collections::BTreeSet;

use super::{END, OnError, Pause, Places, Step, StepKind, Workflow};
use crate::config::report::Problem;
use crate::config::walk::{Table, nearest};
use crate::workflow::request::HttpBody;

/// Names that templates can use besides steps and channels.
const GLOBALS: &[&str] = &[
    "context",
    "input",
    "item",
    "loop",
    "step",
    "run",
    "now",
    "range",
    "dict",
    "namespace",
    "debug",
];

/// Notes everything that is wrong.
pub(super) fn check(name: &str, workflow: &Workflow, table: &Table<'_>, places: &Places<'_>) {
    let steps: Vec<&str> = workflow.steps.iter().map(|step| step.name.as_str()).collect();
    let note =
        |step: &str, key: &'static str, message: String, label: &str, help: String| match places
            .get(&(step.to_owned(), key))
        {
            Some(place) => place.problem(message, label, help),
            None => {
                let problem =
                    Problem::new(message).at(&table.walk.source, table.span.clone(), "here");
                table.walk.note(if help.is_empty() { problem } else { problem.help(help) });
            }
        };
    let no_step = |wanted: &str| match nearest(wanted, steps.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are: {}", steps.join(", ")),
    };
    for step in &workflow.steps {
        for need in &step.needs {
            if !steps.contains(&need.as_str()) {
                let message = format!("step `{}` needs `{need}`, which does not exist", step.name);
                note(&step.name, "needs", message, "not defined", no_step(need));
            }
        }
        if let OnError::Go(to) = &step.on_error
            && !steps.contains(&to.as_str())
        {
            let message = format!("there is no step `{to}`");
            note(&step.name, "on_error", message, "not defined", no_step(to));
        }
        if let StepKind::Branch { when, .. } = &step.kind {
            for case in
                when.iter().filter(|case| case.go != END && !steps.contains(&case.go.as_str()))
            {
                let message = format!("there is no step `{}`", case.go);
                note(&step.name, "when", message, "not defined", no_step(&case.go));
            }
        }
        let spoken = match &step.kind {
            StepKind::Llm { messages, .. } => messages.as_ref().map(|name| ("messages", name)),
            _ => None,
        };
        let written = step.writes.iter().map(|(channel, _)| ("writes", channel));
        for (key, channel) in written.chain(spoken) {
            if !workflow.channels.contains_key(channel) {
                let known = workflow.channels.keys().map(String::as_str);
                let message = format!("there is no channel `{channel}`");
                let help = match nearest(channel, known.clone()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if workflow.channels.is_empty() => {
                        format!("add [workflows.{name}.channels.{channel}]")
                    }
                    None => format!("there are: {}", known.collect::<Vec<_>>().join(", ")),
                };
                note(&step.name, key, message, "not defined", help);
            }
        }
        check_names(workflow, step, &steps, &note);
    }
    check_shape(name, workflow, &note);
}

type Note<'n> = dyn Fn(&str, &'static str, String, &str, String) + 'n;

/// Whether one of its templates or expressions asks how often it was visited.
pub(super) fn uses_visits(step: &Step) -> bool {
    used(step).iter().any(|(_, names)| names.contains("step.visits") || names.contains("step"))
}

/// The names that a step's templates and expressions use, by the step's key.
fn used(step: &Step) -> Vec<(&'static str, BTreeSet<String>)> {
    let mut used: Vec<(&'static str, BTreeSet<String>)> = Vec::new();
    let mut add = |key, names| used.push((key, names));
    if let Some(expr) = &step.condition {
        add("if", expr.variables());
    }
    if let Some(expr) = &step.for_each {
        add("for_each", expr.variables());
    }
    if let Some(template) = &step.save_as {
        add("save_as", template.variables());
    }
    for (_, expr) in &step.writes {
        add("writes", expr.variables());
    }
    for (_, expr) in &step.emit {
        add("emit", expr.variables());
    }
    match &step.kind {
        StepKind::Llm { prompt, system, .. } => {
            for (key, template) in [("prompt", prompt), ("system", system)] {
                if let Some(template) = template {
                    add(key, template.variables());
                }
            }
        }
        StepKind::Agent { input, .. } => add("input", input.variables()),
        StepKind::Template { template, .. } => add("template", template.variables()),
        StepKind::Ask { question, payload, .. } => {
            add("question", question.variables());
            if let Some(payload) = payload {
                add("payload", payload.variables());
            }
        }
        StepKind::Http(request) => {
            add("request", request.url.variables());
            for (_, value) in &request.headers {
                add("request", value.variables());
            }
            match &request.body {
                Some(HttpBody::Json(shape)) => add("request", shape.variables()),
                Some(HttpBody::Text(template)) => add("request", template.variables()),
                None => {}
            }
            if let Some(key) = &request.key {
                add("request", key.variables());
            }
        }
        StepKind::Tool { args, .. } => add("args", args.variables()),
        StepKind::Fail { message } => add("message", message.variables()),
        StepKind::Search { query, .. } => add("query", query.variables()),
        StepKind::Branch { when, .. } => {
            for expr in when.iter().filter_map(|case| case.condition.as_ref()) {
                add("when", expr.variables());
            }
        }
        StepKind::Workflow { input, .. } => {
            for (_, expr) in input {
                add("input", expr.variables());
            }
        }
        StepKind::Set { value } => {
            if let Some(expr) = value {
                add("value", expr.variables());
            }
        }
        StepKind::Wait { duration, .. } => match duration {
            Some(Pause::Seconds(expr)) => add("for", expr.variables()),
            Some(Pause::Text(template)) => add("for", template.variables()),
            None => {}
        },
    }
    used
}

fn check_names(workflow: &Workflow, step: &Step, steps: &[&str], note: &Note<'_>) {
    for (key, names) in used(step) {
        for name in names {
            let mut parts = name.split('.');
            let root = parts.next().unwrap_or_default();
            let field = parts.next();
            let known = GLOBALS.contains(&root)
                || steps.contains(&root)
                || workflow.channels.contains_key(root);
            if !known {
                let all = steps.iter().copied().chain(GLOBALS[..6].iter().copied());
                let help = match nearest(root, all) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are: input, {}", steps.join(", ")),
                };
                let message = format!("step `{}` uses `{name}`, which does not exist", step.name);
                note(&step.name, key, message, "not defined", help);
                continue;
            }
            let Some(field) = field else { continue };
            let fields: Option<Vec<&str>> = match root {
                "input" => Some(workflow.input.iter().map(|field| field.name.as_str()).collect()),
                _ => workflow.step(root).filter(|step| step.for_each.is_none()).and_then(fields_of),
            };
            let Some(fields) = fields else { continue };
            if !fields.contains(&field) {
                let help = match nearest(field, fields.iter().copied()) {
                    Some(near) => format!("did you mean `{root}.{near}`?"),
                    None => format!("`{root}` gives: {}", fields.join(", ")),
                };
                let message = format!("step `{}` uses `{name}`, which does not exist", step.name);
                note(&step.name, key, message, "not defined", help);
            }
        }
    }
}

/// The fields of a step's output, where they are known.
fn fields_of(step: &Step) -> Option<Vec<&str>> {
    match &step.kind {
        StepKind::Llm { output: Some(schema), .. } => {
            Some(schema.get("properties")?.as_object()?.keys().map(String::as_str).collect())
        }
        StepKind::Ask { payload: None, .. } => Some(vec!["choice", "value", "by"]),
        StepKind::Branch { .. } => Some(vec!["go", "visits"]),
        StepKind::Http(_) if step.on_error != OnError::Continue => {
            Some(vec!["status", "headers", "json", "text"])
        }
        _ => None,
    }
}

fn check_shape(name: &str, workflow: &Workflow, note: &Note<'_>) {
    let targets = workflow.targets();
    // What can be reached, by needs and by being sent to.
    let mut reached: BTreeSet<&str> = workflow
        .steps
        .iter()
        .filter(|step| step.needs.is_empty() && !targets.contains(step.name.as_str()))
        .map(|step| step.name.as_str())
        .collect();
    loop {
        let before = reached.len();
        for step in &workflow.steps {
            if !step.needs.is_empty()
                && step.needs.iter().all(|need| reached.contains(need.as_str()))
            {
                reached.insert(&step.name);
            }
            if reached.contains(step.name.as_str()) {
                if let StepKind::Branch { when, .. } = &step.kind {
                    reached.extend(when.iter().map(|case| case.go.as_str()));
                }
                if let OnError::Go(to) = &step.on_error {
                    reached.insert(to);
                }
            }
        }
        if reached.len() == before {
            break;
        }
    }
    for step in workflow.steps.iter().filter(|step| !reached.contains(step.name.as_str())) {
        let why = match targets.contains(step.name.as_str()) {
            true => "steps that others send to start only then; nothing that is reached sends here",
            false => "what it needs never gets done (do the needs go round in a circle?)",
        };
        let message = format!("step `{}` of workflow `{name}` is never reached: {why}", step.name);
        note(&step.name, "needs", message, "never reached", String::new());
    }
    // A branch that can come back to itself needs a bound.
    for step in &workflow.steps {
        let StepKind::Branch { when, max_visits } = &step.kind else { continue };
        let bounded = *max_visits > 0
            || when.iter().any(|case| {
                case.condition.as_ref().is_some_and(|expr| expr.source.contains("step.visits"))
            });
        let loops = when.iter().any(|case| leads_to(workflow, &case.go, &step.name));
        if loops && !bounded {
            let message = format!("branch `{}` can go round for ever", step.name);
            let help = "add max_visits = 3, or a condition with step.visits";
            note(&step.name, "when", message, "a loop without a bound", help.to_owned());
        }
    }
}

fn leads_to(workflow: &Workflow, from: &str, to: &str) -> bool {
    let mut seen = BTreeSet::from([from]);
    let mut open = vec![from];
    while let Some(at) = open.pop() {
        if at == to {
            return true;
        }
        for step in workflow.steps.iter().filter(|step| step.needs.iter().any(|need| need == at)) {
            if seen.insert(&step.name) {
                open.push(&step.name);
            }
        }
    }
    false
}
