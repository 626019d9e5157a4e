//! Word documents and presentations: archives of XML.

use std::collections::HashMap;
use std::io::{Cursor, Read};

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};
use zip::ZipArchive;
use zip::result::ZipError;

use super::Builder;
use crate::protocol::{Parsed, Trouble, TroubleKind};

type Archive<'a> = ZipArchive<Cursor<&'a [u8]>>;

/// What all parts of a document may unpack to.
const MOST_UNPACKED: u64 = 256 << 20;
/// Honest XML packs to a tenth or a twentieth; a bomb to a thousandth.
const MOST_RATIO: u64 = 200;
const MOST_PARTS: usize = 20_000;

/// Refuses an archive that would unpack to more than a document ever has, before unpacking it.
pub(super) fn refuse_bomb(bytes: &[u8]) -> Result<(), Trouble> {
    open(bytes).map(drop)
}

fn open(bytes: &[u8]) -> Result<Archive<'_>, Trouble> {
    let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| broken(&error))?;
    let bomb = |text: String| Err(Trouble::new(TroubleKind::Bomb, text));
    if archive.len() > MOST_PARTS {
        return bomb(format!("it has {} parts; the most is {MOST_PARTS}", archive.len()));
    }
    let (mut unpacked, mut packed) = (0_u64, 0_u64);
    for at in 0..archive.len() {
        let part = archive.by_index_raw(at).map_err(|error| broken(&error))?;
        if part.encrypted() {
            let text = "it is protected with a password; save it without one";
            return Err(Trouble::new(TroubleKind::Encrypted, text));
        }
        unpacked = unpacked.saturating_add(part.size());
        packed = packed.saturating_add(part.compressed_size());
    }
    if unpacked > MOST_UNPACKED || (unpacked > (8 << 20) && unpacked / packed.max(1) > MOST_RATIO) {
        return bomb(format!("it would unpack from {packed} to {unpacked} bytes"));
    }
    Ok(archive)
}

fn broken(error: &ZipError) -> Trouble {
    Trouble::new(TroubleKind::Broken, format!("its archive cannot be read: {error}"))
}

/// A part of the archive; `None` when there is none of that name.
fn part(archive: &mut Archive<'_>, name: &str) -> Result<Option<String>, Trouble> {
    let entry = match archive.by_name(name) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(error) => return Err(broken(&error)),
    };
    // What an archive says about its sizes may be a lie.
    let mut bytes = Vec::new();
    let read = entry.take(MOST_UNPACKED + 1).read_to_end(&mut bytes);
    read.map_err(|error| {
        Trouble::new(TroubleKind::Broken, format!("its part {name} is damaged: {error}"))
    })?;
    if bytes.len() as u64 > MOST_UNPACKED {
        let text = format!("its part {name} unpacks to more than {MOST_UNPACKED} bytes");
        return Err(Trouble::new(TroubleKind::Bomb, text));
    }
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn attribute(element: &BytesStart<'_>, name: &str) -> Option<String> {
    let mut attributes = element.attributes();
    attributes.with_checks(false);
    let found =
        attributes.flatten().find(|attribute| attribute.key.local_name().as_ref() == name)?;
    Some(found.value.into_owned())
}

/// Goes through XML, giving each event with the local name of its element.
fn each(xml: &str, mut on: impl FnMut(Xml<'_>)) -> Result<(), Trouble> {
    let mut reader = Reader::from_str(xml);
    reader.config_mut().check_end_names = false;
    loop {
        match reader.read_event() {
            Ok(Event::Start(element)) => on(Xml::Open(local(&element), &element)),
            Ok(Event::Empty(element)) => {
                on(Xml::Open(local(&element), &element));
                on(Xml::Close(local(&element)));
            }
            Ok(Event::End(element)) => {
                on(Xml::Close(element.local_name().as_ref()));
            }
            Ok(Event::Text(text)) => on(Xml::Text(&text[..])),
            Ok(Event::GeneralRef(name)) => on(Xml::Text(&entity(&name[..]))),
            Ok(Event::CData(text)) => on(Xml::Text(&text[..])),
            Ok(Event::Eof) => return Ok(()),
            Ok(_) => {}
            Err(error) => {
                let text = format!("its XML is damaged: {error}");
                return Err(Trouble::new(TroubleKind::Broken, text));
            }
        }
    }
}

fn local<'a>(element: &'a BytesStart<'_>) -> &'a str {
    let name = element.name().into_inner();
    name.rsplit_once(':').map_or(name, |(_, local)| local)
}

enum Xml<'a> {
    Open(&'a str, &'a BytesStart<'a>),
    Close(&'a str),
    Text(&'a str),
}

fn entity(name: &str) -> String {
    match name {
        "amp" => "&".to_owned(),
        "lt" => "<".to_owned(),
        "gt" => ">".to_owned(),
        "quot" => "\"".to_owned(),
        "apos" => "'".to_owned(),
        other => match (other.strip_prefix("#x"), other.strip_prefix('#')) {
            (Some(hex), _) => number(hex, 16),
            (None, Some(digits)) => number(digits, 10),
            (None, None) => String::new(),
        },
    }
}

fn number(digits: &str, radix: u32) -> String {
    u32::from_str_radix(digits, radix)
        .ok()
        .and_then(char::from_u32)
        .map(String::from)
        .unwrap_or_default()
}

// ## Word

pub(super) fn docx(bytes: &[u8]) -> Result<Parsed, Trouble> {
    let mut archive = open(bytes)?;
    let Some(body) = part(&mut archive, "word/document.xml")? else {
        return Err(Trouble::new(TroubleKind::Broken, "it has no word/document.xml"));
    };
    let targets = match part(&mut archive, "word/_rels/document.xml.rels")? {
        Some(rels) => targets(&rels)?,
        None => HashMap::new(),
    };
    let mut builder = Builder::new("docx");
    let mut paragraph = String::new();
    let mut style = String::new();
    let mut link: Option<String> = None;
    let (mut in_text, mut rows) = (false, 0_u32);
    each(&body, |xml| match xml {
        Xml::Open("pStyle", element) => style = attribute(element, "val").unwrap_or_default(),
        Xml::Open("t", _) => in_text = true,
        Xml::Close("t") => in_text = false,
        Xml::Open("tab", _) => paragraph.push('\t'),
        Xml::Open("br" | "cr", _) => paragraph.push('\n'),
        Xml::Open("tr", _) => rows += 1,
        Xml::Close("tr") => {
            rows = rows.saturating_sub(1);
            builder.line(paragraph.trim().trim_end_matches('|').trim());
            paragraph.clear();
        }
        Xml::Close("tc") => paragraph.push_str(" | "),
        Xml::Open("hyperlink", element) => {
            link = attribute(element, "id").and_then(|id| targets.get(&id).cloned());
        }
        Xml::Close("hyperlink") => {
            if let Some(target) = link.take() {
                builder.link(&target);
            }
        }
        Xml::Text(text) if in_text => paragraph.push_str(text),
        // Inside a table a paragraph is a part of its cell.
        Xml::Close("p") if rows > 0 && (paragraph.is_empty() || paragraph.ends_with(' ')) => {}
        Xml::Close("p") if rows > 0 => paragraph.push(' '),
        Xml::Close("p") => {
            match heading_level(&style) {
                Some(level) => builder.heading(level, &paragraph),
                None => builder.paragraph(&paragraph),
            }
            paragraph.clear();
            style.clear();
        }
        _ => {}
    })?;
    builder.paragraph(&paragraph);
    let mut parsed = builder.finish();
    parsed.title = core_title(&mut archive)?;
    Ok(parsed)
}

/// Styles are named in the language of whoever wrote it; the digit is the same everywhere.
fn heading_level(style: &str) -> Option<u8> {
    let lower = style.to_lowercase();
    if lower == "title" || lower == "titel" {
        return Some(1);
    }
    let named = ["heading", "berschrift", "titre", "título", "titolo", "kop"];
    if !named.iter().any(|name| lower.contains(name)) {
        return None;
    }
    lower.chars().find_map(|char| char.to_digit(10)).map(|level| level.clamp(1, 6) as u8)
}

/// Where the links of a part lead, by id.
fn targets(rels: &str) -> Result<HashMap<String, String>, Trouble> {
    let mut targets = HashMap::new();
    each(rels, |xml| {
        if let Xml::Open("Relationship", element) = xml
            && attribute(element, "TargetMode").as_deref() == Some("External")
            && let (Some(id), Some(target)) =
                (attribute(element, "Id"), attribute(element, "Target"))
        {
            targets.insert(id, target);
        }
    })?;
    Ok(targets)
}

fn core_title(archive: &mut Archive<'_>) -> Result<Option<String>, Trouble> {
    let Some(core) = part(archive, "docProps/core.xml")? else { return Ok(None) };
    let (mut title, mut inside) = (String::new(), false);
    each(&core, |xml| match xml {
        Xml::Open("title", _) => inside = true,
        Xml::Close("title") => inside = false,
        Xml::Text(text) if inside => title.push_str(text),
        _ => {}
    })?;
    Ok(Some(title).filter(|title| !title.trim().is_empty()))
}

// ## Presentations

pub(super) fn pptx(bytes: &[u8]) -> Result<Parsed, Trouble> {
    let mut archive = open(bytes)?;
    let number = |name: &str| -> Option<u32> {
        name.strip_prefix("ppt/slides/slide")?.strip_suffix(".xml")?.parse().ok()
    };
    let mut slides: Vec<(u32, String)> = archive
        .file_names()
        .filter_map(|name| {
            let name = name.ok()?;
            Some((number(&name)?, name.into_owned()))
        })
        .collect();
    slides.sort_unstable();
    if slides.is_empty() {
        return Err(Trouble::new(TroubleKind::Broken, "it has no slides"));
    }
    let mut builder = Builder::new("pptx");
    for (number, name) in slides {
        let Some(slide) = part(&mut archive, &name)? else { continue };
        let (title, paragraphs) = slide_text(&slide)?;
        let title = title.unwrap_or_default();
        builder.page(number);
        builder.heading(1, format!("Slide {number}: {title}").trim_end_matches([':', ' ']));
        paragraphs.iter().for_each(|paragraph| builder.line(paragraph));
        let notes = format!("ppt/notesSlides/notesSlide{number}.xml");
        if let Some(notes) = part(&mut archive, &notes)? {
            let (_, paragraphs) = slide_text(&notes)?;
            let notes: Vec<&str> = paragraphs
                .iter()
                .map(String::as_str)
                .filter(|line| line.parse::<u32>().is_err())
                .collect();
            if !notes.is_empty() {
                builder.paragraph(&format!("Notes: {}", notes.join("\n")));
            }
        }
    }
    let mut parsed = builder.finish();
    parsed.title = core_title(&mut archive)?;
    Ok(parsed)
}

fn slide_text(xml: &str) -> Result<(Option<String>, Vec<String>), Trouble> {
    let (mut title, mut paragraphs) = (None, Vec::new());
    let mut paragraph = String::new();
    let (mut in_text, mut is_title) = (false, false);
    each(xml, |xml| match xml {
        Xml::Open("sp", _) => is_title = false,
        Xml::Open("ph", element) => {
            let kind = attribute(element, "type").unwrap_or_default();
            is_title = matches!(kind.as_str(), "title" | "ctrTitle");
        }
        Xml::Open("t", _) => in_text = true,
        Xml::Close("t") => in_text = false,
        Xml::Open("br", _) => paragraph.push('\n'),
        Xml::Text(text) if in_text => paragraph.push_str(text),
        Xml::Close("p") => {
            let text = std::mem::take(&mut paragraph);
            let text = text.trim();
            if is_title && title.is_none() && !text.is_empty() {
                title = Some(text.to_owned());
            } else if !text.is_empty() {
                paragraphs.push(text.to_owned());
            }
        }
        _ => {}
    })?;
    Ok((title, paragraphs))
}
