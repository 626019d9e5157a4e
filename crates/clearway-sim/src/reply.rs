//! What the simulated model says: a tool call if it is told to make one, and else a text, which is scripted, counted,
//! made for a schema, or the default one.
//!
//! It is told to call by a rule of the script, by a user who writes `call the tool NAME with {json}`, or by the
//! request's choice of tools; and it calls only what the request offers. After a tool's answer it talks.

use std::fmt::Write as _;

use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::Value;

use crate::chat::{Chat, Format, Tool, ToolChoice};
use crate::dialect::{Part, PartKind};
use crate::options::{MAX_TOKENS, OptionsError, ScriptRule};
use crate::problem::Problem;
use crate::schema;

/// How much of the user's text the default reply repeats.
const MAX_ECHO_CHARS: usize = 8_000;
/// Words longer than this are sent in parts, as a real tokenizer would.
const MAX_WORD: usize = 64;
/// JSON has few blanks, so its deltas are cut by length.
const MAX_JSON_PIECE: usize = 12;

/// The compiled script.
#[derive(Debug)]
pub(crate) struct Script {
    environment: Environment<'static>,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// In lower case.
    needle: String,
    /// The tool to call instead of talking.
    tool: Option<String>,
    /// Name in the environment, or why the template does not compile.
    template: Result<String, String>,
}

/// What the script wants.
struct Line<'a> {
    tool: Option<&'a str>,
    text: String,
}

impl Script {
    pub(crate) fn new(rules: &[ScriptRule]) -> Self {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        let mut compiled = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let name = format!("rule {}", index + 1);
            let source = rule.tool.as_ref().map_or(&rule.reply, |tool| &tool.arguments);
            let template = environment.add_template_owned(name.clone(), source.clone());
            let template = template.map(|()| name).map_err(|error| error.to_string());
            let tool = rule.tool.as_ref().map(|tool| tool.name.clone());
            compiled.push(Rule { needle: rule.match_text.to_lowercase(), tool, template });
        }
        Self { environment, rules: compiled }
    }

    pub(crate) fn check(&self) -> Result<(), OptionsError> {
        for (index, rule) in self.rules.iter().enumerate() {
            if let Err(message) = &rule.template {
                return Err(OptionsError::Script { rule: index + 1, message: message.clone() });
            }
        }
        Ok(())
    }

    /// What the first rule says that matches. Rules for tools match only where their tool may be called.
    fn line(&self, chat: &Chat) -> Option<Result<Line<'_>, Problem>> {
        if self.rules.is_empty() {
            return None;
        }
        let message = chat.last_user_text();
        let lower = message.to_lowercase();
        let fits = |rule: &Rule| {
            lower.contains(&rule.needle)
                && rule.tool.as_ref().is_none_or(|tool| callable(chat, tool).is_some())
        };
        let (index, rule) = self.rules.iter().enumerate().find(|(_, rule)| fits(rule))?;
        let rendered = rule.template.clone().and_then(|name| {
            let messages: Vec<_> = chat
                .messages
                .iter()
                .map(|message| context! { role => &message.role, content => &message.content })
                .collect();
            let values =
                context! { message, messages, model => chat.base_model(), turn => chat.turn() };
            let template =
                self.environment.get_template(&name).map_err(|error| error.to_string())?;
            template.render(values).map_err(|error| error.to_string())
        });
        Some(match rendered {
            Ok(text) => Ok(Line { tool: rule.tool.as_deref(), text }),
            Err(error) => {
                Err(Problem::internal(format!("reply of script rule {}: {error}", index + 1)))
            }
        })
    }
}

/// The deltas of a reply. Joined they are the reply, byte for byte.
#[derive(Debug)]
pub(crate) enum Pieces {
    Text { text: String, ends: Vec<usize> },
    Counted { count: u32, word: &'static str },
}

/// Why the model stops talking by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finish {
    Stop,
    Length,
    /// For a tool's answer.
    Call,
}

/// What is going to be said.
#[derive(Debug)]
pub(crate) struct Reply {
    /// What is thought aloud before.
    pub(crate) thoughts: Option<Pieces>,
    /// The tool that is called; the pieces are its arguments then, and else the text.
    pub(crate) tool: Option<String>,
    pub(crate) pieces: Pieces,
    pub(crate) finish: Finish,
}

impl Reply {
    /// Chooses the reply.
    pub(crate) fn new(script: &Script, chat: &Chat, tokens: Option<u32>) -> Result<Self, Problem> {
        let thoughts = chat.model.thoughts.map(Pieces::thoughts);
        let line = script.line(chat).transpose()?;
        let call = match &line {
            Some(Line { tool: Some(tool), text }) => Some(((*tool).to_owned(), text.clone())),
            Some(Line { tool: None, .. }) | None => asked_call(chat),
        };
        if let Some((tool, arguments)) = call {
            let pieces = Pieces::words(arguments, MAX_JSON_PIECE);
            return Ok(Self { thoughts, tool: Some(tool), pieces, finish: Finish::Call });
        }
        if let (Some(count), Format::Text) = (tokens, &chat.format) {
            let pieces = Pieces::counted(count);
            return Ok(Self { thoughts, tool: None, pieces, finish: Finish::Stop });
        }
        // A scripted line answers a request for a document only when it is one.
        let line = line.filter(|line| {
            matches!(chat.format, Format::Text) || serde_json::from_str::<Value>(&line.text).is_ok()
        });
        let mut pieces = match (line, &chat.format) {
            (Some(line), _) => Pieces::words(line.text, MAX_WORD),
            (None, Format::Text) => Pieces::words(default_text(chat), MAX_WORD),
            (None, Format::Object) => Pieces::words(object_text(chat), MAX_JSON_PIECE),
            (None, Format::Schema(schema)) => {
                let answer = schema::answer(schema, chat.last_user_text());
                Pieces::words(answer.to_string(), MAX_JSON_PIECE)
            }
        };
        let cut = chat.max_tokens.is_some_and(|max| pieces.truncate(max));
        let finish = if cut { Finish::Length } else { Finish::Stop };
        Ok(Self { thoughts, tool: None, pieces, finish })
    }

    /// A call whose arguments end in the middle of a string.
    pub(crate) fn cut_call() -> Self {
        let pieces = Pieces::words("{\"query\": \"opening hours of the".to_owned(), MAX_JSON_PIECE);
        Self { thoughts: None, tool: Some("lookup".to_owned()), pieces, finish: Finish::Length }
    }

    /// The parts it is told in.
    pub(crate) fn parts(&self) -> Vec<Part<'_>> {
        let mut parts = Vec::with_capacity(2);
        if let Some(pieces) = &self.thoughts {
            parts.push(Part { kind: PartKind::Thoughts, pieces });
        }
        let kind = self.tool.as_deref().map_or(PartKind::Text, PartKind::Call);
        parts.push(Part { kind, pieces: &self.pieces });
        parts
    }
}

/// The tool of this name, if it may be called now.
fn callable<'c>(chat: &'c Chat, name: &str) -> Option<&'c Tool> {
    let tool = chat.tools.iter().find(|tool| tool.name == name)?;
    match &chat.tool_choice {
        ToolChoice::Auto | ToolChoice::Any => chat.tool_answer().is_none().then_some(tool),
        ToolChoice::Never => None,
        ToolChoice::Named(wanted) => (wanted == name).then_some(tool),
    }
}

/// The call that the user or the request asks for: a tool and its arguments.
fn asked_call(chat: &Chat) -> Option<(String, String)> {
    let told = chat.last_user_text().split_once("call the tool ").and_then(|(_, order)| {
        let (name, rest) = order.split_once(char::is_whitespace).unwrap_or((order, ""));
        let tool = callable(chat, name.trim_end_matches(['.', ',', ':', ';']))?;
        let json = rest.trim_start().strip_prefix("with").unwrap_or(rest);
        // What follows the arguments is ignored, as are arguments that are no JSON object.
        let arguments = serde_json::Deserializer::from_str(json).into_iter::<Value>().next();
        let arguments = arguments.and_then(Result::ok).filter(Value::is_object);
        Some((tool, arguments))
    });
    let (tool, arguments) = told.or_else(|| {
        let name = match &chat.tool_choice {
            ToolChoice::Auto | ToolChoice::Never => return None,
            ToolChoice::Any => &chat.tools.first()?.name,
            ToolChoice::Named(name) => name,
        };
        Some((callable(chat, name)?, None))
    })?;
    let arguments = arguments.unwrap_or_else(|| match &tool.parameters {
        Value::Null => Value::Object(serde_json::Map::new()),
        schema => schema::example(schema),
    });
    Some((tool.name.clone(), arguments.to_string()))
}

impl Pieces {
    fn counted(count: u32) -> Self {
        Self::Counted { count: count.min(MAX_TOKENS), word: "tok" }
    }

    /// Something to show while thinking.
    pub(crate) fn thoughts(count: u32) -> Self {
        Self::Counted { count: count.min(MAX_TOKENS), word: "thought" }
    }

    /// Splits after each word; a delta begins with the blanks before its word.
    pub(crate) fn words(text: String, max: usize) -> Self {
        let mut ends = Vec::new();
        let (mut start, mut in_word) = (0, false);
        for (at, c) in text.char_indices() {
            if at > start && ((in_word && c.is_whitespace()) || at - start >= max) {
                ends.push(at);
                start = at;
            }
            in_word = !c.is_whitespace();
        }
        if start < text.len() {
            // Blanks at the very end belong to the last word rather than being a delta of their own.
            if text[start..].trim().is_empty() {
                ends.pop();
            }
            ends.push(text.len());
        }
        Self::Text { text, ends }
    }

    /// Makes sure that there are characters of several bytes, for faults that need them.
    pub(crate) fn with_wide_characters(self) -> Self {
        match self {
            Self::Text { text, mut ends } if text.is_ascii() => {
                let text = text + " café ✓";
                ends.push(text.len());
                Self::Text { text, ends }
            }
            Self::Text { .. } => self,
            Self::Counted { count, .. } => Self::Counted { count, word: "tök" },
        }
    }

    pub(crate) fn len(&self) -> u32 {
        match self {
            Self::Text { ends, .. } => u32::try_from(ends.len()).unwrap_or(u32::MAX),
            Self::Counted { count, .. } => *count,
        }
    }

    /// Keeps at most `max` pieces; true if some were dropped.
    fn truncate(&mut self, max: u32) -> bool {
        let before = self.len();
        match self {
            Self::Text { text, ends } => {
                ends.truncate(usize::try_from(max).unwrap_or(usize::MAX));
                text.truncate(ends.last().copied().unwrap_or(0));
            }
            Self::Counted { count, .. } => *count = max.min(*count),
        }
        self.len() < before
    }

    /// Appends piece `index` to `out`.
    pub(crate) fn append(&self, index: u32, out: &mut String) {
        match self {
            Self::Text { text, ends } => {
                let index = index as usize;
                let start = index.checked_sub(1).map_or(0, |before| ends[before]);
                out.push_str(&text[start..ends[index]]);
            }
            Self::Counted { word, .. } => {
                if index > 0 {
                    out.push(' ');
                }
                out.push_str(word);
                // Writing to a string cannot fail.
                let _ = write!(out, "{index}");
            }
        }
    }

    /// The first `count` pieces joined.
    pub(crate) fn join(&self, count: u32) -> String {
        let mut out = String::new();
        for index in 0..count.min(self.len()) {
            self.append(index, &mut out);
        }
        out
    }
}

/// What a newcomer without a key reads. The curly quotes are also what faults on characters of several bytes split.
fn default_text(chat: &Chat) -> String {
    if let Some(answer) = chat.tool_answer() {
        let answer: String = answer.trim().chars().take(MAX_ECHO_CHARS).collect();
        return format!("The tool answered: “{answer}”.");
    }
    let message = chat.last_user_text();
    if message.trim().is_empty() {
        return "Your message is empty, so there is nothing to repeat yet. \
                Write a few words, and I will answer them one word at a time."
            .to_owned();
    }
    let mut echo: String = message.trim().chars().take(MAX_ECHO_CHARS).collect();
    if echo.len() < message.trim().len() {
        echo.push('…');
    }
    match chat.turn() {
        0 | 1 => format!(
            "You wrote: “{echo}”. I am the built-in model: no key, no network, and the same answer every time. \
             I arrive one word at a time, as a real model does, so everything around me can be tried: streaming, \
             cancelling, and coming back later. Set OPENAI_API_KEY to talk to a model that thinks."
        ),
        turn => format!(
            "You wrote: “{echo}”. This is turn {turn} of our conversation, and all the earlier ones were sent along, \
             so a real model would know what you mean. I only repeat, word by word, but I do it reliably."
        ),
    }
}

/// For `json_object`, where any object will do.
fn object_text(chat: &Chat) -> String {
    let echo: String = chat.last_user_text().trim().chars().take(MAX_ECHO_CHARS).collect();
    serde_json::json!({ "message": echo }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(text: &str, max: usize) -> Vec<String> {
        let pieces = Pieces::words(text.to_owned(), max);
        assert_eq!(pieces.join(u32::MAX), text);
        (0..pieces.len())
            .map(|index| {
                let mut out = String::new();
                pieces.append(index, &mut out);
                out
            })
            .collect()
    }

    #[test]
    fn words_keep_every_byte() {
        assert_eq!(pieces("one two  three\n", 64), ["one", " two", "  three\n"]);
        assert_eq!(pieces("  lead", 64), ["  lead"]);
        assert_eq!(pieces("", 64), [""; 0]);
        assert_eq!(pieces("   ", 64), ["   "]);
        assert_eq!(pieces("漢字漢字", 6), ["漢字", "漢字"]);
        assert_eq!(pieces("{\"a\":1234567}", 5), ["{\"a\":", "12345", "67}"]);
    }

    #[test]
    fn counted_pieces_are_deterministic() {
        assert_eq!(Pieces::counted(3).join(u32::MAX), "tok0 tok1 tok2");
        assert_eq!(Pieces::counted(3).with_wide_characters().join(2), "tök0 tök1");
        assert_eq!(
            Pieces::words("plain".into(), 64).with_wide_characters().join(9),
            "plain café ✓"
        );
    }

    #[test]
    fn truncation_is_reported() {
        let mut text = Pieces::words("a b c".into(), 64);
        assert!(!text.truncate(3));
        assert!(text.truncate(2));
        assert_eq!(text.join(9), "a b");
        assert!(text.truncate(0));
        assert_eq!(text.join(9), "");
    }
}
