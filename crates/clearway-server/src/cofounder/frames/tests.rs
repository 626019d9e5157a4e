use clearway_core::Timestamp;
use clearway_core::message::Role;
use expect_test::{Expect, expect};
use uuid::Uuid;

use super::*;

fn fact(seq: u64, fence: u32, kind: EventKind, data: Value) -> Event {
    Event::new(seq, fence, Timestamp(0), Body::Fact(Fact::new(kind, &data)))
}

fn delta(seq: u64, fence: u32, text: &str) -> Event {
    let delta = Delta::new(Uuid::from_u128(1), Part::Text, text);
    Event::new(seq, fence, Timestamp(0), Body::Delta(delta))
}

fn ended(seq: u64, fence: u32) -> Event {
    let data = json!({"status": "success", "reply_message_id": Uuid::from_u128(1).to_string(), "spent": {}});
    fact(seq, fence, EventKind::RunEnded, data)
}

fn render(frames: &mut ChatFrames, events: &[Event]) -> String {
    let mut out = BytesMut::new();
    for event in events {
        let _ = frames.event(event, &mut out);
    }
    String::from_utf8(out.to_vec()).unwrap()
}

fn fresh(seen: Option<&str>) -> ChatFrames {
    ChatFrames::new("bc::u::c".to_owned(), None, seen.map(|id| id.parse().unwrap()))
}

fn check(events: &[Event], seen: Option<&str>, expected: Expect) {
    expected.assert_eq(&render(&mut fresh(seen), events));
}

/// What a client makes of a stream: the text by the deltas, and by the final frame.
fn texts(stream: &str) -> (String, String) {
    let (mut joined, mut last) = (String::new(), String::new());
    for line in stream.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let data: Value = serde_json::from_str(line).unwrap();
        match data["type"].as_str().unwrap() {
            "delta" => joined.push_str(data["text"].as_str().unwrap()),
            "progress" if data["message"].as_str().unwrap().starts_with("output.reset") => {
                joined.clear()
            }
            "final" => last = data["text"].as_str().unwrap().to_owned(),
            _ => {}
        }
    }
    (joined, last)
}

#[test]
fn every_kind_of_event_has_its_frame_or_none() {
    let mut frames =
        ChatFrames::new("bc::u::c".to_owned(), Some("queued: 3 ahead".to_owned()), None);
    let events = [
        fact(0, 0, EventKind::RunCreated, json!({})),
        fact(1, 1, EventKind::RunStarted, json!({"attempt": 1})),
        fact(2, 1, EventKind::NodeStarted, json!({"node": "answer", "step": 0})),
        fact(
            3,
            1,
            EventKind::HistoryTrimmed,
            json!({"dropped_messages": 4, "kept_messages": 2, "budget_tokens": 900}),
        ),
        fact(4, 1, EventKind::MessageStarted, json!({})),
        delta(5, 1, "He said \"hi\"\n"),
        Event::new(
            6,
            1,
            Timestamp(0),
            Body::Delta(Delta::new(Uuid::nil(), Part::Reasoning, "hmm")),
        ),
        Event::new(7, 1, Timestamp(0), Body::Delta(Delta::new(Uuid::nil(), Part::ToolCall, "{}"))),
        fact(
            8,
            1,
            EventKind::Progress,
            json!({"message": "called the plan tool", "node": "answer"}),
        ),
        fact(9, 1, EventKind::Custom, json!({"name": "x", "data": 1})),
        delta(10, 1, "\u{fc}\u{1f600}"),
        fact(11, 1, EventKind::MessageCompleted, json!({})),
        fact(12, 1, EventKind::NodeCompleted, json!({"node": "answer", "step": 0})),
        fact(13, 1, EventKind::RunReleased, json!({"reason": "shutting_down"})),
        fact(14, 2, EventKind::RunStarted, json!({"attempt": 2})),
        fact(15, 2, EventKind::CancelRequested, json!({"by": "client"})),
        ended(16, 2),
    ];
    expect![[r#"
        id: 0-0
        data: {"type":"progress","message":"queued: 3 ahead"}

        id: 2-256
        data: {"type":"progress","message":"started: answer"}

        id: 3-256
        data: {"type":"progress","message":"history.trimmed: the oldest 4 messages were left out of the prompt, 2 kept (budget 900 tokens)"}

        id: 5-256
        data: {"type":"delta","text":"He said \"hi\"\n"}

        id: 8-256
        data: {"type":"progress","message":"called the plan tool"}

        id: 10-256
        data: {"type":"delta","text":"ü😀"}

        id: 13-256
        data: {"type":"progress","message":"handed back by a server that stops; it goes on as soon as one is there"}

        id: 14-514
        data: {"type":"progress","message":"taken up again (attempt 2)"}

        id: 15-512
        data: {"type":"progress","message":"cancel requested by client"}

        id: 16-513
        data: {"type":"final","text":"He said \"hi\"\nü😀"}

    "#]]
    .assert_eq(&render(&mut frames, &events));
}

#[test]
fn a_failed_run_ends_with_its_error() {
    let failure = Failure::new(Code::DeadlineExceeded, "120.0 s spent: first_byte 117.5");
    let data = json!({"status": "timeout", "error": failure.to_json()});
    check(
        &[fact(3, 1, EventKind::RunEnded, data)],
        None,
        expect![[r#"
            id: 3-256
            data: {"type":"error","detail":{"error_type":"deadline_exceeded","error_message":"120.0 s spent: first_byte 117.5","thread_id":"bc::u::c"}}

        "#]],
    );
}

#[test]
fn a_reset_sends_what_stands_once_more() {
    let events = [
        delta(1, 1, "first step. "),
        fact(2, 1, EventKind::NodeCompleted, json!({})),
        delta(3, 1, "void"),
        fact(4, 2, EventKind::OutputReset, json!({"after": 2, "reason": "restarted"})),
        delta(5, 2, "second step."),
        ended(6, 2),
    ];
    let whole = render(&mut fresh(None), &events);
    assert_eq!(
        texts(&whole),
        ("first step. second step.".to_owned(), "first step. second step.".to_owned())
    );
    check(
        &events[3..5],
        None,
        expect![[r#"
            id: 4-512
            data: {"type":"progress","message":"output.reset: what came before is void (restarted)"}

            id: 5-512
            data: {"type":"delta","text":"second step."}

        "#]],
    );
}

#[test]
fn a_client_that_resumes_gets_the_rest_and_the_whole_final_text() {
    let events = [delta(1, 1, "a"), delta(2, 1, "b"), delta(3, 1, "c"), ended(4, 1)];
    check(
        &events,
        Some("2-256"),
        expect![[r#"
        id: 3-256
        data: {"type":"delta","text":"c"}

        id: 4-257
        data: {"type":"final","text":"abc"}

    "#]],
    );
    check(&events, Some("4-257"), expect![""]);
}

#[test]
fn a_client_whose_last_event_was_lost_is_told_to_start_over() {
    // It saw up to 5 under fence 1; nothing after 2 reached the store, so the numbers came again.
    let events = [
        delta(1, 1, "stands. "),
        fact(2, 1, EventKind::NodeCompleted, json!({})),
        fact(3, 2, EventKind::RunStarted, json!({"attempt": 2})),
        delta(4, 2, "new"),
        ended(5, 2),
    ];
    check(
        &events,
        Some("5-256"),
        expect![[r#"
            id: 3-512
            data: {"type":"progress","message":"output.reset: what came before is void (lost in a crash)"}

            id: 3-513
            data: {"type":"delta","text":"stands. "}

            id: 3-514
            data: {"type":"progress","message":"taken up again (attempt 2)"}

            id: 4-512
            data: {"type":"delta","text":"new"}

            id: 5-513
            data: {"type":"final","text":"stands. new"}

        "#]],
    );
    // Cut again between the two frames of the reset: the second one follows.
    let rest = render(&mut fresh(Some("3-512")), &events);
    assert!(
        rest.starts_with("id: 3-513\ndata: {\"type\":\"delta\",\"text\":\"stands. \"}"),
        "{rest}"
    );
    // The same for a stream that stayed open meanwhile.
    let mut frames = fresh(None);
    let before = render(
        &mut frames,
        &[events[0].clone(), events[1].clone(), delta(3, 1, "lost"), delta(4, 1, "lost")],
    );
    let after = render(&mut frames, &events[2..]);
    let (joined, last) = texts(&(before + &after));
    assert_eq!((joined.as_str(), last.as_str()), ("stands. new", "stands. new"));
    // And one that saw nothing void goes on without a reset.
    let rest = render(&mut fresh(Some("2-256")), &events);
    assert!(!rest.contains("output.reset"), "{rest}");
}

#[test]
fn a_log_without_deltas_takes_the_stored_reply() {
    let mut frames = fresh(None);
    let mut out = BytesMut::new();
    assert_eq!(frames.event(&ended(9, 1), &mut out), Next::Reply);
    frames.reply(Ok(Some(Message::new(Role::Ai, "stored", "m"))), &mut out);
    let text = String::from_utf8(out.to_vec()).unwrap();
    assert_eq!(texts(&text), ("stored".to_owned(), "stored".to_owned()));
}
