//! One connection's bytes: reading, writing, waiting, and noticing at once that the client is gone.
//!
//! Every wait of a reply goes through [`Conn::wait_until`] or [`Conn::send`], and both look at the reading half of
//! the socket meanwhile. What a client sends early (pipelined requests) is kept for later; the end of its stream
//! means that it left. There is one timer per connection, moved rather than made anew for each token.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};

/// Bytes a client may send ahead while it is being answered; beyond them it is not read until its reply is over.
const MAX_EARLY_BYTES: usize = 64 * 1024;
/// How long a connection lingers after an early answer, so that the answer is not lost in a reset.
const LINGER: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(20);
const LINGER_BYTES: usize = 1024 * 1024;

/// Why a reply cannot be continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The client closed or reset the connection.
    Gone,
    /// The client keeps the connection but does not read.
    Stuck,
}

/// What becomes of the connection after a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// It waits for the next request.
    KeepAlive,
    /// The same, but closes after being idle for this long.
    IdleFor(Duration),
    /// It is closed in order.
    Close,
    /// It is closed in order once the client's late bytes are read: for an answer to an unread request.
    CloseLingering,
    /// It is reset. In memory there are no resets, so it is only dropped.
    Reset,
}

/// What only sockets can do.
pub(crate) struct Hooks<I> {
    /// Makes dropping the connection a reset.
    pub(crate) make_reset: fn(&I),
    /// Whether the client has left, told without reading what it sent before.
    pub(crate) has_left: fn(&mut I, &mut Context<'_>) -> bool,
}

impl<I> Hooks<I> {
    pub(crate) fn none() -> Self {
        Self { make_reset: |_| {}, has_left: |_, _| false }
    }
}

pub(crate) struct Conn<I> {
    io: I,
    hooks: Hooks<I>,
    timer: Pin<Box<Sleep>>,
    write_timeout: Duration,
    /// What was read and not yet consumed.
    pub(crate) inbox: BytesMut,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Conn<I> {
    pub(crate) fn new(io: I, hooks: Hooks<I>, write_timeout: Duration) -> Self {
        let timer = Box::pin(sleep_until(Instant::now()));
        Self { io, hooks, timer, write_timeout, inbox: BytesMut::new() }
    }

    /// Reads more into the inbox; 0 is the end of the client's stream.
    pub(crate) async fn read_more(&mut self, deadline: Instant) -> Result<usize, ReadError> {
        self.inbox.reserve(4096);
        match timeout_at(deadline, self.io.read_buf(&mut self.inbox)).await {
            Ok(Ok(count)) => Ok(count),
            Ok(Err(_)) => Err(ReadError::Io),
            Err(_) => Err(ReadError::Deadline),
        }
    }

    /// Waits, for no time at all when `at` has passed, unless the client leaves first.
    pub(crate) async fn wait_until(&mut self, at: Instant) -> Result<(), Lost> {
        if at <= Instant::now() {
            return poll_fn(|cx| {
                Poll::Ready(match self.poll_gone(cx) {
                    Poll::Ready(lost) => Err(lost),
                    Poll::Pending => Ok(()),
                })
            })
            .await;
        }
        self.timer.as_mut().reset(at);
        poll_fn(|cx| {
            if let Poll::Ready(lost) = self.poll_gone(cx) {
                return Poll::Ready(Err(lost));
            }
            self.timer.as_mut().poll(cx).map(Ok)
        })
        .await
    }

    /// Waits for `duration`, unless the client leaves first.
    pub(crate) async fn wait(&mut self, duration: Duration) -> Result<(), Lost> {
        self.wait_until(Instant::now() + duration).await
    }

    /// Waits without reading anything. A client that leaves is noticed only where [`Hooks::has_left`] can tell.
    pub(crate) async fn ignore(&mut self, duration: Duration) -> Result<(), Lost> {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            if poll_fn(|cx| Poll::Ready((self.hooks.has_left)(&mut self.io, cx))).await {
                return Err(Lost::Gone);
            }
            // Looked at now and then, because readiness says nothing new once there are bytes to be read.
            self.timer.as_mut().reset(end.min(Instant::now() + LOOK));
            self.timer.as_mut().await;
        }
        Ok(())
    }

    /// Writes all of `out` and empties it.
    pub(crate) async fn send(&mut self, out: &mut Vec<u8>) -> Result<(), Lost> {
        let mut sent = 0;
        // Nearly every write fits the socket's buffer at once, and then needs no timer.
        let first = poll_fn(|cx| Poll::Ready(self.poll_send(cx, out, &mut sent))).await;
        let result = match first {
            Poll::Ready(result) => result,
            Poll::Pending => {
                self.timer.as_mut().reset(Instant::now() + self.write_timeout);
                poll_fn(|cx| {
                    if let Poll::Ready(result) = self.poll_send(cx, out, &mut sent) {
                        return Poll::Ready(result);
                    }
                    if let Poll::Ready(lost) = self.poll_gone(cx) {
                        return Poll::Ready(Err(lost));
                    }
                    self.timer.as_mut().poll(cx).map(|()| Err(Lost::Stuck))
                })
                .await
            }
        };
        out.clear();
        result
    }

    /// Ends the connection as told. Consumes it, because nothing may follow.
    pub(crate) async fn close(mut self, how: After) {
        if how == After::Reset {
            (self.hooks.make_reset)(&self.io);
            return;
        }
        let deadline = Instant::now() + LINGER;
        // An error means that the client closed first.
        let _ = timeout_at(deadline, poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx))).await;
        if how == After::CloseLingering {
            let mut read = 0;
            while read < LINGER_BYTES {
                self.inbox.clear();
                match self.read_more(deadline).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => read += count,
                }
            }
        }
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        out: &[u8],
        sent: &mut usize,
    ) -> Poll<Result<(), Lost>> {
        while *sent < out.len() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &out[*sent..])) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Lost::Gone)),
                Ok(count) => *sent += count,
            }
        }
        Pin::new(&mut self.io).poll_flush(cx).map(|result| result.map_err(|_| Lost::Gone))
    }

    /// Ready when the client has left. Pending without a wake-up once the inbox is full: the callers have another one.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Lost> {
        while self.inbox.len() < MAX_EARLY_BYTES {
            let mut chunk = [0; 512];
            let mut buffer = ReadBuf::new(&mut chunk);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer)) {
                Ok(()) if buffer.filled().is_empty() => return Poll::Ready(Lost::Gone),
                Ok(()) => self.inbox.extend_from_slice(buffer.filled()),
                Err(_) => return Poll::Ready(Lost::Gone),
            }
        }
        Poll::Pending
    }
}

/// Why a request could not be read on.
#[derive(Debug)]
pub(crate) enum ReadError {
    Deadline,
    Io,
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn pair(capacity: usize) -> (Conn<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (ours, theirs) = duplex(capacity);
        (Conn::new(ours, Hooks::none(), SECOND), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_the_client_leaves_and_keeps_what_it_sent() {
        let (mut conn, mut client) = pair(64);
        let started = Instant::now();
        let leave = async {
            tokio::time::sleep(SECOND).await;
            client.write_all(b"early").await.unwrap();
            tokio::time::sleep(SECOND).await;
            drop(client);
        };
        let (result, ()) = tokio::join!(conn.wait(SECOND * 60), leave);
        assert_eq!((result, started.elapsed()), (Err(Lost::Gone), SECOND * 2));
        assert_eq!(&conn.inbox[..], b"early");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_in_the_past_still_notices_that_the_client_left() {
        let (mut conn, client) = pair(64);
        assert_eq!(conn.wait(Duration::ZERO).await, Ok(()));
        drop(client);
        assert_eq!(conn.wait(Duration::ZERO).await, Err(Lost::Gone));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_is_given_up() {
        let (mut conn, client) = pair(8);
        let started = Instant::now();
        let mut out = vec![b'x'; 64];
        assert_eq!(conn.send(&mut out).await, Err(Lost::Stuck));
        assert_eq!(started.elapsed(), SECOND);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_write_notices_that_the_client_left() {
        let (mut conn, client) = pair(8);
        let started = Instant::now();
        let mut out = vec![b'x'; 64];
        let leave = async {
            tokio::time::sleep(SECOND / 2).await;
            drop(client);
        };
        let (result, ()) = tokio::join!(conn.send(&mut out), leave);
        assert_eq!((result, started.elapsed()), (Err(Lost::Gone), SECOND / 2));
    }
}
