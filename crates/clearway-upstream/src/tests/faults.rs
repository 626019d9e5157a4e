//! Every fault of the simulated provider, and what a call makes of it.

use std::fmt::Write as _;

use clearway_sim::{Fault, Group, Options, Sim};
use expect_test::expect;

use super::*;

/// The simulator as a dialler, one task per connection.
#[derive(Debug)]
struct SimDial {
    sim: Sim,
    tasks: Mutex<JoinSet<()>>,
}

impl Dial for SimDial {
    fn dial<'a>(
        &'a self,
        _: &'a Endpoint,
        _: Report<'a>,
    ) -> BoxFuture<'a, Result<Box<dyn Io>, DialError>> {
        let (ours, theirs) = duplex(64 * 1024);
        self.tasks.lock().unwrap().spawn(self.sim.serve_connection(theirs));
        Box::pin(async move { Ok(Box::new(ours) as Box<dyn Io>) })
    }
}

/// Makes two calls after each other and writes down what came of them.
async fn play(fault: Fault) -> String {
    let options = Options { fault: Some(fault.into()), tokens: Some(60), ..Options::default() };
    let sim = Sim::new(options);
    let dial: Arc<dyn Dial> = Arc::new(SimDial { sim, tasks: Mutex::default() });
    let dialers = HashMap::from([("script".to_owned(), dial)]);
    let upstream = Upstream::new(config(|_| {}), dialers).unwrap();
    let mut lines = Vec::new();
    for _ in 0..2 {
        let call = cx(Duration::from_secs(120));
        let started = now();
        let outcome = async {
            let mut stream = upstream.chat(call.clone(), ask()).await?;
            let mut tokens = 0;
            while let Some(event) = stream.next().await? {
                match event {
                    ChatEvent::Reset { .. } => {}
                    ChatEvent::Finish { reason, usage } => {
                        let reason = reason.as_str();
                        let usage = usage.map(|usage| usage.output_tokens);
                        return Ok(format!("{reason}, {tokens} events, usage {usage:?}"));
                    }
                    ChatEvent::Text(_) | ChatEvent::Reasoning(_) | ChatEvent::ToolCall { .. } => {
                        tokens += 1
                    }
                }
            }
            unreachable!("an answer ends with a finish or an error")
        }
        .await
        .unwrap_or_else(|error: Error| {
            let failure = error.into_failure();
            let mut text = failure.code.to_string();
            write!(text, " in {}", failure.detail["phase"].as_str().unwrap()).unwrap();
            if let Some(after) = failure.retry_after {
                write!(text, ", after {after:?}").unwrap();
            }
            if !failure.retryable {
                text.push_str(", final");
            }
            text
        });
        let took = now() - started;
        assert!(took <= Duration::from_millis(120_250), "{fault} took {took:?}");
        assert!(!call.probe.is_connected());
        lines.push(format!("{outcome}; {:.1} s", took.as_secs_f64()));
        let view = &upstream.provider_views()[0];
        assert_eq!((view.limiter.in_flight, view.limiter.queued.iter().sum::<usize>()), (0, 0));
    }
    lines.dedup();
    lines.join(" | ")
}

#[tokio::test(start_paused = true)]
async fn the_whole_list() {
    let mut table = String::new();
    for fault in Fault::ALL {
        if fault.about().group != Group::Embedding {
            writeln!(table, "{fault}: {}", play(fault).await).unwrap();
        }
    }
    expect![[r#"
        rate_limit_once: upstream.rate_limited in headers, after 2s; 0.0 s | stop, 60 events, usage Some(60); 2.0 s
        rate_limit: upstream.rate_limited in headers; 0.0 s | upstream.rate_limited in headers; 1.0 s
        retry_after: upstream.rate_limited in headers, after 3600s; 0.0 s | upstream.rate_limited in queue, after 3600s; 0.0 s
        retry_after_date: upstream.rate_limited in headers, after 2s; 0.0 s | upstream.rate_limited in headers, after 2s; 2.0 s
        retry_after_ms: upstream.rate_limited in headers, after 1.5s; 0.0 s | upstream.rate_limited in headers, after 1.5s; 1.5 s
        retry_after_text: upstream.rate_limited in headers, after 1.7s; 0.0 s | upstream.rate_limited in headers, after 1.7s; 1.7 s
        retry_after_negative: upstream.rate_limited in headers; 0.0 s | upstream.rate_limited in headers; 1.0 s
        retry_after_nan: upstream.rate_limited in headers; 0.0 s | upstream.rate_limited in headers; 1.0 s
        retry_after_huge: upstream.rate_limited in headers, after 3600s; 0.0 s | upstream.rate_limited in queue, after 3600s; 0.0 s
        no_retry: upstream.server_error in headers, final; 0.0 s
        status: upstream.server_error in headers; 0.0 s
        insufficient_quota: upstream.quota_exhausted in headers, final; 0.0 s | upstream.quota_exhausted in queue, after 600s, final; 0.0 s
        credit_balance: upstream.quota_exhausted in headers, final; 0.0 s | upstream.quota_exhausted in queue, after 600s, final; 0.0 s
        unauthorized: upstream.credentials_exhausted in headers, final; 0.0 s | upstream.credentials_exhausted in queue, final; 0.0 s
        forbidden: upstream.forbidden in headers, final; 0.0 s
        model_not_found: upstream.model_unavailable in headers, final; 0.0 s
        request_timeout: upstream.timeout in headers; 0.0 s
        conflict: upstream.conflict in headers; 0.0 s
        context_length: upstream.context_length in headers, final; 0.0 s
        content_filter: upstream.content_policy in headers, final; 0.0 s
        reject_prefill: stop, 60 events, usage Some(60); 0.0 s
        server_error_once: upstream.server_error in headers; 0.0 s | stop, 60 events, usage Some(60); 0.0 s
        server_error: upstream.server_error in headers; 0.0 s
        unavailable: upstream.overloaded in headers; 0.0 s
        overloaded: upstream.overloaded in headers; 0.0 s
        flap: stop, 60 events, usage Some(60); 0.0 s
        stalled_error: upstream.server_error in headers; 2.0 s
        endless_error: upstream.server_error in headers; 0.0 s
        reset: upstream.connect_failed in headers; 0.0 s
        reset_once: upstream.connect_failed in headers; 0.0 s | stop, 60 events, usage Some(60); 0.0 s
        reset_reused: stop, 60 events, usage Some(60); 0.0 s
        idle_close: stop, 60 events, usage Some(60); 0.0 s
        close_after_reply: stop, 60 events, usage Some(60); 0.0 s
        no_answer: upstream.headers_timeout in headers; 30.0 s
        no_read: upstream.headers_timeout in headers; 30.0 s
        slow_headers: stop, 60 events, usage Some(60); 20.0 s
        slow_headers_once: stop, 60 events, usage Some(60); 20.0 s | stop, 60 events, usage Some(60); 0.0 s
        drip_headers: upstream.headers_timeout in headers; 30.0 s
        ttft: stop, 60 events, usage Some(60); 20.0 s
        stall: upstream.stream_idle in stream; 20.0 s
        stall_keepalive: upstream.stream_stalled in stream; 45.0 s
        reasoning: upstream.first_token_timeout in first_token; 30.0 s
        reasoning_deltas: stop, 119 events, usage Some(119); 60.0 s
        drip: deadline_exceeded in stream; 120.0 s
        error_after_role: upstream.server_error in first_token; 0.5 s
        error_event: upstream.server_error in stream; 0.0 s
        overloaded_event: upstream.overloaded in first_token; 0.0 s
        cut_rst: upstream.stream_truncated in stream; 0.0 s
        cut_fin: upstream.stream_truncated in stream; 0.0 s
        cut_chunk: upstream.stream_truncated in stream; 0.0 s
        cut_end: upstream.stream_truncated in stream; 0.0 s
        tool_call_cut: upstream.stream_truncated in stream; 0.0 s
        no_done: stop, 60 events, usage Some(60); 0.0 s
        done_linger: stop, 60 events, usage Some(60); 0.0 s
        finish_linger: stop, 60 events, usage None; 2.0 s
        no_usage: stop, 60 events, usage None; 0.0 s
        bad_json: upstream.stream_malformed in stream; 0.0 s
        split_utf8: stop, 60 events, usage Some(60); 0.0 s
        crlf: stop, 60 events, usage Some(60); 0.0 s
        cr: stop, 60 events, usage Some(60); 0.0 s
        lf: stop, 60 events, usage Some(60); 0.0 s
        mixed_eol: stop, 60 events, usage Some(60); 0.0 s
        one_byte: stop, 60 events, usage Some(60); 0.0 s
        multi_line: stop, 60 events, usage Some(60); 0.0 s
        bom: stop, 60 events, usage Some(60); 0.0 s
        error_200: upstream.server_error in first_token; 0.0 s
        html_200: upstream.bad_response in first_token; 0.0 s
        empty_200: upstream.empty_response in first_token; 0.0 s
        empty_choices: upstream.empty_response in first_token; 0.0 s
        wrong_type: upstream.bad_response in first_token; 0.0 s
        giant_event: upstream.stream_too_large in first_token; 0.0 s
        endless_line: upstream.stream_too_large in first_token; 0.0 s
    "#]].assert_eq(&table);
}
