//! From bytes to text with structure, one module for each family of formats.
//!
//! The name says what a document should be; the bytes are asked whether they are that.

mod html;
mod json;
mod office;
mod pdf;
mod tables;
mod text;

use clearway_knowledge::Outline;

use crate::protocol::{Block, BlockKind, Parsed, Trouble, TroubleKind};

/// Parses a document by the format that its name promises.
pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Parsed, Trouble> {
    let format = Format::of(name, bytes)?;
    match format {
        Format::Pdf => pdf::parse(bytes),
        Format::Docx => office::docx(bytes),
        Format::Pptx => office::pptx(bytes),
        Format::Sheet => tables::workbook(bytes),
        Format::Markdown => Ok(outlined("markdown", text::decode(bytes)?, Outline::markdown)),
        Format::Html => Ok(html::parse(&text::decode(bytes)?)),
        Format::Csv(delimiter) => tables::csv(&text::decode(bytes)?, delimiter),
        Format::Json => json::json(&text::decode(bytes)?),
        Format::JsonLines => json::lines(&text::decode(bytes)?),
        Format::Code => Ok(outlined("code", text::decode(bytes)?, Outline::verbatim)),
        Format::Text => Ok(outlined("text", text::decode(bytes)?, Outline::plain)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Markdown,
    Text,
    Html,
    Pdf,
    Docx,
    Pptx,
    Sheet,
    Csv(Option<u8>),
    Json,
    JsonLines,
    Code,
}

const CODE: &[&str] = &[
    "rs", "py", "js", "mjs", "cjs", "ts", "tsx", "jsx", "go", "java", "kt", "kts", "scala", "c",
    "h", "cc", "cpp", "cxx", "hpp", "cs", "rb", "php", "swift", "m", "mm", "sh", "bash", "zsh",
    "fish", "ps1", "sql", "lua", "pl", "pm", "r", "jl", "dart", "ex", "exs", "erl", "hs", "ml",
    "clj", "vue", "svelte", "css", "scss", "proto", "graphql", "tf", "toml", "yaml", "yml", "ini",
    "cfg", "conf", "xml", "gradle", "cmake", "zig", "nix",
];

impl Format {
    fn of(name: &str, bytes: &[u8]) -> Result<Self, Trouble> {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let extension = file.rsplit_once('.').map_or("", |(_, ending)| ending).to_lowercase();
        let pdf = bytes[..bytes.len().min(1024)].windows(5).any(|at| at == b"%PDF-");
        let zip = bytes.starts_with(b"PK\x03\x04");
        let compound = bytes.starts_with(&[0xD0, 0xCF, 0x11, 0xE0, 0xA1, 0xB1, 0x1A, 0xE1]);
        let not = |what: &str| {
            Err(Trouble::new(TroubleKind::Broken, format!("its bytes are not those of {what}")))
        };
        match extension.as_str() {
            "pdf" if pdf => Ok(Self::Pdf),
            "pdf" => not("a PDF"),
            "docx" | "pptx" | "xlsx" | "xlsm" if compound => Err(Trouble::new(
                TroubleKind::Encrypted,
                "it is protected with a password; save it without one",
            )),
            "docx" | "docm" | "dotx" if zip => Ok(Self::Docx),
            "pptx" | "pptm" | "ppsx" if zip => Ok(Self::Pptx),
            "xlsx" | "xlsm" | "xlsb" | "ods" if zip => Ok(Self::Sheet),
            "xls" if compound => Ok(Self::Sheet),
            "docx" | "docm" | "dotx" => not("a Word document"),
            "pptx" | "pptm" | "ppsx" => not("a presentation"),
            "xlsx" | "xlsm" | "xlsb" | "ods" | "xls" => not("a workbook"),
            "doc" | "ppt" | "rtf" | "odt" | "odp" | "epub" | "pages" | "key" => {
                let text = format!("`.{extension}` is not read; save it as PDF, DOCX or PPTX");
                Err(Trouble::new(TroubleKind::Unsupported, text))
            }
            "md" | "markdown" | "mdown" | "mkd" | "mdx" => Ok(Self::Markdown),
            "html" | "htm" | "xhtml" => Ok(Self::Html),
            "csv" => Ok(Self::Csv(None)),
            "tsv" => Ok(Self::Csv(Some(b'\t'))),
            "json" | "geojson" | "ipynb" => Ok(Self::Json),
            "jsonl" | "ndjson" => Ok(Self::JsonLines),
            other if CODE.contains(&other) => Ok(Self::Code),
            // No name or a strange one: the bytes say what it is.
            _ if pdf => Ok(Self::Pdf),
            _ => Ok(Self::Text),
        }
    }
}

/// What an empty document of a format usually means.
pub(crate) fn nothing_in(format: &str) -> &'static str {
    match format {
        "pdf" => "there is no text in it: its pages are probably pictures, which need OCR first",
        _ => "there is no text in it",
    }
}

/// A text whose source is shown as it is.
fn outlined(format: &str, text: String, outline: impl Fn(&str) -> Outline) -> Parsed {
    let Outline { title, blocks, links, front } = outline(&text);
    let block = |block: clearway_knowledge::Block| Block {
        kind: match block.kind {
            clearway_knowledge::BlockKind::Heading { level } => BlockKind::Heading(level),
            clearway_knowledge::BlockKind::Paragraph => BlockKind::Paragraph,
            clearway_knowledge::BlockKind::Verbatim => BlockKind::Verbatim,
        },
        span: block.span,
        page: block.page,
    };
    Parsed {
        format: format.to_owned(),
        title,
        text,
        blocks: blocks.into_iter().map(block).collect(),
        links,
        front,
        notes: Vec::new(),
    }
}

/// Brings a parsed document within its limits: no more text than allowed, spans that fit.
pub(crate) fn tidy(parsed: &mut Parsed, most: usize) {
    if parsed.text.len() > most {
        let end = floor(&parsed.text, most);
        let (all, kept) = (parsed.text.len(), end);
        parsed.text.truncate(end);
        parsed.notes.push(format!("only the first {kept} of {all} bytes of text are used"));
    }
    let end = parsed.text.len();
    parsed.blocks.truncate(MOST_BLOCKS);
    for block in &mut parsed.blocks {
        block.span.end = block.span.end.min(end);
    }
    let text = &parsed.text;
    parsed.blocks.retain(|block| {
        block.span.start < block.span.end && text.get(block.span.clone()).is_some()
    });
    parsed.links.retain(|link| !link.trim().is_empty() && link.len() < 2000);
    parsed.links.dedup();
    parsed.links.truncate(MOST_LINKS);
    let title = parsed.title.take().map(|title| one_line(&title, 300));
    parsed.title = title.filter(|title| !title.is_empty()).or_else(|| {
        let level = |block: &&Block| match block.kind {
            BlockKind::Heading(level) => Some(level),
            BlockKind::Paragraph | BlockKind::Verbatim => None,
        };
        let headings = parsed.blocks.iter().filter(|block| level(block).is_some());
        let first = headings.min_by_key(|block| (level(block), block.span.start))?;
        Some(one_line(&parsed.text[first.span.clone()], 300)).filter(|title| !title.is_empty())
    });
}

const MOST_BLOCKS: usize = 200_000;
const MOST_LINKS: usize = 10_000;

fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

/// Text as one line of at most so many bytes.
fn one_line(text: &str, most: usize) -> String {
    let mut line = String::new();
    for word in text.split_whitespace() {
        if line.len() + word.len() >= most {
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// A text under construction: its blocks as they come.
#[derive(Debug, Default)]
struct Builder {
    out: Parsed,
    page: Option<u32>,
}

impl Builder {
    fn new(format: &str) -> Self {
        let out = Parsed { format: format.to_owned(), ..Parsed::default() };
        Self { out, page: None }
    }

    fn page(&mut self, number: u32) {
        self.page = Some(number);
    }

    fn paragraph(&mut self, text: &str) {
        self.block(BlockKind::Paragraph, text.trim());
    }

    fn heading(&mut self, level: u8, text: &str) {
        self.block(BlockKind::Heading(level), &one_line(text, 300));
    }

    /// A line that stands for itself; lines that follow each other are one block.
    fn line(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        let end = self.out.text.len();
        match self.out.blocks.last_mut() {
            Some(last)
                if last.kind == BlockKind::Verbatim
                    && last.page == self.page
                    && last.span.end == end =>
            {
                self.out.text.push('\n');
                self.out.text.push_str(text);
                last.span.end = self.out.text.len();
            }
            _ => self.block(BlockKind::Verbatim, text),
        }
    }

    fn block(&mut self, kind: BlockKind, text: &str) {
        if text.is_empty() {
            return;
        }
        if !self.out.text.is_empty() {
            self.out.text.push_str("\n\n");
        }
        let start = self.out.text.len();
        self.out.text.push_str(text);
        let span = start..self.out.text.len();
        self.out.blocks.push(Block { kind, span, page: self.page });
    }

    fn link(&mut self, target: &str) {
        self.out.links.push(target.trim().to_owned());
    }

    fn finish(self) -> Parsed {
        self.out
    }
}

#[cfg(test)]
mod tests;
