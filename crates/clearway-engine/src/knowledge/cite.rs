//! Sources with numbers, and answers that cite them.
//!
//! Pure: which numbers a text cites, which of them mean something, and how sources are shown to a
//! model. Not here: asking the model.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Chunks by the number under which the model knows them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Numbered {
    /// From number to the chunk as clients get it.
    chunks: BTreeMap<u32, Value>,
}

impl Numbered {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Value> {
        self.chunks.get(&number)
    }

    pub(crate) fn most(&self) -> u32 {
        self.chunks.keys().next_back().copied().unwrap_or(0)
    }

    /// A chunk under the number that it has.
    pub(crate) fn put(&mut self, number: u32, chunk: &Value) {
        self.chunks.entry(number).or_insert_with(|| chunk.clone());
    }

    /// Gives each chunk a number; one that has a number already keeps it.
    pub(crate) fn add(&mut self, chunks: &[Value]) -> Vec<u32> {
        let mut numbers = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let known = self.chunks.iter().find(|(_, known)| known["id"] == chunk["id"]);
            let number = known.map_or_else(|| self.most() + 1, |(number, _)| *number);
            self.chunks.insert(number, chunk.clone());
            numbers.push(number);
        }
        numbers
    }

    /// As a model gets them: a line that names each, then its text.
    pub(crate) fn shown(&self, numbers: &[u32]) -> String {
        let mut text = String::new();
        for number in numbers {
            let Some(chunk) = self.chunks.get(number) else { continue };
            let of = |name: &str| chunk[name].as_str().unwrap_or_default();
            text.push_str(&format!("[{number}] {}", of("title")));
            if !of("section_path").is_empty() && of("section_path") != of("title") {
                text.push_str(&format!(" > {}", of("section_path")));
            }
            text.push_str(&format!(" ({})\n{}\n\n", of("path"), of("content").trim()));
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// The numbers that a text cites, in the order of their first place: `[2]`, `[1, 3]`.
pub(crate) fn cited(text: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find('[') {
        rest = &rest[open + 1..];
        let Some(close) = rest.find(']') else { break };
        let inside = &rest[..close];
        // Not the words of a link.
        let is_link = rest[close + 1..].starts_with('(');
        let list: Option<Vec<u32>> = inside
            .split([',', ';'])
            .map(|number| number.trim().parse().ok().filter(|number| *number < 10_000))
            .collect();
        if let Some(list) = list.filter(|_| !is_link && inside.len() < 40) {
            for number in list {
                if !numbers.contains(&number) {
                    numbers.push(number);
                }
            }
            rest = &rest[close + 1..];
        }
    }
    numbers
}

/// Whether an answer keeps to its sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// Cited, and there.
    pub valid: Vec<u32>,
    /// Cited, and nothing.
    pub invalid: Vec<u32>,
}

impl Check {
    pub(crate) fn of(text: &str, sources: &Numbered, stands: impl Fn(u32) -> bool) -> Self {
        let fits = |number: &u32| sources.get(*number).is_some() && stands(*number);
        let (valid, invalid) = cited(text).into_iter().partition(fits);
        Self { valid, invalid }
    }

    /// Nothing to complain about: where there is no source, writing again cannot cite one.
    pub(crate) fn is_sound(&self, sources: &Numbered) -> bool {
        sources.is_empty() || (self.invalid.is_empty() && !self.valid.is_empty())
    }

    pub(crate) fn word(&self, sources: &Numbered) -> &'static str {
        if sources.is_empty() {
            "no_sources"
        } else if !self.invalid.is_empty() {
            "invalid"
        } else if self.valid.is_empty() {
            "missing"
        } else {
            "ok"
        }
    }

    /// What a model is told about its answer.
    pub(crate) fn complaint(&self, sources: &Numbered) -> String {
        let most = sources.most();
        let wrong = match self.invalid.as_slice() {
            [] => "Your answer cites no source.".to_owned(),
            invalid => {
                let list: Vec<String> = invalid.iter().map(|n| format!("[{n}]")).collect();
                format!("Your answer cites {}, which is no source.", list.join(", "))
            }
        };
        format!(
            "{wrong} Write the answer again. Use only what the sources say, and put the number of \
             its source in square brackets behind each statement, from [1] to [{most}]. If the \
             sources do not answer the question, say only that they do not, and cite the one that \
             comes closest."
        )
    }

    pub(crate) fn to_json(&self, sources: &Numbered) -> Value {
        let citation = |number: &u32| {
            let chunk = sources.get(*number)?;
            Some(json!({
                "n": number,
                "chunk_id": chunk["id"],
                "doc_id": chunk["doc_id"],
                "title": chunk["title"],
                "path": chunk["path"],
                "source": chunk["source"],
                "section_path": chunk["section_path"],
                "page_start": chunk["page_start"],
                "page_end": chunk["page_end"],
                "span": chunk["span"],
                "similarity": chunk["similarity"],
                "scores": chunk["scores"],
            }))
        };
        self.valid.iter().filter_map(citation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Numbered {
        let mut sources = Numbered::default();
        let chunk = |id: &str| {
            json!({"id": id, "title": "Plans", "section_path": "Prices", "path": "a.md",
                   "content": format!("text of {id}\n")})
        };
        assert_eq!(sources.add(&[chunk("a"), chunk("b"), chunk("a")]), [1, 2, 1]);
        assert_eq!(sources.add(&[chunk("b"), chunk("c")]), [2, 3]);
        sources
    }

    #[test]
    fn numbers_are_found_where_they_are_citations() {
        assert_eq!(
            cited("so it is [2][1]. And [2, 3]; see [a](b), [4](x), x[i] and [5"),
            [2, 1, 3]
        );
        assert_eq!(cited("[[7]] and [ 8 ] and [123456]"), [7, 8]);
        assert_eq!(cited(""), [0_u32; 0]);
    }

    #[test]
    fn sources_are_shown_with_their_names() {
        let text = sources().shown(&[2, 3]);
        assert_eq!(
            text,
            "[2] Plans > Prices (a.md)\ntext of b\n\n[3] Plans > Prices (a.md)\ntext of c"
        );
    }

    #[test]
    fn an_answer_is_checked() {
        let sources = sources();
        let check = |text: &str| Check::of(text, &sources, |number| number != 3);
        assert!(check("yes [1] and [2]").is_sound(&sources));
        assert_eq!(check("yes").word(&sources), "missing");
        assert_eq!(check("yes [1] [4] [3]").invalid, [4, 3], "what no longer stands is no source");
        assert_eq!(check("yes [4]").word(&sources), "invalid");
        let none = Numbered::default();
        assert!(Check::of("nothing known", &none, |_| true).is_sound(&none));
        let unfounded = Check::of("known [1]", &none, |_| true);
        assert!(unfounded.is_sound(&none), "it could not be written again with a source");
        assert_eq!((unfounded.word(&none), unfounded.invalid), ("no_sources", vec![1]));
        let json = check("yes [2]").to_json(&sources);
        assert_eq!(json[0]["chunk_id"], "b");
    }
}
