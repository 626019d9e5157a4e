//! Against scripted servers on loopback.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// A server that gives each connection one answer, and a client for it.
async fn answering(answer: &'static str) -> (Client, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = socket.read(&mut request).await;
            let _ = socket.write_all(answer.as_bytes()).await;
        }
    });
    (client, server)
}

#[tokio::test]
async fn json_comes_back() {
    let (client, _server) =
        answering("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
    assert_eq!(client.get("/runs").await.unwrap(), serde_json::json!({"a": 1}));
}

#[tokio::test]
async fn problems_are_told() {
    let body = "HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n{\"code\":\"run_not_found\",\"detail\":\"no run `x`\",\"hint\":\"List them.\"}";
    let (client, _server) = answering(body).await;
    let Err(Error::Problem(problem)) = client.get("/runs/x").await else { panic!("no problem") };
    assert_eq!(
        (problem.status, problem.code.as_str(), problem.detail.as_str()),
        (404, "run_not_found", "no run `x`")
    );
    assert!(matches!(client.events("/runs/x/events", None).await, Err(Error::Problem(_))));
}

#[tokio::test]
async fn streams_end_or_break() {
    let (client, _server) =
        answering("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nid: 1-256\nevent: a\ndata: 1\n\n")
            .await;
    let mut events = client.events("/runs/x/events", None).await.unwrap();
    assert_eq!(events.next().await.unwrap().unwrap().id.as_deref(), Some("1-256"));
    assert_eq!(events.next().await.unwrap(), None);

    let (client, _server) =
        answering("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nff\r\ndata: 1").await;
    let mut events = client.events("/runs/x/events", None).await.unwrap();
    assert!(matches!(events.next().await, Err(Error::Unexpected { .. })));
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = Client::new(&format!("http://{address}")).unwrap();
    let error = client.get("/runs").await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot reach http://{address}: ")), "{error}");
    assert!(matches!(Client::new("localhost:8123"), Err(Error::Url { .. })));
}

#[tokio::test]
async fn html_is_no_answer() {
    let (client, _server) = answering("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>").await;
    let error = client.get("/").await.unwrap_err();
    assert!(matches!(error, Error::Unexpected { .. }), "{error}");
}
