//! `clearway kb eval`: how well retrieval does on a test collection, without any configuration.
//!
//! The folder is laid out as the BEIR benchmarks are. Results go to standard output, what is being done to the other.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clearway::retrieval::eval::{self, Collection, Quality};
use clearway::retrieval::{Stats, go_on};
use serde_json::{Value, json};

use crate::cli::KbEvalArgs;
use crate::exit::{Exit, Usage};
use crate::output::Output;

/// No document of a collection is that long; a file without line ends must not be read as one.
const MAX_LINE: u64 = 64 << 20;

pub(crate) fn run(args: &KbEvalArgs, output: Output) -> Result<Exit> {
    let folder = &args.folder;
    if !folder.is_dir() {
        bail!(Usage {
            problem: format!("there is no folder {}", folder.display()),
            help: "name a folder with corpus.jsonl, queries.jsonl and qrels/test.tsv".to_owned(),
        });
    }
    let collection = read(folder)?;
    let missing = missing(&collection);
    ensure!(!collection.passages.is_empty(), "{}: corpus.jsonl has no document", folder.display());
    let asked = collection.judged_questions().count();
    ensure!(
        asked > 0,
        "{}: no question has a relevant document in qrels/test.tsv",
        folder.display()
    );
    if missing > 0 {
        let text = format!(
            "{missing} relevant documents of qrels/test.tsv are not in corpus.jsonl: no search can find them"
        );
        output.error(&format!("warning: {text}"));
    }
    output.note(&format!("indexing {} documents", collection.passages.len()));
    let start = Instant::now();
    let snapshot = collection.index(&go_on)?;
    let index_ms = ms(start);
    output.note(&format!("asking {asked} questions"));
    let mut latencies = Vec::with_capacity(asked);
    let mut answers = Vec::with_capacity(asked);
    for question in collection.judged_questions() {
        let start = Instant::now();
        answers.push(eval::answer(&snapshot, &question.text, &go_on)?);
        latencies.push(ms(start));
    }
    latencies.sort_by(f64::total_cmp);
    let result = Measured {
        quality: collection.quality(&answers),
        documents: collection.passages.len(),
        stats: snapshot.stats(),
        index_ms,
        latency_p50_ms: at(&latencies, 0.5),
        latency_p99_ms: at(&latencies, 0.99),
    };
    output.print(&if output.json { result.json().to_string() } else { result.text() });
    Ok(Exit::Ok)
}

/// Relevant documents that are not there.
fn missing(collection: &Collection) -> usize {
    let there: HashSet<&str> = collection.passages.iter().map(|one| one.id.as_str()).collect();
    let judged = collection.judged.values().flatten().filter(|(_, grade)| **grade > 0);
    let missing: HashSet<&str> =
        judged.map(|(id, _)| id.as_str()).filter(|id| !there.contains(id)).collect();
    missing.len()
}

fn read(folder: &Path) -> Result<Collection> {
    let mut collection = Collection::default();
    each_line(&folder.join("corpus.jsonl"), |line, _| collection.corpus_line(line))?;
    each_line(&folder.join("queries.jsonl"), |line, _| collection.query_line(line))?;
    each_line(&folder.join("qrels").join("test.tsv"), |line, number| {
        collection.judgement_line(line, number == 1)
    })?;
    Ok(collection)
}

/// Calls `each` for every line that is not blank; what is wrong is told with file and line.
fn each_line(file: &Path, mut each: impl FnMut(&str, u64) -> Result<(), String>) -> Result<()> {
    let name = file.display();
    let mut reader =
        BufReader::new(File::open(file).with_context(|| format!("cannot open {name}"))?);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line);
        if read.with_context(|| format!("{name}:{number}: cannot be read"))? == 0 {
            break;
        }
        ensure!(
            (line.len() as u64) < MAX_LINE,
            "{name}:{number}: longer than {} MiB",
            MAX_LINE >> 20
        );
        let text =
            std::str::from_utf8(&line).with_context(|| format!("{name}:{number}: not UTF-8"))?;
        let text = text.trim_start_matches('\u{feff}').trim_end_matches(['\n', '\r']);
        if !text.trim().is_empty() {
            each(text, number).map_err(|why| anyhow::anyhow!("{name}:{number}: {why}"))?;
        }
    }
    Ok(())
}

struct Measured {
    quality: Quality,
    documents: usize,
    stats: Stats,
    index_ms: f64,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
}

impl Measured {
    fn json(&self) -> Value {
        let Quality { ndcg_at_10, mrr_at_10, recall_at_10, recall_at_100, questions } =
            self.quality;
        json!({
            "ndcg@10": rounded(ndcg_at_10, 5),
            "recall@100": rounded(recall_at_100, 5),
            "mrr@10": rounded(mrr_at_10, 5),
            "recall@10": rounded(recall_at_10, 5),
            "queries": questions,
            "documents": self.documents,
            "chunks": self.stats.chunks,
            "index_ms": rounded(self.index_ms, 1),
            "latency_p50_ms": rounded(self.latency_p50_ms, 3),
            "latency_p99_ms": rounded(self.latency_p99_ms, 3),
        })
    }

    fn text(&self) -> String {
        let Quality { ndcg_at_10, mrr_at_10, recall_at_10, recall_at_100, questions } =
            self.quality;
        [
            format!(
                "documents   {} ({} chunks), indexed in {:.1} s",
                self.documents,
                self.stats.chunks,
                self.index_ms / 1e3
            ),
            format!("queries     {questions}"),
            format!("nDCG@10     {ndcg_at_10:.4}"),
            format!("MRR@10      {mrr_at_10:.4}"),
            format!("recall@10   {recall_at_10:.4}"),
            format!("recall@100  {recall_at_100:.4}"),
            format!(
                "latency     p50 {:.2} ms, p99 {:.2} ms",
                self.latency_p50_ms, self.latency_p99_ms
            ),
        ]
        .join("\n")
    }
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn rounded(value: f64, places: i32) -> f64 {
    let factor = 10_f64.powi(places);
    (value * factor).round() / factor
}

/// The value that this share of the sorted values does not exceed.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a place in a list"
)]
fn at(sorted: &[f64], share: f64) -> f64 {
    let place = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or_default()
}
