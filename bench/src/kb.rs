//! Retrieval: how good its answers are beside SQLite's FTS5 on the same data, and how fast they come.
//!
//! FTS5 is the contender because it is what an embedded server would use otherwise. `plain` is what one gets without
//! thinking: its default words, all of them joined by OR. `tuned` is what somebody gets who knows it: porter stems, no
//! stop words, the title counting twice.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clearway_knowledge::eval::{self, Collection, Quality};
use clearway_knowledge::go_on;
use rusqlite::{Connection, params};

use crate::report::{Kind, Report, Section, number};
use crate::stats::Hist;

pub(crate) mod chats;
mod scale;

/// Parameters of `kb`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// Folders in BEIR layout: corpus.jsonl, queries.jsonl, qrels/test.tsv.
    folders: Vec<PathBuf>,
    /// Instead: the speed with generated chunks, while another index is being built.
    #[arg(long)]
    scale: bool,
    /// How many chunks, in thousands.
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    thousands: Vec<usize>,
    /// Questions for each size.
    #[arg(long, default_value_t = 400)]
    questions: usize,
    /// Dimensions of made-up provider vectors; 0 for none.
    #[arg(long, default_value_t = 0)]
    dimensions: usize,
    /// English words for the generated chunks, one a line; without a list they are made up.
    #[arg(long)]
    words: Option<PathBuf>,
}

pub(crate) fn run(options: &Options, report: &mut Report) -> Result<()> {
    if options.scale {
        return scale::run(options, report);
    }
    ensure!(!options.folders.is_empty(), "name folders in BEIR layout, or --scale");
    let columns = [
        "collection",
        "method",
        "nDCG@10",
        "against tuned",
        "MRR@10",
        "recall@100",
        "p50 ms",
        "p99 ms",
    ];
    let mut section = Section::new("Retrieval", &columns);
    for folder in &options.folders {
        let collection = read(folder)?;
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let plain = fts5(&collection, Way::Plain)?;
        let tuned = fts5(&collection, Way::Tuned)?;
        let ours = ours(&collection)?;
        for (method, measured) in
            [("FTS5 plain", &plain), ("FTS5 tuned", &tuned), ("Clearway", &ours)]
        {
            section.row(measured.row(&name, method, tuned.quality.ndcg_at_10));
            report.figure(format!("kb.{name}.{method}.ndcg@10"), measured.quality.ndcg_at_10);
        }
        let against = |other: &Measured| {
            other.quality.ndcg_at_10 / ours.quality.ndcg_at_10.max(f64::MIN_POSITIVE)
        };
        report.bar(
            Kind::Hard,
            format!("{name}: plain FTS5 against Clearway"),
            against(&plain),
            1.0,
        );
        report.bar(
            Kind::Timing,
            format!("{name}: tuned FTS5 plus 5 % against Clearway"),
            1.05 * against(&tuned),
            1.0,
        );
    }
    report.section(section);
    Ok(())
}

struct Measured {
    quality: Quality,
    latency: Hist,
}

impl Measured {
    fn row(&self, name: &str, method: &str, tuned: f64) -> Vec<String> {
        let Quality { ndcg_at_10, mrr_at_10, recall_at_100, .. } = self.quality;
        vec![
            name.to_owned(),
            method.to_owned(),
            format!("{ndcg_at_10:.4}"),
            format!("{:+.1} %", (ndcg_at_10 / tuned.max(f64::MIN_POSITIVE) - 1.0) * 100.0),
            format!("{mrr_at_10:.4}"),
            format!("{recall_at_100:.4}"),
            number(self.latency.ms(0.5)),
            number(self.latency.ms(0.99)),
        ]
    }
}

fn measured(
    collection: &Collection,
    mut ask: impl FnMut(&str) -> Result<Vec<String>>,
) -> Result<Measured> {
    let mut latency = Hist::default();
    let mut answers = Vec::new();
    for question in collection.judged_questions() {
        let start = Instant::now();
        answers.push(ask(&question.text)?);
        latency.add(start.elapsed());
    }
    Ok(Measured { quality: collection.quality(&answers), latency })
}

fn ours(collection: &Collection) -> Result<Measured> {
    let snapshot = collection.index(&go_on)?;
    measured(collection, |question| Ok(eval::answer(&snapshot, question, &go_on)?))
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    Tuned,
}

fn fts5(collection: &Collection, way: Way) -> Result<Measured> {
    let (tokenizer, order) = match way {
        Way::Plain => ("unicode61", "bm25(docs)"),
        Way::Tuned => ("porter unicode61", "bm25(docs, 0.0, 2.0, 1.0)"),
    };
    let mut database = Connection::open_in_memory()?;
    database.execute_batch(&format!(
        "CREATE VIRTUAL TABLE docs USING fts5(id UNINDEXED, title, text, tokenize = '{tokenizer}')"
    ))?;
    let transaction = database.transaction()?;
    for passage in &collection.passages {
        transaction.execute(
            "INSERT INTO docs VALUES (?1, ?2, ?3)",
            params![passage.id, passage.title, passage.text],
        )?;
    }
    transaction.commit()?;
    let sql = format!("SELECT id FROM docs WHERE docs MATCH ?1 ORDER BY {order} LIMIT 100");
    let mut statement = database.prepare(&sql)?;
    measured(collection, |question| {
        let words = words(question, way);
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let ids = statement.query_map([words.join(" OR ")], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    })
}

/// The words of a question as FTS5 wants them, in quotes.
fn words(question: &str, way: Way) -> Vec<String> {
    let all = question.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let all: Vec<String> = all.map(str::to_lowercase).collect();
    let wanted: Vec<&String> = match way {
        Way::Plain => all.iter().collect(),
        Way::Tuned => all.iter().filter(|word| !STOP_WORDS.contains(&word.as_str())).collect(),
    };
    // A question of stop words alone is asked as it is.
    let wanted = if wanted.is_empty() { all.iter().collect() } else { wanted };
    wanted.into_iter().map(|word| format!("\"{word}\"")).collect()
}

/// The small words of English.
const STOP_WORDS: &[&str] = &[
    "a", "about", "above", "after", "again", "against", "all", "also", "am", "an", "and", "any",
    "are", "as", "at", "be", "because", "been", "before", "being", "below", "between", "both",
    "but", "by", "can", "cannot", "could", "did", "do", "does", "doing", "down", "during", "each",
    "few", "for", "from", "further", "had", "has", "have", "having", "he", "her", "here", "hers",
    "him", "his", "how", "i", "if", "in", "into", "is", "it", "its", "itself", "me", "more",
    "most", "my", "no", "nor", "not", "of", "off", "on", "once", "only", "or", "other", "our",
    "ours", "out", "over", "own", "same", "she", "should", "so", "some", "such", "than", "that",
    "the", "their", "theirs", "them", "then", "there", "these", "they", "this", "those", "through",
    "to", "too", "under", "until", "up", "very", "was", "we", "were", "what", "when", "where",
    "which", "while", "who", "whom", "why", "with", "would", "you", "your", "yours",
];

fn read(folder: &Path) -> Result<Collection> {
    let mut collection = Collection::default();
    each_line(&folder.join("corpus.jsonl"), |line, _| collection.corpus_line(line))?;
    each_line(&folder.join("queries.jsonl"), |line, _| collection.query_line(line))?;
    each_line(&folder.join("qrels/test.tsv"), |line, first| {
        collection.judgement_line(line, first)
    })?;
    if collection.judged_questions().next().is_none() {
        bail!("{}: no question has a relevant document", folder.display());
    }
    Ok(collection)
}

fn each_line(file: &Path, mut each: impl FnMut(&str, bool) -> Result<(), String>) -> Result<()> {
    let lines =
        BufReader::new(File::open(file).with_context(|| file.display().to_string())?).lines();
    for (at, line) in lines.enumerate() {
        let line = line.with_context(|| format!("{}:{}", file.display(), at + 1))?;
        if !line.trim().is_empty() {
            each(&line, at == 0)
                .map_err(|why| anyhow::anyhow!("{}:{}: {why}", file.display(), at + 1))?;
        }
    }
    Ok(())
}

fn seconds(duration: Duration) -> String {
    format!("{:.2}", duration.as_secs_f64())
}
