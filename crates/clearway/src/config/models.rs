//! `[models]`: names for models of providers, and what is known of each.
//!
//! Whether providers and the models that a model names exist is only known at the end ([`super::resolve`]).

use std::collections::BTreeMap;
use std::time::Duration;

use clearway_engine::upstream::{Commit, EmbeddingModel, ModelConfig, Price};
use serde_json::{Map, Value as Json};

use super::duration::DEADLINE;
use super::read::{params, read_named};
use super::walk::{At, Table, Value};

/// A model as read, its provider and the models that it names not yet looked up.
#[derive(Debug)]
pub(super) struct ModelDraft {
    pub(super) provider: Option<At<String>>,
    pub(super) model: String,
    pub(super) params: Map<String, Json>,
    pub(super) context_tokens: Option<u32>,
    pub(super) reasoning: Option<bool>,
    pub(super) deadline: Option<Duration>,
    /// `None` for models that answer.
    pub(super) embedding: Option<EmbeddingModel>,
    pub(super) fallback: Vec<At<String>>,
    pub(super) spread: Vec<At<String>>,
    pub(super) weight: u32,
    pub(super) affinity: bool,
    pub(super) commit: Commit,
    pub(super) prefill: bool,
    pub(super) price: Option<Price>,
}

pub(super) fn read(root: &Table<'_>) -> BTreeMap<String, ModelDraft> {
    read_named(root, "models", |name, table| Some(model(name, table)))
}

/// What a model embeds with, if it embeds: because `said` says so, or because of its names.
pub(super) fn embedding(
    name: &str,
    model: &str,
    said: Option<EmbeddingModel>,
) -> Option<EmbeddingModel> {
    ModelConfig { embedding: said, ..ModelConfig::new(name, "", model) }.embedding()
}

fn model(name: &str, table: Table<'_>) -> ModelDraft {
    let provider =
        table.require("provider", "name one of [providers]").and_then(|value| value.name());
    let model =
        table.require("model", "say what the provider calls it").and_then(|value| value.name());
    let model = model.map(|model| model.value).unwrap_or_default();
    let embedding = said_embedding(name, &model, &table);
    let commit = table.get("commit").and_then(|value| {
        value.one_of(&[
            ("fail", Commit::Fail),
            ("restart", Commit::Restart),
            ("continue", Commit::Continue),
        ])
    });
    let draft = ModelDraft {
        provider,
        params: params(&table),
        context_tokens: table
            .get("context_tokens")
            .and_then(|value| value.count(256..=100_000_000)),
        reasoning: table.get("reasoning").and_then(|value| value.boolean()),
        deadline: table.get("deadline").and_then(|value| value.duration(DEADLINE)),
        fallback: table.get("fallback").map(|value| models(&value)).unwrap_or_default(),
        spread: table.get("spread").map(|value| models(&value)).unwrap_or_default(),
        weight: table.get("weight").and_then(|value| value.count(1..=1000)).unwrap_or(1),
        affinity: table.get("affinity").and_then(|value| value.boolean()).unwrap_or(false),
        commit: commit.unwrap_or_default(),
        prefill: table.get("prefill").and_then(|value| value.boolean()).unwrap_or(false),
        price: table.get("price").and_then(|value| price(&value, embedding.is_some())),
        embedding,
        model,
    };
    table.unsupported(&["script", "retry", "cache"]);
    table.finish();
    draft
}

/// `dimensions = 1536` or `embedding = true`; a name with `embed` in it says it, too.
fn said_embedding(name: &str, model: &str, table: &Table<'_>) -> Option<EmbeddingModel> {
    let flag = table.get("embedding").and_then(|value| Some((value.boolean()?, value)));
    let dimensions = table.get("dimensions").and_then(|value| value.count(1..=65_536));
    match (&flag, dimensions) {
        (Some((false, flag)), Some(_)) => flag.problem(
            format!("`{}` is false, and only models that embed have `dimensions`", flag.path),
            "which?",
            "leave one of them out",
        ),
        (Some((false, flag)), None) if embedding(name, model, None).is_some() => flag.problem(
            format!("`{}` is false, and the model's name says that it embeds", flag.path),
            "which?",
            "give it a name without `embed`",
        ),
        _ => {}
    }
    let said = match (flag, dimensions) {
        (_, Some(_)) => Some(EmbeddingModel { dimensions }),
        (Some((true, _)), None) => Some(EmbeddingModel::default()),
        (Some((false, _)) | None, None) => None,
    };
    embedding(name, model, said)
}

/// A list of names of models.
fn models(value: &Value<'_>) -> Vec<At<String>> {
    let mut names: Vec<At<String>> = Vec::new();
    for item in value.list() {
        let Some(name) = item.name() else { continue };
        if names.iter().any(|earlier| earlier.value == name.value) {
            item.problem(
                format!("`{}` names `{}` twice", value.path, name.value),
                "the second",
                "a model that could not answer is not asked again",
            );
        } else {
            names.push(name);
        }
    }
    names
}

/// `{ input = 0.25, cached_input = 0.025, output = 2.0 }`, per million tokens.
fn price(value: &Value<'_>, embeds: bool) -> Option<Price> {
    const EXAMPLE: &str = "price = { input = 0.25, output = 2.0 }, per million tokens";
    let table = value.table()?;
    let input = table.require("input", EXAMPLE).and_then(|value| value.micros());
    let cached_input = table.get("cached_input").map(|value| value.micros());
    // Embeddings have no output to pay for.
    let output = match table.get("output") {
        Some(value) => value.micros(),
        None if embeds => Some(0),
        None => table.require("output", EXAMPLE).and_then(|value| value.micros()),
    };
    table.finish();
    Some(Price { input: input?, cached_input: cached_input.unwrap_or(input)?, output: output? })
}
