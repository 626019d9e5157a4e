use clearway_core::event::{Delta, Fact, Part};
use expect_test::expect;
use uuid::Uuid;

use super::*;

fn event(seq: u64, body: Body) -> Event {
    Event::new(seq, 3, Timestamp(1_795_207_589_363), body)
}

fn frame(event: &Event) -> String {
    let mut out = BytesMut::new();
    EventFrames.event(event, &mut out);
    String::from_utf8(out.to_vec()).unwrap()
}

#[test]
fn every_kind_of_event_is_one_frame() {
    let mut text = String::new();
    for (seq, &kind) in EventKind::ALL.iter().enumerate() {
        let body = match kind {
            EventKind::MessageDelta => {
                Body::Delta(Delta::new(Uuid::from_u128(7), Part::Reasoning, "a\"b\n"))
            }
            kind => Body::Fact(Fact::new(kind, &json!({"x": "1\n2"}))),
        };
        let event = event(seq as u64, body);
        let rendered = frame(&event);
        event.frames.share();
        assert_eq!(frame(&event), rendered, "the shared frame is the same");
        text.push_str(&rendered);
    }
    expect![[r#"
        id: 0-768
        event: run.created
        data: {"seq":0,"id":"0-768","kind":"run.created","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 1-768
        event: run.started
        data: {"seq":1,"id":"1-768","kind":"run.started","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 2-768
        event: node.started
        data: {"seq":2,"id":"2-768","kind":"node.started","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 3-768
        event: message.started
        data: {"seq":3,"id":"3-768","kind":"message.started","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 4-768
        event: message.delta
        data: {"seq":4,"id":"4-768","kind":"message.delta","at":"2026-11-20T20:46:29.363+00:00","data":{"message_id":"00000000-0000-0000-0000-000000000007","part":"reasoning","text":"a\"b\n"}}

        id: 5-768
        event: message.completed
        data: {"seq":5,"id":"5-768","kind":"message.completed","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 6-768
        event: node.completed
        data: {"seq":6,"id":"6-768","kind":"node.completed","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 7-768
        event: progress
        data: {"seq":7,"id":"7-768","kind":"progress","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 8-768
        event: history.trimmed
        data: {"seq":8,"id":"8-768","kind":"history.trimmed","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 9-768
        event: output.reset
        data: {"seq":9,"id":"9-768","kind":"output.reset","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 10-768
        event: cancel.requested
        data: {"seq":10,"id":"10-768","kind":"cancel.requested","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 11-768
        event: run.ended
        data: {"seq":11,"id":"11-768","kind":"run.ended","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 12-768
        event: custom
        data: {"seq":12,"id":"12-768","kind":"custom","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 13-768
        event: run.released
        data: {"seq":13,"id":"13-768","kind":"run.released","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 14-768
        event: provider.attempt
        data: {"seq":14,"id":"14-768","kind":"provider.attempt","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 15-768
        event: interrupt
        data: {"seq":15,"id":"15-768","kind":"interrupt","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 16-768
        event: run.parked
        data: {"seq":16,"id":"16-768","kind":"run.parked","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 17-768
        event: node.failed
        data: {"seq":17,"id":"17-768","kind":"node.failed","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 18-768
        event: artifact.saved
        data: {"seq":18,"id":"18-768","kind":"artifact.saved","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 19-768
        event: child.started
        data: {"seq":19,"id":"19-768","kind":"child.started","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 20-768
        event: tool.started
        data: {"seq":20,"id":"20-768","kind":"tool.started","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

        id: 21-768
        event: tool.completed
        data: {"seq":21,"id":"21-768","kind":"tool.completed","at":"2026-11-20T20:46:29.363+00:00","data":{"x":"1\n2"}}

    "#]]
    .assert_eq(&text);
}

#[test]
fn a_page_is_json() {
    let events = [event(4, Body::Fact(Fact::new(EventKind::Progress, &json!({}))))];
    let page: Value = serde_json::from_slice(&page(&events, Some(4))).unwrap();
    assert_eq!(page["next"], 4);
    assert_eq!(page["events"][0]["kind"], "progress");
    let empty: Value = serde_json::from_slice(&super::page(&[], None)).unwrap();
    assert_eq!(empty, json!({"events": [], "next": null}));
}
