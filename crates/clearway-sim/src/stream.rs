//! A streamed reply: events in chunks, each token at its time.
//!
//! Tokens that are due together leave in one write, so a simulator that falls behind gets cheaper rather than later.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::chat::Chat;
use crate::conn::{After, Lost};
use crate::http::Framing;
use crate::job::{BEAT, ERROR_EVENT, PING, Writer};
use crate::plan::{Opening, Payload, Start, Stop, Tail};
use crate::reply::{Finish, Reply};
use crate::sse::{Fragments, Frames, Signature, Wire};
use crate::usage::Usage;

const EVENT_STREAM: &str = "text/event-stream; charset=utf-8";
/// Tokens that are due at once are sent when this many bytes have come together.
const MAX_BATCH: usize = 16 * 1024;

/// Writes the whole reply.
pub(crate) async fn stream<I: AsyncRead + AsyncWrite + Unpin>(
    writer: Writer<'_, '_, I>,
    signature: &Signature,
    chat: &Chat,
    reply: &Reply,
) -> Result<After, Lost> {
    let job = writer.job;
    let framing = job.open_framing();
    let wire = Wire { close_delimited: framing == Framing::Close, ..job.plan.wire };
    let frames = Frames::new(wire, signature, chat);
    Stream { writer, frames, framing, chat, reply }.run().await
}

struct Stream<'w, 'f, 'r, I> {
    writer: Writer<'w, 'f, I>,
    frames: Frames,
    framing: Framing,
    chat: &'r Chat,
    reply: &'r Reply,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream<'_, '_, '_, I> {
    async fn run(mut self) -> Result<After, Lost> {
        let job = self.writer.job;
        // Whatever comes before the first token needs the head at once.
        let opened = job.plan.opening != Opening::Nothing;
        let first = if opened { job.started } else { job.started + job.pace.ttft };
        let mut base = self.writer.head(self.framing, EVENT_STREAM, first).await?;
        if job.plan.start == Start::AtOnce && !opened {
            self.writer.conn.wait_until(base + job.pace.ttft).await?;
        }
        self.frames.begin(&mut self.writer.out);
        match job.plan.opening {
            Opening::Nothing => {}
            Opening::ErrorAfterPings => return self.error_after_pings().await,
            Opening::Comments(duration) | Opening::Reasoning(duration) => {
                let end = base + duration;
                self.think(end).await?;
                // The first token follows the thinking at once.
                base = end.checked_sub(job.pace.ttft).unwrap_or(end);
            }
        }
        match job.plan.payload {
            Payload::Text | Payload::NoChoices => {}
            Payload::CutToolCall => return self.cut_tool_call().await,
            Payload::Giant(bytes) => return self.giant(bytes).await,
            Payload::Endless => return self.endless().await,
        }
        if !opened {
            self.role();
        }
        self.tokens(base).await
    }

    fn role(&mut self) {
        match self.writer.job.plan.payload {
            Payload::NoChoices => self.frames.no_choices(&mut self.writer.out),
            Payload::Text | Payload::CutToolCall | Payload::Giant(_) | Payload::Endless => {
                self.frames.role(&mut self.writer.out);
            }
        }
    }

    async fn tokens(mut self, base: Instant) -> Result<After, Lost> {
        let job = self.writer.job;
        let mut prng = job.prng.clone();
        let count = self.reply.pieces.len();
        let mut stop = job.plan.stop.map(|(at, stop)| (at.min(count), stop));
        let mut now = Instant::now();
        let mut index = 0;
        loop {
            if let Some((_, what)) = stop.take_if(|(at, _)| *at == index) {
                match what {
                    Stop::BadJson => self.frames.event(&mut self.writer.out, "{\"id\": oops"),
                    Stop::Stall
                    | Stop::StallWithComments
                    | Stop::Reset
                    | Stop::Close
                    | Stop::EndBody
                    | Stop::ErrorEvent => {
                        return self.stop(what).await;
                    }
                }
            }
            if index == count {
                return self.finish().await;
            }
            let due = job.pace.due(base, index, &mut prng);
            if due > now {
                self.writer.flush_and_wait(due).await?;
                now = Instant::now();
            } else if self.writer.out.len() >= MAX_BATCH {
                self.writer.flush().await?;
            }
            match job.plan.payload {
                Payload::NoChoices => self.frames.no_choices(&mut self.writer.out),
                Payload::Text | Payload::CutToolCall | Payload::Giant(_) | Payload::Endless => {
                    self.frames.token(&mut self.writer.out, &self.reply.pieces, index);
                    self.writer.tokens += 1;
                }
            }
            index += 1;
        }
    }

    /// What a plan does in the middle of a reply.
    async fn stop(mut self, stop: Stop) -> Result<After, Lost> {
        match stop {
            Stop::Stall => self.writer.hold(self.writer.job.limits.hold).await,
            Stop::StallWithComments => {
                let end = Instant::now() + self.writer.job.limits.hold;
                self.beat(end, None).await?;
                self.writer.break_off(After::Close).await
            }
            Stop::Reset => self.writer.break_off(After::Reset).await,
            Stop::Close => self.writer.break_off(After::Close).await,
            Stop::EndBody | Stop::BadJson => self.end_body().await,
            Stop::ErrorEvent => {
                self.frames.event(&mut self.writer.out, ERROR_EVENT);
                self.end_body().await
            }
        }
    }

    /// Ends the body in good order although the reply is none.
    async fn end_body(mut self) -> Result<After, Lost> {
        self.frames.last_chunk(&mut self.writer.out);
        let after = self.writer.job.after(self.framing);
        self.writer.break_off(after).await
    }

    async fn finish(mut self) -> Result<After, Lost> {
        let plan = &self.writer.job.plan;
        let out = &mut self.writer.out;
        if plan.payload == Payload::NoChoices {
            self.frames.no_choices(out);
        } else {
            self.frames.finish(out, self.reply.finish.name());
        }
        if let Tail::HoldAfterFinish(duration) = plan.tail {
            return self.writer.hold(duration).await;
        }
        if self.chat.include_usage && !plan.no_usage {
            self.frames.usage(out, &Usage::of(self.chat, self.reply).json());
        }
        if plan.tail != Tail::NoDone {
            self.frames.done(out);
        }
        if let Tail::HoldAfterDone(duration) = plan.tail {
            self.writer.flight.complete();
            return self.writer.hold(duration).await;
        }
        self.frames.last_chunk(out);
        self.writer.complete(self.framing).await
    }

    async fn error_after_pings(mut self) -> Result<After, Lost> {
        self.role();
        for _ in 0..2 {
            self.writer.flush_and_wait(Instant::now() + PING).await?;
            self.frames.comment(&mut self.writer.out, "ping");
        }
        self.frames.event(&mut self.writer.out, ERROR_EVENT);
        self.end_body().await
    }

    /// The role, and then signs of life until `end`.
    async fn think(&mut self, end: Instant) -> Result<(), Lost> {
        self.role();
        let delta = match self.writer.job.plan.opening {
            Opening::Reasoning(_) => Some(r#"{"reasoning_content":"Thinking about it. "}"#),
            Opening::Comments(_) | Opening::Nothing | Opening::ErrorAfterPings => None,
        };
        self.beat(end, delta).await
    }

    /// A comment, or `delta`, each second until `end`.
    async fn beat(&mut self, end: Instant, delta: Option<&str>) -> Result<(), Lost> {
        let mut next = Instant::now() + BEAT;
        while next < end {
            self.writer.flush_and_wait(next).await?;
            match delta {
                Some(delta) => self.frames.delta(&mut self.writer.out, delta),
                None => self.frames.comment(&mut self.writer.out, "keepalive"),
            }
            next += BEAT;
        }
        self.writer.flush_and_wait(end).await
    }

    async fn cut_tool_call(mut self) -> Result<After, Lost> {
        let out = &mut self.writer.out;
        self.frames.delta(
            out,
            r#"{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_sim_1","type":"function","function":{"name":"lookup","arguments":""}}]}"#,
        );
        for part in CUT_ARGUMENTS {
            let part = serde_json::Value::from(part);
            self.frames.delta(
                out,
                &format!(r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":{part}}}}}]}}"#),
            );
        }
        self.end_body().await
    }

    async fn giant(mut self, bytes: u64) -> Result<After, Lost> {
        self.role();
        // The event's beginning and end are those of an ordinary token, with the filler as its text.
        let (head, tail) = self.frames.around_text();
        self.frames.emit(&mut self.writer.out, &head);
        self.writer.filler(self.framing, bytes).await?;
        self.frames.emit(&mut self.writer.out, &tail);
        self.writer.tokens += 1;
        self.frames.finish(&mut self.writer.out, Finish::Stop.name());
        self.frames.done(&mut self.writer.out);
        self.frames.last_chunk(&mut self.writer.out);
        self.writer.complete(self.framing).await
    }

    async fn endless(mut self) -> Result<After, Lost> {
        self.role();
        crate::sse::push_body(
            &mut self.writer.out,
            b"data: ",
            Fragments::Whole,
            self.framing == Framing::Close,
        );
        self.writer.filler(self.framing, self.writer.job.limits.endless_bytes).await?;
        self.writer.break_off(After::Reset).await
    }
}

/// Arguments of a tool call that end in the middle of a string.
pub(crate) const CUT_ARGUMENTS: [&str; 3] = ["{\"query\":", " \"opening hours", " of the"];
