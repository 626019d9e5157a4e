use std::net::Ipv4Addr;

use tokio::net::TcpListener;

use super::*;

/// What the client makes of an answer that arrives in `pieces`.
async fn answered(pieces: &[&[u8]]) -> Result<Response> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let client = Client::new(listener.local_addr()?);
    let serve = async {
        let (mut socket, _) = listener.accept().await?;
        let mut request = [0; 1024];
        let _ = socket.read(&mut request).await?;
        for piece in pieces {
            socket.write_all(piece).await?;
            socket.flush().await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (served, answer) = tokio::join!(serve, client.get("/").send());
    served?;
    answer
}

#[tokio::test]
async fn bodies_end_where_their_framing_says() {
    let chunked = answered(&[
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"c\r\n2;x=y\r\nde\r\n0\r\ntrailer: 1\r\n\r\n",
    ]);
    assert_eq!(chunked.await.unwrap().text(), "abcde");
    let whole =
        answered(&[b"HTTP/1.1 404 Not Found\r\ncontent-length: 3\r\n\r\n", b"abc"]).await.unwrap();
    assert_eq!((whole.status, whole.text().as_str()), (404, "abc"));
    let open = answered(&[b"HTTP/1.1 200 OK\r\n\r\nabc", b"de"]).await.unwrap();
    assert_eq!(open.text(), "abcde");
}

#[tokio::test]
async fn a_body_that_ends_early_is_an_error() {
    let cases: [&[u8]; 4] = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
    ];
    for bytes in cases {
        let error = answered(&[bytes]).await.unwrap_err();
        assert!(!format!("{error:#}").contains("within"), "{error:#}");
    }
    assert!(answered(&[b"SSH-2.0-x\r\n\r\n"]).await.is_err());
}

#[tokio::test]
async fn codes_are_found_in_every_shape() {
    let code = async |body: &str| {
        let head =
            format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        answered(&[head.as_bytes()]).await.unwrap().code()
    };
    assert_eq!(code(r#"{"code": "a", "detail": "x"}"#).await, "a");
    assert_eq!(code(r#"{"detail": {"error_type": "b"}}"#).await, "b");
    assert_eq!(code(r#"{"detail": [{"type": "c"}]}"#).await, "c");
    assert_eq!(code("no JSON").await, "");
}
