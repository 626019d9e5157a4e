//! JSON with templates in it: what a step sends somewhere.
//!
//! A text that is nothing but `{{ … }}` becomes the value of that expression, whatever its type; any
//! other text is a template and stays a text.

use std::collections::BTreeSet;

use clearway_core::Failure;
use minijinja::Value as Jinja;
use serde_json::{Map, Value};

use super::expr::{Expr, Template};

/// See the module.
#[derive(Clone, Debug)]
pub enum Shape {
    Plain(Value),
    Expr(Expr),
    Text(Template),
    List(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Shape {
    /// # Errors
    /// What is wrong with it, for people.
    pub fn compile(name: &str, value: &Value) -> Result<Self, String> {
        Ok(match value {
            Value::String(text) => Self::text(name, text)?,
            Value::Array(items) => {
                let item =
                    |(at, item): (usize, &Value)| Self::compile(&format!("{name}[{at}]"), item);
                Self::List(items.iter().enumerate().map(item).collect::<Result<_, _>>()?)
            }
            Value::Object(fields) => {
                let field = |(key, value): (&String, &Value)| {
                    Ok((key.clone(), Self::compile(&format!("{name}.{key}"), value)?))
                };
                Self::Object(fields.iter().map(field).collect::<Result<_, String>>()?)
            }
            plain => Self::Plain(plain.clone()),
        })
    }

    fn text(name: &str, text: &str) -> Result<Self, String> {
        let inside = text.trim().strip_prefix("{{").and_then(|text| text.strip_suffix("}}"));
        match inside.filter(|inside| !inside.contains("{{") && !inside.contains("}}")) {
            Some(inside) => Ok(Self::Expr(Expr::compile(name, inside.trim_matches('-').trim())?)),
            None if text.contains("{{") || text.contains("{%") => {
                Ok(Self::Text(Template::compile(name, text)?))
            }
            None => Ok(Self::Plain(text.into())),
        }
    }

    /// # Errors
    /// `template_failed`, naming the place and the variable.
    pub fn fill(&self, context: &Jinja) -> Result<Value, Failure> {
        Ok(match self {
            Self::Plain(value) => value.clone(),
            Self::Expr(expr) => expr.evaluate(context)?,
            Self::Text(template) => Value::String(template.render(context)?),
            Self::List(items) => {
                Value::Array(items.iter().map(|item| item.fill(context)).collect::<Result<_, _>>()?)
            }
            Self::Object(fields) => {
                let field = |(key, shape): &(String, Self)| Ok((key.clone(), shape.fill(context)?));
                Value::Object(fields.iter().map(field).collect::<Result<Map<_, _>, Failure>>()?)
            }
        })
    }

    /// Names that must come from outside.
    pub fn variables(&self) -> BTreeSet<String> {
        match self {
            Self::Plain(_) => BTreeSet::new(),
            Self::Expr(expr) => expr.variables(),
            Self::Text(template) => template.variables(),
            Self::List(items) => items.iter().flat_map(Self::variables).collect(),
            Self::Object(fields) => {
                fields.iter().flat_map(|(_, shape)| shape.variables()).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;
    use serde_json::json;

    use super::*;

    #[test]
    fn values_keep_their_type_and_texts_are_templates() {
        let value = json!({
            "n": "{{ a.n }}", "list": ["{{ a.n + 1 }}", 2, "x{{ a.n }}"], "text": "plain", "t": true,
            "both": "{{ a.n }}{{ a.n }}",
        });
        let shape = Shape::compile("args", &value).unwrap();
        let filled = shape.fill(&context! { a => context! { n => 3 } }).unwrap();
        assert_eq!(
            filled,
            json!({"n": 3, "list": [4, 2, "x3"], "text": "plain", "t": true, "both": "33"})
        );
        assert_eq!(shape.variables().into_iter().collect::<Vec<_>>(), ["a.n"]);
        let failure = shape.fill(&context! {}).unwrap_err();
        assert!(failure.message.contains("args."), "{failure}");
        assert!(Shape::compile("args", &json!(["{{ }}"])).is_err());
    }
}
