//! Reading TOML by hand, so that every error knows its place.
//!
//! A [`Table`] is asked for its keys one by one; [`Table::finish`] then refuses every key that nobody
//! asked for. So the code that reads a table is the list of its keys. A getter that finds something
//! wrong notes a problem and answers `None`; reading goes on, and all problems are told at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::duration::{self, Invalid};
use super::env::Env;
use super::report::{Problem, Source};
use super::secret::{Piece, Secret, pieces};

/// What all tables of one file share.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) source: Source,
    pub(super) env: &'a Env,
    /// Settings from the environment by dotted path: variable and value.
    overlay: BTreeMap<String, (String, String)>,
    overlay_used: RefCell<BTreeSet<String>>,
    /// Variables that the file names.
    named: RefCell<BTreeSet<String>>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(source: Source, env: &'a Env) -> Self {
        Self {
            source,
            env,
            overlay: env.overlay(),
            overlay_used: RefCell::default(),
            named: RefCell::default(),
            problems: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Notes what is no error and should be known.
    pub(super) fn warn(&self, sentence: String) {
        self.warnings.borrow_mut().push(sentence);
    }

    /// Whether the file names this variable.
    pub(super) fn names(&self, variable: &str) -> bool {
        self.named.borrow().contains(variable)
    }

    pub(super) fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// A variable that the file names.
    fn variable(&self, name: &str) -> Option<&'a str> {
        self.named.borrow_mut().insert(name.to_owned());
        self.env.get(name)
    }

    pub(super) fn note(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn has_problems(&self) -> bool {
        !self.problems.borrow().is_empty()
    }

    pub(super) fn take_problems(&self) -> Vec<Problem> {
        self.problems.take()
    }

    /// Variables of the overlay that no table asked for, with the keys they might mean.
    pub(super) fn unused_overlay(&self) -> Vec<String> {
        let used = self.overlay_used.borrow();
        let unused = self.overlay.iter().filter(|(path, _)| !used.contains(*path));
        unused.map(|(_, (variable, _))| variable.clone()).collect()
    }
}

/// A table that is being read.
#[derive(Debug)]
pub(super) struct Table<'a> {
    pub(super) walk: &'a Walk<'a>,
    /// Dotted; empty at the top.
    pub(super) path: String,
    /// Its header, for "something is missing here".
    pub(super) span: Range<usize>,
    /// `None` for a table that is not in the file and may be in the environment.
    map: Option<&'a DeTable<'a>>,
    known: RefCell<Vec<&'static str>>,
    /// Known, and not worth recommending.
    tolerated: RefCell<Vec<&'static str>>,
}

/// A value, with the path and place that errors name.
#[derive(Clone, Debug)]
pub(super) struct Value<'a> {
    walk: &'a Walk<'a>,
    pub(super) path: String,
    from: From<'a>,
}

#[derive(Clone, Debug)]
enum From<'a> {
    File(&'a Spanned<DeValue<'a>>),
    Variable { name: &'a str, text: &'a str },
}

/// Something and where it was written.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    /// `None` when it came from a default or from the environment.
    pub(super) span: Option<Range<usize>>,
}

impl<'a> Table<'a> {
    pub(super) fn root(walk: &'a Walk<'a>, map: &'a DeTable<'a>) -> Self {
        Self {
            walk,
            path: String::new(),
            span: 0..0,
            map: Some(map),
            known: RefCell::default(),
            tolerated: RefCell::default(),
        }
    }

    fn join(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of `key`: the environment goes before the file.
    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        self.known.borrow_mut().push(key);
        let path = self.join(key);
        if let Some((name, text)) = self.walk.overlay.get(&path) {
            self.walk.overlay_used.borrow_mut().insert(path.clone());
            return Some(Value { walk: self.walk, path, from: From::Variable { name, text } });
        }
        let value = self.map?.get(key)?;
        Some(Value { walk: self.walk, path, from: From::File(value) })
    }

    /// The value of `key`, which must be there.
    pub(super) fn require(&self, key: &'static str, what_for: &str) -> Option<Value<'a>> {
        let value = self.get(key);
        if value.is_none() {
            let problem = Problem::new(format!("`{}` has no `{key}`", self.path));
            self.walk.note(problem.at(&self.walk.source, self.span.clone(), "").help(what_for));
        }
        value
    }

    /// The sub-table of `key`; one that is missing reads as empty, so that the environment can fill it.
    pub(super) fn sub(&self, key: &'static str) -> Self {
        self.known.borrow_mut().push(key);
        let mut table = Table {
            walk: self.walk,
            path: self.join(key),
            span: self.span.clone(),
            map: None,
            known: RefCell::default(),
            tolerated: RefCell::default(),
        };
        let Some((key, value)) = self.map.and_then(|map| map.get_key_value(key)) else {
            return table;
        };
        match value.get_ref() {
            DeValue::Table(map) => {
                table.span = header(&self.walk.source, key.span(), value.span());
                table.map = Some(map);
            }
            other => {
                let value =
                    Value { walk: self.walk, path: table.path.clone(), from: From::File(value) };
                value.wrong("a table", describe(other));
            }
        }
        table
    }

    /// The tables of a table of tables, with their names: `[providers.NAME]`.
    pub(super) fn named(&self, key: &'static str) -> Vec<(String, Self)> {
        let outer = self.sub(key);
        let Some(map) = outer.map else { return Vec::new() };
        let mut tables = Vec::new();
        for (name, value) in map {
            let path = outer.join(name.get_ref());
            let span = header(&self.walk.source, name.span(), value.span());
            if !is_name(name.get_ref()) {
                let problem = Problem::new(format!("`{}` cannot be a name", name.get_ref()));
                self.walk.note(
                    problem
                        .at(&self.walk.source, name.span(), "here")
                        .help("names have 1 to 64 letters, digits, `_`, `-` and `.`, and start with a letter or digit"),
                );
            }
            match value.get_ref() {
                DeValue::Table(map) => {
                    let table = Table {
                        walk: self.walk,
                        path,
                        span,
                        map: Some(map),
                        known: RefCell::default(),
                        tolerated: RefCell::default(),
                    };
                    tables.push((name.get_ref().clone().into_owned(), table));
                }
                other => {
                    Value { walk: self.walk, path, from: From::File(value) }
                        .wrong("a table", describe(other));
                }
            }
        }
        tables
    }

    /// A key that the documented configuration has and this version does not.
    pub(super) fn unsupported(&self, keys: &[&'static str]) {
        self.tolerate(keys);
        for &key in keys {
            let Some((name, _)) = self.map.and_then(|map| map.get_key_value(key)) else { continue };
            let problem =
                Problem::new(format!("`{}` is not supported by this version", self.join(key)));
            self.walk.note(
                problem
                    .at(&self.walk.source, name.span(), "not supported yet")
                    .help("leave it out: it would have no effect, and silence would hide that"),
            );
        }
    }

    /// Keys that are read elsewhere, or cannot be judged because of an error already noted.
    pub(super) fn tolerate(&self, keys: &[&'static str]) {
        self.tolerated.borrow_mut().extend(keys);
    }

    /// Refuses the keys that nobody asked for.
    pub(super) fn finish(self) {
        let (known, tolerated) = (self.known.into_inner(), self.tolerated.into_inner());
        let Some(map) = self.map else { return };
        for name in map.keys() {
            let wrong = name.get_ref();
            if known.iter().chain(&tolerated).any(|key| key == wrong) {
                continue;
            }
            let message = if self.path.is_empty() {
                format!("there is no table `{wrong}`")
            } else {
                format!("`{}` has no key `{wrong}`", self.path)
            };
            let help = match nearest(wrong, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", sorted(&known).join(", ")),
            };
            let label = if self.path.is_empty() { "unknown table" } else { "unknown key" };
            let problem = Problem::new(message).at(&self.walk.source, name.span(), label);
            self.walk.note(problem.help(help));
        }
    }
}

impl<'a> Value<'a> {
    /// Notes a problem with this value.
    pub(super) fn problem(&self, message: impl Into<String>, label: &str, help: impl Into<String>) {
        self.walk.note(self.describe_problem(message.into(), label, help.into()));
    }

    /// The same for a value that is a secret, or may have one in it.
    pub(super) fn hidden_problem(
        &self,
        message: impl Into<String>,
        label: &str,
        help: impl Into<String>,
    ) {
        self.walk.note(self.describe_problem(message.into(), label, help.into()).hidden());
    }

    fn describe_problem(&self, message: String, label: &str, help: String) -> Problem {
        let problem = match self.from {
            From::File(value) => Problem::new(message).at(&self.walk.source, value.span(), label),
            From::Variable { name, .. } => Problem::new(format!("{name}: {message}")),
        };
        if help.is_empty() { problem } else { problem.help(help) }
    }

    /// Notes that the value is of the wrong type.
    fn wrong(&self, expected: &str, found: String) {
        let label = format!("this is {found}");
        self.problem(format!("`{}` must be {expected}", self.path), &label, "");
    }

    fn at<T>(&self, value: T) -> At<T> {
        let span = match self.from {
            From::File(value) => Some(value.span()),
            From::Variable { .. } => None,
        };
        At { value, span }
    }

    pub(super) fn span(&self) -> Option<Range<usize>> {
        self.at(()).span
    }

    pub(super) const fn walk(&self) -> &'a Walk<'a> {
        self.walk
    }

    pub(super) fn text(&self) -> Option<&'a str> {
        match self.from {
            From::Variable { text, .. } => Some(text),
            From::File(value) => match value.get_ref() {
                DeValue::String(text) => Some(text),
                other => {
                    self.wrong("a text in quotes", describe(other));
                    None
                }
            },
        }
    }

    /// A text that is not blank.
    pub(super) fn name(&self) -> Option<At<String>> {
        let text = self.text()?;
        if text.trim().is_empty() {
            self.problem(format!("`{}` is empty", self.path), "nothing in it", "");
            return None;
        }
        Some(self.at(text.to_owned()))
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.from {
            From::Variable { text, .. } => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => {
                    self.problem(format!("`{text}` is neither true nor false"), "", "");
                    None
                }
            },
            From::File(value) => match value.get_ref() {
                DeValue::Boolean(value) => Some(*value),
                other => {
                    self.wrong("true or false, without quotes", describe(other));
                    None
                }
            },
        }
    }

    /// A whole number within `range`.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let parsed = match self.from {
            From::Variable { text, .. } => text.trim().parse::<i128>().ok(),
            From::File(value) => match value.get_ref() {
                DeValue::Integer(number) => {
                    i128::from_str_radix(number.as_str(), number.radix()).ok()
                }
                other => {
                    self.wrong("a whole number", describe(other));
                    return None;
                }
            },
        };
        let number = parsed.and_then(|number| u64::try_from(number).ok());
        let inside = number.filter(|number| range.contains(number));
        if inside.is_none() {
            let message =
                format!("`{}` must be from {} to {}", self.path, range.start(), range.end());
            self.problem(message, "out of range", "");
        }
        inside
    }

    /// A whole number that fits, within `range`.
    pub(super) fn count(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let number = self.integer(u64::from(*range.start())..=u64::from(*range.end()))?;
        u32::try_from(number).ok()
    }

    /// A number within `range`.
    pub(super) fn fraction(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let parsed: Option<f64> = match self.from {
            From::Variable { text, .. } => text.trim().parse().ok(),
            From::File(value) => match value.get_ref() {
                DeValue::Float(number) => number.as_str().parse().ok(),
                DeValue::Integer(number) => number.as_str().parse().ok(),
                other => {
                    self.wrong("a number", describe(other));
                    return None;
                }
            },
        };
        let inside = parsed.filter(|number| range.contains(number));
        if inside.is_none() {
            let message =
                format!("`{}` must be from {} to {}", self.path, range.start(), range.end());
            self.problem(message, "out of range", "");
        }
        inside
    }

    /// An amount of money that is not negative, in millionths, exactly as it is written.
    pub(super) fn micros(&self) -> Option<u64> {
        let text = match self.from {
            From::Variable { text, .. } => text.trim(),
            From::File(value) => match value.get_ref() {
                DeValue::Float(number) => number.as_str(),
                DeValue::Integer(number) if number.radix() == 10 => number.as_str(),
                DeValue::Integer(_) => "",
                other => {
                    self.wrong("a number", describe(other));
                    return None;
                }
            },
        };
        let micros = exact_micros(text);
        if micros.is_none() {
            self.problem(
                format!("`{}` must be an amount from 0 to {MOST_MONEY}", self.path),
                "no such amount",
                "such as 0.25, with at most six digits behind the point",
            );
        }
        micros
    }

    /// A duration within `range`; anything without an end is refused.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        const EXAMPLE: &str = "a number and a unit, such as \"30s\", \"500ms\" or \"5m\"";
        let text = match self.from {
            From::Variable { text, .. } => text,
            From::File(value) => match value.get_ref() {
                DeValue::String(text) => text,
                DeValue::Integer(number) if number.as_str() == "0" => "0",
                DeValue::Integer(number) => {
                    let help = format!("write `\"{}s\"` if you mean seconds", number.as_str());
                    self.problem(
                        format!("`{}` must be a duration in quotes with a unit", self.path),
                        "a number alone could mean anything",
                        help,
                    );
                    return None;
                }
                other => {
                    self.wrong("a duration in quotes", describe(other));
                    return None;
                }
            },
        };
        match duration::parse(text) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                let [least, most] = [range.start(), range.end()].map(|end| duration::show(*end));
                self.problem(
                    format!("`{}` must be from {least} to {most}", self.path),
                    "out of range",
                    "",
                );
                None
            }
            Err(Invalid::NoEnd) => {
                self.problem(
                    format!("`{}` has no end, and every wait needs an end", self.path),
                    "this would wait for ever",
                    format!("the longest is \"{}\"", duration::show(*range.end())),
                );
                None
            }
            Err(Invalid::Zero) => {
                let [least, most] = [range.start(), range.end()].map(|end| duration::show(*end));
                self.problem(
                    format!("`{}` must be above zero", self.path),
                    "no time at all",
                    format!("from \"{least}\" to \"{most}\"; zero does not mean without end"),
                );
                None
            }
            Err(Invalid::NoUnit) => {
                let help = format!("write `\"{}s\"` if you mean seconds", text.trim());
                self.problem(
                    format!("`{}` is a duration and has no unit", self.path),
                    "seconds? minutes?",
                    help,
                );
                None
            }
            Err(Invalid::Malformed) => {
                self.problem(
                    format!("`{}` is no duration", self.path),
                    "not understood",
                    format!("write {EXAMPLE}"),
                );
                None
            }
        }
    }

    /// A pause that something makes on purpose: zero is fine, and it has an end.
    pub(super) fn pause(&self) -> Option<Duration> {
        let zero = match self.from {
            From::Variable { text, .. } => duration::parse(text) == Err(Invalid::Zero),
            From::File(value) => match value.get_ref() {
                DeValue::String(text) => duration::parse(text) == Err(Invalid::Zero),
                DeValue::Integer(number) => number.as_str() == "0",
                _ => false,
            },
        };
        if zero {
            Some(Duration::ZERO)
        } else {
            self.duration(Duration::from_millis(1)..=Duration::from_secs(3600))
        }
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.text()?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if found.is_none() {
            let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
            let help = match nearest(text, words.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("one of: {}", words.join(", ")),
            };
            self.problem(
                format!("`{}` cannot be `{text}`", self.path),
                "not one of the choices",
                help,
            );
        }
        found
    }

    /// An address in which `${NAME}` stands for an environment variable, read by `read`. People put
    /// passwords into addresses, so neither the text nor its value is shown when it is wrong.
    pub(super) fn address<T>(
        &self,
        read: impl FnOnce(&str) -> Result<T, String>,
        example: &str,
    ) -> Option<String> {
        let address = self.expanded()?;
        match read(address.expose()) {
            Ok(_) => Some(address.expose().to_owned()),
            Err(why) => {
                let why = why.replace(&format!("{:?} ", address.expose()), "it ");
                self.hidden_problem(
                    format!("`{}`: {why}", self.path),
                    "here",
                    format!("such as {example}"),
                );
                None
            }
        }
    }

    /// What `read` makes of the text, or its sentence about it.
    pub(super) fn parsed<T>(&self, read: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match read(self.text()?) {
            Ok(value) => Some(value),
            Err(why) => {
                self.problem(format!("`{}`: {why}", self.path), "here", "");
                None
            }
        }
    }

    /// A text in which `${NAME}` stands for an environment variable.
    pub(super) fn expanded(&self) -> Option<Secret> {
        let text = self.text()?;
        let Some(pieces) = pieces(text) else {
            self.problem(
                format!("`{}` has a broken `${{…}}`", self.path),
                "here",
                "write `${NAME}`",
            );
            return None;
        };
        let mut whole = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => whole.push_str(text),
                Piece::Variable(name) => match self.walk.variable(name) {
                    Some(value) => whole.push_str(value),
                    None => {
                        self.problem(
                            format!("the environment variable {name} is not set"),
                            "needed here",
                            format!("run with {name}=… in the environment"),
                        );
                        return None;
                    }
                },
            }
        }
        Some(Secret::new(whole))
    }

    /// A secret: it must come from the environment, because files are copied, shown and committed.
    pub(super) fn secret(&self) -> Option<Secret> {
        let has_variable = pieces(self.text()?)
            .is_none_or(|pieces| pieces.iter().any(|piece| matches!(piece, Piece::Variable(_))));
        if !has_variable {
            self.hidden_problem(
                format!("`{}` is a secret and must come from the environment", self.path),
                "a secret does not belong in a file",
                "put it into an environment variable and write `\"${API_KEY}\"`",
            );
            return None;
        }
        // Files and shells like to end a value with a line break.
        self.expanded().map(|secret| Secret::new(secret.expose().trim()))
    }

    /// A table with known keys.
    pub(super) fn table(&self) -> Option<Table<'a>> {
        match self.from {
            From::Variable { .. } => {
                self.problem(
                    "a table cannot be set as a whole",
                    "",
                    "set its keys, joined with `__`",
                );
                None
            }
            From::File(value) => match value.get_ref() {
                DeValue::Table(map) => Some(Table {
                    walk: self.walk,
                    path: self.path.clone(),
                    span: value.span(),
                    map: Some(map),
                    known: RefCell::default(),
                    tolerated: RefCell::default(),
                }),
                other => {
                    self.wrong("a table", describe(other));
                    None
                }
            },
        }
    }

    /// Whether it is a table: for keys that take a text or a table.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.from, From::File(value) if matches!(value.get_ref(), DeValue::Table(_)))
    }

    /// Whether it is a whole number: for keys that take a word or a number.
    pub(super) fn is_number(&self) -> bool {
        match self.from {
            From::File(value) => matches!(value.get_ref(), DeValue::Integer(_)),
            From::Variable { text, .. } => text.trim().parse::<u64>().is_ok(),
        }
    }

    /// Whether it is a list: for more errors about it than that it is none.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.from, From::File(value) if matches!(value.get_ref(), DeValue::Array(_)))
    }

    /// The texts of a list; a variable holds them with commas between.
    pub(super) fn texts(&self) -> Vec<String> {
        match self.from {
            From::Variable { text, .. } => {
                text.split(',').map(|part| part.trim().to_owned()).collect()
            }
            From::File(_) => {
                self.list().iter().filter_map(|item| item.text().map(ToOwned::to_owned)).collect()
            }
        }
    }

    /// The elements of a list.
    pub(super) fn list(&self) -> Vec<Self> {
        let From::File(value) = self.from else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(items) => items
                .iter()
                .enumerate()
                .map(|(at, item)| Value {
                    walk: self.walk,
                    path: format!("{}[{at}]", self.path),
                    from: From::File(item),
                })
                .collect(),
            other => {
                self.wrong("a list", describe(other));
                Vec::new()
            }
        }
    }

    /// Any value as JSON, for what is passed on as it is.
    pub(super) fn json(&self) -> Option<serde_json::Value> {
        match self.from {
            From::Variable { text, .. } => Some(text.into()),
            From::File(value) => match to_json(value.get_ref()) {
                Some(json) => Some(json),
                None => {
                    self.wrong(
                        "a text, number, true or false, list or table",
                        describe(value.get_ref()),
                    );
                    None
                }
            },
        }
    }

    /// Keys and values of a table whose keys are not ours.
    pub(super) fn entries(&self) -> Vec<(String, Self)> {
        let Some(table) = self.table() else { return Vec::new() };
        let Some(map) = table.map else { return Vec::new() };
        let value = |key: &str, value| Value {
            walk: self.walk,
            path: table.join(key),
            from: From::File(value),
        };
        map.iter()
            .map(|(key, item)| (key.get_ref().clone().into_owned(), value(key.get_ref(), item)))
            .collect()
    }
}

/// The place of a table for errors about the table as a whole: its name, with the rest of the
/// dotted header when there is one.
fn header(source: &Source, name: Range<usize>, value: Range<usize>) -> Range<usize> {
    let text = source.text();
    let starts_header = text.get(value.clone()).is_some_and(|text| text.starts_with('['));
    match starts_header.then(|| text[value.start..].find(']')).flatten() {
        Some(end) => value.start..value.start + end + 1,
        None => name,
    }
}

pub(super) fn is_name(name: &str) -> bool {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (1..=64).contains(&name.len())
        && name.chars().all(sound)
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The most that a million of anything costs.
const MOST_MONEY: u64 = 1_000_000_000;

/// `0.25` as 250 000: digit by digit, because a binary fraction would be off by some.
fn exact_micros(text: &str) -> Option<u64> {
    const DECIMALS: usize = 6;
    let text = text.strip_prefix('+').unwrap_or(text);
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let decimals = decimals.trim_end_matches('0');
    if whole.is_empty() || !digits(whole) || !digits(decimals) || decimals.len() > DECIMALS {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let millionths: u64 = format!("{decimals:0<DECIMALS$}").parse().ok()?;
    let micros = whole.checked_mul(1_000_000)?.checked_add(millionths)?;
    (micros <= MOST_MONEY * 1_000_000).then_some(micros)
}

fn to_json(value: &DeValue<'_>) -> Option<serde_json::Value> {
    Some(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).ok()?.into()
        }
        DeValue::Float(number) => serde_json::Number::from_f64(number.as_str().parse().ok()?)
            .map(serde_json::Value::Number)?,
        DeValue::Boolean(value) => (*value).into(),
        DeValue::Datetime(_) => return None,
        DeValue::Array(items) => {
            items.iter().map(|item| to_json(item.get_ref())).collect::<Option<Vec<_>>>()?.into()
        }
        DeValue::Table(map) => {
            let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
                let key: &std::borrow::Cow<'_, str> = key.get_ref();
                Some((key.clone().into_owned(), to_json(value.get_ref())?))
            };
            serde_json::Value::Object(map.iter().map(entry).collect::<Option<_>>()?)
        }
    })
}

/// What a value is, in words.
fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(_) => "a text".to_owned(),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date or time".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// The word that was probably meant, if any is near.
pub(super) fn nearest<'w>(
    wrong: &str,
    words: impl IntoIterator<Item = &'w str>,
) -> Option<&'w str> {
    let near = |word: &&str| strsim::damerau_levenshtein(wrong, word);
    let best = words.into_iter().min_by_key(near)?;
    let far = (wrong.chars().count().max(best.chars().count()) / 3).max(1);
    (near(&best) <= far).then_some(best)
}

/// For "known here": each word once, in order.
pub(super) fn sorted<'w>(words: &[&'w str]) -> Vec<&'w str> {
    words.iter().copied().collect::<BTreeSet<_>>().into_iter().collect()
}
