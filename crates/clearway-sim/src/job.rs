//! What streamed and whole answers have in common: pace, head, framing, and what is said when a reply breaks off.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::conn::{After, Conn, Lost};
use crate::dialect::Dialect;
use crate::frames::{Fragments, push_body};
use crate::http::{Framing, push_head};
use crate::options::Limits;
use crate::plan::{Ending, Plan, Start};
use crate::prng::Prng;
use crate::stats::{Counters, Flight};

/// How often a silent reply shows that it is alive.
pub(crate) const BEAT: Duration = Duration::from_secs(1);
/// How far apart the pings before an early error are.
pub(crate) const PING: Duration = Duration::from_millis(250);
/// Filler is written in blocks of this size.
const BLOCK: usize = 64 * 1024;

/// When tokens are due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) ttft: Duration,
    pub(crate) interval: Duration,
    /// 0 to 1.
    pub(crate) jitter: f64,
}

impl Pace {
    /// When token `index` of a reply that began at `base` is due. Counted from the base, not from the token before,
    /// so that the rate does not drift; the jitter is at most half an interval either way, so the order stays.
    pub(crate) fn due(&self, base: Instant, index: u32, prng: &mut Prng) -> Instant {
        let mut offset = self.ttft + self.interval * index;
        if self.jitter > 0.0 && index > 0 {
            let shift = self.interval.mul_f64(self.jitter * prng.next_f64());
            offset = offset + shift - self.interval.mul_f64(self.jitter / 2.0);
        }
        // A reply of a million tokens a day apart is beyond what a clock can say; it never comes either way.
        base.checked_add(offset).unwrap_or(base + NEVER)
    }
}

const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// One answer to be given.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) plan: Plan,
    pub(crate) pace: Pace,
    pub(crate) started: Instant,
    pub(crate) dialect: Dialect,
    /// Headers besides the content type.
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) keep_alive: bool,
    /// Whether the client understands chunks.
    pub(crate) chunks: bool,
    pub(crate) prng: Prng,
    pub(crate) counters: &'a Counters,
    pub(crate) limits: &'a Limits,
}

impl Job<'_> {
    /// The framing of a body of unknown length.
    pub(crate) fn open_framing(&self) -> Framing {
        if self.chunks && !self.plan.wire.close_delimited {
            Framing::Chunked
        } else {
            Framing::Close
        }
    }

    /// Whether the connection can be kept after a body framed like this.
    fn keeps(&self, framing: Framing) -> bool {
        self.keep_alive && framing != Framing::Close
    }

    /// What becomes of the connection after a reply that ended well.
    pub(crate) fn after(&self, framing: Framing) -> After {
        match self.plan.ending {
            Ending::Close => After::Close,
            Ending::IdleFor(_) | Ending::KeepAlive if !self.keeps(framing) => After::Close,
            Ending::IdleFor(idle) => After::IdleFor(idle),
            Ending::KeepAlive => After::KeepAlive,
        }
    }
}

/// An answer being written.
pub(crate) struct Writer<'a, 'f, I> {
    pub(crate) conn: &'a mut Conn<I>,
    pub(crate) flight: &'a mut Flight<'f>,
    pub(crate) job: &'a Job<'f>,
    pub(crate) out: Vec<u8>,
    /// Tokens in `out`.
    pub(crate) tokens: u64,
}

impl<'a, 'f, I: AsyncRead + AsyncWrite + Unpin> Writer<'a, 'f, I> {
    pub(crate) fn new(conn: &'a mut Conn<I>, flight: &'a mut Flight<'f>, job: &'a Job<'f>) -> Self {
        Self { conn, flight, job, out: Vec::with_capacity(1024), tokens: 0 }
    }

    /// Sends what has been written.
    pub(crate) async fn flush(&mut self) -> Result<(), Lost> {
        if self.tokens > 0 {
            self.job.counters.tokens(std::mem::take(&mut self.tokens));
        }
        if self.out.is_empty() { Ok(()) } else { self.conn.send(&mut self.out).await }
    }

    /// Waits until `at`, with everything sent that was written before.
    pub(crate) async fn flush_and_wait(&mut self, at: Instant) -> Result<(), Lost> {
        self.flush().await?;
        self.conn.wait_until(at).await
    }

    /// Sends the last bytes of a good reply. The books are settled first: see [`Flight::complete`].
    pub(crate) async fn complete(&mut self, framing: Framing) -> Result<After, Lost> {
        self.flight.complete();
        self.flush().await?;
        Ok(self.job.after(framing))
    }

    /// Sends what there is and breaks off.
    pub(crate) async fn break_off(&mut self, after: After) -> Result<After, Lost> {
        self.flight.release();
        self.flush().await?;
        Ok(after)
    }

    /// Sends what there is and keeps the connection open, without a word, as long as a fault may.
    pub(crate) async fn hold(&mut self, duration: Duration) -> Result<After, Lost> {
        self.flush_and_wait(Instant::now() + duration.min(self.job.limits.hold)).await?;
        self.flight.release();
        Ok(After::Close)
    }

    /// Writes the head as the plan wants it, and says when the reply itself begins.
    pub(crate) async fn head(
        &mut self,
        framing: Framing,
        content_type: &str,
        first: Instant,
    ) -> Result<Instant, Lost> {
        let job = self.job;
        let content_type = job.plan.content_type.unwrap_or(content_type);
        let mut headers = vec![("content-type", content_type), ("cache-control", "no-cache")];
        headers.extend(job.headers.iter().map(|(name, value)| (*name, value.as_str())));
        let mut head = Vec::with_capacity(512);
        push_head(&mut head, 200, framing, job.keeps(framing), &headers);
        match job.plan.start {
            Start::AtOnce => {
                self.out.extend_from_slice(&head);
                self.flush().await?;
            }
            Start::WithFirstToken => {
                self.conn.wait_until(first).await?;
                self.out.extend_from_slice(&head);
            }
            Start::After(delay) => {
                self.conn.wait_until(first + delay).await?;
                self.out.extend_from_slice(&head);
                return Ok(job.started + delay);
            }
            Start::ByteByByte(gap) => {
                let begin = Instant::now();
                for (at, byte) in (0_u32..).zip(&head) {
                    self.conn.wait_until(begin + gap * at).await?;
                    self.out.push(*byte);
                    self.flush().await?;
                }
                return Ok(Instant::now());
            }
        }
        Ok(job.started)
    }

    /// Sends `count` bytes of filler, in chunks if the body has them.
    pub(crate) async fn filler(&mut self, framing: Framing, mut count: u64) -> Result<(), Lost> {
        self.flush().await?;
        let block = vec![b'x'; BLOCK];
        while count > 0 {
            let size = usize::try_from(count).unwrap_or(BLOCK).min(BLOCK);
            let plain = framing != Framing::Chunked;
            push_body(&mut self.out, &block[..size], Fragments::Whole, plain);
            self.flush().await?;
            count -= size as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokens_keep_their_rate_and_order_under_jitter() {
        let ms = Duration::from_millis;
        let base = Instant::now();
        let pace = Pace { ttft: ms(50), interval: ms(100), jitter: 1.0 };
        let mut prng = Prng::new(1);
        let due: Vec<_> = (0..1000).map(|index| pace.due(base, index, &mut prng)).collect();
        assert_eq!(due[0], base + ms(50));
        assert!(due.is_sorted());
        let last = due[999] - base;
        assert!(last >= ms(50 + 99_900 - 50) && last <= ms(50 + 99_900 + 50), "{last:?}");
        let steady = Pace { jitter: 0.0, ..pace };
        assert_eq!(steady.due(base, 7, &mut prng), base + ms(750));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_beyond_all_clocks_is_still_an_instant() {
        let day = Duration::from_secs(86_400);
        let pace = Pace { ttft: day, interval: day, jitter: 1.0 };
        let base = Instant::now();
        assert!(pace.due(base, 1_000_000, &mut Prng::new(1)) > base + day);
    }
}
