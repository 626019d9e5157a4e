use super::*;

/// Decodes `wire` in pieces of `step` bytes, as a socket might deliver it.
fn decoded(framing: Framing, wire: &[u8], step: usize) -> Result<(String, bool, usize)> {
    let mut decoder = Decoder::new(framing);
    let (mut buffer, mut out, mut used) = (Vec::new(), Vec::new(), 0);
    for piece in wire.chunks(step) {
        buffer.extend_from_slice(piece);
        let n = decoder.decode(&buffer, &mut out)?;
        buffer.drain(..n);
        used += n;
    }
    Ok((String::from_utf8(out).unwrap(), decoder.is_done(), used))
}

#[test]
fn chunks_may_arrive_in_any_pieces() {
    let wire = b"5\r\nhello\r\n1;x=y\r\n \r\nA\r\n0123456789\r\n0\r\nx-trailer: 1\r\n\r\n";
    for step in 1..=wire.len() {
        let (text, done, used) = decoded(Framing::Chunked, wire, step).unwrap();
        assert_eq!((text.as_str(), done, used), ("hello 0123456789", true, wire.len()), "{step}");
    }
}

#[test]
fn what_follows_a_body_is_left_alone() {
    let (text, done, used) = decoded(Framing::Length(3), b"abcHTTP/1.1 200", 15).unwrap();
    assert_eq!((text.as_str(), done, used), ("abc", true, 3));
}

#[test]
fn a_cut_body_is_an_error() {
    for framing in [Framing::Chunked, Framing::Length(10)] {
        let mut decoder = Decoder::new(framing);
        decoder.decode(b"5\r\nab", &mut Vec::new()).unwrap();
        assert!(decoder.close().is_err(), "{framing:?}");
    }
    let mut decoder = Decoder::new(Framing::Close);
    decoder.decode(b"abc", &mut Vec::new()).unwrap();
    decoder.close().unwrap();
    assert!(decoder.is_done());
}

#[test]
fn broken_chunks_are_errors() {
    assert!(decoded(Framing::Chunked, b"xyz\r\n", 5).is_err());
    assert!(decoded(Framing::Chunked, b"1\r\nabc", 7).is_err());
}

#[test]
fn a_request_says_how_long_it_is() {
    let request = Request::post_with("/chat", &[("x-a", "b")], &serde_json::json!({"n": 1}));
    assert_eq!(
        String::from_utf8(request.bytes).unwrap(),
        "POST /chat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 7\r\nx-a: b\r\n\r\n{\"n\":1}"
    );
}
