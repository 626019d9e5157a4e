use std::collections::HashMap;
use std::sync::Mutex;

use clearway_engine::upstream::dial::Report;
use clearway_engine::upstream::{
    Config, Dial, DialError, EmbeddingModel, Endpoint, Io, ModelConfig, ProviderConfig,
};
use clearway_sim::{Options, Sim};
use expect_test::expect;
use futures_util::future::BoxFuture;
use tokio::task::JoinSet;

use super::*;
use crate::testing::{TestServer, options, post};

/// A simulated provider in memory.
struct Simulated {
    sim: Sim,
    connections: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Simulated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Simulated")
    }
}

impl Dial for Simulated {
    fn dial<'a>(
        &'a self,
        _: &'a Endpoint,
        _: Report<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            self.connections.lock().unwrap().spawn(self.sim.serve_connection(theirs));
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }
}

/// A server with the embedding model `small`, whose vectors have 8 numbers.
async fn server(fault: Option<&str>) -> TestServer {
    let mut provider = ProviderConfig::new("sim", Endpoint::parse("http://sim/v1").unwrap());
    provider.dial = Some("sim".into());
    let mut model = ModelConfig::new("small", "sim", "text-embedding-3-small");
    model.embedding = Some(EmbeddingModel { dimensions: Some(8) });
    model.params.insert("dimensions".into(), 8.into());
    let config = Config { providers: vec![provider], models: vec![model], clock: None };
    let fault = fault.map(|name| name.parse().unwrap());
    let sim = Sim::new(Options { fault, ..Options::default() });
    let dial: Arc<dyn Dial> = Arc::new(Simulated { sim, connections: Mutex::default() });
    let upstream = Upstream::new(config, HashMap::from([("sim".into(), dial)])).unwrap();
    TestServer::with_upstream(options(), upstream).await
}

fn body(input: Value) -> Value {
    json!({"model": "small", "input": input})
}

#[tokio::test(start_paused = true)]
async fn texts_become_vectors_in_both_formats() {
    let mut server = server(None).await;
    let answer = server.post("/v1/embeddings", &body(json!(["one two", "three"]))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answer = answer.json();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("small")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    let data = answer["data"].as_array().unwrap();
    assert_eq!((data.len(), &data[1]["index"]), (2, &json!(1)));
    let numbers: Vec<f32> = serde_json::from_value(data[1]["embedding"].clone()).unwrap();
    assert_eq!(numbers.len(), 8);

    let mut asked = body(json!(["one two", "three"]));
    asked["encoding_format"] = "base64".into();
    asked["user"] = "u".into();
    let answer = server.post("/v1/embeddings", &asked).await.json();
    let mut expected = Vec::new();
    push_base64(&mut expected, &numbers);
    assert_eq!(answer["data"][1]["embedding"].to_string().as_bytes(), expected);
    assert_eq!(answer["usage"]["total_tokens"], 0, "known by now");

    // The provider's name for the model, as most clients write it, and a single text.
    let asked = json!({"model": "text-embedding-3-small", "input": "x", "dimensions": 4});
    let answer = server.post("/v1/embeddings", &asked).await.json();
    assert_eq!(answer["data"][0]["embedding"].as_array().unwrap().len(), 4);
    assert_eq!(answer["model"], "text-embedding-3-small");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_embedded_is_refused_in_openais_shape() {
    let mut server = server(None).await;
    let mut table = String::new();
    let with = |name: &str, value: Value| {
        let mut body = body(json!("x"));
        body[name] = value;
        body
    };
    for body in [
        with("model", json!("gpt-9")),
        with("model", Value::Null),
        with("input", json!([[1, 2], [3]])),
        with("input", json!([1, 2])),
        with("input", json!([])),
        with("input", json!(vec!["x"; 2049])),
        with("input", json!(["x", " "])),
        with("input", json!({"text": "x"})),
        with("input", json!(["x", "y".repeat(40_000)])),
        with("encoding_format", json!("int8")),
        with("dimensions", json!(0)),
        with("purpose", json!("poetry")),
    ] {
        let answer = server.post("/v1/embeddings", &body).await;
        let error = &answer.json()["error"];
        let (kind, code) = (&error["type"], &error["code"]);
        let message = error["message"].as_str().unwrap();
        let line = format!("{} {kind} {code} {}: {message}\n", answer.status, error["param"]);
        table.push_str(&line.replace('"', ""));
    }
    expect![[r#"
        404 invalid_request_error model_not_found model: there is no embedding model `gpt-9`
        400 invalid_request_error invalid_request model: `model` is required, and must be a string
        400 invalid_request_error invalid_request input: `input` holds token numbers; only texts are taken here, because tokens differ from model to model
        400 invalid_request_error invalid_request input: `input` holds token numbers; only texts are taken here, because tokens differ from model to model
        400 invalid_request_error invalid_request input: `input` must have 1 to 2048 texts, this has 0
        400 invalid_request_error invalid_request input: `input` must have 1 to 2048 texts, this has 2049
        400 invalid_request_error invalid_request input: input 1: Empty text cannot be embedded
        400 invalid_request_error invalid_request input: `input` must be a string or a list of strings
        400 invalid_request_error upstream.input_too_long input: input 1: the text has about 10000 tokens; the most is 8191
        400 invalid_request_error invalid_request encoding_format: `encoding_format` must be `float` or `base64`
        400 invalid_request_error invalid_request dimensions: `dimensions` must be a whole number above 0
        400 invalid_request_error invalid_request purpose: `purpose` must be `query` or `document`
    "#]].assert_eq(&table);
}

#[tokio::test(start_paused = true)]
async fn a_failed_text_is_named() {
    let mut poisoned = server(Some("embed_poison")).await;
    let answer = poisoned.post("/v1/embeddings", &body(json!(["a", "b", "poison"]))).await;
    assert_eq!(answer.status, 400);
    let error = &answer.json()["error"];
    assert!(error["message"].as_str().unwrap().starts_with("input 2: "), "{error}");
    assert_eq!((&error["index"], &error["param"]), (&json!(2), &json!("input")));

    let mut broken = server(Some("embed_nan")).await;
    let answer = broken.post("/v1/embeddings", &body(json!("a"))).await;
    assert_eq!(answer.status, 502);
    let message = answer.json()["error"]["message"].to_string();
    assert!(message.contains("Generated embedding failed validation"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn the_deadline_header_is_honoured() {
    let mut server = server(Some("no_answer")).await;
    let started = Instant::now();
    let text = body(json!("x")).to_string();
    let request = post("/v1/embeddings", "x-deadline-ms: 300\r\n", &text);
    let answer = server.send(&request).await;
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(started.elapsed() < Duration::from_millis(550));
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["code"], &error["phase"]),
        (&json!("deadline_exceeded"), &json!("first_byte"))
    );
    assert_eq!(
        server.send(&post("/v1/embeddings", "x-deadline-ms: 0\r\n", &text)).await.status,
        400
    );
}

#[tokio::test(start_paused = true)]
async fn one_vector_can_be_looked_at() {
    let mut server = server(None).await;
    let answer = server.get("/embeddings/what%20is%20a%2Fb?purpose=document").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let shown = answer.json();
    assert_eq!(shown["text"], "what is a/b");
    assert_eq!((&shown["model"], &shown["purpose"]), (&json!("small"), &json!("document")));
    assert_eq!((&shown["dimensions"], &shown["cached"]), (&json!(8), &json!(false)));
    assert_eq!(shown["embedding"].as_array().unwrap().len(), 8);

    let blank = server.get("/embeddings/%20").await;
    assert_eq!((blank.status, &blank.json()["code"]), (400, &json!("invalid_request")));
    assert!(blank.body.contains("Empty text cannot be embedded"));
    assert_eq!(server.get("/embeddings/x?model=other").await.status, 404);
    assert_eq!(server.get("/embeddings/x?purpose=poetry").await.status, 400);
    assert_eq!(server.get("/embeddings/x?size=1").await.status, 400);
    let mut bare = TestServer::start().await;
    assert_eq!(bare.get("/embeddings/x").await.status, 404);
}
