//! Templates and expressions: minijinja, where an undefined name is an error.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use clearway_core::{Code, Failure};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior, Value};

/// What one rendering may use up (`template_fuel`): one for each step of the engine, and one for each 64 bytes of
/// whatever it makes, shown or not. So a loop in it ends, and a text that it doubles does, too. This many take some
/// milliseconds and 12 MB, and whoever else waits for the thread does not notice. One hole is the engine's own: a list
/// that is added to itself more than 32 times is made without being paid for before.
const FUEL: u64 = 200_000;
/// The same where nobody waits: in a lane. 128 MB.
const LANE_FUEL: u64 = 2_000_000;

/// Bytes that a value may have as JSON, or a text that goes into a prompt, a request or a channel: what a step may hold
/// in memory (`step_bytes`).
pub(crate) const VALUE_BYTES: usize = 4 << 20;
/// Bytes of a text that becomes a file (`step_bytes`); whether the file is kept is for `artifact_bytes`.
pub(crate) const FILE_BYTES: usize = 32 << 20;

/// A compiled template.
#[derive(Clone)]
pub struct Template {
    environment: Arc<Environment<'static>>,
    /// What errors call it: a file, or the step's key.
    pub name: String,
}

/// A compiled expression.
#[derive(Clone)]
pub struct Expr {
    environment: Arc<Environment<'static>>,
    pub name: String,
    pub source: String,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({})", self.name)
    }
}

impl fmt::Debug for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expr({})", self.source)
    }
}

impl Template {
    /// # Errors
    /// What is wrong with it, for people.
    pub fn compile(name: &str, text: &str) -> Result<Self, String> {
        let mut environment = environment();
        let html = name.trim_end_matches(".j2").ends_with(".html");
        environment.set_auto_escape_callback(move |_| match html {
            true => AutoEscape::Html,
            false => AutoEscape::None,
        });
        environment
            .add_template_owned(ONLY, text.to_owned())
            .map_err(|error| explain(name, &error))?;
        Ok(Self { environment: Arc::new(environment), name: name.to_owned() })
    }

    /// The same template where it may take longer: whoever renders it does so in a lane.
    #[must_use]
    pub fn for_lanes(mut self) -> Self {
        Arc::make_mut(&mut self.environment).set_fuel(Some(LANE_FUEL));
        self
    }

    /// # Errors
    /// `template_failed`, naming template, line and variable; `limit_exceeded` naming `step_bytes`.
    pub fn render(&self, values: &Value) -> Result<String, Failure> {
        self.render_within(values, VALUE_BYTES)
    }

    /// As [`Template::render`], with another limit: rendering stops where the text gets longer.
    ///
    /// # Errors
    /// As [`Template::render`].
    pub fn render_within(&self, values: &Value, most: usize) -> Result<String, Failure> {
        let mut out = Bounded { bytes: Some(Vec::new()), left: most };
        let rendered = self
            .environment
            .get_template(ONLY)
            .and_then(|template| template.render_captured_to(values, &mut out).map(drop));
        match rendered {
            Err(error) if error.kind() == ErrorKind::WriteFailure => {
                Err(too_large(&format!("{}: the text", self.name), most))
            }
            Err(error) => Err(failed(&self.name, &self.environment, &error)),
            Ok(()) => String::from_utf8(out.bytes.unwrap_or_default()).map_err(|error| {
                let text = format!("{}: not UTF-8: {error}", self.name);
                Failure::new(Code::TemplateFailed, text)
            }),
        }
    }

    /// Names that must come from outside, with the fields that are looked up in them.
    pub fn variables(&self) -> BTreeSet<String> {
        let template = self.environment.get_template(ONLY);
        let names = template.map(|template| template.undeclared_variables(true));
        names.unwrap_or_default().into_iter().collect()
    }
}

impl Expr {
    /// # Errors
    /// What is wrong with it, for people.
    pub fn compile(name: &str, source: &str) -> Result<Self, String> {
        let environment = environment();
        if let Err(error) = environment.compile_expression(source) {
            return Err(explain(name, &error));
        }
        let environment = Arc::new(environment);
        Ok(Self { environment, name: name.to_owned(), source: source.to_owned() })
    }

    /// # Errors
    /// As [`Template::render`].
    pub fn evaluate(&self, values: &Value) -> Result<serde_json::Value, Failure> {
        let value = self.value(values)?;
        // Counted first: what is too large is not to be built.
        let mut counted = Bounded { bytes: None, left: VALUE_BYTES };
        if let Err(error) = serde_json::to_writer(&mut counted, &value)
            && error.is_io()
        {
            let what = format!("{}: the value of `{}`", self.name, self.source);
            return Err(too_large(&what, VALUE_BYTES));
        }
        serde_json::to_value(&value).map_err(|error| {
            let text = format!("{}: `{}` is no JSON value: {error}", self.name, self.source);
            Failure::new(Code::TemplateFailed, text)
        })
    }

    /// # Errors
    /// As [`Template::render`].
    pub fn is_true(&self, values: &Value) -> Result<bool, Failure> {
        Ok(self.value(values)?.is_true())
    }

    fn value(&self, values: &Value) -> Result<Value, Failure> {
        let expression = self.environment.compile_expression(&self.source);
        let value = expression.and_then(|expression| expression.eval(values));
        let value = value.map_err(|error| failed(&self.name, &self.environment, &error))?;
        if value.is_undefined() {
            let text = format!("{}: `{}` is not defined", self.name, self.source);
            return Err(Failure::new(Code::TemplateFailed, text));
        }
        Ok(value)
    }

    pub fn variables(&self) -> BTreeSet<String> {
        let expression = self.environment.compile_expression(&self.source);
        let names = expression.map(|expression| expression.undeclared_variables(true));
        names.unwrap_or_default().into_iter().collect()
    }
}

const ONLY: &str = "template";

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(true);
    environment.add_filter("slug", slug);
    environment.add_filter("date", date);
    environment.add_filter("csv", csv);
    environment.add_filter("words", words);
    environment
}

/// `Süße Träume 2` becomes `susse-traume-2`, as far as letters are known.
fn slug(text: &str) -> String {
    let mut slug = String::with_capacity(text.len());
    for c in text.chars().flat_map(char::to_lowercase) {
        let plain = match c {
            'a'..='z' | '0'..='9' => {
                slug.push(c);
                continue;
            }
            'ä' | 'à' | 'á' | 'â' => "a",
            'ö' | 'ò' | 'ó' | 'ô' => "o",
            'ü' | 'ù' | 'ú' | 'û' => "u",
            'é' | 'è' | 'ê' | 'ë' => "e",
            'ß' => "ss",
            'ñ' => "n",
            'ç' => "c",
            _ => "-",
        };
        if plain != "-" || !(slug.is_empty() || slug.ends_with('-')) {
            slug.push_str(plain);
        }
    }
    slug.trim_end_matches('-').to_owned()
}

/// Formats `now` and other times in milliseconds or RFC 3339.
fn date(value: &Value, format: Option<&str>) -> Result<String, Error> {
    let text = value.to_string();
    let time = match text.parse::<i64>() {
        Ok(ms) => chrono::DateTime::from_timestamp_millis(ms),
        Err(_) => chrono::DateTime::parse_from_rfc3339(&text).ok().map(|time| time.to_utc()),
    };
    let time = time
        .ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("`{text}` is no time")))?;
    let format = format.unwrap_or("%Y-%m-%d");
    let mut out = String::new();
    match std::fmt::Write::write_fmt(&mut out, format_args!("{}", time.format(format))) {
        Ok(()) => Ok(out),
        Err(_) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("`{format}` is no date format")))
        }
    }
}

/// One field of a CSV line (RFC 4180). A field that a spreadsheet would take for a formula is
/// defused.
fn csv(value: &Value) -> String {
    let text = value.to_string();
    let text = match text.starts_with(['=', '+', '-', '@']) && text.parse::<f64>().is_err() {
        true => format!("'{text}"),
        false => text,
    };
    if text.contains(['"', ',', '\n', '\r', ';']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

/// The first words of a text.
fn words(text: &str, count: usize) -> String {
    let mut words = text.split_whitespace();
    let kept: Vec<&str> = words.by_ref().take(count).collect();
    let more = if words.next().is_some() { " …" } else { "" };
    kept.join(" ") + more
}

/// Takes so many bytes and no more; keeps them or only counts.
struct Bounded {
    bytes: Option<Vec<u8>>,
    left: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, more: &[u8]) -> std::io::Result<usize> {
        let left = self.left.checked_sub(more.len());
        self.left = left.ok_or(std::io::ErrorKind::FileTooLarge)?;
        if let Some(bytes) = &mut self.bytes {
            bytes.extend_from_slice(more);
        }
        Ok(more.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn too_large(what: &str, most: usize) -> Failure {
    let text =
        format!("{what} has more than {most} bytes, which is what a step may hold (`step_bytes`)");
    Failure::new(Code::LimitExceeded, text).with("limit", "step_bytes")
}

fn explain(name: &str, error: &Error) -> String {
    let why = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
    match error.line() {
        Some(line) => format!("{name}, line {line}: {why}"),
        None => format!("{name}: {why}"),
    }
}

fn failed(name: &str, environment: &Environment<'_>, error: &Error) -> Failure {
    if error.kind() == ErrorKind::OutOfFuel {
        return used_up(name, environment, error);
    }
    let mut text = explain(name, error);
    // The engine names what is undefined; else the part of the template that failed does.
    let named =
        error.detail().and_then(|detail| Some(detail.strip_prefix('`')?.split_once('`')?.0));
    let undefined = named.filter(|_| error.kind() == ErrorKind::UndefinedError);
    let part = error
        .template_source()
        .zip(error.range())
        .and_then(|(source, range)| source.get(range))
        .map(|part| part.trim().to_owned())
        .filter(|part| !part.is_empty() && part.len() < 200);
    if let Some(part) = part.as_ref().filter(|_| undefined.is_none()) {
        text = format!("{text} (`{part}`)");
    }
    let part = undefined.map(ToOwned::to_owned).or(part);
    let mut failure = Failure::new(Code::TemplateFailed, text).with("template", name);
    if let Some(line) = error.line() {
        failure = failure.with("line", line);
    }
    if let Some(part) = part {
        failure = failure.with("variable", part);
    }
    failure
}

/// A loop that does not end, or a text that grows and grows.
fn used_up(name: &str, environment: &Environment<'_>, error: &Error) -> Failure {
    let fuel = environment.fuel().unwrap_or_default();
    let place = error.line().map(|line| format!(", line {line}")).unwrap_or_default();
    let text = format!(
        "{name}{place}: the template takes more steps, or makes more text, than it may \
         (`template_fuel` is {fuel}: one for each step, one for each 64 bytes)"
    );
    let failure = Failure::new(Code::LimitExceeded, text).with("template", name);
    let failure = failure.with("limit", "template_fuel");
    match error.line() {
        Some(line) => failure.with("line", line),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    #[test]
    fn what_fails_is_named_with_line_and_variable() {
        let template = Template::compile("prompts/x.md", "one\n{{ brief.titel }}").unwrap();
        let values = context! { brief => context! { title => "t" } };
        let failure = template.render(&values).unwrap_err();
        assert_eq!(failure.code, Code::TemplateFailed);
        assert!(failure.message.contains("prompts/x.md, line 2"), "{failure}");
        assert_eq!(failure.detail["variable"], "brief.titel");
        assert!(Template::compile("x", "{% if %}").unwrap_err().contains("x, line 1"));
    }

    #[test]
    fn what_does_not_fit_into_a_step_is_refused_by_the_name_of_the_limit() {
        let values = context! { n => 5 << 20 };
        let failures = [
            Template::compile("x", "{{ 'x' * n }}").unwrap().render(&values).unwrap_err(),
            Expr::compile("value", "'x' * n").unwrap().evaluate(&values).unwrap_err(),
            Expr::compile("value", "[0] * n").unwrap().evaluate(&values).unwrap_err(),
        ];
        for failure in failures {
            assert_eq!(failure.code, Code::LimitExceeded, "{failure}");
            assert_eq!(failure.detail["limit"], "step_bytes");
        }
        let file = Template::compile("x", "{{ 'x' * n }}").unwrap();
        assert_eq!(file.render_within(&values, FILE_BYTES).unwrap().len(), 5 << 20);
    }

    #[test]
    fn html_is_escaped_and_text_is_not() {
        let values = context! { x => "<b>" };
        let render = |name| Template::compile(name, "{{ x }}").unwrap().render(&values).unwrap();
        assert_eq!((render("a.html.j2"), render("a.md")), ("&lt;b&gt;".into(), "<b>".into()));
    }

    #[test]
    fn expressions_and_filters() {
        let values = context! { n => 3, items => vec!["a", "b"], now => 0 };
        let eval = |source| Expr::compile("if", source).unwrap().evaluate(&values).unwrap();
        assert_eq!(eval("n < 4 and 'a' in items"), serde_json::json!(true));
        assert_eq!(eval("now | date('%Y%m%d')"), serde_json::json!("19700101"));
        assert_eq!(eval("'Süße Träume, 2!' | slug"), serde_json::json!("susse-traume-2"));
        assert_eq!(eval("'=1+1' | csv"), serde_json::json!("'=1+1"));
        assert!(Expr::compile("if", "missing.x").unwrap().evaluate(&values).is_err());
        assert!(Expr::compile("if", "n <").is_err());
        let names = Expr::compile("if", "a.b.c + d").unwrap().variables();
        assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a.b.c", "d"]);
    }

    #[test]
    fn a_loop_in_a_template_ends_and_so_does_a_text_that_grows() {
        let ends = [
            "{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}",
            "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "{% macro f(s, n) %}{% if n %}{{ f(s ~ s, n - 1) }}{% endif %}{% endmacro %}{{ f('x', 60) }}",
            "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = (ns.s * 2) | list %}{% endfor %}",
            "{% set ns = namespace(s='xx') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('x', ns.s) %}{% endfor %}",
        ];
        for text in ends {
            let text = format!("one\n{text}");
            let failure = Template::compile("site.html.j2", &text)
                .unwrap()
                .for_lanes()
                .render(&context! {})
                .unwrap_err();
            assert_eq!(failure.code, Code::LimitExceeded, "{failure}");
            assert_eq!(failure.detail["limit"], "template_fuel", "{failure}");
            assert_eq!(
                (&failure.detail["template"], &failure.detail["line"]),
                (&"site.html.j2".into(), &2.into())
            );
            assert!(failure.message.contains("site.html.j2, line 2"), "{failure}");
        }
    }
}
