use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

use super::*;

fn pair() -> (Conn<DuplexStream>, DuplexStream) {
    let (ours, theirs) = duplex(1 << 20);
    (Conn::new(ours, crate::conn::Hooks::none(), Duration::from_secs(1)), theirs)
}

/// Reads one request from `bytes`, sent in pieces of `step`.
async fn read(bytes: &[u8], step: usize, limits: &Limits) -> Result<(Head, Bytes), NoRequest> {
    let (mut conn, mut client) = pair();
    let send = async {
        for piece in bytes.chunks(step) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        client
    };
    let receive = async {
        let head = conn.read_head(limits, limits.idle_timeout).await?;
        let body = conn.read_body(&head, limits).await?;
        Ok((head, body))
    };
    let (result, _client) = tokio::join!(receive, send);
    result
}

#[tokio::test(start_paused = true)]
async fn bodies_by_length_and_by_chunks_in_any_pieces() {
    let sized = b"\r\nPOST /v1/x?a=b HTTP/1.1\r\ncontent-length: 5\r\nX-Sim-Fault: stall:3\r\nx-sim-tokens: 9\r\n\r\nhello";
    let chunked = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nt: 1\r\n\r\n";
    let limits = Limits::default();
    for step in [1, 7, 1000] {
        let (head, body) = read(sized, step, &limits).await.unwrap();
        assert_eq!(
            (head.method, head.path.as_str(), &body[..]),
            (Method::Post, "/x", &b"hello"[..])
        );
        let overrides = head.overrides.unwrap();
        assert_eq!((overrides.fault.as_deref(), overrides.tokens), (Some("stall:3"), Some(9)));
        let (head, body) = read(chunked, step, &limits).await.unwrap();
        assert_eq!((head.keep_alive, &body[..]), (true, &b"hello"[..]));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_too_much_or_malformed_is_refused() {
    let limits = Limits { max_head_bytes: 200, max_body_bytes: 10, ..Limits::default() };
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(9000));
    let cases: [(&[u8], u16); 7] = [
        (long.as_bytes(), 431),
        (b"POST / HTTP/1.1\r\ncontent-length: 11\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n6\r\n123456\r\n6\r\n", 413),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nab\r\n", 400),
        (b"\x16\x03\x01 hello TLS\r\n\r\n", 400),
    ];
    for (bytes, status) in cases {
        match read(bytes, 64, &limits).await {
            Err(NoRequest::Bad(problem)) => {
                assert_eq!(problem.status, status, "{}", problem.message)
            }
            other => panic!("{status}: {other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_read_has_a_deadline() {
    let limits = Limits::default();
    let elapsed = async |sent: &[u8]| {
        let (mut conn, mut client) = pair();
        client.write_all(sent).await.unwrap();
        let started = Instant::now();
        let error = match conn.read_head(&limits, limits.idle_timeout).await {
            Ok(head) => conn.read_body(&head, &limits).await.map(|_| ()).unwrap_err(),
            Err(error) => error,
        };
        (started.elapsed().as_secs(), matches!(error, NoRequest::Over))
    };
    assert_eq!(elapsed(b"").await, (75, true));
    assert_eq!(elapsed(b"POST / HT").await, (15, false));
    assert_eq!(elapsed(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhe").await, (120, true));
}

#[test]
fn connection_handling_follows_the_version() {
    let keep_alive = |request: &str| parse_head(request.as_bytes()).unwrap().unwrap().0.keep_alive;
    assert!(keep_alive("GET / HTTP/1.1\r\n\r\n"));
    assert!(!keep_alive("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"));
    assert!(!keep_alive("GET / HTTP/1.0\r\n\r\n"));
    assert!(keep_alive("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
}

#[test]
fn overrides_are_checked() {
    let mut overrides = Overrides::default();
    assert_eq!(overrides.take("ttft-ms", "250"), Ok(()));
    assert_eq!(overrides.ttft, Some(Duration::from_millis(250)));
    let error =
        |name: &str, value: &str| Overrides::default().take(name, value).unwrap_err().message;
    assert!(error("tokens", "many").contains("x-sim-tokens is a whole number up to 1000000: many"));
    assert!(error("tokens", "1000001").contains("1000001"));
    assert!(error("speed", "1").contains("unknown header: x-sim-speed"));
}

#[test]
fn heads_and_chunks_are_written_byte_for_byte() {
    let mut out = Vec::new();
    push_head(&mut out, 429, Framing::Length(2), true, &[("retry-after", "1")]);
    assert_eq!(
        out,
        b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n"
    );
    out.clear();
    push_head(&mut out, 200, Framing::Close, true, &[]);
    assert_eq!(out, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
    out.clear();
    push_head(&mut out, 200, Framing::Chunked, false, &[]);
    assert_eq!(out, b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n");
    out.clear();
    push_chunk(&mut out, b"");
    push_chunk(&mut out, b"abc");
    push_chunk_size(&mut out, 0x1f0);
    assert_eq!(out, b"3\r\nabc\r\n1f0\r\n");
}

#[test]
fn keys_are_read_from_either_header() {
    let key = |line: &str| {
        parse_head(format!("GET / HTTP/1.1\r\n{line}\r\n\r\n").as_bytes()).unwrap().unwrap().0.key
    };
    assert_eq!(key("Authorization: Bearer sk-1").as_deref(), Some("sk-1"));
    assert_eq!(key("authorization: bearer  sk-1 ").as_deref(), Some("sk-1"));
    assert_eq!(key("authorization: sk-1").as_deref(), Some("sk-1"));
    assert_eq!(key("X-Api-Key: sk-1").as_deref(), Some("sk-1"));
    assert_eq!(key("x: y"), None);
}
