//! The outline of a text: its headings, paragraphs and verbatim parts as spans of the text itself.
//!
//! Readers of other formats make their own [`Outline`]; here are those for Markdown and for plain text.

use std::ops::Range;

use pulldown_cmark::{CowStr, Event, LinkType, MetadataBlockKind, Options, Parser, Tag, TagEnd};

/// What a reader of a format knows about a text.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Outline {
    pub title: Option<String>,
    /// In reading order; they do not overlap.
    pub blocks: Vec<Block>,
    /// Targets of links and wiki-links.
    pub links: Vec<String>,
    /// What the front matter says, key by key; the values of a list one by one.
    pub front: Vec<(String, String)>,
}

/// A part of a text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Block {
    pub kind: BlockKind,
    /// In bytes, on character boundaries. A heading's is its words alone, without marks.
    pub span: Range<usize>,
    /// From 1.
    pub page: Option<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BlockKind {
    /// From 1, the outermost.
    Heading { level: u8 },
    /// Prose: may be divided between sentences.
    Paragraph,
    /// Code, tables, records: may be divided between lines.
    Verbatim,
}

impl Outline {
    /// Paragraphs between blank lines.
    pub fn plain(text: &str) -> Self {
        let mut blocks = Vec::new();
        let mut start = None;
        let mut end = 0;
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if line.trim().is_empty() {
                blocks.extend(start.take().map(|start| Block::paragraph(start..end)));
            } else {
                start.get_or_insert(at);
                end = at + line.len();
            }
            at += line.len();
        }
        blocks.extend(start.map(|start| Block::paragraph(start..end)));
        Self { blocks, ..Self::default() }
    }

    /// Lines that belong together as they are: code, tables, records.
    pub fn verbatim(text: &str) -> Self {
        let block = Block { kind: BlockKind::Verbatim, span: 0..text.len(), page: None };
        Self { blocks: vec![block], ..Self::default() }
    }

    /// CommonMark with tables, front matter and wiki-links.
    pub fn markdown(text: &str) -> Self {
        let options = Options::ENABLE_TABLES
            | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS
            | Options::ENABLE_WIKILINKS
            | Options::ENABLE_TASKLISTS
            | Options::ENABLE_FOOTNOTES
            | Options::ENABLE_STRIKETHROUGH;
        let mut reader =
            MarkdownReader { outline: Self::default(), inside: Inside::Nothing, depth: 0 };
        for (event, span) in Parser::new_ext(text, options).into_offset_iter() {
            reader.event(event, span);
        }
        let mut outline = reader.outline;
        let named = |key: &str| {
            let found = outline.front.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
            found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
        };
        let first = outline.blocks.iter().find(|b| matches!(b.kind, BlockKind::Heading { .. }));
        outline.title = named("title").or_else(|| first.map(|b| text[b.span.clone()].to_owned()));
        outline
    }
}

impl Block {
    pub fn paragraph(span: Range<usize>) -> Self {
        Self { kind: BlockKind::Paragraph, span, page: None }
    }
}

struct MarkdownReader {
    outline: Outline,
    inside: Inside,
    /// How many block elements are open within the one that is taken whole.
    depth: usize,
}

enum Inside {
    Nothing,
    Front(String),
    /// The level, and from the first word to the last.
    Heading(u8, Option<Range<usize>>),
    Whole(BlockKind, Range<usize>),
}

impl MarkdownReader {
    fn event(&mut self, event: Event<'_>, span: Range<usize>) {
        if let Event::Start(Tag::Link { dest_url, link_type, .. }) = &event {
            self.link(dest_url, *link_type);
        }
        match (&mut self.inside, event) {
            (Inside::Front(text), Event::Text(part)) => text.push_str(&part),
            (Inside::Front(text), Event::End(TagEnd::MetadataBlock(_))) => {
                self.outline.front = front_matter(text);
                self.inside = Inside::Nothing;
            }
            (Inside::Heading(level, words), Event::End(TagEnd::Heading(_))) => {
                let level = *level;
                if let Some(span) = words.take() {
                    let kind = BlockKind::Heading { level };
                    self.outline.blocks.push(Block { kind, span, page: None });
                }
                self.inside = Inside::Nothing;
            }
            (Inside::Heading(_, words), Event::Text(_) | Event::Code(_) | Event::InlineHtml(_)) => {
                let start = words.as_ref().map_or(span.start, |words| words.start);
                *words = Some(start..span.end);
            }
            (Inside::Whole(..), Event::Start(_)) => self.depth += 1,
            (Inside::Whole(kind, whole), Event::End(_)) => {
                if self.depth == 0 {
                    let block = Block { kind: *kind, span: whole.clone(), page: None };
                    self.outline.blocks.push(block);
                    self.inside = Inside::Nothing;
                } else {
                    self.depth -= 1;
                }
            }
            (Inside::Nothing, Event::Start(tag)) => self.start(&tag, span),
            // Text of a tight list item has no paragraph around it; rules and the like carry nothing.
            (Inside::Nothing, Event::Text(_) | Event::Code(_) | Event::Html(_)) => {
                self.extend_paragraph(span);
            }
            _ => {}
        }
    }

    fn start(&mut self, tag: &Tag<'_>, span: Range<usize>) {
        self.depth = 0;
        self.inside = match tag {
            Tag::MetadataBlock(MetadataBlockKind::YamlStyle) => Inside::Front(String::new()),
            Tag::Heading { level, .. } => Inside::Heading(*level as u8, None),
            Tag::CodeBlock(_) | Tag::Table(_) => Inside::Whole(BlockKind::Verbatim, span),
            Tag::Paragraph | Tag::Item => Inside::Whole(BlockKind::Paragraph, span),
            _ => return,
        };
    }

    fn extend_paragraph(&mut self, span: Range<usize>) {
        match self.outline.blocks.last_mut() {
            Some(last) if last.kind == BlockKind::Paragraph && last.span.end >= span.start => {
                last.span.end = last.span.end.max(span.end);
            }
            _ => self.outline.blocks.push(Block::paragraph(span)),
        }
    }

    fn link(&mut self, target: &CowStr<'_>, kind: LinkType) {
        let target = match kind {
            // Within a page, or to a person: points at no document.
            LinkType::Email => return,
            _ => target.split('#').next().unwrap_or_default().trim(),
        };
        if !target.is_empty() && self.outline.links.len() < MAX_LINKS {
            self.outline.links.push(target.to_owned());
        }
    }
}

/// `key: value`, `key: [a, b]` and lists below a key; what is deeper is left out.
fn front_matter(text: &str) -> Vec<(String, String)> {
    let clean = |value: &str| value.trim().trim_matches(['"', '\'']).trim().to_owned();
    let mut pairs = Vec::new();
    let mut key = String::new();
    for line in text.lines().take(MAX_FRONT_LINES) {
        if let Some(item) = line.trim_start().strip_prefix("- ") {
            if !key.is_empty() {
                pairs.push((key.clone(), clean(item)));
            }
        } else if let Some((name, value)) = line.split_once(':')
            && !name.starts_with([' ', '\t', '#'])
        {
            name.trim().clone_into(&mut key);
            let value = value.trim();
            match value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(list) => {
                    let items = list.split(',').map(clean).filter(|item| !item.is_empty());
                    pairs.extend(items.map(|item| (key.clone(), item)));
                }
                None if !value.is_empty() => pairs.push((key.clone(), clean(value))),
                None => {}
            }
        }
    }
    pairs
}

const MAX_LINKS: usize = 2_000;
const MAX_FRONT_LINES: usize = 500;
