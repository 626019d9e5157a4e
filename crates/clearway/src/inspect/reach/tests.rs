use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::{Config, Env};

fn provider(base_url: &str) -> Provider {
    let text = format!("[providers.house]\nkind = \"openai\"\nbase_url = \"{base_url}\"\n");
    let config = Config::parse("clearway.toml", &text, &Env::default()).unwrap();
    config.providers["house"].clone()
}

/// Answers one request with `answer`; returns what was asked.
async fn answered(answer: &'static str, path: &str) -> (Reach, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let provider = provider(&format!("http://{address}{path}"));
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let read = stream.read(&mut asked).await.unwrap();
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8_lossy(&asked[..read]).into_owned()
    };
    let (reach, asked) = tokio::join!(reach(&provider), serve);
    (reach.unwrap(), asked)
}

#[tokio::test]
async fn any_status_counts_as_reachable_and_no_key_is_sent() {
    let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
    let (reach, asked) = answered(refusal, "/v1").await;
    assert_eq!(reach.outcome, Outcome::Answered(401));
    assert!(asked.starts_with("GET /v1/models HTTP/1.1\r\n"), "{asked}");
    assert!(!asked.to_lowercase().contains("authorization"), "{asked}");
    let names: Vec<_> = reach.phases.iter().map(|phase| phase.name).collect();
    assert_eq!(names, ["dns", "connect", "first byte"]);
    for pair in reach.phases.windows(2) {
        assert_eq!(pair[0].began + pair[0].took, pair[1].began, "without a gap");
    }
}

#[tokio::test]
async fn a_secret_in_the_query_is_not_shown() {
    let fine = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let (reach, asked) = answered(fine, "/v1?key=hidden").await;
    assert!(asked.contains("/v1/models?key=hidden"), "{asked}");
    assert!(!format!("{reach:?}").contains("hidden"), "{reach:?}");
}

#[tokio::test]
async fn a_connection_that_ends_or_never_begins_is_a_failure() {
    let (cut, _) = answered("HTTP/1.1 20", "/v1").await;
    assert!(matches!(cut.outcome, Outcome::Failed(_)), "{cut:?}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let refused = reach(&provider(&format!("http://{address}/v1"))).await.unwrap();
    assert!(matches!(&refused.outcome, Outcome::Failed(_)), "{refused:?}");
    assert_eq!(refused.phases.last().map(|phase| phase.name), Some("connect"));
}

#[tokio::test]
async fn there_is_no_way_to_the_simulator() {
    let config = Config::built_in(&Env::default()).unwrap();
    reach(&config.providers["sim"]).await.unwrap_err();
}
