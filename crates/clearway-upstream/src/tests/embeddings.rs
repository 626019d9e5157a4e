//! Embeddings over connections: what is sent, what comes back, and what goes wrong in between.

use clearway_sim::{Options, Sim};
use futures_util::future::join_all;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;

fn embedding(config: &mut Config) {
    let mut model = ModelConfig::new("embed", "p", "text-embedding-3-small");
    model.embedding = Some(EmbeddingModel { dimensions: Some(2) });
    config.models.push(model);
}

fn ask(texts: &[&str]) -> EmbedRequest {
    EmbedRequest {
        model: "embed".into(),
        texts: texts.iter().map(|text| Arc::from(*text)).collect(),
        purpose: Purpose::Query,
        dimensions: None,
    }
}

fn only(embeddings: Embeddings) -> Result<Vec<f32>, (Code, String)> {
    let [one] = <[_; 1]>::try_from(embeddings.vectors).unwrap();
    let one: Result<Arc<[f32]>, Error> = one;
    one.map(|vector| vector.to_vec())
        .map_err(|error| (error.code(), error.failure().message.clone()))
}

const JSON: &str = "content-type: application/json\r\n";

#[tokio::test(start_paused = true)]
async fn a_batch_is_one_request_and_its_connection_is_kept() {
    let rig = Rig::with(embedding, |_, mut peer| async move {
        while let Some(request) = peer.request().await {
            let texts = request["input"].as_array().unwrap();
            assert_eq!(request["model"], "text-embedding-3-small");
            assert_eq!(request["encoding_format"], "base64");
            assert_eq!(request.get("dimensions"), None);
            // Backwards, one as numbers and one as bytes.
            let rows = match texts.len() {
                1 => json!([{"embedding": [0.5, 0.5]}]),
                _ => json!([
                    {"index": 1, "embedding": [1.5, -2]},
                    {"index": 0, "embedding": "AACAPwAAAMA="},
                ]),
            };
            let body = json!({"data": rows, "usage": {"prompt_tokens": 7}}).to_string();
            peer.respond("200 OK", JSON, &body).await;
        }
    });
    let answer = rig.upstream.embed(rig.cx(), ask(&["one", "two"])).await.unwrap();
    let vectors: Vec<_> = answer.vectors.iter().map(|one| one.as_ref().unwrap().to_vec()).collect();
    assert_eq!(vectors, [[1.0, -2.0], [1.5, -2.0]]);
    assert_eq!((answer.usage.input_tokens, answer.model.as_str()), (7, "embed"));
    let answer = rig.upstream.embed(rig.cx(), ask(&["three"])).await.unwrap();
    assert_eq!(only(answer), Ok(vec![0.5, 0.5]));
    assert_eq!(rig.dialled(), 1);
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn silence_ends_after_eight_seconds_and_a_leaver_closes_the_connection() {
    let rig = Rig::with(embedding, |_, mut peer| async move {
        peer.request().await;
        peer.closed().await;
    });
    let started = now();
    let answer = rig.upstream.embed(rig.cx(), ask(&["one"])).await.unwrap();
    assert_eq!(only(answer).unwrap_err().0, Code::UpstreamHeadersTimeout);
    assert_eq!(now() - started, Duration::from_secs(8));
    rig.assert_at_rest();

    let cx = rig.cx();
    let call = rig.upstream.embed(cx.clone(), ask(&["two"]));
    let left = tokio::time::timeout(Duration::from_secs(1), call).await;
    assert!(left.is_err());
    settle().await;
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn a_body_that_drips_ends_after_eight_seconds() {
    let rig = Rig::with(embedding, |_, mut peer| async move {
        peer.request().await;
        peer.raw(format!("HTTP/1.1 200 OK\r\n{JSON}content-length: 1000\r\n\r\n")).await;
        for _ in 0..100 {
            peer.raw(" ").await;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let started = now();
    let answer = rig.upstream.embed(rig.cx(), ask(&["one"])).await.unwrap();
    assert_eq!(only(answer).unwrap_err().0, Code::UpstreamBodyTimeout);
    assert_eq!(now() - started, Duration::from_secs(8));
    rig.assert_at_rest();
}

#[tokio::test(start_paused = true)]
async fn bad_answers_are_named_and_never_kept() {
    for (body, code) in [
        (r#"{"data":[]}"#, Code::UpstreamBadVectors),
        (r#"{"data":[{"index":0,"embedding":[1]}]}"#, Code::UpstreamBadVectors),
        (r#"{"data":[{"index":0,"embedding":[1,null]}]}"#, Code::UpstreamBadVectors),
        (r#"{"data":[{"index":0,"embedding":[0,0]}]}"#, Code::UpstreamBadVectors),
        (r#"{"data":[{"index":1,"embedding":[1,2]}]}"#, Code::UpstreamBadVectors),
        ("<html>", Code::UpstreamBadResponse),
        (r#"{"error":{"message":"busy","type":"overloaded"}}"#, Code::UpstreamOverloaded),
    ] {
        let rig = Rig::with(embedding, move |_, mut peer| async move {
            while peer.request().await.is_some() {
                peer.respond("200 OK", JSON, body).await;
            }
        });
        for _ in 0..2 {
            let answer = rig.upstream.embed(rig.cx(), ask(&["one"])).await.unwrap();
            let (got, message) = only(answer).unwrap_err();
            assert_eq!(got, code, "{body}: {message}");
            if code == Code::UpstreamBadVectors {
                assert!(message.contains("Generated embedding failed validation"), "{message}");
            }
        }
        assert_eq!(rig.view().connections.reused, 1, "asked again: nothing was kept");
        rig.assert_at_rest();
    }
}

/// The simulator on a real socket.
async fn simulator(fault: Option<&str>) -> (Upstream, JoinSet<std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let fault = fault.map(|name| name.parse().unwrap());
    let sim = Sim::new(Options { fault, ..Options::default() });
    let mut server = JoinSet::new();
    server.spawn(async move { sim.serve(listener, CancellationToken::new()).await });
    let change = |config: &mut Config| {
        embedding(config);
        config.providers[0].endpoint = Endpoint::parse(&url).unwrap();
        config.providers[0].dial = None;
    };
    (Upstream::new(config(change), HashMap::new()).unwrap(), server)
}

fn ask_short(texts: &[String]) -> EmbedRequest {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    EmbedRequest { dimensions: Some(8), ..ask(&texts) }
}

fn numbered(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("text number {number}")).collect()
}

#[tokio::test]
async fn the_simulator_embeds_and_misbehaves() {
    for (fault, expected) in [
        (None, Ok(())),
        (Some("embed_reorder"), Ok(())),
        (Some("embed_short"), Err(Code::UpstreamBadVectors)),
        (Some("embed_duplicate"), Err(Code::UpstreamBadVectors)),
        (Some("embed_nan"), Err(Code::UpstreamBadVectors)),
        (Some("embed_dims"), Err(Code::UpstreamBadVectors)),
        (Some("unavailable"), Err(Code::UpstreamOverloaded)),
        (Some("reset"), Err(Code::UpstreamConnectFailed)),
    ] {
        let (upstream, _server) = simulator(fault).await;
        let texts = numbered(4);
        let request = ask_short(&texts);
        let answer = upstream.embed(cx(Duration::from_secs(20)), request).await.unwrap();
        let failed = answer.vectors.iter().find_map(|one| one.as_ref().err().map(Error::code));
        assert_eq!(failed.map_or(Ok(()), Err), expected, "{fault:?}");
        if fault == Some("embed_reorder") {
            let (right, _server) = simulator(None).await;
            let right = right.embed(cx(Duration::from_secs(20)), ask_short(&texts)).await.unwrap();
            assert_eq!(answer.vectors, right.vectors);
        }
    }
}

#[tokio::test]
async fn a_poisonous_text_fails_alone_at_a_real_provider() {
    let (upstream, _server) = simulator(Some("embed_poison")).await;
    let mut texts = numbered(200);
    texts[42] = "POISON".into();
    let answer = upstream.embed(cx(Duration::from_secs(20)), ask_short(&texts)).await.unwrap();
    for (index, one) in answer.vectors.iter().enumerate() {
        assert_eq!(one.is_err(), index == 42, "{index}: {one:?}");
    }
}

#[tokio::test]
async fn callers_at_once_are_no_trouble() {
    let (upstream, _server) = simulator(None).await;
    for callers in [50, 500] {
        let calls = (0..callers).map(|number| {
            let texts = [format!("question {number} of {callers}")];
            let upstream = &upstream;
            async move { upstream.embed(cx(Duration::from_secs(20)), ask_short(&texts)).await }
        });
        for answer in join_all(calls).await {
            assert!(answer.unwrap().vectors[0].is_ok());
        }
    }
    let same = numbered(1);
    let before = requests(&upstream);
    let calls = (0..1000).map(|_| upstream.embed(cx(Duration::from_secs(20)), ask_short(&same)));
    assert!(join_all(calls).await.iter().all(|one| one.as_ref().unwrap().vectors[0].is_ok()));
    assert_eq!(requests(&upstream) - before, 1);
}

/// Each request takes a connection, a new one or a known one.
fn requests(upstream: &Upstream) -> u64 {
    let connections = upstream.provider_views().remove(0).connections;
    connections.opened + connections.reused
}

/// What a connection does with its only request: answers after so many seconds, well or not, or
/// waits until it is closed.
#[derive(Clone, Copy, Debug)]
enum Leg {
    Answers(f64),
    Fails(f64),
    Silent,
}

/// One call over these connections, in the order of dialling: its outcome and when it was there.
async fn race(legs: [Leg; 2]) -> (Result<Vec<f32>, Code>, Duration) {
    let closed = Arc::new(AtomicUsize::new(0));
    let seen = closed.clone();
    let hedging = |config: &mut Config| {
        embedding(config);
        config.providers[0].retry.attempts = 2;
    };
    let rig = Rig::with(hedging, move |number, mut peer| {
        let (leg, closed) = (legs[number], seen.clone());
        async move {
            peer.request().await;
            let (after, status, body) = match leg {
                Leg::Answers(after) => (after, "200 OK", r#"{"data":[{"embedding":[1,2]}]}"#),
                Leg::Fails(after) => (after, "500 Oops", r#"{"error":{"message":"no"}}"#),
                Leg::Silent => (3600.0, "200 OK", ""),
            };
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs_f64(after)) => {
                    peer.respond(status, JSON, body).await;
                }
                () = async { peer.closed().await; } => {
                    closed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    });
    let started = now();
    let answer = rig.upstream.embed(rig.cx(), ask(&["one"])).await.unwrap();
    let took = now() - started;
    settle().await;
    assert_eq!(rig.dialled(), 2);
    let view = rig.view();
    assert_eq!((view.limiter.in_flight, view.tally.hedges), (0, 1));
    let won = view.tally.attempts.get("ok").copied().unwrap_or_default();
    let outcome = only(answer).map_err(|(code, _)| code);
    assert_eq!(won, u64::from(outcome.is_ok()), "one result, booked once");
    assert_eq!(closed.load(Ordering::Relaxed) as u64, won, "the loser's connection is closed");
    (outcome, took)
}

#[tokio::test(start_paused = true)]
async fn of_two_attempts_side_by_side_the_first_good_one_counts() {
    let seconds = Duration::from_secs_f64;
    let good = Ok(vec![1.0, 2.0]);
    // The second one begins after a second and a half.
    assert_eq!(race([Leg::Answers(9.0), Leg::Answers(0.5)]).await, (good.clone(), seconds(2.0)));
    assert_eq!(race([Leg::Answers(2.0), Leg::Silent]).await, (good.clone(), seconds(2.0)));
    let (outcome, took) = race([Leg::Fails(2.0), Leg::Fails(1.0)]).await;
    assert_eq!((outcome, took), (Err(Code::UpstreamServerError), seconds(2.5)));
}

#[tokio::test(start_paused = true)]
async fn a_call_can_be_seen_waiting_and_is_gone_with_its_caller() {
    let rig = Rig::with(embedding, |_, mut peer| async move {
        peer.request().await;
        peer.closed().await;
    });
    let call = rig.upstream.embed(rig.cx(), ask(&["one", "two"]));
    let left = tokio::time::timeout(Duration::from_secs(1), async {
        let watch = async {
            tokio::time::sleep(Duration::from_millis(900)).await;
            let [view] = <[_; 1]>::try_from(rig.upstream.calls()).unwrap();
            assert_eq!((view.model.as_str(), view.items), ("embed", 2));
            assert!(view.waiting.kind != WaitKind::Work, "{view:?}");
            assert!(view.waiting.for_ >= Duration::from_millis(800), "{view:?}");
        };
        tokio::join!(call, watch)
    });
    assert!(left.await.is_err());
    assert!(rig.upstream.calls().is_empty());
}
