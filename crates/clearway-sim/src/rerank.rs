//! Reranking without a model: a text answers a question as well as it has its words.
//!
//! The shape is that of Cohere and its many followers. Faults and limits do not touch it.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::problem::Problem;

const MAX_TEXTS: usize = 1_000;

/// The answer to `{query, documents, top_n?}`: the best first, each with its place among the documents.
pub(crate) fn answer(body: &[u8]) -> Result<Value, Problem> {
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Problem::invalid(format!("the body is not JSON: {error}")))?;
    let Some(query) = body["query"].as_str().filter(|query| !query.trim().is_empty()) else {
        return Err(Problem::invalid("query must be a text").param("query"));
    };
    let wrong = || Problem::invalid("documents must be a list of texts").param("documents");
    let documents = body["documents"].as_array().ok_or_else(wrong)?;
    if documents.is_empty() || documents.len() > MAX_TEXTS {
        return Err(Problem::invalid(format!("documents must have 1 to {MAX_TEXTS} texts"))
            .param("documents"));
    }
    let wanted = words(query);
    let mut scores = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        let text = document.as_str().or_else(|| document["text"].as_str()).ok_or_else(wrong)?;
        let has = words(text);
        let shared = wanted.iter().filter(|word| has.contains(*word)).count();
        let score = (shared as f64 / wanted.len().max(1) as f64 * 1e4).round() / 1e4;
        scores.push((index, score));
    }
    scores.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if let Some(most) = body["top_n"].as_u64() {
        scores.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
    let row = |(index, score): &(usize, f64)| json!({"index": index, "relevance_score": score});
    let results: Vec<Value> = scores.iter().map(row).collect();
    Ok(json!({"model": body["model"], "results": results}))
}

fn words(text: &str) -> HashSet<String> {
    let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_with_the_words_of_the_question_come_first() {
        let body = br#"{"model": "r", "query": "old oak", "documents": ["a boat", "the oak is old", "an oak"]}"#;
        let ranked = answer(body).unwrap();
        let places: Vec<u64> = ranked["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["index"].as_u64().unwrap())
            .collect();
        assert_eq!(places, [1, 2, 0]);
        assert!(answer(br#"{"query": "x", "documents": []}"#).is_err());
        assert!(answer(br#"{"query": " ", "documents": ["x"]}"#).is_err());
    }
}
