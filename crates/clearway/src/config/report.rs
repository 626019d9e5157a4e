//! Configuration errors as people read them: what, where (underlined), what to do.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError,
    MietteSpanContents, SourceCode, SourceSpan, SpanContents,
};

/// The text of a file, under the name that people see.
#[derive(Clone, Debug)]
pub struct Source(Arc<Named>);

#[derive(Debug)]
struct Named {
    name: String,
    text: String,
}

impl Source {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self(Arc::new(Named { name: name.into(), text: text.into() }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// The same text with `span` made unreadable; every other place stays where it is.
    fn hide(&self, span: &Range<usize>) -> Self {
        let text = self.text();
        let hide = |byte| if matches!(byte, b'\n' | b'\r') { char::from(byte) } else { '*' };
        let hidden: String = text[span.clone()].bytes().map(hide).collect();
        Self::new(self.name(), [&text[..span.start], &hidden, &text[span.end..]].concat())
    }
}

/// Shows the whole line of a place, and no other.
impl SourceCode for Source {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        _: usize,
        _: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let text = self.text();
        let (start, end) = (span.offset(), span.offset() + span.len());
        if end > text.len() {
            return Err(MietteError::OutOfBounds);
        }
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[end..].find(['\n', '\r']).map_or(text.len(), |at| end + at);
        let line = text[..start].matches('\n').count();
        let data = &text.as_bytes()[line_start..line_end];
        let shown = (line_start, line_end - line_start).into();
        // The position in the heading is the place's, not the line's beginning.
        let column = text[line_start..start].chars().count();
        let contents =
            MietteSpanContents::new_named(self.0.name.clone(), data, shown, line, column, 1);
        Ok(Box::new(contents))
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What is wrong, as one sentence without a full stop.
    pub message: String,
    /// Where; `None` for what is in no file, such as an environment variable.
    pub place: Option<Place>,
    /// What to do about it.
    pub help: Option<String>,
}

/// A stretch of a file, and what to say below it.
#[derive(Clone, Debug)]
pub struct Place {
    pub source: Source,
    pub span: Range<usize>,
    pub label: Option<String>,
    /// It holds, or may hold, a secret.
    hidden: bool,
}

impl Problem {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), place: None, help: None }
    }

    #[must_use]
    pub fn at(mut self, source: &Source, span: Range<usize>, label: impl Into<String>) -> Self {
        let label = Some(label.into()).filter(|label| !label.is_empty());
        self.place = Some(Place { source: source.clone(), span, label, hidden: false });
        self
    }

    /// Makes the place unreadable in every problem of its [`Report`]: it holds, or may hold, a
    /// secret.
    #[must_use]
    pub fn hidden(mut self) -> Self {
        if let Some(place) = &mut self.place {
            place.hidden = true;
        }
        self
    }

    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Errors of one file in the order of the file; those without a place first.
    fn order(&self) -> (Option<String>, usize) {
        match &self.place {
            Some(place) => (Some(place.source.name().to_owned()), place.span.start),
            None => (None, 0),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl Diagnostic for Problem {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.as_ref().map(|place| &place.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.as_ref()?;
        // An underline ends with its line: a table or a long text would fill the screen.
        let text = place.source.text();
        let shown = &text[place.span.clone()];
        let mut length = shown.find(['\n', '\r']).unwrap_or(shown.len());
        let mut start = place.span.start;
        if length == 0
            && let Some(last) = text[..start].chars().next_back().filter(|last| *last != '\n')
        {
            // "Something is missing here" points at what is in front of it.
            start -= last.len_utf8();
            length = last.len_utf8();
        }
        let label = LabeledSpan::new(place.label.clone(), start, length);
        Some(Box::new(std::iter::once(label)))
    }
}

/// Everything that is wrong with a configuration; never empty.
///
/// `Display` renders it without colour; [`Report::render`] chooses.
#[derive(Clone, Debug)]
pub struct Report {
    pub problems: Vec<Problem>,
}

/// Whether a report may use escape sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    Never,
    Always,
}

/// Enough for the longest sentence here; a terminal wraps by itself.
const WIDTH: usize = 120;

impl Report {
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        hide_secrets(&mut problems);
        problems.sort_by_key(Problem::order);
        Self { problems }
    }

    /// The report as text for a person, one underlined place per problem.
    pub fn render(&self, colour: Colour) -> String {
        let mut theme = match colour {
            Colour::Always => GraphicalTheme::unicode(),
            Colour::Never => GraphicalTheme::unicode_nocolor(),
        };
        theme.characters.error = "error:".to_owned();
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(WIDTH)
            .with_context_lines(0)
            .with_links(false);
        let mut text = String::new();
        for problem in &self.problems {
            if !text.is_empty() {
                text.push('\n');
            }
            let mut one = String::new();
            if handler.render_report(&mut one, problem).is_err() {
                // Only a span outside its file can do this; the sentence still says what is wrong.
                one = format!("  error: {problem}\n");
            }
            outdent(&one, &mut text);
        }
        text
    }
}

/// A line with a secret in it may be shown for something else, too.
fn hide_secrets(problems: &mut [Problem]) {
    let mut sources = BTreeMap::<String, Source>::new();
    for place in problems.iter().filter_map(|problem| problem.place.as_ref()) {
        if place.hidden {
            let name = place.source.name().to_owned();
            let source = sources.entry(name).or_insert_with(|| place.source.clone());
            *source = source.hide(&place.span);
        }
    }
    for place in problems.iter_mut().filter_map(|problem| problem.place.as_mut()) {
        if let Some(source) = sources.get(place.source.name()) {
            place.source = source.clone();
        }
    }
}

/// The handler indents by two columns; errors here start at the margin, like a compiler's.
fn outdent(rendered: &str, into: &mut String) {
    for line in rendered.lines() {
        let line = line.strip_prefix("  ").or_else(|| line.strip_prefix(' ')).unwrap_or(line);
        into.push_str(line.trim_end());
        into.push('\n');
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(Colour::Never).trim_end())
    }
}

impl std::error::Error for Report {}
