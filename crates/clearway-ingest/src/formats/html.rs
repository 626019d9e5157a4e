//! HTML: what a reader of the page sees.

use ego_tree::iter::Edge;
use scraper::{Html, Node};

use super::{Builder, one_line};
use crate::protocol::Parsed;

/// What nobody reads.
const UNSEEN: &[&str] = &[
    "script", "style", "template", "noscript", "svg", "head", "iframe", "object", "nav", "button",
];

/// What begins a paragraph of its own.
const BLOCKS: &[&str] = &[
    "p",
    "div",
    "section",
    "article",
    "main",
    "header",
    "footer",
    "aside",
    "ul",
    "ol",
    "dl",
    "table",
    "blockquote",
    "pre",
    "figure",
    "form",
    "hr",
    "details",
    "summary",
    "address",
    "body",
];

/// What begins a line.
const LINES: &[&str] = &["li", "tr", "dt", "dd", "br", "option", "caption", "figcaption"];

pub(super) fn parse(text: &str) -> Parsed {
    let page = Html::parse_document(text);
    let mut builder = Builder::new("html");
    let mut paragraph = String::new();
    // Of headings and links that are open.
    let mut heading: Option<(u8, String)> = None;
    let mut link: Option<String> = None;
    let mut unseen = 0_u32;
    for edge in page.tree.root().traverse() {
        match edge {
            Edge::Open(node) => match node.value() {
                Node::Element(element) => {
                    let name = element.name();
                    if UNSEEN.contains(&name) || element.attr("hidden").is_some() {
                        unseen += 1;
                    } else if unseen == 0 {
                        if let Some(level) = level(name) {
                            builder.paragraph(&std::mem::take(&mut paragraph));
                            heading = Some((level, String::new()));
                        } else if name == "a" {
                            let target = element.attr("href").unwrap_or_default();
                            link = Some(target.to_owned());
                        } else if BLOCKS.contains(&name) {
                            builder.paragraph(&std::mem::take(&mut paragraph));
                        } else if LINES.contains(&name) {
                            trim_end(&mut paragraph);
                            paragraph.push('\n');
                        } else if matches!(name, "td" | "th") && !paragraph.ends_with('\n') {
                            paragraph.push_str(" | ");
                        }
                    }
                }
                Node::Text(text) if unseen == 0 => match &mut heading {
                    Some((_, heading)) => heading.push_str(&text[..]),
                    None => append(&mut paragraph, &text[..]),
                },
                _ => {}
            },
            Edge::Close(node) => {
                let Node::Element(element) = node.value() else { continue };
                let name = element.name();
                if UNSEEN.contains(&name) || element.attr("hidden").is_some() {
                    unseen = unseen.saturating_sub(1);
                } else if unseen == 0 {
                    if level(name).is_some() {
                        if let Some((level, text)) = heading.take() {
                            builder.heading(level, &text);
                        }
                    } else if name == "a" {
                        if let Some(target) = link.take().filter(|target| useful(target)) {
                            builder.link(&target);
                        }
                    } else if BLOCKS.contains(&name) {
                        builder.paragraph(&std::mem::take(&mut paragraph));
                    }
                }
            }
        }
    }
    builder.paragraph(&paragraph);
    let mut parsed = builder.finish();
    parsed.title = title(&page);
    parsed
}

fn level(name: &str) -> Option<u8> {
    match name.as_bytes() {
        [b'h', level @ b'1'..=b'6'] => Some(level - b'0'),
        _ => None,
    }
}

fn useful(target: &str) -> bool {
    !target.is_empty() && !target.starts_with('#') && !target.starts_with("javascript:")
}

/// Blanks of any number are one.
fn append(paragraph: &mut String, text: &str) {
    for (at, word) in text.split_whitespace().enumerate() {
        let blank = at > 0 || text.starts_with(char::is_whitespace);
        if blank && !paragraph.is_empty() && !paragraph.ends_with([' ', '\n']) {
            paragraph.push(' ');
        }
        paragraph.push_str(word);
    }
    if text.ends_with(char::is_whitespace)
        && !paragraph.is_empty()
        && !paragraph.ends_with([' ', '\n'])
    {
        paragraph.push(' ');
    }
}

fn trim_end(text: &mut String) {
    text.truncate(text.trim_end().len());
}

fn title(page: &Html) -> Option<String> {
    let is_title = |node: &ego_tree::NodeRef<'_, Node>| {
        node.value().as_element().is_some_and(|element| element.name() == "title")
    };
    let title = page.tree.root().descendants().find(is_title)?;
    let text: String =
        title.descendants().filter_map(|node| node.value().as_text().map(|text| &**text)).collect();
    Some(one_line(&text, 300)).filter(|title| !title.is_empty())
}
