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
    parsed.title = title;
    Ok(parsed)
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
    Some(text).filter(|text| !text.trim().is_empty())
}
