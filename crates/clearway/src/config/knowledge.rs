//! `[knowledge.NAME]`: a folder of documents that can be searched; and `[uploads]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::read::Files;
use super::report::Problem;
use super::walk::{At, Table, Walk};
use super::{Model, join};

/// `[knowledge.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Knowledge {
    pub content: Content,
    /// Look again when something changes.
    pub watch: bool,
    pub chunk: Chunk,
    /// Whether entities and what connects them are looked for.
    pub graph: bool,
    /// Name of a model that reads relations out of the texts.
    pub graph_model: Option<String>,
    /// Name of a model that embeds; `None` does without a provider.
    pub embeddings: Option<String>,
    /// Name of a model that orders what was found; `None` leaves it as it is.
    pub rerank: Option<String>,
    pub search: Search,
}

impl Knowledge {
    /// Whether all models that it names are among these.
    pub(crate) fn has_models(&self, models: &BTreeMap<String, Model>) -> bool {
        let mut named = self.embeddings.iter().chain(&self.rerank).chain(&self.graph_model);
        named.all(|name| models.contains_key(name))
    }

    /// A folder about which nothing else was said.
    pub(crate) fn of_folder(path: &Path, files: Option<Vec<String>>) -> Self {
        Self {
            content: Content::Folder {
                path: path.to_owned(),
                files: files.unwrap_or_else(usual_files),
            },
            watch: false,
            chunk: Chunk::default(),
            graph: true,
            graph_model: None,
            embeddings: None,
            rerank: None,
            search: Search::default(),
        }
    }
}

fn usual_files() -> Vec<String> {
    FILES.iter().map(|&pattern| pattern.to_owned()).collect()
}

/// Where its documents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Folder {
        path: PathBuf,
        /// Which files, as in `.gitignore`.
        files: Vec<String>,
    },
    /// The sample notes in the binary.
    BuiltIn,
}

/// How documents are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub tokens: u32,
    pub overlap: u32,
}

impl Default for Chunk {
    fn default() -> Self {
        Self { tokens: 320, overlap: 40 }
    }
}

/// What a search hands out unless it is asked otherwise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    pub similarity_threshold: f64,
    pub max_chunks: u32,
    pub token_budget: u32,
}

impl Default for Search {
    fn default() -> Self {
        Self { similarity_threshold: 0.5, max_chunks: 5, token_budget: 4000 }
    }
}

/// `[uploads]`: what people may send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploads {
    pub file_bytes: u64,
    pub files: u32,
    pub bytes: u64,
    pub collections: u32,
    pub documents: u32,
    /// As of a source.
    pub embeddings: Option<String>,
    pub rerank: Option<String>,
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            file_bytes: 32 << 20,
            files: 1000,
            bytes: 1 << 30,
            collections: 100,
            documents: 10_000,
            embeddings: None,
            rerank: None,
        }
    }
}

/// A source as read, its models not yet looked up.
#[derive(Debug)]
pub(super) struct KnowledgeDraft {
    pub(super) knowledge: Knowledge,
    pub(super) models: Named,
}

/// Uploads as read, their models not yet looked up.
#[derive(Debug)]
pub(super) struct UploadsDraft {
    uploads: Uploads,
    models: Named,
}

/// Names of models, as written.
#[derive(Debug)]
pub(super) struct Named {
    embeddings: Option<At<String>>,
    rerank: Option<At<String>>,
    graph: Option<At<String>>,
}

impl Named {
    fn read(table: &Table<'_>) -> Self {
        let name = |key| table.get(key).and_then(|value| value.name());
        Self { embeddings: name("embeddings"), rerank: name("rerank"), graph: None }
    }
}

/// What a source without `files` has of a folder: everything that can be read as a document.
const FILES: &[&str] = &[
    "*.md",
    "*.markdown",
    "*.mdx",
    "*.txt",
    "*.html",
    "*.htm",
    "*.pdf",
    "*.docx",
    "*.pptx",
    "*.xlsx",
    "*.csv",
    "*.tsv",
    "*.json",
    "*.jsonl",
];

/// What `folder` says for the notes in the binary.
const BUILT_IN: &str = "builtin:notes";

pub(super) fn read(name: &str, table: Table<'_>, files: &Files) -> Option<KnowledgeDraft> {
    let folder = table.require("folder", "say where the documents are: folder = \"./docs\"");
    let patterns = table.get("files").map(|value| {
        for pattern in value.list() {
            if let Some(text) = pattern.text()
                && let Err(why) = clearway_engine::knowledge::check_pattern(text)
            {
                let text = format!("`{text}` is no pattern of files: {why}");
                pattern.problem(text, "here", "such as \"**/*.md\"");
            }
        }
        value.texts()
    });
    let watch = table.get("watch").and_then(|value| value.boolean());
    let chunk = chunk(table.sub("chunk"));
    let (graph, graph_model) = graph(&table);
    let models = Named { graph: graph_model, ..Named::read(&table) };
    let search = search(table.sub("search"));
    if name.starts_with("uploads") {
        let text = format!("a source cannot be called `{name}`");
        let problem = Problem::new(text).at(&table.walk.source, table.span.clone(), "here");
        table.walk.note(problem.help("`uploads` is what people send; choose another name"));
    }
    table.unsupported(&["owner", "collections", "ocr", "deadline"]);
    table.finish();
    let folder = folder?.name()?.value;
    let content = if folder == BUILT_IN {
        Content::BuiltIn
    } else {
        let path = match files {
            Files::Folder(base) => join(base, &folder),
            Files::BuiltIn => PathBuf::from(&folder),
        };
        Content::Folder { path, files: patterns.unwrap_or_else(usual_files) }
    };
    let knowledge = Knowledge {
        content,
        watch: watch.unwrap_or(true),
        chunk,
        graph: graph != GraphKind::Off,
        graph_model: None,
        embeddings: None,
        rerank: None,
        search,
    };
    Some(KnowledgeDraft { knowledge, models })
}

#[derive(Clone, Copy, PartialEq)]
enum GraphKind {
    Off,
    Cooccurrence,
    Llm,
}

/// What of a graph there is, and the model that reads the texts for it.
fn graph(table: &Table<'_>) -> (GraphKind, Option<At<String>>) {
    let kinds = [
        ("off", GraphKind::Off),
        ("cooccurrence", GraphKind::Cooccurrence),
        ("llm", GraphKind::Llm),
    ];
    let kind = table.get("graph").and_then(|value| value.one_of(&kinds));
    let kind = kind.unwrap_or(GraphKind::Cooccurrence);
    if kind == GraphKind::Llm {
        let model = table.require("graph_model", "say which model reads the texts for the graph");
        return (kind, model.and_then(|value| value.name()));
    }
    if let Some(value) = table.get("graph_model") {
        value.problem(
            format!("`{}` needs `graph = \"llm\"`", value.path),
            "nothing uses it",
            "write graph = \"llm\" beside it, or leave it out",
        );
    }
    (kind, None)
}

#[derive(Clone, Copy)]
struct Heading;

fn chunk(table: Table<'_>) -> Chunk {
    if let Some(value) = table.get("by") {
        // The one way there is; written out so that a file says what happens.
        value.one_of(&[("heading", Heading)]);
    }
    let tokens = table.get("tokens").and_then(|value| value.count(32..=4000));
    let overlap = table.get("overlap");
    let usual = Chunk::default();
    let tokens = tokens.unwrap_or(usual.tokens);
    let amount = overlap.as_ref().and_then(|value| value.count(0..=2000));
    if let (Some(value), Some(amount)) = (&overlap, amount)
        && amount > tokens / 2
    {
        value.problem(
            format!("`{}` is more than half of a chunk of {tokens} tokens", value.path),
            "too much",
            format!("at most {}", tokens / 2),
        );
    }
    table.finish();
    Chunk { tokens, overlap: amount.unwrap_or(usual.overlap.min(tokens / 2)) }
}

fn search(table: Table<'_>) -> Search {
    let usual = Search::default();
    let threshold = table.get("similarity_threshold").and_then(|value| value.fraction(0.0..=1.0));
    let max_chunks = table.get("max_chunks").and_then(|value| value.count(1..=100));
    let token_budget = table.get("token_budget").and_then(|value| value.count(1..=1_000_000));
    table.finish();
    Search {
        similarity_threshold: threshold.unwrap_or(usual.similarity_threshold),
        max_chunks: max_chunks.unwrap_or(usual.max_chunks),
        token_budget: token_budget.unwrap_or(usual.token_budget),
    }
}

pub(super) fn uploads(table: Table<'_>) -> UploadsDraft {
    let usual = Uploads::default();
    let size = |key, most| table.get(key).and_then(|value| value.integer(1..=most));
    let count = |key| table.get(key).and_then(|value| value.count(1..=1_000_000));
    let uploads = Uploads {
        file_bytes: size("max_file_bytes", 256 << 20).unwrap_or(usual.file_bytes),
        bytes: size("max_bytes", 1 << 40).unwrap_or(usual.bytes),
        files: count("max_files").unwrap_or(usual.files),
        collections: count("max_collections").unwrap_or(usual.collections),
        documents: count("max_documents").unwrap_or(usual.documents),
        ..usual
    };
    let models = Named::read(&table);
    table.finish();
    UploadsDraft { uploads, models }
}

/// Looks up the models that sources and uploads name.
pub(super) fn resolve(
    walk: &Walk<'_>,
    drafts: BTreeMap<String, KnowledgeDraft>,
    uploads: UploadsDraft,
    models: &BTreeMap<String, Model>,
    known: impl Fn(&Walk<'_>, &At<String>) -> bool,
) -> (BTreeMap<String, Knowledge>, Uploads) {
    let find = |named: Named| {
        let embeds = |model: &At<String>| known(walk, model) && embeds(walk, model, models);
        let embeddings = named.embeddings.filter(embeds).map(|model| model.value);
        let rerank = named.rerank.filter(|model| known(walk, model)).map(|model| model.value);
        let answers = |model: &At<String>| known(walk, model) && answers(walk, model, models);
        let graph = named.graph.filter(answers).map(|model| model.value);
        (embeddings, rerank, graph)
    };
    let one = |(name, draft): (String, KnowledgeDraft)| {
        let (embeddings, rerank, graph_model) = find(draft.models);
        (name, Knowledge { embeddings, rerank, graph_model, ..draft.knowledge })
    };
    let sources = drafts.into_iter().map(one).collect();
    let (embeddings, rerank, _) = find(uploads.models);
    (sources, Uploads { embeddings, rerank, ..uploads.uploads })
}

fn answers(walk: &Walk<'_>, model: &At<String>, models: &BTreeMap<String, Model>) -> bool {
    let answers = models.get(&model.value).is_some_and(|model| model.embedding.is_none());
    if !answers {
        let text =
            format!("the model `{}` embeds, and a graph needs one that answers", model.value);
        let problem = Problem::new(text);
        let problem = match &model.span {
            Some(span) => problem.at(&walk.source, span.clone(), "does not answer"),
            None => problem,
        };
        walk.note(problem.help("name a model without `dimensions`"));
    }
    answers
}

fn embeds(walk: &Walk<'_>, model: &At<String>, models: &BTreeMap<String, Model>) -> bool {
    let embeds = models.get(&model.value).is_some_and(|model| model.embedding.is_some());
    if !embeds {
        let text =
            format!("the model `{}` answers, and a source needs one that embeds", model.value);
        let problem = Problem::new(text);
        let problem = match &model.span {
            Some(span) => problem.at(&walk.source, span.clone(), "does not embed"),
            None => problem,
        };
        walk.note(
            problem
                .help("leave `embeddings` out: words and vectors of your own texts need no model"),
        );
    }
    embeds
}
