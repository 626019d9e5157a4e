//! What goes over the wire when a request is none, is too much, or comes late.

use tokio::io::DuplexStream;
use tokio::task::JoinSet;

use super::*;
use crate::testing::{Answer, read_answer};

/// A connection over which hardly anything goes at once, and the task that serves it.
fn narrow(server: &TestServer) -> (DuplexStream, JoinSet<()>) {
    let (client, theirs) = tokio::io::duplex(16);
    let app = server.app.clone();
    let (router, _) = routes::table(&app.options).unwrap().into_parts();
    let notes = Arc::new(Notes::new(Instant::now()));
    let (limits, stop) = (app.options.limits.clone(), app.stop.clone());
    let service = HttpService { router: router.with_state(app.clone()), app, notes };
    let mut serving = JoinSet::new();
    serving.spawn(conn::serve(theirs, service, &limits, stop));
    (client, serving)
}

/// One of ours: a status, a stable code, and the request's id, on a connection that closes.
#[track_caller]
fn assert_refused(answer: &Answer, status: u16, code: &str, text: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/problem+json", "{answer:?}");
    assert_eq!(answer.header("connection"), "close", "{answer:?}");
    let body = answer.json();
    assert_eq!((&body["code"], &body["status"]), (&json!(code), &json!(status)), "{body}");
    assert_eq!(body["request_id"], answer.header("x-request-id"), "{body}");
    assert!(body["detail"].as_str().unwrap_or_default().contains(text), "{body}");
}

#[tokio::test(start_paused = true)]
async fn heads_that_are_no_requests_are_problems() {
    let mut server = TestServer::start().await;
    let head = "GET /health HTTP/1.1\r\nhost: localhost\r\n";
    let many: String = (0..200).map(|at| format!("x-{at}: y\r\n")).collect();
    let large = format!("x: {}\r\n", "y".repeat(40 << 10));
    for (request, status, text) in [
        (format!("{head}{many}\r\n"), 431, "100 fields and 32768 bytes"),
        (format!("{head}{large}\r\n"), 431, "100 fields and 32768 bytes"),
        ("GET / HTTP/9\r\n\r\n".to_owned(), 400, "first line"),
        ("\u{16}\u{3}\u{1}\r\n\r\n".to_owned(), 400, "first line"),
        (format!("{head}a b: c\r\n\r\n"), 400, "fields"),
        (format!("{head}content-length: x\r\n\r\n"), 400, "Content-Length"),
        (format!("{head}content-length: 1\r\ncontent-length: 2\r\n\r\n"), 400, "Content-Length"),
        (format!("{head}transfer-encoding: chunked, gzip\r\n\r\n"), 400, "Transfer-Encoding"),
    ] {
        let answer = server.send(&request).await;
        assert_refused(&answer, status, "invalid_request", text);
        // The same behind a request that is one.
        let mut client = server.connect();
        client.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
        read_until(&mut client, "1.2.3").await;
        client.write_all(request.as_bytes()).await.unwrap();
        assert_refused(&read_answer(&mut client).await, status, "invalid_request", text);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_head_is_told_even_to_a_client_that_reads_slowly() {
    let server = TestServer::start().await;
    let (mut client, _serving) = narrow(&server);
    client.write_all(b"GET / HTTP/9\r\n\r\n").await.unwrap();
    assert_refused(&read_answer(&mut client).await, 400, "invalid_request", "HTTP/1.1");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_is_told_so_and_one_that_does_not_begin_is_not() {
    let mut server = TestServer::start().await;
    let started = Instant::now();
    let heads = ["G", "GET /health", "GET / HTTP/1.1\r\nho", "GET / HTTP/1.1\r\nhost: a\r\n"];
    for (at, head) in heads.into_iter().enumerate() {
        let mut client = server.connect();
        client.write_all(head.as_bytes()).await.unwrap();
        assert_refused(&read_answer(&mut client).await, 408, "invalid_request", "within 10 s");
        let took = started.elapsed().as_secs() / (at as u64 + 1);
        assert!((10..=15).contains(&took), "{head:?}: {took} s");
    }
    for nothing in ["", "\r\n"] {
        let mut client = server.connect();
        client.write_all(nothing.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.unwrap();
        assert!(bytes.is_empty(), "{nothing:?}: {bytes:?}");
    }
    // One that reads nothing, either, is not kept for ever.
    let (mut client, mut serving) = narrow(&server);
    client.write_all(b"GET / HTTP/1.1\r").await.unwrap();
    serving.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_request_is_for_one_host_which_its_address_may_name() {
    let mut server = TestServer::start().await;
    let get = |target: &str, headers: &str| format!("GET {target} HTTP/1.1\r\n{headers}\r\n");
    let none = server.send(&get("/health", "connection: close\r\n")).await;
    assert_refused(&none, 400, "invalid_request", "Host");
    let two = server.send(&get("/health", "host: localhost\r\nhost: localhost\r\n")).await;
    assert_refused(&two, 400, "invalid_request", "this has 2");
    let local = "host: localhost\r\nconnection: close\r\n";
    let rebound = server.send(&get("http://evil.com/runs", local)).await;
    assert_eq!((rebound.status, &rebound.json()["code"]), (403, &json!("forbidden")));
    let trusted = "host: evil.com\r\nconnection: close\r\n";
    assert_eq!(server.send(&get("http://localhost:8123/runs", trusted)).await.status, 200);
    let old = server.send("GET /health HTTP/1.0\r\n\r\n").await;
    assert_eq!(old.status, 200, "{old:?}");
    let tunnel = server.send("CONNECT evil.com:443 HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    assert_eq!(tunnel.status, 403, "{tunnel:?}");
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_coded_or_framed_otherwise_are_refused() {
    let mut server = TestServer::start().await;
    let ask = |coding: &str| {
        format!(
            "POST /chat/async HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: {coding}\r\n\r\n\
             11\r\n{{\"message\": \"hi\"}}\r\n0\r\n\r\n"
        )
    };
    for (coding, status) in [("gzip, chunked", 501), ("chunked, chunked", 400)] {
        let answer = server.send(&ask(coding)).await;
        assert_refused(&answer, status, "invalid_request", "Transfer-Encoding");
    }
    let body = "{\"message\": \"hi\"}";
    let coded = server.send(&post("/chat/async", "content-encoding: gzip\r\n", body)).await;
    assert_eq!((coded.status, coded.header("accept-encoding")), (415, "identity"));
    assert!(coded.json()["detail"].as_str().unwrap().contains("gzip"), "{coded:?}");
    let plain = server.send(&post("/chat/async", "content-encoding: identity\r\n", body)).await;
    assert_eq!(plain.status, 202, "{plain:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_announced_too_large_is_not_waited_for() {
    let mut server = TestServer::start().await;
    let started = Instant::now();
    for path in ["/chat/async", "/threads"] {
        let mut client = server.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\n\
             content-length: 2000000\r\n\r\n"
        );
        client.write_all(head.as_bytes()).await.unwrap();
        let answer = read_answer(&mut client).await;
        assert_refused(&answer, 413, "body_too_large", "1048576 bytes");
    }
    // Nothing is announced here, and the end never comes.
    let mut client = server.connect();
    let head = "POST /threads HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    let body = format!("200000\r\n{}", "x".repeat(0x10_0001));
    client.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    assert_refused(&read_answer(&mut client).await, 413, "body_too_large", "1048576 bytes");
    assert_eq!(started.elapsed().as_secs(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_clients_deadline_bounds_its_body() {
    let mut server = TestServer::start().await;
    let started = Instant::now();
    let mut client = server.connect();
    let head = "POST /chat/async HTTP/1.1\r\nhost: localhost\r\nx-deadline-ms: 1500\r\n\
                content-length: 100\r\n\r\n{";
    client.write_all(head.as_bytes()).await.unwrap();
    assert_refused(&read_answer(&mut client).await, 408, "body_timeout", "within 1.5 s");
    assert_eq!(started.elapsed().as_millis(), 1500);
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_during_the_drain_gets_one_answer() {
    let mut server = TestServer::start().await;
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut early = server.connect();
    tokio::task::yield_now().await;
    server.stop(Stage::Soft);
    let mut late = server.connect();
    for client in [&mut early, &mut late] {
        client.write_all(request).await.unwrap();
        let answer = read_answer(client).await;
        assert_eq!((answer.status, answer.header("connection")), (200, "close"), "{answer:?}");
    }
    let mut silent = server.connect();
    tokio::task::yield_now().await;
    server.stop(Stage::Closed);
    let started = Instant::now();
    assert_eq!(silent.read(&mut [0; 64]).await.unwrap(), 0);
    server.closed().await;
    assert_eq!(started.elapsed().as_secs(), 0);
}

#[tokio::test]
async fn the_listener_stays_for_as_long_as_the_engine_drains() {
    let server = TestServer::start().await;
    let engine = server.app.engine.clone();
    let bound = Server::bind(engine.clone(), options()).await.unwrap();
    let address = bound.local_addr().unwrap();
    let (soft, hard) = (CancellationToken::new(), CancellationToken::new());
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(bound.serve(soft.clone(), hard.clone()));
    let ask = async |request: &str| {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let body = json!({"message": "hang"}).to_string();
    let task = ask(&post("/chat/async", "", &body)).await;
    let run = task.split_once("x-run-id: ").unwrap().1[..36].to_owned();
    engine.tasks().soft.cancel();
    soft.cancel();
    // Without `connection: close`: that the server closes is what makes these return.
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let ready = ask(&get("/health/ready")).await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("\"draining\":true"), "{ready}");
    assert!(ask(&get("/health/live")).await.starts_with("HTTP/1.1 200"));
    assert!(ask(&get(&format!("/runs/{run}"))).await.starts_with("HTTP/1.1 200"));
    let refused = ask(&post("/chat/async", "", &body)).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after"), "{refused}");
    assert!(refused.contains("shutting_down"), "{refused}");
    let cancelled = ask(&post(&format!("/runs/{run}/cancel?wait=1"), "", "")).await;
    assert!(
        cancelled.starts_with("HTTP/1.1 200") && cancelled.contains("cancelled"),
        "{cancelled}"
    );
    // Connections do not count for the drain, whether they ask or only stay.
    let mut idle = TcpStream::connect(address).await.unwrap();
    engine.shutdown(Duration::from_secs(60)).await;
    serving.join_next().await.unwrap().unwrap();
    assert_eq!(idle.read(&mut [0; 64]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(address).await.is_err());
    assert!(!hard.is_cancelled());
}
