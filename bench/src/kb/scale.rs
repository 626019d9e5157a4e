//! The speed of search by the number of chunks, at rest and while the next index is being built beside it.
//!
//! The texts are made up: words by Zipf's law, in themes, so that words have company and the latent space something to
//! find. Questions are long: a dozen words of a chunk. The words are made up, too, unless there is a list of English ones,
//! of which the search knows more.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clearway_knowledge::{
    Block, ChunkOptions, Document, IndexBuilder, Learn, Limits, Query, Scope, Snapshot, Viewer,
    chunk, go_on,
};

use super::{Options, seconds};
use crate::report::{Kind, Report, Section, number, say};
use crate::rng::Rng;
use crate::stats::Hist;

/// The bar: with a hundred thousand chunks.
const MOST_MS: f64 = 20.0;
const WORDS: u64 = 60_000;
const THEMES: u64 = 200;
const WORDS_OF_A_CHUNK: usize = 120;

pub(super) fn run(options: &Options, report: &mut Report) -> Result<()> {
    let columns = [
        "chunks",
        "read s",
        "build s",
        "per 10 k chunks s",
        "rebuild s",
        "bytes a chunk",
        "with texts",
        "p50 ms",
        "p99 ms",
        "p50 while building",
        "p99 while building",
    ];
    let mut section = Section::new("Search by the number of chunks", &columns);
    let known = options.words.as_deref().map(english).transpose()?;
    for thousands in &options.thousands {
        let count = thousands * 1_000;
        say(&format!("{count} chunks"));
        let start = Instant::now();
        let (mut builder, questions) = corpus(count, options.questions, known.as_deref());
        let read = start.elapsed();
        if options.dimensions > 0 {
            vectors(&mut builder, options.dimensions);
        }
        let start = Instant::now();
        let snapshot = builder.build(Learn::Anew, &go_on)?;
        let build = start.elapsed();
        let start = Instant::now();
        snapshot.edit().build(Learn::Keep, &go_on)?;
        let rebuild = start.elapsed();
        let vector = (options.dimensions > 0).then(|| vector(&mut Rng::new(7), options.dimensions));
        let alone = ask(&snapshot, &questions, vector.as_deref())?;
        let beside = while_building(&snapshot, &questions, vector.as_deref())?;
        let stats = snapshot.stats();
        let each = (read + build).as_secs_f64() * 10_000.0 / count as f64;
        section.row([
            count.to_string(),
            seconds(read),
            seconds(build),
            format!("{each:.2}"),
            seconds(rebuild),
            (stats.index_bytes / count).to_string(),
            ((stats.index_bytes + stats.text_bytes) / count).to_string(),
            number(alone.ms(0.5)),
            number(alone.ms(0.99)),
            number(beside.ms(0.5)),
            number(beside.ms(0.99)),
        ]);
        report.figure(format!("kb.scale.{count}.p99_ms"), beside.ms(0.99));
        report.bar(
            Kind::Timing,
            format!("p99 of a search in {count} chunks while the next index is built"),
            beside.ms(0.99),
            MOST_MS,
        );
    }
    report.section(section);
    Ok(())
}

/// Searches while another OS thread builds indexes, from reading to the latent space, again and again.
fn while_building(
    snapshot: &Snapshot,
    questions: &[String],
    vector: Option<&[f32]>,
) -> Result<Hist> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let go_on = || !done.load(Ordering::Relaxed);
            while go_on() {
                // Ends with the questions: stopped is what it is then.
                let _ = snapshot.edit().build(Learn::Anew, &go_on);
            }
        });
        let hist = ask(snapshot, questions, vector);
        done.store(true, Ordering::Relaxed);
        work.join().ok().context("the builder panicked")?;
        hist
    })
}

fn ask(snapshot: &Snapshot, questions: &[String], vector: Option<&[f32]>) -> Result<Hist> {
    let mut hist = Hist::default();
    for question in questions {
        let start = Instant::now();
        let query =
            Query { embedding: vector, ..Query::new(question, Scope::of(Viewer::User("bench"))) };
        snapshot.search(&query, &Limits::default(), &go_on)?;
        hist.add(start.elapsed());
    }
    Ok(hist)
}

/// English words for ranks: the small ones that tell the language are the most frequent ones, the others are drawn from
/// all of the list.
fn english(file: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_to_string(file)
        .with_context(|| format!("reading words from {}", file.display()))?;
    let is_word = |word: &&str| word.len() > 2 && word.bytes().all(|b| b.is_ascii_lowercase());
    let all: Vec<&str> = list.lines().filter(is_word).collect();
    ensure!(all.len() as u64 >= WORDS / 2, "{} has only {} words", file.display(), all.len());
    let drawn = (0..WORDS).map(|rank| all[(rank * 7919) as usize % all.len()]);
    Ok(SMALL.split(' ').chain(drawn).map(ToOwned::to_owned).collect())
}

const SMALL: &str =
    "the of and to in that for was with this from have not but were which their there";

fn corpus(count: usize, questions: usize, known: Option<&[String]>) -> (IndexBuilder, Vec<String>) {
    let mut rng = Rng::new(42);
    let mut builder = IndexBuilder::new();
    let mut asked = Vec::new();
    let every = (count / questions.max(1)).max(1);
    for at in 0..count {
        let theme = rng.within(0..THEMES);
        let word = |_| {
            let rank = rank(&mut rng, theme);
            known.map_or_else(|| spelled(rank), |known| known[rank as usize].clone())
        };
        let words: Vec<String> = (0..WORDS_OF_A_CHUNK).map(word).collect();
        if at % every == 0 && asked.len() < questions {
            asked.push(words.iter().step_by(10).cloned().collect::<Vec<_>>().join(" "));
        }
        let text = words.join(" ");
        let id = format!("d{at}");
        let document = Document {
            id: id.as_str().into(),
            collection: "bench".into(),
            owner: at.is_multiple_of(2).then(|| "bench".into()),
            title: words[..4].join(" "),
            source: id.clone(),
            links: Vec::new(),
        };
        let chunks = chunk(
            &id,
            &text,
            &[Block::paragraph(0..text.len())],
            &ChunkOptions { max_tokens: 1_000, overlap_tokens: 0 },
        );
        builder.put(document, chunks);
    }
    (builder, asked)
}

/// A word that nobody knows.
pub(super) fn word(rng: &mut Rng, theme: u64) -> String {
    spelled(rank(rng, theme))
}

/// How frequent the next word is: frequent ones are everybody's, the others belong to a theme more often than not.
fn rank(rng: &mut Rng, theme: u64) -> u64 {
    let uniform = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
    // Zipf: the logarithm of the rank is uniform.
    let rank = ((WORDS as f64).powf(uniform) as u64).min(WORDS - 1);
    if rank > 500 && !rank.is_multiple_of(3) {
        500 + (rank / THEMES * THEMES + theme) % (WORDS - 500)
    } else {
        rank
    }
}

fn spelled(rank: u64) -> String {
    const SYLLABLES: [&str; 16] = [
        "ba", "ke", "li", "mo", "nu", "pa", "re", "si", "to", "vu", "za", "fe", "gi", "ho", "du",
        "wy",
    ];
    let mut word = String::new();
    let mut rest = rank + 16;
    while rest > 0 {
        word.push_str(SYLLABLES[(rest % 16) as usize]);
        rest /= 16;
    }
    word
}

fn vectors(builder: &mut IndexBuilder, dimensions: usize) {
    let mut rng = Rng::new(3);
    for (hash, _) in builder.without_vector() {
        builder.vector(hash, &vector(&mut rng, dimensions));
    }
}

fn vector(rng: &mut Rng, dimensions: usize) -> Vec<f32> {
    (0..dimensions).map(|_| (rng.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0).collect()
}
