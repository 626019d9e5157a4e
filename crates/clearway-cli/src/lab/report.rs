//! What is left of a trap: two columns, and what was promised.

use std::time::Duration;

use serde_json::{Value, json};

use super::seconds;

/// A trap that was shown.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) name: &'static str,
    /// What the provider does.
    pub(crate) trap: &'static str,
    /// What the naive client does.
    pub(crate) habit: &'static str,
    pub(crate) naive: Side,
    pub(crate) clearway: Side,
    pub(crate) promises: Vec<Promise>,
}

/// One side of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Side {
    /// What the user saw.
    pub(crate) saw: String,
    pub(crate) took: Duration,
    /// Whether that was the end, or the lab stopped looking.
    pub(crate) ended: bool,
    /// Calls of users, and requests that the provider got for them.
    pub(crate) calls: u64,
    pub(crate) requests: u64,
    pub(crate) open: u64,
    /// What `waiting_on` said meanwhile; nothing where nobody can ask.
    pub(crate) waits: Vec<String>,
}

/// What Clearway should have done.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    pub(crate) text: String,
    pub(crate) kept: bool,
}

impl Promise {
    pub(crate) fn new(text: impl Into<String>, kept: bool) -> Self {
        Self { text: text.into(), kept }
    }
}

impl Report {
    pub(crate) fn kept(&self) -> bool {
        self.promises.iter().all(|promise| promise.kept)
    }

    pub(crate) fn verdict(&self) -> String {
        let kept = if self.kept() { "as promised" } else { "not as promised" };
        format!("{}: {kept}", self.name)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("clearway lab {}: {}\n\n", self.name, self.trap);
        let mut row = |name: &str, naive: &str, clearway: &str| {
            let columns = [wrap(naive), wrap(clearway)];
            for at in 0..columns[0].len().max(columns[1].len()) {
                let cell = |column: usize| columns[column].get(at).map_or("", String::as_str);
                let name = if at == 0 { name } else { "" };
                let line = format!("  {name:<18}  {:<WIDTH$}  {}", cell(0), cell(1));
                text += line.trim_end();
                text.push('\n');
            }
        };
        row("", &format!("naive: {}", self.habit), "Clearway");
        row("the user saw", &self.naive.saw, &self.clearway.saw);
        row("after", &self.naive.after(), &self.clearway.after());
        let number = |number: u64| number.to_string();
        row("calls of users", &number(self.naive.calls), &number(self.clearway.calls));
        row("the provider got", &number(self.naive.requests), &number(self.clearway.requests));
        row("sockets left open", &number(self.naive.open), &number(self.clearway.open));
        let waits = match self.clearway.waits.as_slice() {
            [] => "-".to_owned(),
            waits => waits.join("\n"),
        };
        row("waiting on", "nobody can say", &waits);
        text.push('\n');
        for promise in &self.promises {
            let mark = if promise.kept { "kept  " } else { "BROKEN" };
            text += &format!("  {mark}  {}\n", promise.text);
        }
        text.pop();
        text
    }

    pub(crate) fn as_json(&self) -> Value {
        let promise = |promise: &Promise| json!({"promise": promise.text, "kept": promise.kept});
        json!({
            "lab": self.name,
            "ok": self.kept(),
            "trap": self.trap,
            "habit": self.habit,
            "naive": self.naive.as_json(),
            "clearway": self.clearway.as_json(),
            "promises": self.promises.iter().map(promise).collect::<Vec<_>>(),
        })
    }
}

impl Side {
    fn after(&self) -> String {
        let took = seconds(self.took);
        if self.ended { took } else { format!("{took}, then the lab stopped looking") }
    }

    fn as_json(&self) -> Value {
        json!({
            "saw": self.saw,
            "took_ms": u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX),
            "ended": self.ended,
            "calls": self.calls,
            "requests": self.requests,
            "sockets_open": self.open,
            "waiting_on": self.waits,
        })
    }
}

/// Characters of a column.
const WIDTH: usize = 36;

/// Lines no wider than a column, broken between words where that is possible.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn report(kept: bool) -> Report {
        Report {
            name: "hang",
            trap: "the provider never answers",
            habit: "no timeout",
            naive: Side {
                saw: "nothing".to_owned(),
                took: Duration::from_secs(12),
                calls: 1,
                requests: 1,
                open: 1,
                ..Side::default()
            },
            clearway: Side {
                saw: "error upstream.headers_timeout: the provider sent nothing for 3 s".to_owned(),
                took: Duration::from_secs(3),
                ended: true,
                calls: 1,
                requests: 1,
                waits: vec!["first_byte: nothing has come back yet".to_owned()],
                ..Side::default()
            },
            promises: vec![Promise::new("the call ended", kept)],
        }
    }

    #[test]
    fn both_sides_are_read_at_a_glance() {
        expect![[r"
            clearway lab hang: the provider never answers

                                  naive: no timeout                     Clearway
              the user saw        nothing                               error upstream.headers_timeout: the
                                                                        provider sent nothing for 3 s
              after               12.0 s, then the lab stopped looking  3.0 s
              calls of users      1                                     1
              the provider got    1                                     1
              sockets left open   1                                     0
              waiting on          nobody can say                        first_byte: nothing has come back
                                                                        yet

              kept    the call ended"]]
        .assert_eq(&report(true).text());
    }

    #[test]
    fn one_broken_promise_is_enough() {
        assert_eq!(report(true).verdict(), "hang: as promised");
        assert_eq!(report(false).verdict(), "hang: not as promised");
        assert_eq!(report(false).as_json()["ok"], false);
    }
}
