//! Whole calls over a sender that does what the test says, with paused time.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clearway_core::Deadline;
use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use super::*;
use crate::config::{Config, Endpoint, ModelConfig, ProviderConfig, Timeouts};
use crate::dial::TcpDial;
use crate::route::Provider;

/// A model `m` that embeds, at a provider that is never dialled.
pub(super) fn route() -> Arc<Route> {
    let mut model = ModelConfig::new("m", "p", "m-embed");
    model.embedding = Some(crate::config::EmbeddingModel { dimensions: Some(2) });
    let mut provider = ProviderConfig::new("p", Endpoint::parse("http://provider").unwrap());
    provider.limits.concurrent = 10;
    let config = Config { providers: vec![provider], models: vec![model], clock: None };
    config.check().unwrap();
    let dial = Arc::new(TcpDial::new());
    let provider = Provider::new(&config.providers[0], dial, None, 1).unwrap();
    let breaker = provider.breaker.clone();
    let load = crate::guard::load::Load::new(now());
    Arc::new(Route::new(
        &config.models[0],
        Arc::new(provider),
        Timeouts::default(),
        (breaker, load),
    ))
}

type Answer = Box<dyn Fn(&[String]) -> Result<Decoded, Code> + Send + Sync>;

/// Answers each batch with vectors `[length of the text, 1]`, or as told.
struct Fake {
    /// Texts of each call, in the order in which the calls began.
    calls: Mutex<Vec<Vec<String>>>,
    running: AtomicUsize,
    most: AtomicUsize,
    /// Each call needs a permit before it is answered.
    gate: Semaphore,
    takes: Duration,
    answer: Answer,
}

impl Fake {
    fn new(takes: Duration) -> Self {
        Self {
            calls: Mutex::default(),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            gate: Semaphore::new(10_000),
            takes,
            answer: Box::new(|texts| Ok(lengths(texts))),
        }
    }

    fn calls(&self) -> Vec<Vec<String>> {
        self.calls.lock().unwrap().clone()
    }
}

fn lengths(texts: &[String]) -> Decoded {
    let vectors = texts.iter().map(|text| vec![text.len() as f32, 1.0]).collect();
    Decoded { vectors, input_tokens: Some(texts.len() as u64 * 3) }
}

/// Counts a call as running until it is answered or dropped.
struct Running<'a>(&'a Fake);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Sender for Fake {
    fn send<'a>(
        &'a self,
        cx: &'a CallCx,
        _: &'a str,
        body: Bytes,
        items: usize,
        _: u64,
        _: &'a (dyn Fn(&[u8]) -> Result<Decoded, Fault> + Sync),
    ) -> BoxFuture<'a, Result<Decoded, Error>> {
        Box::pin(async move {
            let body: Value = serde_json::from_slice(&body).unwrap();
            let texts: Vec<String> = body["input"]
                .as_array()
                .unwrap()
                .iter()
                .map(|text| text.as_str().unwrap().to_owned())
                .collect();
            assert_eq!(texts.len(), items);
            self.calls.lock().unwrap().push(texts.clone());
            let running = self.running.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(running, Ordering::Relaxed);
            let _running = Running(self);
            cx.wait.enter(WaitKind::FirstByte, "fake", Some(cx.deadline), now());
            let _permit = self.gate.acquire().await.unwrap();
            if now() + self.takes > cx.deadline.0 {
                sleep(cx.deadline.remaining(now())).await;
                return Err(Error::refused(Code::DeadlineExceeded, "too late"));
            }
            sleep(self.takes).await;
            (self.answer)(&texts).map_err(|code| Error::refused(code, "as told"))
        })
    }
}

struct Rig {
    embedder: Arc<Embedder>,
    fake: Arc<Fake>,
}

impl Rig {
    fn new(fake: Fake) -> Self {
        let fake = Arc::new(fake);
        let routes = HashMap::from([("m".to_owned(), route())]);
        Self { embedder: Arc::new(Embedder::with(routes, fake.clone())), fake }
    }

    async fn embed(&self, texts: &[&str]) -> Result<Embeddings, Error> {
        self.embedder.embed(cx(25.0), ask(texts, Purpose::Query)).await
    }

    /// A call in a task of its own; it has been placed when this returns.
    async fn spawn(
        &self,
        tasks: &mut JoinSet<Result<Embeddings, Error>>,
        cx: &CallCx,
        request: EmbedRequest,
    ) -> tokio::task::AbortHandle {
        let (embedder, cx) = (self.embedder.clone(), cx.clone());
        let handle = tasks.spawn(async move { embedder.embed(cx, request).await });
        settle().await;
        handle
    }

    fn assert_at_rest(&self) {
        assert_eq!(self.fake.running.load(Ordering::Relaxed), 0);
        assert_eq!(self.embedder.works.board().flights.len(), 0);
    }
}

fn cx(seconds: f64) -> CallCx {
    CallCx::new(Deadline::after(now(), Duration::from_secs_f64(seconds)), "call")
}

fn ask(texts: &[&str], purpose: Purpose) -> EmbedRequest {
    let texts = texts.iter().map(|text| Arc::from(*text)).collect();
    EmbedRequest { model: "m".into(), texts, purpose, dimensions: None }
}

fn numbered(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name} {number}")).collect()
}

fn refs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

fn first(embeddings: &Embeddings) -> &[f32] {
    embeddings.vectors[0].as_ref().unwrap()
}

fn failure(result: &Result<Arc<[f32]>, Error>) -> (Code, Option<u64>) {
    let error = result.as_ref().unwrap_err();
    (error.code(), error.failure().detail["index"].as_u64())
}

async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn vectors_come_in_order_and_are_kept() {
    let rig = Rig::new(Fake::new(SECOND));
    let embeddings = rig.embed(&["a", "bcd", "a"]).await.unwrap();
    let vectors: Vec<_> = embeddings.vectors.iter().map(|one| one.as_ref().unwrap()[0]).collect();
    assert_eq!(vectors, [1.0, 3.0, 1.0]);
    assert_eq!((embeddings.cached, embeddings.usage.input_tokens), (0, 6));
    assert_eq!(rig.fake.calls(), [["a", "bcd"]], "the same text goes once");

    let again = rig.embed(&["bcd", "new"]).await.unwrap();
    assert_eq!((first(&again), again.cached, again.usage.input_tokens), (&[3.0, 1.0][..], 1, 3));
    let document = rig.embedder.embed(cx(9.0), ask(&["bcd"], Purpose::Document)).await.unwrap();
    assert_eq!(document.cached, 0, "made for another purpose");
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_succeed_is_refused_before_any_call() {
    let rig = Rig::new(Fake::new(SECOND));
    let refused = async |texts: &[&str]| rig.embed(texts).await.unwrap_err().into_failure();
    let blank = refused(&["a", " \n"]).await;
    assert_eq!(blank.message, "Empty text cannot be embedded");
    assert_eq!((blank.code, &blank.detail["index"]), (Code::InvalidRequest, &Value::from(1)));
    let long = "x".repeat(8191 * 4 + 1);
    let long = refused(&["a", "b", &long]).await;
    assert_eq!((long.code, &long.detail["index"]), (Code::UpstreamInputTooLong, &Value::from(2)));
    assert_eq!(refused(&[]).await.code, Code::InvalidRequest);

    let mut unknown = ask(&["a"], Purpose::Query);
    unknown.model = "other".into();
    let error = rig.embedder.embed(cx(1.0), unknown).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let mut by_providers_name = ask(&["a"], Purpose::Query);
    by_providers_name.model = "m-embed".into();
    assert_eq!(rig.embedder.embed(cx(9.0), by_providers_name).await.unwrap().model, "m");
    assert_eq!(rig.fake.calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_with_one_question_are_one_call() {
    let rig = Rig::new(Fake::new(SECOND));
    let all = join_all((0..1000).map(|_| rig.embed(&["question"]))).await;
    assert!(all.iter().all(|one| first(one.as_ref().unwrap()) == [8.0, 1.0]));
    let tokens: u64 = all.iter().map(|one| one.as_ref().unwrap().usage.input_tokens).sum();
    assert_eq!(tokens, 3, "paid for once");
    assert_eq!(rig.fake.calls().len(), 1);
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn work_outlives_the_one_who_began_it_but_not_the_last_one() {
    let rig = Rig::new(Fake::new(SECOND));
    let mut tasks = JoinSet::new();
    let request = || ask(&["question"], Purpose::Query);
    let leader = rig.spawn(&mut tasks, &cx(25.0), request()).await;
    let _other = rig.spawn(&mut tasks, &cx(25.0), request()).await;
    leader.abort();
    assert!(tasks.join_next().await.unwrap().unwrap_err().is_cancelled());
    let embeddings = tasks.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!((first(&embeddings), rig.fake.calls().len()), (&[8.0, 1.0][..], 1));

    let only = rig.spawn(&mut tasks, &cx(25.0), ask(&["other"], Purpose::Query)).await;
    assert_eq!(rig.fake.running.load(Ordering::Relaxed), 1);
    only.abort();
    settle().await;
    rig.assert_at_rest();
    let anew = rig.embed(&["other"]).await.unwrap();
    assert_eq!((first(&anew), anew.cached), (&[5.0, 1.0][..], 0));
}

#[tokio::test(start_paused = true)]
async fn every_caller_has_its_own_deadline() {
    let rig = Rig::new(Fake::new(Duration::from_secs(5)));
    let mut tasks = JoinSet::new();
    let patient = cx(25.0);
    rig.spawn(&mut tasks, &patient, ask(&["question"], Purpose::Query)).await;
    let started = now();
    let hasty = rig.embedder.embed(cx(1.0), ask(&["question"], Purpose::Query)).await.unwrap();
    assert_eq!(now() - started, SECOND);
    assert_eq!(failure(&hasty.vectors[0]), (Code::DeadlineExceeded, Some(0)));
    let error = hasty.vectors[0].as_ref().unwrap_err();
    assert_eq!(error.failure().detail["phase"], "first_byte", "{error}");
    let waiting = patient.wait.read(now());
    assert_eq!((waiting.kind, &*waiting.detail), (WaitKind::FirstByte, "fake"));
    assert!(tasks.join_next().await.unwrap().unwrap().unwrap().vectors[0].is_ok());

    // Whoever joined the work of somebody with less time goes on without them.
    let mut leader = cx(1.0);
    leader.call_id = "leader".into();
    rig.spawn(&mut tasks, &leader, ask(&["other"], Purpose::Query)).await;
    let joined = rig.embed(&["other"]).await.unwrap();
    assert!(joined.vectors[0].is_ok());
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn texts_gather_while_one_is_under_way() {
    let rig = Rig::new(Fake::new(SECOND));
    let mut tasks = JoinSet::new();
    for text in ["first", "second", "third"] {
        rig.spawn(&mut tasks, &cx(25.0), ask(&[text], Purpose::Query)).await;
    }
    assert_eq!(rig.fake.calls(), [["first"]], "nothing was under way");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(rig.fake.calls()[1..], [["second", "third"]], "not longer than 10 ms");
    while let Some(done) = tasks.join_next().await {
        assert!(done.unwrap().unwrap().vectors[0].is_ok());
    }
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn many_texts_are_split_within_all_caps() {
    let rig = Rig::new(Fake::new(SECOND));
    // 5000 texts, 180 tokens each: 900 000 in all.
    let texts: Vec<String> = (0..5000).map(|number| format!("{number:0>720}")).collect();
    let request = ask(&refs(&texts), Purpose::Document);
    let embeddings = rig.embedder.embed(cx(25.0), request).await.unwrap();
    assert!(embeddings.vectors.iter().all(Result::is_ok));
    assert_eq!(embeddings.usage.input_tokens, 15_000);
    let calls = rig.fake.calls();
    assert_eq!(calls.iter().map(Vec::len).sum::<usize>(), 5000);
    assert!(calls.iter().all(|call| call.len() <= 256));
    assert!(calls.len() <= 21, "{} calls", calls.len());
    assert_eq!(rig.fake.most.load(Ordering::Relaxed), 8, "of ten slots");
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_query_does_not_wait_behind_bulk_work() {
    let rig = Rig::new(Fake::new(SECOND));
    let mut tasks = JoinSet::new();
    let texts = numbered("chunk", 10_000);
    let request = ask(&refs(&texts), Purpose::Document);
    rig.spawn(&mut tasks, &cx(120.0), request).await;
    let started = now();
    rig.embed(&["question"]).await.unwrap();
    assert_eq!(now() - started, SECOND);
    assert!(tasks.join_next().await.unwrap().unwrap().unwrap().vectors.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn one_poisonous_text_fails_alone() {
    let mut fake = Fake::new(Duration::from_millis(100));
    fake.answer = Box::new(|texts| {
        if texts.iter().any(|text| text.contains("poison")) {
            return Err(Code::UpstreamInvalidRequest);
        }
        Ok(lengths(texts))
    });
    let rig = Rig::new(fake);
    let mut texts = numbered("good", 200);
    texts[123] = "poison".into();
    let embeddings = rig.embed(&refs(&texts)).await.unwrap();
    for (index, result) in embeddings.vectors.iter().enumerate() {
        if index == 123 {
            assert_eq!(failure(result), (Code::UpstreamInvalidRequest, Some(123)));
        } else {
            assert_eq!(result.as_ref().unwrap()[0], texts[index].len() as f32);
        }
    }
    let calls = rig.fake.calls().len();
    assert!(calls <= 17, "{calls}");
    rig.embed(&["poison"]).await.unwrap().vectors[0].as_ref().unwrap_err();
    assert_eq!(rig.fake.calls().len(), calls + 1, "errors are not kept");
}

#[tokio::test(start_paused = true)]
async fn a_panic_below_is_an_error_and_the_next_call_works() {
    let mut fake = Fake::new(SECOND);
    fake.answer = Box::new(|texts| {
        assert!(texts[0] != "panic", "as told");
        Ok(lengths(texts))
    });
    let rig = Rig::new(fake);
    let embeddings = rig.embed(&["panic", "other"]).await.unwrap();
    assert_eq!(failure(&embeddings.vectors[1]), (Code::Internal, Some(1)));
    assert!(rig.embed(&["fine"]).await.unwrap().vectors[0].is_ok());
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_batch_is_visible() {
    let mut fake = Fake::new(SECOND);
    fake.gate = Semaphore::new(0);
    let rig = Rig::new(fake);
    let mut tasks = JoinSet::new();
    // Ten single questions take all ten workers.
    for number in 0..10 {
        let text = format!("question {number}");
        rig.spawn(&mut tasks, &cx(25.0), ask(&[&text], Purpose::Query)).await;
        sleep(Duration::from_millis(11)).await;
    }
    assert_eq!(rig.fake.calls().len(), 10);
    let last = cx(25.0);
    rig.spawn(&mut tasks, &last, ask(&["last"], Purpose::Query)).await;
    let waiting = last.wait.read(now());
    assert_eq!((waiting.kind, &*waiting.detail), (WaitKind::Batch, "p/m-embed, 1 texts"));
    rig.fake.gate.add_permits(100);
    while let Some(done) = tasks.join_next().await {
        assert!(done.unwrap().unwrap().vectors[0].is_ok());
    }
    assert_eq!(last.wait.read(now()).kind, WaitKind::Work);
    rig.assert_at_rest();
}
