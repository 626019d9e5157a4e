//! Reports as PDF: Markdown laid out on A4 pages.
//!
//! The standard fonts of every PDF reader are used, so nothing is embedded and files stay small. The
//! price: letters outside Windows-1252 (which has all of Western Europe) cannot be shown and become
//! `?`. Arrows and other common signs are written out.

use clearway_core::{Code, Failure};
use pdf_writer::types::LineCapStyle;
use pdf_writer::{Content, Finish, Name, Pdf, Rect, Ref, Str, TextStr};
use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

/// Pages of one document.
const PDF_PAGES: usize = 200;

const WIDTH: f32 = 595.0;
const HEIGHT: f32 = 842.0;
const MARGIN: f32 = 64.0;
const FOOT: f32 = 40.0;
/// Size of a title.
const TITLE: f32 = 24.0;
/// Height of a table's line, and the space between its columns.
const ROW: f32 = 13.0;
const GUTTER: f32 = 12.0;

/// Of headings and titles, and behind heads of tables.
const ACCENT: [f32; 3] = [0.07, 0.21, 0.36];
const GROUND: [f32; 3] = [0.92, 0.94, 0.97];

/// Lays a Markdown text out.
///
/// # Errors
/// `limit_exceeded` naming `pdf_pages`.
pub(crate) fn from_markdown(markdown: &str, title: &str) -> Result<Vec<u8>, Failure> {
    let mut layout = Layout::default();
    layout.page();
    layout.read(markdown)?;
    layout.flush()?;
    Ok(layout.write(title))
}

/// A face and a size.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Style {
    bold: bool,
    italic: bool,
    mono: bool,
    size: f32,
}

const BODY: Style = Style { bold: false, italic: false, mono: false, size: 10.5 };

impl Style {
    const fn face(self) -> &'static [u8] {
        match (self.mono, self.bold, self.italic) {
            (true, _, _) => b"F4",
            (false, true, _) => b"F2",
            (false, false, true) => b"F3",
            (false, false, false) => b"F1",
        }
    }

    fn width(self, bytes: &[u8]) -> f32 {
        let table = if self.bold { &BOLD } else { &REGULAR };
        let units: u32 = bytes
            .iter()
            .map(|&byte| match byte {
                _ if self.mono => 600,
                32..=126 => u32::from(table[usize::from(byte) - 32]),
                _ => 556,
            })
            .sum();
        units as f32 / 1000.0 * self.size
    }
}

/// Widths of Helvetica's ASCII letters in thousandths of the size, from Adobe's font metrics.
const REGULAR: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667,
    611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667,
    667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];
const BOLD: [u16; 95] = [
    278, 333, 474, 556, 556, 889, 722, 238, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 333, 333, 584, 584, 584, 611, 975, 722, 722, 722, 722, 667,
    611, 778, 722, 278, 556, 722, 611, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667,
    667, 611, 333, 278, 333, 584, 556, 333, 556, 611, 556, 611, 556, 333, 611, 611, 278, 278, 556,
    278, 889, 611, 611, 611, 611, 389, 556, 333, 611, 556, 778, 556, 556, 500, 389, 280, 389, 584,
];

/// A word with its style; a space goes before it unless it sticks to the one before.
#[derive(Clone, Debug)]
struct Word {
    bytes: Vec<u8>,
    style: Style,
    glued: bool,
}

#[derive(Default)]
struct Layout {
    pages: Vec<Content>,
    /// From the top of the page downwards.
    y: f32,
    words: Vec<Word>,
    indent: f32,
    /// Written in front of the next line: a bullet or a number.
    bullet: Option<String>,
    /// Numbers of open lists; `None` for bullets.
    lists: Vec<Option<u64>>,
    row: Vec<Vec<Word>>,
    /// Rows of the table under way, its head first.
    table: Vec<Vec<Vec<Word>>>,
    head: bool,
    in_table: bool,
    bold: u32,
    italic: u32,
    code: bool,
    heading: Option<f32>,
    quote: u32,
    glue: bool,
}

impl Layout {
    fn page(&mut self) {
        self.pages.push(Content::new());
        self.y = MARGIN;
    }

    fn room(&mut self, height: f32) -> Result<(), Failure> {
        if self.y + height > HEIGHT - MARGIN {
            if self.pages.len() >= PDF_PAGES {
                let text = format!("the document needs more than {PDF_PAGES} pages (`pdf_pages`)");
                return Err(Failure::new(Code::LimitExceeded, text).with("limit", "pdf_pages"));
            }
            self.page();
        }
        Ok(())
    }

    fn style(&self) -> Style {
        Style {
            bold: self.bold > 0 || self.heading.is_some() || self.head,
            italic: self.italic > 0 || self.quote > 0,
            mono: self.code,
            size: self.heading.unwrap_or(if self.in_table { 9.0 } else { BODY.size }),
        }
    }

    fn read(&mut self, markdown: &str) -> Result<(), Failure> {
        for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
            match event {
                Event::Start(tag) => self.open(tag)?,
                Event::End(tag) => self.close(tag)?,
                Event::Text(text) => self.text(&text)?,
                Event::Code(text) => {
                    let before = std::mem::replace(&mut self.code, true);
                    self.text(&text)?;
                    self.code = before;
                }
                Event::SoftBreak => self.glue = false,
                Event::HardBreak => self.flush()?,
                Event::Rule => {
                    self.flush()?;
                    self.rule()?;
                }
                // Nothing of a page that is not text.
                Event::Html(_)
                | Event::InlineHtml(_)
                | Event::InlineMath(_)
                | Event::DisplayMath(_)
                | Event::FootnoteReference(_)
                | Event::TaskListMarker(_) => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, tag: Tag<'_>) -> Result<(), Failure> {
        match tag {
            Tag::Heading { level, .. } => {
                self.flush()?;
                let size = match level {
                    HeadingLevel::H1 => TITLE,
                    HeadingLevel::H2 => 15.0,
                    HeadingLevel::H3 => 12.5,
                    _ => 11.0,
                };
                self.y += size * 0.8;
                // A heading does not stay alone at the foot of a page.
                self.room(size * 6.0)?;
                self.heading = Some(size);
            }
            Tag::Strong => self.bold += 1,
            Tag::Emphasis => self.italic += 1,
            Tag::BlockQuote(_) => {
                self.flush()?;
                self.quote += 1;
                self.indent += 16.0;
            }
            Tag::CodeBlock(_) => {
                self.flush()?;
                self.code = true;
                self.indent += 8.0;
            }
            Tag::List(start) => {
                self.flush()?;
                self.lists.push(start);
                self.indent += 16.0;
            }
            Tag::Item => {
                self.flush()?;
                self.bullet = Some(match self.lists.last_mut() {
                    Some(Some(number)) => {
                        let text = format!("{number}.");
                        *number += 1;
                        text
                    }
                    Some(None) | None => "•".to_owned(),
                });
            }
            Tag::Table(_) => {
                self.flush()?;
                self.in_table = true;
                self.y += 4.0;
            }
            Tag::TableHead => {
                self.head = true;
                self.row.clear();
            }
            Tag::TableRow => self.row.clear(),
            Tag::Paragraph
            | Tag::TableCell
            | Tag::Link { .. }
            | Tag::Image { .. }
            | Tag::HtmlBlock
            | Tag::FootnoteDefinition(_)
            | Tag::DefinitionList
            | Tag::DefinitionListTitle
            | Tag::DefinitionListDefinition
            | Tag::Strikethrough
            | Tag::Superscript
            | Tag::Subscript
            | Tag::MetadataBlock(_) => {}
        }
        Ok(())
    }

    fn close(&mut self, tag: TagEnd) -> Result<(), Failure> {
        match tag {
            TagEnd::Heading(_) => {
                self.flush()?;
                if self.heading.take() >= Some(TITLE) {
                    self.bar();
                }
                self.y += 4.0;
            }
            TagEnd::Paragraph => {
                self.flush()?;
                self.y += 5.0;
            }
            TagEnd::Strong => self.bold = self.bold.saturating_sub(1),
            TagEnd::Emphasis => self.italic = self.italic.saturating_sub(1),
            TagEnd::BlockQuote(_) => {
                self.flush()?;
                self.quote = self.quote.saturating_sub(1);
                self.indent = (self.indent - 16.0).max(0.0);
            }
            TagEnd::CodeBlock => {
                self.flush()?;
                self.code = false;
                self.indent = (self.indent - 8.0).max(0.0);
                self.y += 5.0;
            }
            TagEnd::List(_) => {
                self.flush()?;
                self.lists.pop();
                self.indent = (self.indent - 16.0).max(0.0);
                self.y += 4.0;
            }
            TagEnd::Item => self.flush()?,
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.words);
                self.row.push(cell);
                self.glue = false;
            }
            TagEnd::TableHead | TagEnd::TableRow => {
                self.table.push(std::mem::take(&mut self.row));
                self.head = false;
            }
            TagEnd::Table => {
                self.in_table = false;
                self.set_table()?;
                self.y += 10.0;
            }
            _ => {}
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Failure> {
        let style = self.style();
        if self.code && text.contains('\n') {
            for line in text.lines() {
                self.words.push(Word { bytes: encode(line), style, glued: false });
                self.flush()?;
            }
            return Ok(());
        }
        let mut glued = self.glue && !text.starts_with(char::is_whitespace);
        for word in text.split_whitespace() {
            self.words.push(Word { bytes: encode(word), style, glued });
            glued = false;
        }
        self.glue = !text.ends_with(char::is_whitespace);
        Ok(())
    }

    /// Sets the collected words as lines.
    fn flush(&mut self) -> Result<(), Failure> {
        self.glue = false;
        let words = std::mem::take(&mut self.words);
        if words.is_empty() {
            return Ok(());
        }
        let left = MARGIN + self.indent;
        for line in wrapped(words, WIDTH - MARGIN - left) {
            let size = line.iter().map(|word| word.style.size).fold(0.0, f32::max);
            self.room(size * 1.45)?;
            self.y += size * 1.45;
            let y = self.y;
            if self.heading.is_some()
                && let Some(page) = self.pages.last_mut()
            {
                let [r, g, b] = ACCENT;
                page.set_fill_rgb(r, g, b);
            }
            if let Some(bullet) = self.bullet.take() {
                self.put(
                    &[Word { bytes: encode(&bullet), style: BODY, glued: false }],
                    left - 14.0,
                    y,
                );
            }
            self.put(&line, left, y);
            if self.heading.is_some()
                && let Some(page) = self.pages.last_mut()
            {
                page.set_fill_gray(0.0);
            }
        }
        Ok(())
    }

    /// Sets the collected rows; the head again on every page.
    fn set_table(&mut self) -> Result<(), Failure> {
        let mut rows = std::mem::take(&mut self.table);
        let widths = columns(&rows, WIDTH - 2.0 * MARGIN);
        if rows.is_empty() {
            return Ok(());
        }
        let head = rows.remove(0);
        self.table_row(&head, &widths, true)?;
        for row in rows {
            let page = self.pages.len();
            let height = ROW * row_lines(&row, &widths) as f32 + 5.0;
            self.room(height.min(HEIGHT / 2.0))?;
            if self.pages.len() > page {
                self.table_row(&head, &widths, true)?;
            }
            self.table_row(&row, &widths, false)?;
        }
        Ok(())
    }

    fn table_row(&mut self, row: &[Vec<Word>], widths: &[f32], head: bool) -> Result<(), Failure> {
        let cells: Vec<Vec<Vec<Word>>> = row
            .iter()
            .zip(widths)
            .map(|(words, width)| wrapped(words.clone(), width - GUTTER))
            .collect();
        let lines = cells.iter().map(Vec::len).max().unwrap_or(0).max(1);
        if head {
            // A head does not stay alone at the foot of a page.
            self.room(ROW * (lines as f32 + 2.0))?;
            let height = ROW * lines as f32 + 6.0;
            self.shade(self.y + 1.0, height);
        }
        for at in 0..lines {
            self.room(ROW)?;
            self.y += ROW;
            let mut left = MARGIN + 4.0;
            for (cell, width) in cells.iter().zip(widths) {
                if let Some(line) = cell.get(at) {
                    self.put(line, left, self.y);
                }
                left += width;
            }
        }
        if !head {
            self.line(self.y + 4.0, 0.3);
        }
        self.y += 6.0;
        Ok(())
    }

    /// A light ground for what is written next.
    fn shade(&mut self, y: f32, height: f32) {
        let Some(page) = self.pages.last_mut() else { return };
        let [r, g, b] = GROUND;
        page.set_fill_rgb(r, g, b);
        page.rect(MARGIN, HEIGHT - y - height, WIDTH - 2.0 * MARGIN, height).fill_nonzero();
        page.set_fill_gray(0.0);
    }

    fn rule(&mut self) -> Result<(), Failure> {
        self.room(20.0)?;
        self.y += 12.0;
        self.line(self.y, 0.5);
        self.y += 8.0;
        Ok(())
    }

    /// What sets a title apart.
    fn bar(&mut self) {
        self.y += 13.0;
        let (y, [r, g, b]) = (self.y, ACCENT);
        let Some(page) = self.pages.last_mut() else { return };
        page.set_fill_rgb(r, g, b).rect(MARGIN, HEIGHT - y, 54.0, 3.0).fill_nonzero();
        page.set_fill_gray(0.0);
        self.y += 6.0;
    }

    fn line(&mut self, y: f32, width: f32) {
        let Some(page) = self.pages.last_mut() else { return };
        page.set_stroke_gray(0.6).set_line_width(width).set_line_cap(LineCapStyle::ButtCap);
        page.move_to(MARGIN, HEIGHT - y).line_to(WIDTH - MARGIN, HEIGHT - y).stroke();
    }

    fn put(&mut self, words: &[Word], left: f32, y: f32) {
        let Some(page) = self.pages.last_mut() else { return };
        let mut x = left;
        for (at, word) in words.iter().enumerate() {
            if at > 0 && !word.glued {
                x += word.style.width(b" ");
            }
            page.begin_text();
            page.set_font(Name(word.style.face()), word.style.size);
            page.next_line(x, HEIGHT - y);
            page.show(Str(&word.bytes));
            page.end_text();
            x += word.style.width(&word.bytes);
        }
    }

    fn write(mut self, title: &str) -> Vec<u8> {
        let count = self.pages.len();
        let small = Style { size: 8.0, ..BODY };
        for (at, page) in self.pages.iter_mut().enumerate() {
            let number = format!("{} / {count}", at + 1);
            for (text, right) in [(title, false), (number.as_str(), true)] {
                let bytes = encode(text);
                let x = if right { WIDTH - MARGIN - small.width(&bytes) } else { MARGIN };
                page.set_fill_gray(0.45).begin_text();
                page.set_font(Name(b"F1"), small.size).next_line(x, FOOT).show(Str(&bytes));
                page.end_text().set_fill_gray(0.0);
            }
        }
        let id = |number: usize| Ref::new(number as i32);
        let mut pdf = Pdf::new();
        let (catalog, tree, info) = (id(1), id(2), id(3));
        let fonts: [(&[u8], &[u8]); 4] = [
            (b"F1", b"Helvetica"),
            (b"F2", b"Helvetica-Bold"),
            (b"F3", b"Helvetica-Oblique"),
            (b"F4", b"Courier"),
        ];
        let first = 4 + fonts.len();
        pdf.catalog(catalog).pages(tree);
        pdf.pages(tree).kids((0..count).map(|at| id(first + 2 * at))).count(count as i32);
        pdf.document_info(info).title(TextStr(title)).producer(TextStr("Clearway"));
        for (at, (_, base)) in fonts.iter().enumerate() {
            let mut font = pdf.type1_font(id(4 + at));
            font.base_font(Name(base)).encoding_predefined(Name(b"WinAnsiEncoding"));
        }
        for (at, content) in self.pages.into_iter().enumerate() {
            let (page_id, content_id) = (id(first + 2 * at), id(first + 2 * at + 1));
            let mut page = pdf.page(page_id);
            page.media_box(Rect::new(0.0, 0.0, WIDTH, HEIGHT)).parent(tree).contents(content_id);
            let mut resources = page.resources();
            let mut named = resources.fonts();
            for (at, (name, _)) in fonts.iter().enumerate() {
                named.pair(Name(name), id(4 + at));
            }
            named.finish();
            resources.finish();
            page.finish();
            pdf.stream(content_id, &content.finish());
        }
        pdf.finish()
    }
}

/// How wide a table's columns are: as wide as they need to be, while there is room; else those with long texts share
/// what the short ones leave.
fn columns(rows: &[Vec<Vec<Word>>], room: f32) -> Vec<f32> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let natural = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| line_width(cell) + GUTTER).fold(GUTTER, f32::max)
    };
    let mut widths: Vec<f32> = (0..count).map(natural).collect();
    let total: f32 = widths.iter().sum();
    if total <= room {
        let more = room / total.max(1.0);
        widths.iter_mut().for_each(|width| *width *= more);
        return widths;
    }
    let fair = room / count.max(1) as f32;
    let short: f32 = widths.iter().filter(|width| **width <= fair).sum();
    let long: f32 = widths.iter().filter(|width| **width > fair).sum();
    for width in widths.iter_mut().filter(|width| **width > fair) {
        // A very long text does not squeeze the others into single words.
        *width = (*width / long * (room - short)).max(fair * 0.6);
    }
    let excess = widths.iter().sum::<f32>() / room;
    if excess > 1.0 {
        widths.iter_mut().for_each(|width| *width /= excess);
    }
    widths
}

fn line_width(words: &[Word]) -> f32 {
    let space = |at: usize, word: &Word| {
        if at > 0 && !word.glued { word.style.width(b" ") } else { 0.0 }
    };
    words.iter().enumerate().map(|(at, word)| space(at, word) + word.style.width(&word.bytes)).sum()
}

fn row_lines(row: &[Vec<Word>], widths: &[f32]) -> usize {
    let lines =
        row.iter().zip(widths).map(|(cell, width)| wrapped(cell.clone(), width - GUTTER).len());
    lines.max().unwrap_or(1)
}

/// Words broken into lines of at most `width`; a word that is longer is cut.
fn wrapped(words: Vec<Word>, width: f32) -> Vec<Vec<Word>> {
    let width = width.max(20.0);
    let mut lines: Vec<Vec<Word>> = vec![Vec::new()];
    let mut used = 0.0;
    for mut word in words {
        loop {
            let space = if used > 0.0 && !word.glued { word.style.width(b" ") } else { 0.0 };
            let needed = word.style.width(&word.bytes);
            if used + space + needed <= width {
                used += space + needed;
                if let Some(line) = lines.last_mut() {
                    line.push(word);
                }
                break;
            }
            if used > 0.0 {
                lines.push(Vec::new());
                used = 0.0;
                continue;
            }
            let mut fits = 1;
            while fits < word.bytes.len() && word.style.width(&word.bytes[..=fits]) <= width {
                fits += 1;
            }
            let rest = word.bytes.split_off(fits.min(word.bytes.len()));
            let (style, more) = (word.style, !rest.is_empty());
            if let Some(line) = lines.last_mut() {
                line.push(word);
            }
            if !more {
                break;
            }
            lines.push(Vec::new());
            word = Word { bytes: rest, style, glued: false };
        }
    }
    lines
}

/// Windows-1252, with common signs written out.
fn encode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' | '\u{a0}'..='\u{ff}' => bytes.push(c as u8),
            '€' => bytes.push(0x80),
            '…' => bytes.push(0x85),
            '‘' => bytes.push(0x91),
            '’' => bytes.push(0x92),
            '“' => bytes.push(0x93),
            '”' => bytes.push(0x94),
            '•' => bytes.push(0x95),
            '–' => bytes.push(0x96),
            '—' => bytes.push(0x97),
            '™' => bytes.push(0x99),
            '„' => bytes.push(0x84),
            '‚' => bytes.push(0x82),
            '→' => bytes.extend(b"->"),
            '←' => bytes.extend(b"<-"),
            '≥' => bytes.extend(b">="),
            '≤' => bytes.extend(b"<="),
            '✓' => bytes.extend(b"ok"),
            c if c.is_whitespace() => bytes.push(b' '),
            c if c.is_control() => {}
            _ => bytes.push(b'?'),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(pdf: &[u8]) -> usize {
        let text = String::from_utf8_lossy(pdf);
        text.matches("/Type /Page\n").count()
    }

    #[test]
    fn markdown_becomes_pages() {
        let markdown = "# Über uns\n\nHello **bold** world.\n\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n";
        let pdf = from_markdown(markdown, "Report").unwrap();
        assert!(pdf.starts_with(b"%PDF-"));
        assert_eq!(pages(&pdf), 1);
        let has = |needle: &[u8]| pdf.windows(needle.len()).any(|window| window == needle);
        assert!(has(b"(bold)") && has(b"(Hello)") && has(b"1 / 1"));
        let long = "word ".repeat(3000);
        assert!(pages(&from_markdown(&long, "Long").unwrap()) > 3);
    }

    #[test]
    fn a_book_is_refused_by_the_name_of_the_limit() {
        let failure = from_markdown(&"- item\n".repeat(20_000), "Book").unwrap_err();
        assert_eq!(failure.detail["limit"], "pdf_pages");
    }

    #[test]
    fn anything_can_be_written() {
        for text in
            ["", "日本語 ☃", "| broken", &"x".repeat(5000), "```\ncode\n\n  more\n```", "> q\n> w"]
        {
            assert!(from_markdown(text, "t").is_ok(), "{text}");
        }
    }
}
