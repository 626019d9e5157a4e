//! `multipart/form-data`, of a body that is here as a whole.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// One part of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub name: String,
    pub filename: Option<String>,
    pub bytes: Bytes,
}

const MOST_PARTS: usize = 64;
const MOST_HEAD: usize = 8 << 10;

/// What separates the parts, if the body is a form.
pub(crate) fn boundary(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let (kind, rest) = value.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let boundary = parameter(rest, "boundary")?;
    (1..=200).contains(&boundary.len()).then_some(boundary)
}

/// The value of `name=value` or `name="value"` in a list with semicolons.
fn parameter(list: &str, name: &str) -> Option<String> {
    let mut rest = list;
    while !rest.is_empty() {
        rest = rest.trim_start_matches([';', ' ', '\t']);
        let (key, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let mut value = String::new();
                let mut chars = quoted.char_indices();
                let mut end = quoted.len();
                while let Some((at, char)) = chars.next() {
                    match char {
                        '"' => {
                            end = at + 1;
                            break;
                        }
                        '\\' => value.extend(chars.next().map(|(_, char)| char)),
                        char => value.push(char),
                    }
                }
                (value, &quoted[end..])
            }
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if key.trim().eq_ignore_ascii_case(name) {
            return Some(value);
        }
        rest = next;
    }
    None
}

/// The parts of a body.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn parse(body: &Bytes, boundary: &str) -> Result<Vec<Part>, String> {
    let open = format!("--{boundary}");
    let between = format!("\r\n--{boundary}");
    let mut at = find(body, open.as_bytes(), 0).ok_or("the body has no parts")? + open.len();
    let mut parts = Vec::new();
    loop {
        let rest = &body[at..];
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        if parts.len() >= MOST_PARTS {
            return Err(format!("the body has more than {MOST_PARTS} parts"));
        }
        let line = find(body, b"\r\n", at).ok_or("the body breaks off in the middle")? + 2;
        let head_end = find(body, b"\r\n\r\n", line.saturating_sub(2));
        let head_end = head_end.ok_or("a part has no end of its head")?;
        if head_end.saturating_sub(line) > MOST_HEAD {
            return Err("a part's head is too long".to_owned());
        }
        let head = String::from_utf8_lossy(body.get(line..head_end).unwrap_or_default());
        let start = head_end + 4;
        let end = find(body, between.as_bytes(), start.saturating_sub(2).max(head_end));
        let end = end.ok_or("the body breaks off in the middle of a part")?;
        let disposition = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim().eq_ignore_ascii_case("content-disposition").then(|| value.trim().to_owned())
        });
        let disposition = disposition.ok_or("a part does not say its name")?;
        let (_, list) = disposition.split_once(';').ok_or("a part does not say its name")?;
        parts.push(Part {
            name: parameter(list, "name").ok_or("a part does not say its name")?,
            filename: parameter(list, "filename"),
            bytes: body.slice(start.min(end)..end),
        });
        at = end + between.len();
    }
}

fn find(body: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    let rest = body.get(from..)?;
    let first = *wanted.first()?;
    let mut at = 0;
    while let Some(step) = rest.get(at..)?.iter().position(|byte| *byte == first) {
        at += step;
        if rest[at..].starts_with(wanted) {
            return Some(from + at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_taken_apart() {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, "multipart/form-data; boundary=\"x y\"".parse().unwrap());
        assert_eq!(boundary(&headers).as_deref(), Some("x y"));
        let body = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nassistants\r\n\
            --b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a \\\"q\\\".md\"\r\n\
            Content-Type: text/markdown\r\n\r\n# T\r\n--not\r\n\r\n--b\r\n\
            Content-Disposition: form-data; name=empty\r\n\r\n\r\n--b--\r\n";
        let parts = parse(&Bytes::from(body), "b").unwrap();
        assert_eq!(parts.len(), 3);
        assert_eq!(parts[0].bytes, "assistants");
        assert_eq!(parts[1].filename.as_deref(), Some("a \"q\".md"));
        assert_eq!(parts[1].bytes, "# T\r\n--not\r\n");
        assert_eq!((parts[2].name.as_str(), parts[2].bytes.len()), ("empty", 0));
    }

    #[test]
    fn broken_forms_are_refused() {
        for body in [
            "",
            "--b",
            "--b\r\n",
            "--b\r\nx\r\n\r\n",
            "--b\r\nContent-Disposition: form-data; name=a\r\n\r\nxx",
            "--b\r\n\r\n\r\n--b--",
        ] {
            let _ = parse(&Bytes::from(body), "b");
            assert!(parse(&Bytes::from(body), "b").is_err() || body.is_empty(), "{body:?}");
        }
    }
}
