//! PDF.

use pdf_extract::{Document, OutputError};

use super::Builder;
use crate::protocol::{Parsed, Trouble, TroubleKind};

pub(super) fn parse(bytes: &[u8]) -> Result<Parsed, Trouble> {
    let broken = |error: &dyn std::fmt::Display| {
        Trouble::new(TroubleKind::Broken, format!("it cannot be read as a PDF: {error}"))
    };
    let encrypted = || {
        Trouble::new(TroubleKind::Encrypted, "it is protected with a password; save it without one")
    };
    // One that opens without a password is decrypted by the library.
    let says_so = bytes.windows(8).any(|word| word == b"/Encrypt");
    let document = Document::load_mem(bytes)
        .map_err(|error| if says_so { encrypted() } else { broken(&error) })?;
    let locked = document.is_encrypted();
    let title = title(&document);
    drop(document);
    let pages =
        pdf_extract::extract_text_from_mem_by_pages(bytes).map_err(|error| match error {
            _ if locked => encrypted(),
            OutputError::PdfError(error) => broken(&error),
            other => broken(&other),
        })?;
    // The library repairs what it can; of a file that was cut off nothing is left.
    if pages.is_empty() {
        return Err(if says_so { encrypted() } else { broken(&"it has no pages") });
    }
    let mut builder = Builder::new("pdf");
    for (number, page) in (1..).zip(&pages) {
        builder.page(number);
        join_lines(page).split("\n\n").for_each(|paragraph| builder.paragraph(paragraph));
    }
    let mut parsed = builder.finish();
    parsed.title = title.or_else(|| pages.first().and_then(|page| first_line(page)));
    Ok(parsed)
}

/// What programs write when nobody gave a title.
const NO_TITLES: &[&str] =
    &["untitled", "(untitled)", "anonymous", "(anonymous)", "unknown", "document", "title"];
/// Names of files that the document was made of are no titles.
const SUFFIXES: &[&str] =
    &[".doc", ".docx", ".pdf", ".odt", ".rtf", ".tex", ".dvi", ".indd", ".txt"];

/// What is written where the title belongs, if it is one.
fn as_title(text: &str) -> Option<String> {
    let text = text.trim().trim_start_matches("Microsoft Word - ").trim();
    let lower = text.to_lowercase();
    let is_file = SUFFIXES.iter().any(|suffix| lower.ends_with(suffix));
    let is_none = NO_TITLES.contains(&lower.trim_end_matches(|c: char| c.is_ascii_digit()).trim());
    (!text.is_empty() && !is_file && !is_none).then(|| text.to_owned())
}

/// A paper's first line, where it looks like a heading.
fn first_line(page: &str) -> Option<String> {
    let line = page.lines().map(str::trim).find(|line| !line.is_empty())?;
    let words = line.split_whitespace().count();
    let is_heading = line.chars().count() <= 100
        && (1..=14).contains(&words)
        && line.chars().filter(|c| c.is_alphabetic()).count() >= 3
        && !line.ends_with(['.', ',', ';', '-']);
    is_heading.then(|| line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Lines of a page are where the paper ended, not where a sentence did; a hyphen there is none.
fn join_lines(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut blank = 0;
    for line in page.lines() {
        let line: String =
            line.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
        let line = line.trim();
        if line.is_empty() {
            blank += 1;
            continue;
        }
        if !text.is_empty() {
            if blank > 0 {
                text.push_str("\n\n");
            } else if text.ends_with('-') && line.starts_with(char::is_lowercase) {
                text.pop();
            } else {
                text.push('\n');
            }
        }
        blank = 0;
        text.push_str(line);
    }
    text
}

fn title(document: &Document) -> Option<String> {
    let info = document.trailer.get(b"Info").ok()?;
    let info = document.dereference(info).ok()?.1.as_dict().ok()?;
    let title = document.dereference(info.get(b"Title").ok()?).ok()?.1;
    let bytes = title.as_str().ok()?;
    let text = match bytes {
        [0xFE, 0xFF, ..] => encoding_rs::UTF_16BE.decode(bytes).0.into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    };
    as_title(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_are_what_people_gave() {
        assert_eq!(as_title(" Annual report "), Some("Annual report".to_owned()));
        assert_eq!(as_title("Microsoft Word - Plan"), Some("Plan".to_owned()));
        for none in ["", "untitled", "Untitled 2", "(anonymous)", "Document1", "draft_v3.docx"] {
            assert_eq!(as_title(none), None, "{none}");
        }
        assert_eq!(
            first_line("\n  Harbour   plan 2026\nIt says"),
            Some("Harbour plan 2026".into())
        );
        assert_eq!(first_line("This is a sentence that ends."), None);
        assert_eq!(first_line("- 1 -\n"), None);
        assert_eq!(first_line(""), None);
    }
}
