//! An answer in one piece: a chat completion that is not streamed, or embeddings.
//!
//! It takes the time that the same reply would take as a stream. A fault that strikes after so many tokens strikes
//! here in the middle of the body.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::conn::{After, Lost};
use crate::frames::{Fragments, push_body};
use crate::http::{Framing, LAST_CHUNK};
use crate::job::{BEAT, PING, Writer};
use crate::plan::{Opening, Payload, Start, Stop, overloaded, server_error};

/// Sends `body`, which is worth `tokens`, as the plan wants it.
pub(crate) async fn whole<I: AsyncRead + AsyncWrite + Unpin>(
    writer: Writer<'_, '_, I>,
    body: Vec<u8>,
    tokens: u32,
) -> Result<After, Lost> {
    Whole { writer, body, tokens }.run().await
}

const JSON: &str = "application/json";

struct Whole<'w, 'f, I> {
    writer: Writer<'w, 'f, I>,
    body: Vec<u8>,
    tokens: u32,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Whole<'_, '_, I> {
    async fn run(mut self) -> Result<After, Lost> {
        let job = self.writer.job;
        match job.plan.payload {
            Payload::Text | Payload::NoChoices | Payload::CutToolCall => {}
            Payload::Giant(bytes) => return self.giant(bytes).await,
            Payload::Endless => return self.endless().await,
        }
        if job.plan.wire.bom {
            self.body.splice(0..0, *b"\xEF\xBB\xBF");
        }
        let thinking = match job.plan.opening {
            Opening::Nothing => Duration::ZERO,
            Opening::Comments(duration) | Opening::Reasoning(duration) => duration,
            Opening::ErrorAfterPings => {
                self.body = job.dialect.error_body(&server_error()).into();
                PING * 2
            }
        };
        let broken = match job.plan.stop {
            Some((_, Stop::ErrorEvent)) => {
                self.body = job.dialect.error_body(&server_error()).into();
                true
            }
            Some((_, Stop::OverloadedEvent)) => {
                self.body = job.dialect.error_body(&overloaded()).into();
                true
            }
            Some((_, Stop::BadJson)) => {
                self.body.splice(1..1, *b"oops: ");
                true
            }
            Some((_, Stop::EndBody)) => {
                self.body.truncate(self.body.len() / 2);
                true
            }
            Some((
                _,
                stop @ (Stop::Stall | Stop::StallWithComments | Stop::Reset | Stop::Close),
            )) => {
                return self.break_off(stop).await;
            }
            None => job.plan.opening == Opening::ErrorAfterPings,
        };
        let framing = self.framing();
        self.head(framing, thinking).await?;
        push_body(
            &mut self.writer.out,
            &self.body,
            job.plan.wire.fragments,
            framing != Framing::Chunked,
        );
        if framing == Framing::Chunked {
            self.writer.out.extend_from_slice(LAST_CHUNK);
        }
        if broken {
            let after = job.after(framing);
            return self.writer.break_off(after).await;
        }
        self.writer.tokens = u64::from(self.tokens);
        self.writer.complete(framing).await
    }

    /// A length, unless the plan is about chunks or about having none.
    fn framing(&self) -> Framing {
        let wire = self.writer.job.plan.wire;
        if wire.close_delimited || wire.fragments != Fragments::Whole {
            self.writer.job.open_framing()
        } else {
            Framing::Length(self.body.len())
        }
    }

    /// The head, written once the reply is ready; or at once, if the plan says so, and then the wait.
    async fn head(&mut self, framing: Framing, thinking: Duration) -> Result<(), Lost> {
        let job = self.writer.job;
        let mut prng = job.prng.clone();
        let ready = job.pace.due(job.started, self.tokens.saturating_sub(1), &mut prng) + thinking;
        self.writer.head(framing, JSON, ready).await?;
        if job.plan.start == Start::AtOnce {
            self.writer.flush_and_wait(ready).await?;
        }
        Ok(())
    }

    /// Half of the body, and then what the plan says.
    async fn break_off(mut self, stop: Stop) -> Result<After, Lost> {
        let job = self.writer.job;
        let framing = match stop {
            Stop::Close => job.open_framing(),
            Stop::StallWithComments if job.chunks => Framing::Chunked,
            Stop::StallWithComments => Framing::Close,
            Stop::Stall
            | Stop::Reset
            | Stop::EndBody
            | Stop::ErrorEvent
            | Stop::OverloadedEvent
            | Stop::BadJson => Framing::Length(self.body.len()),
        };
        self.head(framing, Duration::ZERO).await?;
        let half = &self.body[..self.body.len() / 2];
        match stop {
            // Blank lines before the body, as providers send them while a request is waiting.
            Stop::StallWithComments => {
                let end = Instant::now() + job.limits.hold;
                while Instant::now() < end {
                    push_body(
                        &mut self.writer.out,
                        b"\n",
                        Fragments::Whole,
                        framing != Framing::Chunked,
                    );
                    self.writer.flush_and_wait(Instant::now() + BEAT).await?;
                }
                self.writer.break_off(After::Close).await
            }
            Stop::Stall => {
                self.writer.out.extend_from_slice(half);
                self.writer.hold(job.limits.hold).await
            }
            Stop::Reset => {
                self.writer.out.extend_from_slice(half);
                self.writer.break_off(After::Reset).await
            }
            Stop::Close
            | Stop::EndBody
            | Stop::ErrorEvent
            | Stop::OverloadedEvent
            | Stop::BadJson => {
                push_body(
                    &mut self.writer.out,
                    half,
                    Fragments::Whole,
                    framing != Framing::Chunked,
                );
                self.writer.break_off(After::Close).await
            }
        }
    }

    /// The good body, preceded by a member of so many bytes.
    async fn giant(mut self, bytes: u64) -> Result<After, Lost> {
        let framing = self.writer.job.open_framing();
        let plain = framing != Framing::Chunked;
        self.head(framing, Duration::ZERO).await?;
        push_body(&mut self.writer.out, b"{\"filler\":\"", Fragments::Whole, plain);
        self.writer.filler(framing, bytes).await?;
        push_body(&mut self.writer.out, b"\",", Fragments::Whole, plain);
        push_body(&mut self.writer.out, &self.body[1..], Fragments::Whole, plain);
        if !plain {
            self.writer.out.extend_from_slice(LAST_CHUNK);
        }
        self.writer.complete(framing).await
    }

    async fn endless(mut self) -> Result<After, Lost> {
        let framing = self.writer.job.open_framing();
        self.head(framing, Duration::ZERO).await?;
        push_body(
            &mut self.writer.out,
            b"{\"filler\":\"",
            Fragments::Whole,
            framing != Framing::Chunked,
        );
        self.writer.filler(framing, self.writer.job.limits.endless_bytes).await?;
        self.writer.break_off(After::Reset).await
    }
}
