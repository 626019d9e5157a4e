//! Items: what agents and applications remember beside threads, by namespace and key.
//!
//! What a search means is decided here, for all stores; how words are found and weighed is each
//! store's own business.

use std::cmp::Ordering;
use std::time::Duration;

use clearway_core::Timestamp;
use serde_json::{Map, Value};

/// Whose items.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemScope {
    pub tenant: String,
    pub owner: Option<String>,
}

/// A stored item.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Labels without dots.
    pub namespace: Vec<String>,
    pub key: String,
    pub value: Map<String, Value>,
    /// How long it lives from its last use.
    pub ttl: Option<Duration>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// An item to be kept, in the place of the one with its namespace and key.
#[derive(Clone, Debug, PartialEq)]
pub struct NewItem {
    pub scope: ItemScope,
    pub namespace: Vec<String>,
    pub key: String,
    pub value: Map<String, Value>,
    /// The words it is found by.
    pub words: String,
    pub ttl: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemPut {
    Stored,
    /// The tenant has [`ITEMS`].
    TooMany,
}

/// Which items to find.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ItemSearch {
    pub prefix: Vec<String>,
    /// All of them.
    pub filter: Vec<Condition>,
    /// Any of them, the best first. Without any, the ones changed last come first.
    pub words: Vec<String>,
    /// Only those that words find at all.
    pub indexed: bool,
    pub offset: u32,
    /// At most 1000; 0 means 100.
    pub limit: u32,
}

/// What must hold for one field of an item.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub field: String,
    pub test: Test,
    pub operand: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    Equal,
    Unequal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// A found item; a larger score is a better fit to the words.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundItem {
    pub item: Item,
    pub score: Option<f64>,
}

/// Which namespaces to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceQuery {
    /// `*` stands for any label.
    pub prefix: Vec<String>,
    pub suffix: Vec<String>,
    /// Longer ones are cut to this.
    pub max_depth: Option<usize>,
    pub offset: u32,
    /// At most 1000; 0 means 100.
    pub limit: u32,
}

/// Items of a tenant.
pub const ITEMS: u32 = 1_000_000;

impl Condition {
    /// Whether an item fulfils it. A missing field is like null: unequal to everything else, and
    /// neither greater nor less than anything.
    pub(crate) fn holds(&self, value: &Map<String, Value>) -> bool {
        let field = value.get(&self.field).unwrap_or(&Value::Null);
        let order = || compare(field, &self.operand);
        match self.test {
            Test::Equal => contains(field, &self.operand),
            Test::Unequal => !equal(field, &self.operand),
            Test::Greater => order() == Some(Ordering::Greater),
            Test::GreaterOrEqual => matches!(order(), Some(Ordering::Greater | Ordering::Equal)),
            Test::Less => order() == Some(Ordering::Less),
            Test::LessOrEqual => matches!(order(), Some(Ordering::Less | Ordering::Equal)),
        }
    }
}

fn compare(one: &Value, other: &Value) -> Option<Ordering> {
    match (one, other) {
        (Value::String(one), Value::String(other)) => Some(one.cmp(other)),
        (Value::Number(one), Value::Number(other)) => one.as_f64()?.partial_cmp(&other.as_f64()?),
        _ => None,
    }
}

/// Whether `wanted` is `value`, or an object whose fields `value` has.
fn contains(value: &Value, wanted: &Value) -> bool {
    match (value, wanted) {
        (Value::Object(value), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| value.get(key).is_some_and(|value| contains(value, wanted))),
        (value, wanted) => equal(value, wanted),
    }
}

/// Equality of values, with `1` and `1.0` the same.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(_), Value::Number(_)) => compare(one, other) == Some(Ordering::Equal),
        (one, other) => one == other,
    }
}

impl NamespaceQuery {
    /// The namespaces of `all` that are asked for, sorted and each once.
    pub(crate) fn select(&self, all: impl Iterator<Item = Vec<String>>) -> Vec<Vec<String>> {
        let fits = |wanted: &[String], labels: &[String]| {
            wanted.iter().zip(labels).all(|(wanted, label)| wanted == "*" || wanted == label)
        };
        let mut found: Vec<Vec<String>> = all
            .filter(|space| {
                space.len() >= self.prefix.len().max(self.suffix.len())
                    && fits(&self.prefix, space)
                    && fits(&self.suffix, &space[space.len() - self.suffix.len()..])
            })
            .map(|mut space| {
                space.truncate(self.max_depth.unwrap_or(usize::MAX));
                space
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        let limit = crate::rules::page_size(self.limit);
        found.into_iter().skip(self.offset as usize).take(limit).collect()
    }
}

/// A namespace as one text, and back.
pub(crate) fn joined(namespace: &[String]) -> String {
    namespace.join(".")
}

pub(crate) fn labels(space: &str) -> Vec<String> {
    space.split('.').map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn holds(test: Test, operand: Value) -> bool {
        let value = json!({"n": 3, "text": "b", "in": {"a": 1, "b": [1]}, "none": null});
        let Value::Object(value) = value else { unreachable!("an object") };
        let field = match &operand {
            Value::Number(_) => "n",
            Value::String(_) => "text",
            Value::Object(_) => "in",
            _ => "missing",
        };
        Condition { field: field.to_owned(), test, operand }.holds(&value)
    }

    #[test]
    fn conditions_compare_what_can_be_compared() {
        assert!(holds(Test::Equal, json!(3.0)) && !holds(Test::Equal, json!(4)));
        assert!(holds(Test::Unequal, json!(4)) && !holds(Test::Unequal, json!(3)));
        assert!(holds(Test::Greater, json!(2)) && !holds(Test::Greater, json!(3)));
        assert!(holds(Test::LessOrEqual, json!("b")) && !holds(Test::Less, json!("b")));
        assert!(holds(Test::Equal, json!({"a": 1})), "an object is contained");
        assert!(!holds(Test::Equal, json!({"b": [1, 2]})));
        assert!(holds(Test::Equal, json!(null)), "a missing field is null");
        assert!(!holds(Test::GreaterOrEqual, json!(null)) && !holds(Test::Less, json!(true)));
    }

    #[test]
    fn namespaces_are_matched_cut_and_told_once() {
        let all = ["a.b.c", "a.b.d", "a.x", "b"].map(labels);
        let ask = |query: NamespaceQuery| {
            let found = query.select(all.iter().cloned());
            found.iter().map(|space| joined(space)).collect::<Vec<_>>()
        };
        let text = |labels: &[&str]| labels.iter().map(|&label| label.to_owned()).collect();
        let all = || NamespaceQuery::default();
        assert_eq!(ask(all()), ["a.b.c", "a.b.d", "a.x", "b"]);
        assert_eq!(ask(NamespaceQuery { max_depth: Some(2), ..all() }), ["a.b", "a.x", "b"]);
        assert_eq!(ask(NamespaceQuery { prefix: text(&["a", "*", "c"]), ..all() }), ["a.b.c"]);
        assert_eq!(ask(NamespaceQuery { suffix: text(&["x"]), ..all() }), ["a.x"]);
        assert_eq!(ask(NamespaceQuery { offset: 1, limit: 1, ..all() }), ["a.b.d"]);
    }
}
