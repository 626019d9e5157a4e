//! What a check has to say.

use serde_json::{Map, Value, json};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Ok,
    /// A server runs, and something is not as it should be.
    Warn,
    /// A server does not start, or loses data.
    Fail,
}

impl Level {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    pub(crate) found: String,
    pub(crate) why: &'static str,
    /// What to do; empty for what is fine.
    pub(crate) fix: String,
    /// More lines for people, such as a drawing.
    pub(crate) lines: Vec<String>,
    /// The same for programs.
    pub(crate) data: Option<Value>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, found: impl Into<String>, why: &'static str) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            why,
            fix: String::new(),
            lines: Vec::new(),
            data: None,
        }
    }

    pub(crate) fn warn(
        check: &'static str,
        found: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self { level: Level::Warn, fix: fix.into(), ..Self::ok(check, found, why) }
    }

    pub(crate) fn fail(
        check: &'static str,
        found: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self { level: Level::Fail, fix: fix.into(), ..Self::ok(check, found, why) }
    }

    /// Why and what to do are said only where something is to be done.
    pub(crate) fn text(&self) -> String {
        let mut text =
            format!("{:<5} {:<WIDTH$} {}\n", self.level.as_str(), self.check, self.found);
        let mut more = |line: &str| text += &format!("{:INDENT$}{line}\n", "");
        for line in &self.lines {
            more(line);
        }
        if self.level != Level::Ok {
            more(&format!("why  {}", self.why));
            more(&format!("fix  {}", self.fix));
        }
        text
    }

    pub(crate) fn as_json(&self) -> Value {
        let mut value = Map::new();
        value.insert("check".to_owned(), self.check.into());
        value.insert("level".to_owned(), self.level.as_str().into());
        value.insert("found".to_owned(), self.found.clone().into());
        value.insert("why".to_owned(), self.why.into());
        value.insert("fix".to_owned(), json!(Some(&self.fix).filter(|fix| !fix.is_empty())));
        value.extend(self.data.clone().map(|data| ("data".to_owned(), data)));
        Value::Object(value)
    }
}

/// Of the longest name of a check.
const WIDTH: usize = 13;
const INDENT: usize = 6 + WIDTH + 1;

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < units.len() {
        size /= 1024.0;
        unit += 1;
    }
    format!("{size:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn what_is_fine_takes_a_line_and_what_is_not_says_what_to_do() {
        let fine = Finding::ok("threads", "15 needed", "they are fixed");
        let bad = Finding { fix: "raise it".to_owned(), level: Level::Fail, ..fine.clone() };
        expect![[r"
            ok    threads       15 needed
            fail  threads       15 needed
                                why  they are fixed
                                fix  raise it
        "]]
        .assert_eq(&(fine.text() + &bad.text()));
        assert_eq!(
            bad.as_json().to_string(),
            r#"{"check":"threads","level":"fail","found":"15 needed","why":"they are fixed","fix":"raise it"}"#
        );
        assert_eq!(fine.as_json()["fix"], Value::Null);
    }

    #[test]
    fn sizes_are_read_at_a_glance() {
        assert_eq!(
            [512, 1536 << 10, 3 << 40, u64::MAX].map(size),
            ["0.5 KiB", "1.5 MiB", "3.0 TiB", "16777216.0 TiB"]
        );
    }
}
