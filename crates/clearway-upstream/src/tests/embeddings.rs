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
