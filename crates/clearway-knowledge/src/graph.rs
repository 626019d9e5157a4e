//! What the texts name, and what they name together.
//!
//! An entity is a run of capitalised words, a heading or title, a link's target, or what is set apart by quotes, bold or
//! code marks. Two entities are near when chunks name both. Nothing is kept of pairs: neighbours are counted when they
//! are asked for, over the chunks in scope, so a neighbourhood never tells what somebody else's documents say.
//!
//! Beside names stand phrases in small letters and what a model read out of the texts ([`aside`]).

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::document::{Chunk, Document};
use crate::snapshot::Snapshot;
use crate::vocabulary::{Term, Vocabulary};

pub use aside::Triple;
pub(crate) use aside::{Phrases, Sightings, Tie, Ties, tie};
pub use picture::{Edge, Node, Picture};

mod aside;
mod picture;

/// The entities of a corpus by number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    keys: Vocabulary,
    /// As first written.
    labels: Vec<Box<str>>,
    /// Whether it is a name; else it only stands beside them.
    are_names: Vec<bool>,
}

/// Which chunks name an entity.
#[derive(Debug, Default)]
pub(crate) struct Mentions {
    starts: Vec<u32>,
    chunks: Vec<u32>,
}

/// The graph as a viewer may see it.
#[derive(Debug)]
pub struct Graph<'a> {
    snapshot: &'a Snapshot,
    allowed: Vec<bool>,
    /// Not only names, but also what stands beside them.
    whole: bool,
}

/// An entity, and how many chunks in scope name it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entity {
    pub name: String,
    pub chunks: usize,
}

/// What a model says of two entities.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Relation {
    pub subject: String,
    pub relation: String,
    pub object: String,
    /// Chunks in scope that say so.
    pub chunks: usize,
}

/// An entity near another.
#[derive(Clone, Debug, PartialEq)]
pub struct Neighbour {
    pub name: String,
    /// How much of what is said of either is said of both, 0 to 1.
    pub weight: f32,
    /// Chunks that name both.
    pub chunks: usize,
}

/// More in one chunk are a list, and say nothing about each other.
const MAX_OF_A_CHUNK: usize = 40;
const MAX_WORDS: usize = 5;
const MAX_LETTERS: usize = 60;
/// Of an entity that is named everywhere, so many chunks tell enough.
const MAX_COUNTED: usize = 2_000;
/// A longer way explains nothing.
const MAX_STEPS: usize = 6;
const MAX_VISITED: usize = 2_000;
/// How many neighbours of each entity a way is looked for among.
const BREADTH: usize = 24;

impl Names {
    /// The numbers of what a chunk names.
    pub(crate) fn of_chunk(&mut self, document: &Document, chunk: &Chunk) -> Box<[Term]> {
        let mut names = Vec::new();
        names.extend(chunk.section_path.iter().filter_map(|heading| whole(heading)));
        names.extend(whole(&document.title));
        if chunk.chunk_index == 0 {
            names.extend(document.links.iter().filter_map(|link| of_link(link)));
        }
        set_apart(&chunk.content, &mut names);
        capitalised(&chunk.content, &mut names);
        let mut seen = HashSet::new();
        let numbers = names
            .into_iter()
            .map(|name| self.number_of(name))
            .filter(|number| seen.insert(*number));
        numbers.take(MAX_OF_A_CHUNK).collect()
    }

    fn number_of(&mut self, name: &str) -> Term {
        let number = self.beside(name);
        if let Some(is_name) = self.are_names.get_mut(number as usize) {
            *is_name = true;
        }
        number
    }

    /// The number of what need not be a name.
    pub(crate) fn beside(&mut self, text: &str) -> Term {
        let number = self.keys.intern(&key(text));
        if number as usize == self.labels.len() {
            self.labels.push(text.into());
            self.are_names.push(false);
        }
        number
    }

    fn is_name(&self, number: Term) -> bool {
        self.are_names.get(number as usize).copied().unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    pub(crate) fn label(&self, number: Term) -> &str {
        self.labels.get(number as usize).map_or("", |label| label)
    }

    /// The entities that a text names, the longest names first at each place.
    pub(crate) fn within(&self, text: &str) -> Vec<Term> {
        let words: Vec<String> =
            words(text).take(MAX_QUERY_WORDS).map(|(word, _)| word.to_lowercase()).collect();
        let mut found = Vec::new();
        let mut at = 0;
        while at < words.len() {
            let longest = (1..=MAX_WORDS.min(words.len() - at)).rev().find_map(|count| {
                let number = self.keys.number(&words[at..at + count].join(" "))?;
                self.is_name(number).then_some((number, count))
            });
            match longest {
                Some((number, count)) => {
                    if !found.contains(&number) {
                        found.push(number);
                    }
                    at += count;
                }
                None => at += 1,
            }
        }
        found
    }
}

const MAX_QUERY_WORDS: usize = 400;

impl Mentions {
    pub(crate) fn build<'a>(
        entities: usize,
        chunks: impl Iterator<Item = &'a [Term]> + Clone,
    ) -> Self {
        let mut starts = vec![0_u32; entities + 1];
        chunks.clone().flatten().for_each(|entity| starts[*entity as usize + 1] += 1);
        for at in 0..entities {
            starts[at + 1] += starts[at];
        }
        let mut next = starts.clone();
        let mut places = vec![0_u32; starts[entities] as usize];
        for (chunk, entities) in (0_u32..).zip(chunks) {
            for entity in entities {
                let place = &mut next[*entity as usize];
                places[*place as usize] = chunk;
                *place += 1;
            }
        }
        Self { starts, chunks: places }
    }

    pub(crate) fn of(&self, entity: Term) -> &[u32] {
        let at = entity as usize;
        match (self.starts.get(at), self.starts.get(at + 1)) {
            (Some(start), Some(end)) => &self.chunks[*start as usize..*end as usize],
            _ => &[],
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.starts.len() + self.chunks.len())
    }
}

impl<'a> Graph<'a> {
    pub(crate) fn new(snapshot: &'a Snapshot, allowed: Vec<bool>) -> Self {
        Self { snapshot, allowed, whole: true }
    }

    /// Names alone, as ranking wants them.
    pub(crate) fn of_names(snapshot: &'a Snapshot, allowed: Vec<bool>) -> Self {
        Self { snapshot, allowed, whole: false }
    }

    /// Entities whose names have all words of a text, those that are named most first.
    pub fn find(&self, text: &str, limit: usize) -> Vec<Entity> {
        let text = key(text);
        let wanted: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
        let all = 0..Term::try_from(self.names().len()).unwrap_or(Term::MAX);
        let named = all.filter(|number| {
            let name = self.names().keys.term(*number);
            wanted.iter().all(|word| name.contains(word))
        });
        self.entities(named, limit)
    }

    fn entities(&self, numbers: impl Iterator<Item = Term>, limit: usize) -> Vec<Entity> {
        let mut counted: Vec<(usize, Term)> = numbers
            .map(|number| (self.count(number), number))
            .filter(|(count, _)| *count > 0)
            .collect();
        counted.sort_unstable_by_key(|(count, number)| (std::cmp::Reverse(*count), *number));
        counted.truncate(limit);
        let entity =
            |(chunks, number)| Entity { name: self.names().label(number).to_owned(), chunks };
        counted.into_iter().map(entity).collect()
    }

    /// How many entities something in scope names.
    pub fn len(&self) -> usize {
        let all = 0..Term::try_from(self.names().len()).unwrap_or(Term::MAX);
        all.filter(|number| self.seen(*number).next().is_some()).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entity that has just this name.
    pub fn entity(&self, name: &str) -> Option<Entity> {
        let number = self.number(name)?;
        Some(Entity { name: self.names().label(number).to_owned(), chunks: self.count(number) })
    }

    /// The documents that name an entity, in reading order, with how many of their chunks do.
    pub fn documents(&self, name: &str, limit: usize) -> Vec<(Arc<Document>, usize)> {
        let Some(number) = self.number(name) else { return Vec::new() };
        let mut found: Vec<(u32, usize)> = Vec::new();
        for chunk in self.seen(number) {
            let document = self.snapshot.entry(chunk).document;
            if let Some((_, chunks)) = found.last_mut().filter(|(last, _)| *last == document) {
                *chunks += 1;
            } else if found.len() < limit {
                found.push((document, 1));
            } else {
                break;
            }
        }
        let document = |(number, chunks)| Some((self.snapshot.document_at(number)?, chunks));
        found.into_iter().filter_map(document).collect()
    }

    /// What a document names, that which most of its chunks do first; nothing of one out of scope.
    pub fn named_in(&self, doc_id: &str, limit: usize) -> Vec<Entity> {
        let mut counted: HashMap<Term, usize> = HashMap::new();
        for chunk in self.snapshot.chunks_of(doc_id) {
            if !self.allowed.get(chunk as usize).copied().unwrap_or_default() {
                continue;
            }
            for entity in self.entities_of(chunk) {
                *counted.entry(entity).or_default() += 1;
            }
        }
        let mut counted: Vec<(Term, usize)> = counted.into_iter().collect();
        counted.sort_unstable_by_key(|(number, chunks)| (std::cmp::Reverse(*chunks), *number));
        counted.truncate(limit);
        let entity =
            |(number, chunks)| Entity { name: self.names().label(number).to_owned(), chunks };
        counted.into_iter().map(entity).collect()
    }

    /// What is near an entity, the nearest first; `None` if nothing in scope has that name.
    pub fn neighbours(&self, name: &str, limit: usize) -> Option<Vec<Neighbour>> {
        let number = self.number(name)?;
        let near = self.near(number, limit).into_iter();
        Some(
            near.map(|(number, weight, chunks)| Neighbour {
                name: self.names().label(number).to_owned(),
                weight,
                chunks,
            })
            .collect(),
        )
    }

    /// What a model says of an entity in chunks in scope, what most of them say first.
    pub fn relations(&self, name: &str, limit: usize) -> Vec<Relation> {
        let Some(number) = self.number(name) else { return Vec::new() };
        let mut counted: BTreeMap<(Term, &str, Term), usize> = BTreeMap::new();
        for chunk in self.seen(number).take(MAX_COUNTED) {
            let ties = self.snapshot.ties_of(chunk).iter();
            for tie in ties.filter(|tie| tie.subject == number || tie.object == number) {
                *counted.entry((tie.subject, &*tie.relation, tie.object)).or_default() += 1;
            }
        }
        let mut counted: Vec<_> = counted.into_iter().collect();
        counted.sort_by_key(|(_, chunks)| std::cmp::Reverse(*chunks));
        counted.truncate(limit);
        let label = |number| self.names().label(number).to_owned();
        let relation =
            |((subject, relation, object), chunks): ((Term, &str, Term), usize)| Relation {
                subject: label(subject),
                relation: relation.to_owned(),
                object: label(object),
                chunks,
            };
        counted.into_iter().map(relation).collect()
    }

    /// The names on the shortest way from one entity to another, both included; `None` if there is none.
    pub fn path(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let (from, to) = (self.number(from)?, self.number(to)?);
        let mut before: HashMap<Term, Option<Term>> = HashMap::from([(from, None)]);
        let mut due = VecDeque::from([(from, 0)]);
        while let Some((at, steps)) = due.pop_front() {
            if at == to {
                let mut way = vec![self.names().label(at).to_owned()];
                let mut last = at;
                while let Some(Some(previous)) = before.get(&last) {
                    way.push(self.names().label(*previous).to_owned());
                    last = *previous;
                }
                way.reverse();
                return Some(way);
            }
            if steps == MAX_STEPS || before.len() > MAX_VISITED {
                continue;
            }
            for (next, ..) in self.near(at, BREADTH) {
                before.entry(next).or_insert_with(|| {
                    due.push_back((next, steps + 1));
                    Some(at)
                });
            }
        }
        None
    }

    /// The entities that are named most, and what connects them.
    pub fn overview(&self, nodes: usize) -> Picture {
        let all = 0..Term::try_from(self.names().len()).unwrap_or(Term::MAX);
        // What only one chunk names connects nothing.
        let mut counted: Vec<(usize, Term)> = all
            .map(|number| (self.count(number), number))
            .filter(|(count, _)| *count > 1)
            .collect();
        counted.sort_unstable_by_key(|(count, number)| (std::cmp::Reverse(*count), *number));
        self.picture(counted.into_iter().take(nodes).map(|(_, number)| number).collect())
    }

    /// An entity with what is near it; `None` if nothing in scope has that name.
    pub fn around(&self, name: &str, nodes: usize) -> Option<Picture> {
        let number = self.number(name)?;
        let near = self.near(number, nodes.saturating_sub(1));
        Some(self.picture(
            [number].into_iter().chain(near.into_iter().map(|(number, ..)| number)).collect(),
        ))
    }

    fn picture(&self, numbers: Vec<Term>) -> Picture {
        let places: BTreeMap<Term, usize> =
            numbers.iter().enumerate().map(|(at, number)| (*number, at)).collect();
        let nodes = numbers.iter().map(|number| Node {
            name: self.names().label(*number).to_owned(),
            chunks: self.count(*number),
        });
        let mut edges = Vec::new();
        for (number, from) in &places {
            for (other, weight, _) in self.near(*number, usize::MAX) {
                if let Some(to) = places.get(&other).filter(|to| from < *to) {
                    edges.push(Edge { from: *from, to: *to, weight });
                }
            }
        }
        edges.sort_unstable_by_key(|edge| (edge.from, edge.to));
        Picture { nodes: nodes.collect(), edges }
    }

    /// The number of a name that something in scope has.
    fn number(&self, name: &str) -> Option<Term> {
        self.names().keys.number(&key(name)).filter(|number| self.count(*number) > 0)
    }

    fn count(&self, number: Term) -> usize {
        self.seen(number).count()
    }

    /// The chunks in scope that have an entity, in order.
    pub(crate) fn seen(&self, number: Term) -> impl Iterator<Item = u32> {
        let (mut named, mut beside) = (self.snapshot.mentions().of(number), [].as_slice());
        if self.whole {
            beside = self.snapshot.beside().of(number);
        }
        // No chunk is in both.
        let next = move || {
            let first = match (named.first(), beside.first()) {
                (Some(a), Some(b)) if b < a => &mut beside,
                (Some(_), _) => &mut named,
                (None, _) => &mut beside,
            };
            let (chunk, rest) = first.split_first()?;
            *first = rest;
            Some(*chunk)
        };
        std::iter::from_fn(next).filter(|chunk| self.allowed[*chunk as usize])
    }

    fn entities_of(&self, chunk: u32) -> impl Iterator<Item = Term> {
        let entry = self.snapshot.entry(chunk);
        let beside = if self.whole { entry.beside() } else { &[] };
        entry.entities().iter().chain(beside).copied()
    }

    /// What is named in the same chunks, the nearest first, with the number of those chunks.
    #[expect(clippy::cast_precision_loss, reason = "counts of chunks")]
    pub(crate) fn near(&self, number: Term, limit: usize) -> Vec<(Term, f32, usize)> {
        let mut shared: HashMap<Term, usize> = HashMap::new();
        let mut own = 0;
        for chunk in self.seen(number).take(MAX_COUNTED) {
            own += 1;
            for other in self.entities_of(chunk).filter(|other| *other != number) {
                *shared.entry(other).or_default() += 1;
            }
        }
        let weigh = |(other, count): (Term, usize)| {
            let both = (own as f32 * self.count(other) as f32).sqrt().max(1.0);
            (other, (count as f32 / both).min(1.0), count)
        };
        let mut near: Vec<_> = shared.into_iter().map(weigh).collect();
        near.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(b.2.cmp(&a.2)).then(a.0.cmp(&b.0)));
        near.truncate(limit);
        near
    }

    fn names(&self) -> &'a Names {
        self.snapshot.names()
    }
}

/// How names are compared.
fn key(name: &str) -> String {
    words(name).map(|(word, _)| word.to_lowercase()).collect::<Vec<_>>().join(" ")
}

/// Words with the place where each starts.
fn words(text: &str) -> impl Iterator<Item = (&str, usize)> {
    let part_of_word = |c: char| c.is_alphanumeric() || matches!(c, '\'' | '’' | '-' | '_' | '&');
    let mut rest = text;
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = rest.find(char::is_alphanumeric)?;
        let end = rest[start..].find(|c| !part_of_word(c)).map_or(rest.len(), |end| start + end);
        let place = at + start;
        let word = &rest[start..end];
        rest = &rest[end..];
        at += end;
        // The owner is named, not that it owns.
        let word = word.strip_suffix("'s").or_else(|| word.strip_suffix("’s")).unwrap_or(word);
        Some((word.trim_end_matches(['\'', '’', '-']), place))
    })
}

/// A text that is short enough to be a name.
fn whole(text: &str) -> Option<&str> {
    let text = text.trim();
    let count = words(text).take(MAX_WORDS + 1).count();
    ((1..=MAX_WORDS).contains(&count)
        && text.chars().count() <= MAX_LETTERS
        && text.chars().any(char::is_alphabetic))
    .then_some(text)
}

/// What a link points at, by the name that people use.
fn of_link(target: &str) -> Option<&str> {
    if target.contains("://") {
        return None;
    }
    let last = target.rsplit('/').find(|part| !part.is_empty())?;
    whole(last.rsplit_once('.').map_or(last, |(stem, _)| stem))
}

/// What stands between quotes, bold or code marks, or wiki-link brackets.
fn set_apart<'a>(text: &'a str, names: &mut Vec<&'a str>) {
    for (open, close) in [("**", "**"), ("`", "`"), ("[[", "]]"), ("“", "”"), ("\"", "\"")] {
        let mut rest = text;
        while let Some(start) = rest.find(open) {
            let inside = &rest[start + open.len()..];
            let Some(end) = inside.find(close) else { break };
            names.extend(
                whole(inside[..end].split('|').next().unwrap_or_default())
                    .filter(|name| !name.contains('\n')),
            );
            rest = &inside[end + close.len()..];
        }
    }
}

/// Runs of capitalised words; one alone at the start of a sentence may be any word, unless it is an abbreviation.
fn capitalised<'a>(text: &'a str, names: &mut Vec<&'a str>) {
    let mut run: Option<(usize, usize, usize, bool)> = None;
    let mut last_end = 0;
    let mut push = |run: Option<(usize, usize, usize, bool)>| {
        if let Some((start, end, count, opens)) = run {
            let name = &text[start..end];
            let is_short_form = name.len() > 1 && name.chars().all(|c| !c.is_lowercase());
            if (count > 1 || !opens || is_short_form) && name.chars().count() > 1 {
                names.extend(whole(name));
            }
        }
    };
    for (word, at) in words(text) {
        let between = &text[last_end..at];
        let opens =
            at == 0 || between.contains(['.', '!', '?', ':', '\n', '"', '“', '#', '*', '|']);
        let joined = !between.is_empty() && between.chars().all(|c| c == ' ');
        let is_name = word.chars().next().is_some_and(char::is_uppercase) && word != "I";
        run = match (run, is_name) {
            (Some((start, _, count, opened)), true) if joined && count < MAX_WORDS => {
                Some((start, at + word.len(), count + 1, opened))
            }
            (other, true) => {
                push(other);
                Some((at, at + word.len(), 1, opens))
            }
            (other, false) => {
                push(other);
                None
            }
        };
        last_end = at + word.len();
    }
    push(run);
}

#[cfg(test)]
mod tests;
