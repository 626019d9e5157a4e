//! Every fault does what the table says.

use super::*;
use crate::fault::Group;

/// What most faults are tried on: 30 tokens, a tenth of a second apart, the first after half a second.
const TOKENS: u32 = 30;

fn options() -> Options {
    let limits = Limits { endless_bytes: ENDLESS as u64, ..Limits::default() };
    Options { limits, ..paced(TOKENS) }
}

/// Where what is endless ends in these tests.
const ENDLESS: usize = 1 << 20;

/// An answer to a streamed request with this fault.
async fn on_stream(fault: &str) -> Answer {
    Rig::new(options()).ask("", &streamed(&format!("m+{fault}"))).await
}

/// The same, not streamed.
async fn on_whole(fault: &str) -> Answer {
    Rig::new(options()).ask("", &whole(&format!("m+{fault}"))).await
}

fn good_text() -> String {
    (0..TOKENS).map(|index| format!("tok{index}")).collect::<Vec<_>>().join(" ")
}

/// The text of the first `count` tokens.
fn text_of(count: u32) -> String {
    (0..count).map(|index| format!("tok{index}")).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn is_good(answer: &Answer) {
    assert_eq!((answer.status, answer.text()), (200, good_text()));
    assert_eq!((answer.finish_reason().as_deref(), answer.is_done()), (Some("stop"), true));
}

#[track_caller]
fn is_refusal(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.end, answer.took), (status, End::Whole, Duration::ZERO));
    let error = &answer.json()["error"];
    let found = error["code"].as_str().or(error["type"].as_str()).unwrap();
    assert_eq!(found, code);
}

/// The stream broke off after 20 tokens, without a finish.
#[track_caller]
fn is_cut(answer: &Answer, end: End) {
    assert_eq!((answer.status, answer.text(), answer.end), (200, text_of(20), end));
    assert_eq!((answer.finish_reason(), answer.is_done()), (None, false));
}

/// The faults of a group. Together the groups' tests try every fault, and a new one finds no arm to fall into.
fn of(group: Group) -> impl Iterator<Item = Fault> {
    Fault::ALL.into_iter().filter(move |fault| fault.about().group == group)
}

#[tokio::test(start_paused = true)]
async fn every_refusal() {
    for fault in of(Group::Refusal) {
        refuses(fault).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_broken_connection() {
    for fault in of(Group::Connection) {
        breaks_the_connection(fault).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_slowness() {
    for fault in of(Group::Slowness) {
        is_slow(fault).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_wrong_ending() {
    for fault in of(Group::Ending) {
        ends_wrongly(fault).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_odd_content() {
    for fault in of(Group::Content) {
        sends_odd_bytes(fault).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_wrong_embedding() {
    for fault in of(Group::Embedding) {
        gets_embeddings_wrong(fault).await;
    }
}

async fn refuses(fault: Fault) {
    let answer = on_stream(fault.name()).await;
    let hint = |name, value: &str| {
        is_refusal(&answer, 429, "rate_limit_exceeded");
        assert_eq!(answer.header(name), value);
    };
    match fault {
        Fault::RateLimitOnce => {
            hint("retry-after", "2");
            once(fault, 429).await;
        }
        Fault::ServerErrorOnce => {
            is_refusal(&answer, 500, "server_error");
            once(fault, 500).await;
        }
        Fault::RateLimit => {
            is_refusal(&answer, 429, "rate_limit_exceeded");
            assert!(!answer.head.contains("retry-after"), "{}", answer.head);
        }
        Fault::RetryAfter => hint("retry-after", "3600"),
        Fault::RetryAfterDate => {
            hint("date", "Thu, 01 Jan 2026 00:00:00 GMT");
            hint("retry-after", "Thu, 01 Jan 2026 00:00:02 GMT");
        }
        Fault::RetryAfterMs => hint("retry-after-ms", "1500"),
        Fault::RetryAfterText => {
            is_refusal(&answer, 429, "rate_limit_exceeded");
            assert!(answer.body_text().contains("Please try again in 1.7s."));
            assert!(!answer.head.contains("retry-after"), "{}", answer.head);
        }
        Fault::RetryAfterNegative => hint("retry-after", "-5"),
        Fault::RetryAfterNan => hint("retry-after", "NaN"),
        Fault::RetryAfterHuge => hint("retry-after", "1000000000000"),
        Fault::NoRetry => {
            is_refusal(&answer, 500, "server_error");
            assert_eq!(answer.header("x-should-retry"), "false");
        }
        Fault::Status => {
            is_refusal(&answer, 502, "server_error");
            is_refusal(&on_whole("status:413").await, 413, "invalid_request_error");
            is_refusal(&on_whole("status:1").await, 400, "invalid_request_error");
        }
        Fault::InsufficientQuota => is_refusal(&answer, 429, "insufficient_quota"),
        Fault::CreditBalance => {
            is_refusal(&answer, 400, "invalid_request_error");
            assert!(answer.body_text().contains("credit balance is too low"));
        }
        Fault::Unauthorized => is_refusal(&answer, 401, "invalid_api_key"),
        Fault::Forbidden => is_refusal(&answer, 403, "unsupported_country_region_territory"),
        Fault::ModelNotFound => is_refusal(&answer, 404, "model_not_found"),
        Fault::RequestTimeout => is_refusal(&answer, 408, "timeout"),
        Fault::Conflict => is_refusal(&answer, 409, "conflict"),
        Fault::ContextLength => is_refusal(&answer, 400, "context_length_exceeded"),
        Fault::ContentFilter => is_refusal(&answer, 400, "content_filter"),
        Fault::RejectPrefill => {
            is_good(&answer);
            let mut body = streamed("m+reject_prefill");
            body["messages"] =
                json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]);
            is_refusal(&Rig::new(paced(1)).ask("", &body).await, 400, "invalid_request_error");
        }
        Fault::ServerError => is_refusal(&answer, 500, "server_error"),
        Fault::Unavailable => is_refusal(&answer, 503, "server_is_overloaded"),
        Fault::Overloaded => is_refusal(&answer, 529, "overloaded_error"),
        Fault::Flap => {
            let mut rig = Rig::new(Options::default());
            let mut statuses = Vec::new();
            for _ in 0..4 {
                statuses.push(rig.ask("", &whole("m+flap:1000")).await.status);
                tokio::time::sleep(SECOND).await;
            }
            assert_eq!(statuses, [200, 503, 200, 503]);
        }
        Fault::StalledError => {
            assert_eq!((answer.status, answer.end, answer.took.as_secs()), (500, End::Closed, 600));
            assert!(
                answer.body_text().starts_with("{\"error\"")
                    && serde_json::from_slice::<Value>(&answer.body).is_err()
            );
        }
        Fault::EndlessError => {
            assert_eq!((answer.status, answer.end), (500, End::Closed));
            assert!(answer.body.len() >= ENDLESS, "{}", answer.body.len());
        }
        other => unreachable!("{other} is no refusal"),
    }
}

/// Fails with `status`, and then no more; for each model anew.
async fn once(fault: Fault, status: u16) {
    let mut rig = Rig::new(Options::default());
    let mut statuses = Vec::new();
    for model in ["a", "a", "b", "b"] {
        statuses.push(rig.ask("", &whole(&format!("{model}+{fault}"))).await.status);
    }
    assert_eq!(statuses, [status, 200, status, 200], "{fault}");
    assert_eq!(rig.sim.stats().faults[fault.name()], 2, "{fault}");
}

async fn breaks_the_connection(fault: Fault) {
    let mut rig = Rig::new(paced(TOKENS));
    let mut client = rig.connect();
    let body = streamed(&format!("m+{fault}"));
    let first = client.ask("", &body, 1000 * SECOND).await;
    let closed_with_nothing =
        |answer: &Answer| (answer.end, answer.head.as_str()) == (End::Closed, "");
    match fault {
        Fault::Reset => assert!(closed_with_nothing(&first) && first.took == Duration::ZERO),
        Fault::ResetOnce => {
            assert!(closed_with_nothing(&first));
            is_good(&rig.ask("", &body).await);
        }
        Fault::ResetReused => {
            is_good(&first);
            assert!(closed_with_nothing(&client.ask("", &body, 1000 * SECOND).await));
        }
        Fault::IdleClose => {
            is_good(&first);
            assert_eq!(first.end, End::Whole);
            assert!(!first.head.contains("connection: close"));
            let then = client.talk(b"", SECOND).await;
            assert!(then.end == End::Closed && then.took <= 100 * MS, "{then:?}");
        }
        Fault::CloseAfterReply => {
            is_good(&first);
            assert!(!first.head.contains("connection: close"));
            let then = client.talk(b"", SECOND).await;
            assert_eq!((then.end, then.took), (End::Closed, Duration::ZERO));
        }
        Fault::NoAnswer => assert!(closed_with_nothing(&first) && first.took.as_secs() == 600),
        Fault::NoRead => {
            assert!(closed_with_nothing(&first) && first.took.as_secs() == 600);
            // By header it is known before the body: what does not fit the connection's buffer is never taken.
            let mut large = streamed("m");
            large["messages"][0]["content"] = "x".repeat(1 << 20).into();
            let request = chat_request("x-sim-fault: no_read\r\n", &large);
            let mut client = rig.connect();
            assert!(timeout(60 * SECOND, client.io.write_all(&request)).await.is_err());
            assert_eq!(rig.sim.stats().faults["no_read"], 2);
        }
        other => unreachable!("{other} breaks no connection"),
    }
}

async fn is_slow(fault: Fault) {
    let answer = on_stream(fault.name()).await;
    let rest = 2900 * MS;
    match fault {
        Fault::SlowHeaders => {
            is_good(&answer);
            assert_eq!((answer.head_after, answer.took), (20_500 * MS, 20_500 * MS + rest));
            assert_eq!(on_whole("slow_headers:70").await.head_after, 70 * MS + 500 * MS + rest);
        }
        Fault::SlowHeadersOnce => {
            is_good(&answer);
            assert_eq!(answer.head_after, 20_500 * MS);
            let mut rig = Rig::new(options());
            let body = streamed("m+slow_headers_once");
            rig.ask("", &body).await;
            assert_eq!(rig.ask("", &body).await.head_after, 500 * MS);
        }
        Fault::DripHeaders => {
            is_good(&answer);
            assert_eq!(answer.head_after, Duration::ZERO);
            let head = u32::try_from(answer.head.len() + 3).unwrap();
            assert_eq!(answer.took, 500 * MS * head + 500 * MS + rest);
        }
        Fault::Ttft => {
            is_good(&answer);
            assert_eq!((answer.head_after, answer.took), (Duration::ZERO, 20_000 * MS + rest));
            let whole = on_whole("ttft:900").await;
            assert_eq!(
                (whole.head_after, whole.took, whole.content()),
                (Duration::ZERO, 900 * MS + rest, good_text())
            );
        }
        Fault::Stall => {
            is_cut(&answer, End::Closed);
            assert_eq!(answer.took, (500 + 1900 + 600_000) * MS);
            assert_eq!(on_stream("stall:3").await.text(), text_of(3));
            assert_eq!(on_stream("stall:300").await.finish_reason(), None);
            let whole = on_whole("stall").await;
            assert!(
                serde_json::from_slice::<Value>(&whole.body).is_err() && !whole.body.is_empty()
            );
        }
        Fault::StallKeepalive => {
            is_cut(&answer, End::Closed);
            let comments = answer.lines().iter().filter(|line| *line == ": keepalive").count();
            assert_eq!(comments, 599);
            assert_eq!(on_whole("stall_keepalive").await.body, b"\n".repeat(600));
        }
        Fault::Reasoning => {
            is_good(&answer);
            assert_eq!((answer.head_after, answer.took), (Duration::ZERO, 60 * SECOND + rest));
            assert_eq!(answer.lines().iter().filter(|line| *line == ": keepalive").count(), 59);
            assert_eq!(on_whole("reasoning:5").await.took, 5500 * MS + rest);
        }
        Fault::ReasoningDeltas => {
            is_good(&answer);
            assert_eq!(answer.took, 60 * SECOND + rest);
            let thought =
                |event: &Value| event.pointer("/choices/0/delta/reasoning_content").is_some();
            assert_eq!(answer.events().iter().filter(|event| thought(event)).count(), 59);
        }
        Fault::Drip => {
            is_good(&answer);
            assert_eq!(answer.took, 500 * MS + 29 * 19 * SECOND);
        }
        other => unreachable!("{other} is not slow"),
    }
}

async fn ends_wrongly(fault: Fault) {
    let answer = on_stream(fault.name()).await;
    match fault {
        Fault::ErrorAfterRole => {
            assert_eq!((answer.text().as_str(), answer.end), ("", End::Whole));
            let lines = answer.lines();
            assert_eq!(
                (lines.len(), lines[1].as_str(), lines[2].as_str()),
                (4, ": ping", ": ping")
            );
            assert!(
                lines[0].contains("\"role\":\"assistant\"") && lines[3].starts_with("{\"error\""),
                "{lines:?}"
            );
            assert!(on_whole("error_after_role").await.json()["error"].is_object());
        }
        Fault::ErrorEvent => {
            is_cut(&answer, End::Whole);
            assert_eq!(answer.events().last().unwrap()["error"]["code"], "server_error");
            assert!(on_whole("error_event").await.json()["error"].is_object());
        }
        Fault::OverloadedEvent => {
            assert_eq!((answer.text().as_str(), answer.end), ("", End::Whole));
            assert_eq!(answer.events().last().unwrap()["error"]["type"], "overloaded_error");
            assert_eq!(on_stream("overloaded_event:4").await.text(), text_of(4));
            assert!(on_whole("overloaded_event").await.json()["error"].is_object());
        }
        Fault::CutRst => {
            is_cut(&answer, End::Closed);
            let whole = on_whole("cut_rst").await;
            assert_eq!(
                (whole.end, whole.header("content-length").parse::<usize>().unwrap() / 2),
                (End::Closed, whole.body.len())
            );
        }
        Fault::CutFin => {
            is_cut(&answer, End::Closed);
            assert_eq!((answer.header("connection"), answer.chunks.len()), ("close", 0));
            assert_eq!(on_whole("cut_fin").await.header("connection"), "close");
        }
        Fault::CutChunk => {
            is_cut(&answer, End::Closed);
            assert_eq!(answer.header("transfer-encoding"), "chunked");
            assert_eq!(on_whole("cut_chunk").await.end, End::Closed);
        }
        Fault::CutEnd => {
            is_cut(&answer, End::Whole);
            let whole = on_whole("cut_end").await;
            assert!(
                whole.end == End::Whole && serde_json::from_slice::<Value>(&whole.body).is_err()
            );
        }
        Fault::ToolCallCut => {
            assert_eq!((answer.end, answer.finish_reason()), (End::Whole, None));
            let part = |event: &Value| {
                event
                    .pointer("/choices/0/delta/tool_calls/0/function/arguments")?
                    .as_str()
                    .map(str::to_owned)
            };
            let arguments: String = answer.events().iter().filter_map(part).collect();
            assert_eq!(arguments, "{\"query\": \"opening hours of the");
            let whole = on_whole("tool_call_cut").await.json();
            assert_eq!(
                whole.pointer("/choices/0/message/tool_calls/0/function/arguments").unwrap(),
                &arguments
            );
        }
        Fault::NoDone => {
            assert_eq!(
                (answer.text(), answer.finish_reason().as_deref()),
                (good_text(), Some("stop"))
            );
            assert_eq!((answer.is_done(), answer.end), (false, End::Whole));
        }
        Fault::DoneLinger => {
            is_good(&answer);
            assert_eq!((answer.end, answer.took), (End::Closed, 603_400 * MS));
            assert_eq!(on_stream("done_linger:1000").await.took, 4400 * MS);
        }
        Fault::FinishLinger => {
            assert_eq!(
                (answer.finish_reason().as_deref(), answer.is_done()),
                (Some("stop"), false)
            );
            assert_eq!((answer.end, answer.took), (End::Closed, 603_400 * MS));
        }
        Fault::NoUsage => {
            let mut body = streamed("m+no_usage");
            body["stream_options"] = json!({"include_usage": true});
            let answer = Rig::new(paced(TOKENS)).ask("", &body).await;
            is_good(&answer);
            assert!(answer.events().iter().all(|event| event["usage"].is_null()));
            assert_eq!(on_whole("no_usage").await.json().get("usage"), None);
        }
        other => unreachable!("{other} does not end wrongly"),
    }
}

async fn sends_odd_bytes(fault: Fault) {
    // A hundred megabytes would prove no more than one.
    let spec = if fault == Fault::GiantEvent { "giant_event:1" } else { fault.name() };
    let answer = on_stream(spec).await;
    let ends = |marker: &str| answer.body_text().matches(marker).count();
    let events = TOKENS as usize + 3;
    match fault {
        Fault::BadJson => {
            assert_eq!((answer.text(), answer.is_done()), (good_text(), true));
            assert_eq!(answer.lines()[6], "{\"id\": oops");
            assert!(serde_json::from_slice::<Value>(&on_whole("bad_json").await.body).is_err());
        }
        Fault::SplitUtf8 => {
            assert_eq!(answer.text(), good_text().replace('o', "ö"));
            // Every character of two bytes is cut in two.
            assert_eq!(answer.chunks.len(), events + TOKENS as usize);
            assert_eq!(on_whole("split_utf8").await.chunks.len(), TOKENS as usize + 1);
        }
        Fault::Crlf => {
            is_good(&answer);
            assert_eq!((ends("\r\n\r\n"), ends("\n\n")), (events, 0));
        }
        Fault::Cr => {
            is_good(&answer);
            assert_eq!((ends("\r\r"), ends("\n")), (events, 0));
        }
        Fault::Lf => {
            is_good(&answer);
            assert_eq!((ends("\n\n"), ends("\r")), (events, 0));
        }
        Fault::MixedEol => {
            is_good(&answer);
            assert_eq!(
                (ends("\r\n\r\n"), ends("\r\r"), ends("\n\n")),
                (events / 3, events / 3, events / 3)
            );
        }
        Fault::OneByte => {
            is_good(&answer);
            assert!(answer.chunks.iter().all(|size| *size == 1));
            let whole = on_whole("one_byte").await;
            assert_eq!((whole.content(), whole.chunks.len()), (good_text(), whole.body.len()));
        }
        Fault::MultiLine => {
            is_good(&answer);
            assert!(ends("\ndata: \"object\"") == events - 1);
        }
        Fault::Bom => {
            is_good(&answer);
            assert!(answer.body.starts_with(b"\xEF\xBB\xBFdata: "));
            assert!(on_whole("bom").await.body.starts_with(b"\xEF\xBB\xBF{"));
        }
        Fault::Error200 => assert_eq!(
            (answer.status, &answer.json()["error"]["type"]),
            (200, &json!("server_error"))
        ),
        Fault::Html200 => {
            assert_eq!(
                (answer.status, answer.header("content-type")),
                (200, "text/html; charset=utf-8")
            );
            assert!(answer.body.starts_with(b"<!doctype html>"));
        }
        Fault::Empty200 => {
            assert_eq!((answer.status, answer.body.len(), answer.end), (200, 0, End::Whole));
            assert_eq!(answer.header("content-type"), "text/event-stream; charset=utf-8");
            assert_eq!(on_whole("empty_200").await.header("content-type"), "application/json");
        }
        Fault::EmptyChoices => {
            assert!(
                answer.is_done()
                    && answer.events().iter().all(|event| event["choices"] == json!([]))
            );
            assert_eq!(on_whole("empty_choices").await.json()["choices"], json!([]));
        }
        Fault::WrongType => {
            is_good(&answer);
            assert_eq!(answer.header("content-type"), "application/octet-stream");
            assert_eq!(
                on_whole("wrong_type").await.header("content-type"),
                "application/octet-stream"
            );
        }
        Fault::GiantEvent => {
            assert_eq!((answer.text().len(), answer.is_done()), (1_000_000, true));
            let whole = on_whole("giant_event:1").await;
            assert_eq!(
                (whole.content(), whole.json()["filler"].as_str().unwrap().len()),
                (good_text(), 1_000_000)
            );
        }
        Fault::EndlessLine => {
            assert_eq!(answer.end, End::Closed);
            let last = answer.body.rsplit(|byte| *byte == b'\n').next().unwrap();
            assert!(last.starts_with(b"data: xxx") && last.len() >= ENDLESS);
            assert_eq!(on_whole("endless_line").await.end, End::Closed);
        }
        other => unreachable!("{other} sends no odd bytes"),
    }
}

async fn gets_embeddings_wrong(fault: Fault) {
    let ask = async |input: Value| {
        let body = json!({"model": format!("m+{fault}"), "input": input, "dimensions": 4});
        Rig::new(Options::default())
            .connect()
            .talk(&request("/embeddings", "", &body), SECOND)
            .await
    };
    let answer = ask(json!(["a", "b", "c"])).await;
    let rows = |answer: &Answer| {
        let json = answer.json();
        let row = |row: &Value| {
            (row["index"].as_u64().unwrap(), row["embedding"].as_array().unwrap().len())
        };
        json["data"].as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    match fault {
        Fault::EmbedShort => assert_eq!(rows(&answer), [(0, 4), (1, 4)]),
        Fault::EmbedReorder => assert_eq!(rows(&answer), [(2, 4), (1, 4), (0, 4)]),
        Fault::EmbedDuplicate => assert_eq!(rows(&answer), [(0, 4), (0, 4), (0, 4)]),
        Fault::EmbedNan => assert!(answer.body_text().contains("[NaN,")),
        Fault::EmbedNull => {
            let first = &answer.json()["data"][0]["embedding"];
            assert_eq!((&first[0], first[1].is_number()), (&Value::Null, true));
        }
        Fault::EmbedZeros => {
            assert_eq!(answer.json()["data"][0]["embedding"], json!([0, 0, 0, 0]));
        }
        Fault::EmbedEmpty => assert_eq!(rows(&answer), [(0, 0), (1, 4), (2, 4)]),
        Fault::EmbedDims => assert_eq!(rows(&answer), [(0, 4), (1, 4), (2, 3)]),
        Fault::EmbedPoison => {
            assert_eq!(rows(&answer), [(0, 4), (1, 4), (2, 4)]);
            is_refusal(&ask(json!(["a", "some Poison here"])).await, 400, "invalid_request_error");
        }
        other => unreachable!("{other} is not about embeddings"),
    }
}

#[tokio::test(start_paused = true)]
async fn faults_without_meaning_leave_the_reply_good_and_are_not_counted() {
    let mut rig = Rig::new(paced(TOKENS));
    for fault in [
        "no_done",
        "done_linger",
        "finish_linger",
        "crlf",
        "cr",
        "lf",
        "mixed_eol",
        "multi_line",
        "embed_nan",
    ] {
        let answer = rig.ask("", &whole(&format!("m+{fault}"))).await;
        assert_eq!((answer.content(), answer.took), (good_text(), 3400 * MS), "{fault}");
    }
    assert!(rig.sim.stats().faults.is_empty());
}
