//! What a model can do with a source: search it, follow its graph, open a document.
//!
//! What a tool finds is numbered on, so that an answer can cite it like what was found before it
//! was asked for.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clearway_core::{Code, Failure};
use serde_json::{Value, json};

use super::cite::Numbered;
use super::{GraphQuery, Knowledge, Owner, SearchLimits, SearchQuery, Sources, lock};
use crate::ctx::Ctx;
use crate::durable::Effect;
use crate::tool::{
    FixedTools, Tool, ToolCall, ToolError, ToolReply, ToolSource, ToolSpec, model_name,
};

/// Which tool of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Search,
    Graph,
    Open,
}

/// One tool of a source, for agents without citations.
pub fn source(knowledge: &Knowledge, kind: Kind, name: &str) -> Arc<dyn ToolSource> {
    numbered(knowledge, kind, name, &Arc::default())
}

pub(crate) fn numbered(
    knowledge: &Knowledge,
    kind: Kind,
    name: &str,
    numbers: &Arc<Mutex<Numbered>>,
) -> Arc<dyn ToolSource> {
    let tool = SourceTool {
        spec: spec(kind, name),
        kind,
        source: name.to_owned(),
        knowledge: knowledge.clone(),
        numbers: numbers.clone(),
    };
    let id = tool.spec.id.clone();
    Arc::new(FixedTools::new(&id, vec![Arc::new(tool)]))
}

struct SourceTool {
    spec: ToolSpec,
    kind: Kind,
    source: String,
    knowledge: Knowledge,
    numbers: Arc<Mutex<Numbered>>,
}

impl fmt::Debug for SourceTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SourceTool").field(&self.spec.id).finish()
    }
}

/// The longest that one call may take.
const LIMIT: Duration = Duration::from_secs(25);
/// Characters of a document that are shown at once.
const PAGE: usize = 8000;

fn spec(kind: Kind, name: &str) -> ToolSpec {
    let text = |about: &str| json!({"type": "string", "description": about});
    let number = |about: &str, most: u32| json!({"type": "integer", "minimum": 1, "maximum": most, "description": about});
    let (id, description, properties, required) = match kind {
        Kind::Search => (
            format!("search:{name}"),
            format!(
                "Searches the documents of `{name}` and returns passages with numbers to cite. Use \
                 it when the sources you have do not answer the question, with other words or for \
                 one part of the question."
            ),
            json!({
                "query": text("What to look for, as a question or in key words."),
                "max_chunks": number("How many passages at most.", 20),
            }),
            "query",
        ),
        Kind::Graph => (
            format!("graph:{name}"),
            format!(
                "Tells what the documents of `{name}` connect: the neighbours of a person, product \
                 or other term, or the way between two of them."
            ),
            json!({
                "entity": text("The term to start from."),
                "to": text("The term to find a way to."),
                "limit": number("How many neighbours at most.", 50),
            }),
            "entity",
        ),
        Kind::Open => (
            format!("open:{name}"),
            format!("Opens a document of `{name}` by its path or title, to read it as a whole."),
            json!({
                "document": text("Its path or title, as sources name it."),
                "page": number("Which part of a long document, from 1.", 1000),
            }),
            "document",
        ),
    };
    ToolSpec {
        name: model_name(&id),
        id,
        description,
        arguments: json!({
            "type": "object",
            "properties": properties,
            "required": [required],
            "additionalProperties": false,
        }),
        effect: Effect::Read,
        deadline: LIMIT,
    }
}

#[async_trait::async_trait]
impl Tool for SourceTool {
    fn spec(&self) -> &ToolSpec {
        &self.spec
    }

    async fn call(&self, cx: &Ctx, call: ToolCall) -> Result<ToolReply, ToolError> {
        let text = |name: &str| call.arguments.get(name).and_then(Value::as_str);
        let number = |name: &str| call.arguments.get(name).and_then(Value::as_u64);
        let reply = match self.kind {
            Kind::Search => {
                let most = number("max_chunks").map_or(5, |most| most as usize);
                self.search(cx, text("query").unwrap_or_default(), most).await
            }
            Kind::Graph => {
                let query = GraphQuery {
                    entity: text("entity").map(ToOwned::to_owned),
                    to: text("to").map(ToOwned::to_owned),
                    limit: number("limit").map_or(20, |limit| limit as usize),
                };
                self.knowledge.graph(&self.source, query).await
            }
            Kind::Open => {
                let page = number("page").map_or(1, |page| page.max(1) as usize);
                self.open(text("document").unwrap_or_default(), page).await
            }
        };
        reply.map(ToolReply::new).map_err(ToolError::Failed)
    }
}

impl SourceTool {
    async fn search(&self, cx: &Ctx, query: &str, most: usize) -> Result<Value, Failure> {
        let limits = SearchLimits { max_chunks: most.clamp(1, 20), ..self.limits() };
        let query = SearchQuery {
            text: query.to_owned(),
            owner: owner(cx),
            sources: Sources::Named(vec![self.source.clone()]),
            documents: None,
            limits,
            deadline: Some(LIMIT),
            wait: Some(cx.wait.clone()),
        };
        let found = self.knowledge.search(query).await?;
        let chunks: Vec<Value> = found.chunks.iter().map(super::FoundChunk::to_json).collect();
        let mut numbers = lock(&self.numbers);
        let given = numbers.add(&chunks);
        let numbered: Vec<Value> = given
            .iter()
            .zip(chunks)
            .map(|(number, mut chunk)| {
                chunk["n"] = (*number).into();
                chunk
            })
            .collect();
        Ok(json!({
            "passages": numbers.shown(&given),
            "sources": numbered,
            "explanation": found.explanation_text(),
        }))
    }

    fn limits(&self) -> SearchLimits {
        let options = self.knowledge.source(&self.source);
        options.map(|options| options.search).unwrap_or_default()
    }

    async fn open(&self, document: &str, page: usize) -> Result<Value, Failure> {
        let opened = self.knowledge.open(&self.source, document).await?;
        let begin = (page - 1).saturating_mul(PAGE);
        let total = opened.text.chars().count();
        if page > 1 && begin >= total {
            let text = format!("the document has {} pages", total.div_ceil(PAGE));
            return Err(Failure::new(Code::InvalidRequest, text));
        }
        let text: String = opened.text.chars().skip(begin).take(PAGE).collect();
        Ok(json!({
            "title": opened.note.title,
            "path": opened.note.path,
            "page": page,
            "pages": total.div_ceil(PAGE).max(1),
            "text": text,
        }))
    }
}

/// In whose name a run asks.
pub fn owner(cx: &Ctx) -> Owner {
    Owner { tenant: cx.record().tenant.clone(), user: cx.record().owner.clone() }
}
