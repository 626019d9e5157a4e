//! Prompts: Markdown with `{{ variables }}`, checked when loaded and rendered per call.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use minijinja::value::Object;
use minijinja::{Environment, UndefinedBehavior, Value, context};

use super::report::{Problem, Source};
use super::walk::{nearest, sorted};

/// Steps a prompt may take: a loop in it must end.
const FUEL: u64 = 1_000_000;

/// The variables of a prompt, with what they hold.
const VARIABLES: &[(&str, &str)] = &[
    ("agent", "agent.name, agent.title"),
    ("context", "what the run's caller set for it alone"),
    ("model", "the model's name"),
    ("now", "date and time in UTC"),
    ("run_id", "this run"),
    ("state", "the agent's state, as its tools wrote it down"),
    ("thread_id", "this conversation"),
    ("today", "date in UTC"),
    ("turn", "the user's messages so far"),
];

/// A compiled prompt.
#[derive(Clone)]
pub struct Prompt {
    environment: Arc<Environment<'static>>,
    /// The file it came from.
    pub file: Option<PathBuf>,
}

/// The values that a prompt can use.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    pub agent_name: &'a str,
    pub agent_title: &'a str,
    pub model: &'a str,
    pub run_id: String,
    pub thread_id: String,
    /// ISO 8601.
    pub now: String,
    pub turn: usize,
    /// `None` stands for a state in which everything is, to try a prompt out.
    pub state: Option<serde_json::Map<String, serde_json::Value>>,
    /// The same for what the run's caller set.
    pub context: Option<&'a serde_json::Map<String, serde_json::Value>>,
}

/// Has every field, and each of them is again this.
#[derive(Debug)]
struct Anything;

impl Object for Anything {
    fn get_value(self: &Arc<Self>, _key: &Value) -> Option<Value> {
        Some(Value::from_dyn_object(self.clone()))
    }
}

const NAME: &str = "prompt";

impl Prompt {
    /// Compiles and tries out `text`, which stands at `place` in `source`.
    pub(super) fn compile(
        text: &str,
        source: &Source,
        place: &Range<usize>,
        file: Option<PathBuf>,
    ) -> Result<Self, Vec<Problem>> {
        let at = |range: Range<usize>, message: String, label: &str| {
            Problem::new(message).at(source, locate(source, place, text, range), label)
        };
        let whole = 0..text.len();
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_debug(true);
        // A prompt is Markdown: its last line break is not part of it, and nothing is HTML.
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        if let Err(error) = environment.add_template_owned(NAME, text.to_owned()) {
            let why = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
            let range = error.range().unwrap_or(whole);
            return Err(vec![at(range, format!("template error: {why}"), "here")]);
        }
        let prompt = Self { environment: Arc::new(environment), file };
        let unknown = prompt.unknown_variables();
        if !unknown.is_empty() {
            let known: Vec<&str> = VARIABLES.iter().map(|(name, _)| *name).collect();
            let problem = |name: &String| {
                let range = find_word(text, name).unwrap_or(0..text.len());
                let problem = at(range, format!("there is no variable `{name}`"), "not defined");
                problem.help(match nearest(name, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("a prompt can use: {}", sorted(&known).join(", ")),
                })
            };
            return Err(unknown.iter().map(problem).collect());
        }
        if let Err(error) = prompt.render_inner(&Values::sample()) {
            let range = error.range().unwrap_or(whole);
            if error.kind() == minijinja::ErrorKind::UndefinedError {
                let message = format!("there is no variable `{}`", text[range.clone()].trim());
                let known: Vec<_> =
                    VARIABLES.iter().map(|(name, holds)| format!("{name} ({holds})")).collect();
                return Err(vec![
                    at(range, message, "not defined")
                        .help(format!("a prompt can use: {}", known.join(", "))),
                ]);
            }
            let why = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
            return Err(vec![at(range, format!("template error: {why}"), "here")]);
        }
        Ok(prompt)
    }

    /// The text for one call.
    ///
    /// # Errors
    /// What the template engine says, for people.
    pub fn render(&self, values: &Values<'_>) -> Result<String, String> {
        self.render_inner(values).map_err(|error| match error.line() {
            Some(line) => format!("line {line}: {}", error.detail().unwrap_or("template error")),
            None => error.to_string(),
        })
    }

    /// Whether there is anything in it.
    pub fn is_empty(&self) -> bool {
        self.template().is_ok_and(|template| template.source().trim().is_empty())
    }

    /// Its text, when that is the same for every call.
    pub fn fixed(&self) -> Option<String> {
        let plain = !self.template().ok()?.source().contains('{');
        plain.then(|| self.render_inner(&Values::sample()).ok()).flatten()
    }

    /// Whether it says something about this variable.
    pub fn uses(&self, variable: &str) -> bool {
        self.template()
            .is_ok_and(|template| template.undeclared_variables(false).contains(variable))
    }

    fn template(&self) -> Result<minijinja::Template<'_, '_>, minijinja::Error> {
        self.environment.get_template(NAME)
    }

    fn render_inner(&self, values: &Values<'_>) -> Result<String, minijinja::Error> {
        let text = self.template()?.render(values.context())?;
        Ok(text.trim_end().to_owned())
    }

    fn unknown_variables(&self) -> Vec<String> {
        let Ok(template) = self.template() else { return Vec::new() };
        let globals: BTreeMap<&str, Value> = self.environment.globals().collect();
        let known = |name: &str| {
            VARIABLES.iter().any(|(variable, _)| *variable == name) || globals.contains_key(name)
        };
        let mut unknown: Vec<_> =
            template.undeclared_variables(false).into_iter().filter(|name| !known(name)).collect();
        unknown.sort();
        unknown
    }
}

impl Values<'_> {
    fn sample() -> Self {
        Values {
            agent_name: "name",
            agent_title: "title",
            model: "model",
            run_id: "00000000-0000-0000-0000-000000000000".to_owned(),
            thread_id: "00000000-0000-0000-0000-000000000000".to_owned(),
            now: "2026-01-01T00:00:00.000+00:00".to_owned(),
            turn: 1,
            state: None,
            context: None,
        }
    }

    fn context(&self) -> Value {
        let state = match &self.state {
            Some(state) => Value::from(minijinja::value::Serde(state)),
            None => Value::from_object(Anything),
        };
        let context = match self.context {
            Some(given) => Value::from(minijinja::value::Serde(given)),
            None => Value::from_object(Anything),
        };
        context! {
            state,
            context,
            agent => context! { name => self.agent_name, title => self.agent_title },
            model => self.model,
            run_id => self.run_id.as_str(),
            thread_id => self.thread_id.as_str(),
            now => self.now.as_str(),
            today => self.now.get(..10),
            turn => self.turn,
        }
    }
}

impl fmt::Debug for Prompt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prompt").field("file", &self.file).finish_non_exhaustive()
    }
}

/// Where `range` of the template lies in the file. A prompt inside TOML may be written with
/// escapes; then its whole value is the best answer.
fn locate(source: &Source, place: &Range<usize>, text: &str, range: Range<usize>) -> Range<usize> {
    let raw = &source.text()[place.clone()];
    match raw.find(text) {
        Some(offset) => {
            let start = place.start + offset;
            // An error at the end of the text has an empty range behind its last character.
            let from = start + range.start.min(text.len());
            from..start + range.end.clamp(range.start, text.len()).min(text.len())
        }
        None => place.clone(),
    }
}

/// The first time a variable is used: the word inside `{{ }}` or `{% %}`.
fn find_word(text: &str, word: &str) -> Option<Range<usize>> {
    let boundary = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    let mut from = 0;
    while let Some(found) = text[from..].find(word) {
        let start = from + found;
        let end = start + word.len();
        let before = text[..start].chars().next_back();
        let opened =
            [text[..start].rfind("{{"), text[..start].rfind("{%")].into_iter().flatten().max();
        let closed =
            [text[..start].rfind("}}"), text[..start].rfind("%}")].into_iter().flatten().max();
        let inside = opened.is_some_and(|opened| closed.is_none_or(|closed| closed < opened));
        if inside && boundary(before) && before != Some('.') && boundary(text[end..].chars().next())
        {
            return Some(start..end);
        }
        from = end;
    }
    None
}
