//! Embeddings: texts in, one validated vector for each out.
//!
//! A call is taken apart into texts. Each text is looked up in the [`cache`], joins whoever asks for
//! the same at the moment ([`flight`]), or is queued and leaves with others in one request
//! ([`batch`]). So texts that fail do so alone, and a thousand callers with one question cost one
//! request. Somebody who searches never queues behind somebody who fills an index: the two purposes
//! have queues of their own.
//!
//! **Invariants:** a vector is handed out only after validation, and only for its own text. Every
//! caller waits by its own deadline, and its wait cell says for what. Work that nobody waits for any
//! more is dropped, and its connection closed.
//!
//! Not here: attempts, retries and limits of the provider, which are behind [`Sender`].

mod batch;
mod cache;
mod flight;
mod send;
mod validate;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use clearway_core::wait::WaitKind;
use clearway_core::{Code, Failure};
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use crate::call::CallCx;
use crate::codec::Usage;
use crate::failure::{Error, Fault};
use crate::route::Route;
use crate::usage::Observer;
use crate::watch::{Watch, now};
use batch::{Lane, LaneId, Start, Works};
use cache::{CACHE_BYTES, Cache, Key};
use flight::{Embedded, Outcome, Seat};

pub(crate) use wire::Decoded;

/// Sends one batch, with whatever retries it takes, and returns the validated vectors. `decode`
/// reads an answer; its fault is a fault of the attempt.
pub(crate) trait Sender: Send + Sync {
    fn send<'a>(
        &'a self,
        cx: &'a CallCx,
        model: &'a str,
        body: Bytes,
        items: usize,
        tokens: u64,
        decode: &'a (dyn Fn(&[u8]) -> Result<Decoded, Fault> + Sync),
    ) -> BoxFuture<'a, Result<Decoded, Error>>;
}

/// Which texts to embed, with which model.
#[derive(Clone, Debug)]
pub struct EmbedRequest {
    /// Name of a [`crate::ModelConfig`] that embeds, or the provider's name for it.
    pub model: String,
    pub texts: Vec<Arc<str>>,
    pub purpose: Purpose,
    /// Length of the vectors, where the model lets one choose.
    pub dimensions: Option<u32>,
}

/// What the vectors are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// To search with: somebody waits.
    Query,
    /// To be searched for: bulk work, which takes what is left.
    Document,
}

impl Purpose {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Document => "document",
        }
    }
}

/// The answer to an [`EmbedRequest`].
#[derive(Clone, Debug)]
pub struct Embeddings {
    /// In the order of the texts. An error carries its text's `index` in its detail.
    pub vectors: Vec<Result<Arc<[f32]>, Error>>,
    /// What this call made the provider do: texts that were known, or that another call was asking
    /// for already, cost nothing.
    pub usage: Usage,
    /// Texts whose vectors were known.
    pub cached: usize,
    /// The configured name of the model.
    pub model: String,
}

/// What is known about an embedding model beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingInfo {
    pub name: String,
    pub provider: String,
    /// What the provider calls it.
    pub model: String,
    /// `None` when nobody said.
    pub dimensions: Option<u32>,
}

/// All embedding models, and the work for them.
pub(crate) struct Embedder {
    routes: HashMap<String, Arc<Route>>,
    works: Arc<Works>,
    /// Owns the workers; they end with it.
    workers: Mutex<JoinSet<()>>,
}

impl Embedder {
    /// `routes` are all models by configured name; those that do not embed are left out.
    pub(crate) fn new(routes: &HashMap<String, Arc<Route>>) -> Self {
        let routes: HashMap<_, _> = routes
            .iter()
            .filter(|(_, route)| route.embedding.is_some())
            .map(|(name, route)| (name.clone(), route.clone()))
            .collect();
        let sender = Arc::new(send::Direct::new(routes.clone()));
        Self::with(routes, sender)
    }

    fn with(routes: HashMap<String, Arc<Route>>, sender: Arc<dyn Sender>) -> Self {
        let works = Arc::new(Works::new(sender, Cache::new(CACHE_BYTES)));
        Self { routes, works, workers: Mutex::default() }
    }

    /// Whether these are its models, by the very same routes.
    pub(crate) fn serves(&self, routes: &HashMap<String, Arc<Route>>) -> bool {
        let own = |name: &String, route: &Arc<Route>| {
            self.routes.get(name).is_some_and(|own| Arc::ptr_eq(own, route))
        };
        let mut embedding = routes.iter().filter(|(_, route)| route.embedding.is_some());
        embedding.clone().count() == self.routes.len()
            && embedding.all(|(name, route)| own(name, route))
    }

    pub(crate) fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.works.observer.get().cloned()
    }

    /// Tells `observer` of every attempt from now on. The first one stays.
    pub(crate) fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.works.observer.set(observer);
    }

    /// The model that is meant by a configured name, or by the provider's name for it.
    pub(crate) fn model(&self, name: &str) -> Option<EmbeddingInfo> {
        let (name, route) = self.route(name)?;
        Some(info(name, route))
    }

    /// All models, sorted by name.
    pub(crate) fn models(&self) -> Vec<EmbeddingInfo> {
        let mut models: Vec<_> =
            self.routes.iter().map(|(name, route)| info(name, route)).collect();
        models.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        models
    }

    fn route(&self, name: &str) -> Option<(&str, &Arc<Route>)> {
        let named = self.routes.get_key_value(name);
        // The first by name, so that the choice does not depend on the map's order.
        let meant = || {
            let meant = self.routes.iter().filter(|(_, route)| *route.model == *name);
            meant.min_by_key(|(name, _)| name.as_str())
        };
        named.or_else(meant).map(|(name, route)| (name.as_str(), route))
    }

    pub(crate) async fn embed(
        &self,
        cx: CallCx,
        request: EmbedRequest,
    ) -> Result<Embeddings, Error> {
        let Some((name, route)) = self.route(&request.model) else {
            let problem = format!("there is no embedding model {:?}", request.model);
            return Err(Error::refused(Code::NotFound, problem));
        };
        check(&request)?;
        let started = now();
        let call = Call {
            lane: lane(name, route, &request),
            label: format!("{}, {} texts", route.label, request.texts.len()).into(),
            call_id: cx.call_id.as_str().into(),
            request: &request,
            cx: &cx,
        };
        let mut watch = Watch::new(cx.deadline);
        let all: Vec<usize> = (0..request.texts.len()).collect();
        let mut results = self.round(&call, &mut watch, &all).await?;
        // Who joined the work of others may have more time than they had.
        let again: Vec<usize> = results
            .iter()
            .enumerate()
            .filter(|(_, result)| result.is_late())
            .map(|(index, _)| index)
            .collect();
        if !again.is_empty()
            && !cx.deadline.has_passed(now())
            && let Ok(second) = self.round(&call, &mut watch, &again).await
        {
            for (index, result) in again.into_iter().zip(second) {
                results[index] = result;
            }
        }
        cx.wait.enter(WaitKind::Work, call.label.clone(), None, now());
        let elapsed = now().saturating_duration_since(started);
        tracing::debug!(
            call.id = cx.call_id,
            upstream.route = route.label,
            texts = results.len(),
            duration_ms = elapsed.as_millis() as u64,
            "texts embedded"
        );
        Ok(collect(name, results))
    }

    /// Gets an outcome for each of the texts at `indexes`, or the caller's deadline.
    async fn round(
        &self,
        call: &Call<'_>,
        watch: &mut Watch,
        indexes: &[usize],
    ) -> Result<Vec<Settled>, Error> {
        let places = self.place(call, indexes)?;
        let mut settled = Vec::with_capacity(places.len());
        for (place, index) in places.into_iter().zip(indexes) {
            let (outcome, source) = match place {
                Place::Known(vector) => (Ok(Embedded { vector, tokens: 0 }), Source::Cache),
                Place::Seated { mut seat, source } => {
                    match seat.outcome(call.cx, watch, &call.label).await {
                        Ok(outcome) => (outcome, source),
                        Err(_) => (Err(call.out_of_time()), Source::Own),
                    }
                }
            };
            let outcome = outcome.map_err(|error| error.with("index", *index));
            settled.push(Settled { outcome, source });
        }
        Ok(settled)
    }

    /// Finds out where each text's vector will come from, and starts the work that is missing.
    fn place(&self, call: &Call<'_>, indexes: &[usize]) -> Result<Vec<Place>, Error> {
        let Call { lane, request, cx, .. } = call;
        let wanted: Vec<(Key, &Arc<str>)> = indexes
            .iter()
            .map(|index| {
                let text = &request.texts[*index];
                (call.key(text), text)
            })
            .collect();
        let mut board = self.works.board();
        let bytes = wanted.iter().map(|(_, text)| text.len()).sum();
        if !board.has_room(bytes) {
            let problem = "too many texts wait for their embeddings already";
            return Err(Error::refused(Code::UpstreamShedQueueFull, problem).retryable());
        }
        let mut new = Vec::new();
        let places = wanted
            .into_iter()
            .map(|(key, text)| {
                if let Some(seat) = board.flights.join(&key, cx.deadline) {
                    return Place::Seated { seat, source: Source::Joined };
                }
                // In this order: what leaves the flights is in the cache before.
                if let Some(vector) = self.works.cache.get(&key) {
                    return Place::Known(vector);
                }
                let (item, seat) = board.flights.begin(
                    key,
                    text.clone(),
                    tokens(text),
                    call.call_id.clone(),
                    cx.deadline,
                );
                new.push(item);
                Place::Seated { seat, source: Source::Own }
            })
            .collect();
        let Start { now, gathering } = board.enqueue(lane, new);
        drop(board);
        for gathers in std::iter::repeat_n(false, now).chain(gathering.then_some(true)) {
            self.start(lane, gathers);
        }
        Ok(places)
    }

    fn start(&self, lane: &Arc<Lane>, gathers: bool) {
        let work = self.works.clone().work(lane.clone(), gathers);
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended are let go; none of them has anything to say.
        while workers.try_join_next().is_some() {}
        workers.spawn(work);
    }
}

/// One call on its way.
struct Call<'a> {
    lane: Arc<Lane>,
    /// For the wait cell.
    label: Arc<str>,
    call_id: Arc<str>,
    request: &'a EmbedRequest,
    cx: &'a CallCx,
}

impl Call<'_> {
    fn key(&self, text: &str) -> Key {
        let Lane { id, route, .. } = &*self.lane;
        Key::new(&route.provider.name, &route.model, id.dimensions, id.purpose, text)
    }

    /// Says which stage used up the time.
    fn out_of_time(&self) -> Error {
        let waiting = self.cx.wait.read(now());
        let kind = waiting.kind.as_str();
        let label = &self.lane.route.label;
        let message = format!(
            "{label}: the deadline passed in phase {kind}; seconds spent: {}",
            waiting.spent
        );
        let failure = Failure::new(Code::DeadlineExceeded, message)
            .retryable()
            .with("phase", kind)
            .with("route", label.as_str())
            .with("spent_ms", waiting.spent.to_json());
        failure.into()
    }
}

/// Where a vector comes from.
enum Place {
    Known(Arc<[f32]>),
    Seated { seat: Seat, source: Source },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Cache,
    /// This call began the work.
    Own,
    /// Another call had begun it.
    Joined,
}

struct Settled {
    outcome: Outcome,
    source: Source,
}

impl Settled {
    /// The work of others ran out of their time.
    fn is_late(&self) -> bool {
        let is_late = |error: &Error| error.code() == Code::DeadlineExceeded;
        self.source == Source::Joined && self.outcome.as_ref().is_err_and(is_late)
    }
}

fn info(name: &str, route: &Route) -> EmbeddingInfo {
    EmbeddingInfo {
        name: name.to_owned(),
        provider: route.provider.name.to_string(),
        model: route.model.to_string(),
        dimensions: route.embedding.and_then(|model| model.dimensions),
    }
}

fn lane(name: &str, route: &Arc<Route>, request: &EmbedRequest) -> Arc<Lane> {
    let slots = route.provider.concurrent;
    let workers = match request.purpose {
        Purpose::Query => slots,
        // A fifth of the slots is kept for those who wait.
        Purpose::Document => (slots - slots.div_ceil(5)).max(1),
    };
    let id =
        LaneId { model: name.into(), dimensions: request.dimensions, purpose: request.purpose };
    Arc::new(Lane { id, route: route.clone(), workers })
}

/// Refuses what could not succeed, before anything is sent.
fn check(request: &EmbedRequest) -> Result<(), Error> {
    let refused = |problem: &str| Error::refused(Code::InvalidRequest, problem);
    if request.texts.is_empty() {
        return Err(refused("there is no text to embed"));
    }
    if !request.dimensions.is_none_or(|dimensions| (1..=MAX_DIMENSIONS).contains(&dimensions)) {
        return Err(refused(&format!("dimensions must be from 1 to {MAX_DIMENSIONS}")));
    }
    for (index, text) in request.texts.iter().enumerate() {
        if text.trim().is_empty() {
            return Err(refused("Empty text cannot be embedded").with("index", index));
        }
        let tokens = tokens(text);
        if tokens > MAX_ITEM_TOKENS {
            let problem =
                format!("the text has about {tokens} tokens; the most is {MAX_ITEM_TOKENS}");
            let error = Error::refused(Code::UpstreamInputTooLong, problem);
            return Err(error.with("index", index));
        }
    }
    Ok(())
}

fn collect(model: &str, results: Vec<Settled>) -> Embeddings {
    let cached = results.iter().filter(|result| result.source == Source::Cache).count();
    let input_tokens = results
        .iter()
        .filter(|result| result.source == Source::Own)
        .filter_map(|result| result.outcome.as_ref().ok())
        .map(|embedded| embedded.tokens)
        .sum();
    let vectors =
        results.into_iter().map(|result| result.outcome.map(|embedded| embedded.vector)).collect();
    let usage = Usage { input_tokens, ..Usage::default() };
    Embeddings { vectors, usage, cached, model: model.to_owned() }
}

/// An estimate that needs no tokenizer.
fn tokens(text: &str) -> u64 {
    (text.len() as u64).div_ceil(4)
}

impl fmt::Debug for Embedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}

const MAX_ITEM_TOKENS: u64 = 8191;
const MAX_DIMENSIONS: u32 = 16_384;

#[cfg(test)]
mod tests;
