//! A streamed reply: events in chunks, each token at its time.
//!
//! Tokens that are due together leave in one write, so a simulator that falls behind gets cheaper rather than later.
//! The same for every dialect: what the events say comes from its words.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::conn::{After, Lost};
use crate::dialect::{Event, Part, Syntax, TEXT, Told, Words};
use crate::frames::{Fragments, Frames, Wire, push_body};
use crate::http::Framing;
use crate::job::{BEAT, PING, Writer};
use crate::plan::{Opening, Payload, Start, Stop, Tail, overloaded, server_error};
use crate::prng::Prng;
use crate::reply::Reply;
use crate::usage::Usage;

/// Tokens that are due at once are sent when this many bytes have come together.
const MAX_BATCH: usize = 16 * 1024;

/// Writes the whole reply.
pub(crate) async fn stream<I: AsyncRead + AsyncWrite + Unpin>(
    writer: Writer<'_, '_, I>,
    words: &dyn Words,
    reply: &Reply,
    usage: Option<Usage>,
) -> Result<After, Lost> {
    let job = writer.job;
    let framing = job.open_framing();
    let wire = Wire { close_delimited: framing == Framing::Close, ..job.plan.wire };
    let frames = Frames::new(wire, job.dialect.syntax());
    let parts = reply.parts();
    let told = Told { parts: &parts, finish: reply.finish, usage };
    Stream { writer, frames, framing, words, told, prng: job.prng.clone() }.run().await
}

struct Stream<'w, 'f, 'r, I> {
    writer: Writer<'w, 'f, I>,
    frames: Frames,
    framing: Framing,
    words: &'r dyn Words,
    told: Told<'r>,
    prng: Prng,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Stream<'_, '_, '_, I> {
    async fn run(mut self) -> Result<After, Lost> {
        let job = self.writer.job;
        // Whatever comes before the first token needs the head at once.
        let opened = job.plan.opening != Opening::Nothing;
        let first = if opened { job.started } else { job.started + job.pace.ttft };
        let mut base = self.writer.head(self.framing, job.dialect.stream_type(), first).await?;
        if job.plan.start == Start::AtOnce && !opened {
            self.writer.conn.wait_until(base + job.pace.ttft).await?;
        }
        self.frames.begin(&mut self.writer.out);
        match self.words.no_choices().filter(|_| job.plan.payload == Payload::NoChoices) {
            Some(event) => self.frames.event(&mut self.writer.out, &event),
            None => self.frames.events(&mut self.writer.out, &self.words.open()),
        }
        let (main, thoughts) = match self.told.parts {
            [thoughts, main] => (main, Some(thoughts)),
            [main] => (main, None),
            _ => return self.end_body().await,
        };
        match job.plan.opening {
            Opening::Nothing => {}
            Opening::ErrorAfterPings => return self.error_after_pings().await,
            Opening::Comments(duration) | Opening::Reasoning(duration) => {
                let end = base + duration;
                let thoughts =
                    thoughts.filter(|_| job.plan.opening == Opening::Reasoning(duration));
                self.beat(end, thoughts).await?;
                // The first token follows the thinking at once.
                base = end.checked_sub(job.pace.ttft).unwrap_or(end);
            }
        }
        let mut offset = 0;
        if let Some(part) = thoughts.filter(|_| !matches!(job.plan.opening, Opening::Reasoning(_)))
        {
            self.think(part, base).await?;
            offset = part.pieces.len();
        }
        let place = self.told.parts.len() - 1;
        match job.plan.payload {
            Payload::NoChoices => self.nothing(main, base, offset).await,
            Payload::Text | Payload::CutToolCall => {
                self.begin(main, place);
                self.tokens(main, base, offset).await
            }
            Payload::Giant(bytes) => {
                self.begin(main, place);
                self.giant(bytes).await
            }
            Payload::Endless => self.endless().await,
        }
    }

    /// The beginning of a part, whose tokens follow.
    fn begin(&mut self, part: &Part<'_>, place: usize) {
        self.frames.events(&mut self.writer.out, &self.words.begin(part, place));
        self.frames.tokens_look_like(self.words.piece(part, place, TEXT).as_ref());
    }

    /// The pieces of the thoughts, at the pace of tokens.
    async fn think(&mut self, part: &Part<'_>, base: Instant) -> Result<(), Lost> {
        self.begin(part, 0);
        for index in 0..part.pieces.len() {
            self.wait_for(base, index).await?;
            self.frames.token(&mut self.writer.out, part.pieces, index);
            self.writer.tokens += 1;
        }
        self.frames.events(&mut self.writer.out, &self.words.end(part, 0));
        Ok(())
    }

    async fn tokens(mut self, part: &Part<'_>, base: Instant, offset: u32) -> Result<After, Lost> {
        let job = self.writer.job;
        let count = part.pieces.len();
        let mut stop = job.plan.stop.map(|(at, stop)| (at.min(count), stop));
        let mut index = 0;
        loop {
            if let Some((_, what)) = stop.take_if(|(at, _)| *at == index) {
                match what {
                    Stop::BadJson => {
                        let event = Event::plain("{\"id\": oops");
                        self.frames.event(&mut self.writer.out, &event);
                    }
                    Stop::Stall
                    | Stop::StallWithComments
                    | Stop::Reset
                    | Stop::Close
                    | Stop::EndBody
                    | Stop::ErrorEvent
                    | Stop::OverloadedEvent => return self.stop(what, index > 0).await,
                }
            }
            if index == count {
                break;
            }
            self.wait_for(base, offset.saturating_add(index)).await?;
            self.frames.token(&mut self.writer.out, part.pieces, index);
            self.writer.tokens += 1;
            index += 1;
        }
        if job.plan.payload == Payload::CutToolCall {
            self.cut_call().await
        } else {
            self.finish().await
        }
    }

    /// Waits until token `index` is due, with everything sent before; or only makes room.
    async fn wait_for(&mut self, base: Instant, index: u32) -> Result<(), Lost> {
        let due = self.writer.job.pace.due(base, index, &mut self.prng);
        if due > Instant::now() {
            self.writer.flush_and_wait(due).await
        } else if self.writer.out.len() >= MAX_BATCH {
            self.writer.flush().await
        } else {
            Ok(())
        }
    }

    /// What a plan does in the middle of a reply; `begun` tells whether output came before.
    async fn stop(mut self, stop: Stop, begun: bool) -> Result<After, Lost> {
        let problem = match stop {
            Stop::Stall => return self.writer.hold(self.writer.job.limits.hold).await,
            Stop::StallWithComments => {
                let end = Instant::now() + self.writer.job.limits.hold;
                self.beat(end, None).await?;
                return self.writer.break_off(After::Close).await;
            }
            Stop::Reset => return self.writer.break_off(After::Reset).await,
            Stop::Close => return self.writer.break_off(After::Close).await,
            Stop::EndBody | Stop::BadJson => return self.end_body().await,
            Stop::ErrorEvent => server_error(),
            Stop::OverloadedEvent => overloaded(),
        };
        let event = self.words.error(&problem, begun);
        self.frames.event(&mut self.writer.out, &event);
        self.end_body().await
    }

    /// Ends the body in good order although the reply is none.
    async fn end_body(mut self) -> Result<After, Lost> {
        self.frames.last_chunk(&mut self.writer.out);
        let after = self.writer.job.after(self.framing);
        self.writer.break_off(after).await
    }

    async fn finish(mut self) -> Result<After, Lost> {
        let plan = &self.writer.job.plan;
        let (out, words, told) = (&mut self.writer.out, self.words, &self.told);
        if let Some(part) = told.parts.last() {
            self.frames.events(out, &words.end(part, told.parts.len() - 1));
        }
        match words.no_choices().filter(|_| plan.payload == Payload::NoChoices) {
            Some(event) => self.frames.event(out, &event),
            None => self.frames.events(out, &words.finish(told)),
        }
        if let Tail::HoldAfterFinish(duration) = plan.tail {
            return self.writer.hold(duration).await;
        }
        self.frames.events(out, &words.usage(told));
        if plan.tail != Tail::NoDone {
            self.frames.events(out, &words.done(told));
        }
        if let Tail::HoldAfterDone(duration) = plan.tail {
            self.writer.flight.complete();
            return self.writer.hold(duration).await;
        }
        self.frames.last_chunk(out);
        self.writer.complete(self.framing).await
    }

    /// A reply that offers nothing, at the pace of one that does.
    async fn nothing(mut self, part: &Part<'_>, base: Instant, offset: u32) -> Result<After, Lost> {
        for index in 0..part.pieces.len() {
            self.wait_for(base, offset.saturating_add(index)).await?;
            if let Some(event) = self.words.no_choices() {
                self.frames.event(&mut self.writer.out, &event);
            }
        }
        self.told.parts = &[];
        self.finish().await
    }

    async fn error_after_pings(mut self) -> Result<After, Lost> {
        for _ in 0..2 {
            self.writer.flush_and_wait(Instant::now() + PING).await?;
            self.alive("ping");
        }
        let event = self.words.error(&server_error(), false);
        self.frames.event(&mut self.writer.out, &event);
        self.end_body().await
    }

    /// A sign of life: the dialect's own, or a comment.
    fn alive(&mut self, text: &str) {
        match self.words.ping() {
            Some(event) => self.frames.event(&mut self.writer.out, &event),
            None => self.frames.comment(&mut self.writer.out, text),
        }
    }

    /// A thought, if there are any, or else a sign of life, each second until `end`.
    async fn beat(&mut self, end: Instant, thoughts: Option<&Part<'_>>) -> Result<(), Lost> {
        if let Some(part) = thoughts {
            self.begin(part, 0);
        }
        let mut next = Instant::now() + BEAT;
        let mut index = 0;
        while next < end {
            self.writer.flush_and_wait(next).await?;
            match thoughts.filter(|part| index < part.pieces.len()) {
                Some(part) => {
                    self.frames.token(&mut self.writer.out, part.pieces, index);
                    index += 1;
                }
                None => self.alive("keepalive"),
            }
            next += BEAT;
        }
        self.writer.flush_and_wait(end).await?;
        if let Some(part) = thoughts {
            self.frames.events(&mut self.writer.out, &self.words.end(part, 0));
        }
        Ok(())
    }

    /// The arguments broke off. A dialect that tells calls whole tells what there is.
    async fn cut_call(mut self) -> Result<After, Lost> {
        if let Some(part) = self.told.parts.last()
            && self.words.piece(part, 0, "").is_none()
        {
            self.frames.events(&mut self.writer.out, &self.words.end(part, 0));
        }
        self.end_body().await
    }

    async fn giant(mut self, bytes: u64) -> Result<After, Lost> {
        // The event's beginning and end are those of an ordinary token, with the filler as its text.
        let (head, tail) = self.frames.around_text();
        self.frames.emit(&mut self.writer.out, &head);
        self.writer.filler(self.framing, bytes).await?;
        self.frames.emit(&mut self.writer.out, &tail);
        self.writer.tokens += 1;
        self.finish().await
    }

    async fn endless(mut self) -> Result<After, Lost> {
        let start: &[u8] = match self.writer.job.dialect.syntax() {
            Syntax::Events => b"data: ",
            Syntax::Lines => b"{\"filler\":\"",
        };
        let plain = self.framing == Framing::Close;
        push_body(&mut self.writer.out, start, Fragments::Whole, plain);
        self.writer.filler(self.framing, self.writer.job.limits.endless_bytes).await?;
        self.writer.break_off(After::Reset).await
    }
}
