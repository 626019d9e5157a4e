use bytes::Bytes;
use http::{Method, Request, Uri};
use proptest::prelude::*;

use super::*;

fn read(input: &str) -> Read {
    let whole = read_all(input.as_bytes(), input.len().max(1));
    for size in 1..20 {
        assert_eq!(read_all(input.as_bytes(), size), whole, "{input:?} in pieces of {size}");
    }
    whole
}

fn chunked(body: &str) -> Read {
    read(&format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}"))
}

fn answer(head: &str) -> Answer {
    read_head(head.as_bytes()).unwrap().unwrap().answer.unwrap()
}

#[test]
fn requests_have_a_target_and_a_length() {
    let mut request = Request::new(Bytes::from_static(b"{}"));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/v1/chat?x=1");
    request.headers_mut().insert("host", HeaderValue::from_static("example.org"));
    let head = String::from_utf8(encode(&request, 2)).unwrap();
    assert_eq!(
        head,
        "POST /v1/chat?x=1 HTTP/1.1\r\nhost: example.org\r\ncontent-length: 2\r\n\r\n"
    );
}

#[test]
fn bodies_end_where_their_head_says() {
    let ok = |data: &str, behind| Ok((200, data.as_bytes().to_vec(), behind));
    assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcde"), ok("abc", Some(2)));
    assert_eq!(read("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab"), ok("ab", None));
    assert_eq!(read("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"), ok("", Some(0)));
    assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nabc"), ok("abc", Some(0)));
    assert_eq!(read("HTTP/1.1 204 No\r\n\r\n"), Ok((204, Vec::new(), Some(0))));
    assert_eq!(
        read("HTTP/1.1 103 Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\n\r\na"),
        ok("a", Some(0))
    );
    // Chunks outweigh a length; another coding has no end but the connection's.
    let both = "HTTP/1.1 200 OK\r\ncontent-length: 9\r\ntransfer-encoding: gzip, Chunked\r\n\r\n";
    assert_eq!(read(&format!("{both}1\r\na\r\n0\r\n\r\n")), ok("a", Some(0)));
    assert_eq!(read("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc"), ok("abc", Some(0)));
}

#[test]
fn chunks_are_joined() {
    let ok = |data: &str, behind| Ok((200, data.as_bytes().to_vec(), behind));
    assert_eq!(chunked("3\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\n"), ok("abc0123456789", Some(0)));
    assert_eq!(chunked("1;name=\"value\"\r\na\r\n1 \r\nb\r\n0\r\n\r\n"), ok("ab", Some(0)));
    assert_eq!(chunked("1\r\na\r\n0\r\nx-sum: 1\r\ny: 2\r\n\r\nmore"), ok("a", Some(4)));
    assert_eq!(chunked("A\r\n0123"), ok("0123", None));
    assert_eq!(chunked("1\r\na\r\n0\r\n"), ok("a", None));
    assert_eq!(chunked(""), ok("", None));
}

#[test]
fn what_is_no_chunk_is_refused() {
    for body in [
        "x\r\n",
        "\r\n",
        "-1\r\na\r\n",
        "1\na\r\n",
        "2\r\nabc\r\n",
        "1\r\na0\r\n\r\n",
        "1\rx",
        "11111111111111111\r\n",
        "1;x\na",
        "0\r\nx: y\n",
        "1\r\na\rx",
    ] {
        assert!(chunked(body).is_err(), "{body:?}");
    }
    let long = format!("1;{}\r\n", "x".repeat(MAX_HEAD + 1));
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    assert!(read_all(format!("{head}{long}").as_bytes(), 1000).is_err());
}

#[test]
fn what_is_no_answer_is_refused() {
    for input in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 101 Switching\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
    ] {
        assert!(read(input).is_err(), "{input:?}");
    }
    assert!(read("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 1, 1\r\n\r\na").is_ok());
    let many = "a: b\r\n".repeat(MAX_HEADERS + 1);
    assert!(read(&format!("HTTP/1.1 200 OK\r\n{many}\r\n")).is_err());
    let long = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD));
    assert!(read_all(long.as_bytes(), 4096).is_err());
}

#[test]
fn connections_are_kept_where_that_is_safe() {
    for (head, keep) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: x, Close\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n", false),
        ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\nconnection: keep-alive\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", true),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n", false),
    ] {
        assert_eq!(answer(head).keep_alive, keep, "{head:?}");
    }
}

proptest! {
    #[test]
    fn any_bytes_read_the_same_however_they_are_cut(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "HTTP/1.1 200 OK\r\n", "transfer-encoding: chunked\r\n", "content-length: 5\r\n",
                "\r\n", "5\r\nabcde\r\n", "0\r\n", "ff\r\n", "x", ";", "HTTP/1.1 100 Go\r\n\r\n",
            ]),
            0..12,
        ),
        size in any::<u8>(),
    ) {
        let mut input = vec![size];
        input.extend(parts.concat().into_bytes());
        input.extend(noise);
        fuzz(&input);
    }

    #[test]
    fn chunks_carry_any_data(data in prop::collection::vec(any::<u8>(), 0..300), size in 1..40usize) {
        let mut input = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for piece in data.chunks(size) {
            input.extend(format!("{:x}\r\n", piece.len()).into_bytes());
            input.extend([piece, &b"\r\n"[..]].concat());
        }
        input.extend(b"0\r\n\r\n");
        prop_assert_eq!(read_all(&input, size), Ok((200, data, Some(0))));
    }
}
