//! Answers of models as JSON that fits a schema.

use clearway_core::{Code, Failure};
use serde_json::{Value, json};

/// How much of a wrong answer an error shows, in characters.
const EXCERPT: usize = 300;

/// Problems that an error lists at most.
const PROBLEMS: usize = 5;

/// The request parameter that asks for it.
pub(super) fn response_format(name: &str, schema: &Value) -> Value {
    json!({
        "type": "json_schema",
        "json_schema": {"name": name, "schema": schema, "strict": true},
    })
}

/// The JSON in an answer, if it fits; else what is wrong with it, for the model and for people.
pub(super) fn parse(answer: &str, schema: &Value) -> Result<Value, String> {
    let value: Value = serde_json::from_str(unfenced(answer))
        .map_err(|error| format!("the answer is no JSON: {error}"))?;
    let validator = jsonschema::validator_for(schema)
        .map_err(|error| format!("the schema itself is wrong: {error}"))?;
    let problems: Vec<String> = validator
        .iter_errors(&value)
        .take(PROBLEMS)
        .map(|error| match error.instance_path().to_string() {
            path if path.is_empty() => error.to_string(),
            path => format!("at {path}: {error}"),
        })
        .collect();
    if problems.is_empty() { Ok(value) } else { Err(problems.join("; ")) }
}

/// Models like to put JSON between fences although they are asked not to.
fn unfenced(answer: &str) -> &str {
    let answer = answer.trim();
    let Some(inside) = answer.strip_prefix("```") else { return answer };
    let inside = inside.strip_prefix("json").unwrap_or(inside);
    inside.strip_suffix("```").unwrap_or(inside).trim()
}

/// What the model is told when its first answer does not fit.
pub(super) fn repair(problems: &str) -> String {
    format!(
        "Your answer does not fit the required JSON schema: {problems}. Answer again with the \
         corrected JSON only, without any text around it."
    )
}

pub(super) fn failed(step: &str, problems: &str, answer: &str) -> Failure {
    let mut excerpt: String = answer.chars().take(EXCERPT).collect();
    if excerpt.len() < answer.len() {
        excerpt.push('…');
    }
    let text = format!(
        "step `{step}`: the model's answer does not fit its schema, asked twice: {problems}"
    );
    Failure::new(Code::OutputInvalid, text).with("step", step).with("excerpt", excerpt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let schema = json!({
            "type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}},
        });
        assert_eq!(parse("```json\n{\"n\": 1}\n```", &schema), Ok(json!({"n": 1})));
        assert!(parse("Sure! Here you go", &schema).unwrap_err().contains("no JSON"));
        assert!(parse("{\"n\": \"x\"}", &schema).unwrap_err().contains("/n"));
        let failure = failed("s", "p", &"x".repeat(1000));
        assert_eq!(failure.detail["excerpt"].as_str().unwrap().chars().count(), EXCERPT + 1);
    }
}
