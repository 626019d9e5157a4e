use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

fn check(stream: &str, expected: Expect) {
    let decoded = decode_all(Limits::default(), [stream.as_bytes()]);
    let mut text = String::new();
    for (kind, data) in &decoded.events {
        let (kind, data) = (String::from_utf8_lossy(kind), String::from_utf8_lossy(data));
        text.push_str(&format!("{kind}|{data:?}\n"));
    }
    text.push_str(&format!("comments {}, failed {}", decoded.comments, decoded.failed));
    if !decoded.stray.is_empty() {
        text.push_str(&format!(", stray {:?}", String::from_utf8_lossy(&decoded.stray)));
    }
    expected.assert_eq(&text);
    for size in 1..stream.len().max(2) {
        let pieces = decode_all(Limits::default(), stream.as_bytes().chunks(size));
        assert_eq!(pieces, decoded, "cut into pieces of {size}");
    }
}

#[test]
fn plain_events() {
    check(
        "data: {\"a\":1}\n\ndata:b\n\ndata\n\n",
        expect![[r#"
            |"{\"a\":1}"
            |"b"
            |""
            comments 0, failed false"#]],
    );
}

#[test]
fn all_line_ends_mean_the_same() {
    for end in ["\n", "\r", "\r\n"] {
        let stream =
            format!("event: x{end}data: 1{end}data:  2{end}{end}: ping{end}data: 3{end}{end}");
        check(
            &stream,
            expect![[r#"
                x|"1\n 2"
                |"3"
                comments 1, failed false"#]],
        );
    }
}

#[test]
fn byte_order_mark_only_at_the_start() {
    check(
        "\u{feff}data: 1\n\n\u{feff}data: 2\n\n",
        expect![[r#"
            |"1"
            comments 0, failed false"#]],
    );
    check(
        "\u{feff}: hi\n\ndata: 2\n\n",
        expect![[r#"
            |"2"
            comments 1, failed false"#]],
    );
}

#[test]
fn kinds_do_not_leak_into_the_next_event() {
    check(
        "event: error\n\ndata: 1\n\nevent: ping\ndata: 2\n\ndata: 3\n\n",
        expect![[r#"
            |"1"
            ping|"2"
            |"3"
            comments 0, failed false"#]],
    );
}

#[test]
fn characters_may_be_cut() {
    check(
        "data: größer 🦀\n\n",
        expect![[r#"
            |"größer 🦀"
            comments 0, failed false"#]],
    );
}

#[test]
fn a_missing_last_blank_line_is_forgiven() {
    check(
        "data: 1\n\ndata: [DONE]",
        expect![[r#"
            |"1"
            |"[DONE]"
            comments 0, failed false"#]],
    );
}

#[test]
fn what_is_no_event_stream_is_kept_for_the_error() {
    check(
        "{\n  \"error\": {}\n}\n",
        expect![[r#"comments 0, failed false, stray "{\n  \"error\": {}\n}\n""#]],
    );
    check(
        "id: 1\nretry: 10\ndata: 1\n\nfoo\n",
        expect![[r#"
            |"1"
            comments 0, failed false"#]],
    );
}

#[test]
fn endless_lines_and_events_end() {
    let mut decoder = Decoder::new(Limits { line: 1000, event: 3000 });
    let mut fed = 0;
    let error = loop {
        decoder.feed(&[b'x'; 100]);
        fed += 100;
        match decoder.next() {
            Ok(None) => {}
            Ok(Some(event)) => panic!("{event:?}"),
            Err(error) => break error,
        }
        assert!(fed <= 1000);
    };
    assert_eq!(error, TooLarge { limit: 1000 });
    decoder.feed(b"\n\ndata: 1\n\n");
    assert_eq!(decoder.next(), Err(error), "it stays broken");

    let mut decoder = Decoder::new(Limits { line: 1000, event: 3000 });
    let line = format!("data: {}\n", "x".repeat(500)).repeat(6);
    decoder.feed(line.as_bytes());
    assert_eq!(decoder.next(), Err(TooLarge { limit: 3000 }));
}

#[test]
fn feeding_before_taking_loses_nothing() {
    let mut decoder = Decoder::default();
    for piece in ["data: 1\n", "data: 2\n\nda", "ta: 3\n\n"] {
        decoder.feed(piece.as_bytes());
    }
    let mut events = Vec::new();
    take_all(&mut decoder, &mut events).unwrap();
    assert_eq!(events, [(vec![], b"1\n2".to_vec()), (vec![], b"3".to_vec())]);
}

/// Streams that hit the grammar often.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just(&b"data: "[..]),
        Just(&b"data"[..]),
        Just(&b"event: error"[..]),
        Just(&b": ping"[..]),
        Just(&b"\n"[..]),
        Just(&b"\r"[..]),
        Just(&b"\r\n"[..]),
        Just(&b"\n\n"[..]),
        Just(&b"\xef\xbb\xbf"[..]),
        Just("ö🦀".as_bytes()),
        Just(&b"{\"a\":1}"[..]),
        Just(&b"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"[..]),
    ];
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn cuts_do_not_matter(
        stream in stream(),
        cuts in proptest::collection::vec(0usize..400, 0..12),
        small in any::<bool>(),
    ) {
        let limits = if small { Limits { line: 40, event: 60 } } else { Limits::default() };
        let whole = decode_all(limits, [&stream[..]]);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
        cuts.push(0);
        cuts.push(stream.len());
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        prop_assert_eq!(decode_all(limits, pieces), whole);
    }

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&bytes);
    }
}

#[test]
fn an_event_outlives_its_chunk() {
    let mut decoder = Decoder::default();
    decoder.feed(b"data: whole\n\ndata: be");
    assert_eq!(decoder.next().unwrap().unwrap().data, b"whole");
    assert_eq!(decoder.next().unwrap(), None);
    decoder.feed(b"gun\n\n");
    assert_eq!(decoder.next().unwrap().unwrap().data, b"begun");
    // A large chunk does not keep its room.
    decoder.feed(&b"data: x\n\n".repeat(10_000));
    while decoder.next().unwrap().is_some() {}
    assert!(decoder.chunk.capacity() <= ROOM);
}
