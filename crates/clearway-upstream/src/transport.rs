//! One HTTP/1.1 request on one connection, driven by whoever waits for it.
//!
//! hyper splits a client connection into a handle and a future that does the work. Usually the
//! future is spawned; here the [`Exchange`] owns it and polls it inside its own polls. So there is
//! no task hop per token, nothing runs on behalf of a caller that left, and dropping an exchange
//! closes its socket there and then.
//!
//! **Invariant:** the connection is polled whenever the response or its body is pending, and the
//! response or body is polled again afterwards; whatever hyper passes between the two is therefore
//! never waited for.
//!
//! Not here: which connection (`pool`), time limits (`attempt`), what the bytes mean (`sse`).

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::{Request, response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::call::CallProbe;
use crate::dial::Io;
use crate::pool::Counters;

/// A connection between requests, or under one.
pub(crate) struct Link {
    sender: http1::SendRequest<Outgoing>,
    connection: http1::Connection<TokioIo<Metered>, Outgoing>,
    /// What is left of an answer whose meaning is complete; it is read away before the next request.
    remainder: Option<Incoming>,
    done: bool,
    wire: Arc<Wire>,
    relay: Arc<Relay>,
    // Last, so that the count moves after the socket is closed.
    _closed: Closed,
}

impl Link {
    /// Puts HTTP on a fresh byte stream.
    pub(crate) async fn new(io: Box<dyn Io>, counters: Arc<Counters>) -> Result<Self, WireError> {
        let wire = Arc::new(Wire::default());
        let metered = Metered { io, wire: wire.clone() };
        counters.opened.fetch_add(1, Ordering::Relaxed);
        let closed = Closed(counters);
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(metered))
            .await
            .map_err(|error| WireError::new(&error))?;
        Ok(Self {
            sender,
            connection,
            remainder: None,
            done: false,
            wire,
            relay: Arc::default(),
            _closed: closed,
        })
    }

    /// Takes up what the peer did while the connection was idle, and says whether it can take a
    /// request now. Whoever gets `false` drops the link, unless [`Link::is_settling`].
    pub(crate) fn refresh(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        // Each round takes one piece of the remainder; a peer that has more than this is not done.
        for _ in 0..REMAINDER_PIECES {
            self.drive(&mut cx);
            let Some(remainder) = &mut self.remainder else { break };
            match poll_frame(remainder) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(None) => self.remainder = None,
                Poll::Ready(Some(Err(_))) => {
                    self.done = true;
                    break;
                }
            }
        }
        !self.done && self.remainder.is_none() && self.sender.is_ready()
    }

    /// The end of the last answer has not arrived yet, and still may.
    pub(crate) const fn is_settling(&self) -> bool {
        !self.done && self.remainder.is_some()
    }

    fn drive(&mut self, cx: &mut Context<'_>) {
        if self.done {
            return;
        }
        self.relay.task.register(cx.waker());
        let waker = Waker::from(self.relay.clone());
        // Errors reach the response or the body, whichever is awaited.
        if Pin::new(&mut self.connection).poll(&mut Context::from_waker(&waker)).is_ready() {
            self.done = true;
        }
    }
}

/// One request and its answer.
///
/// Dropping it before [`Exchange::finish`] closes the connection at once.
pub(crate) struct Exchange {
    answer: Answer,
    link: Link,
    /// What had been read when the request was handed over.
    read_before: u64,
    // Last: the socket is closed when it says so.
    _probe: Connected,
}

enum Answer {
    Head(Pin<Box<dyn Future<Output = hyper::Result<http::Response<Incoming>>> + Send>>),
    Body(Incoming),
    End,
}

impl Exchange {
    /// Hands the request over; it leaves while the exchange is polled.
    pub(crate) fn start(mut link: Link, request: Request<Bytes>, probe: Connected) -> Self {
        link.wire.taken.store(false, Ordering::Relaxed);
        link.wire.sent.store(false, Ordering::Relaxed);
        let read_before = link.wire.read.load(Ordering::Relaxed);
        let wire = link.wire.clone();
        let request = request.map(|data| Outgoing { data: Some(data), wire });
        let response = link.sender.send_request(request);
        Self { answer: Answer::Head(Box::pin(response)), link, read_before, _probe: probe }
    }

    /// The whole request has left this process.
    pub(crate) fn is_sent(&self) -> bool {
        self.link.wire.sent.load(Ordering::Relaxed)
    }

    /// Something of the answer has arrived, be it half a status line.
    pub(crate) fn has_answered(&self) -> bool {
        self.link.wire.read.load(Ordering::Relaxed) > self.read_before
    }

    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<response::Parts, WireError>> {
        let Answer::Head(response) = &mut self.answer else {
            return Poll::Ready(Err(WireError::misuse("the head was taken already")));
        };
        let mut polled = response.as_mut().poll(cx);
        if polled.is_pending() {
            self.link.drive(cx);
            polled = response.as_mut().poll(cx);
        }
        match polled {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(response)) => {
                let (parts, body) = response.into_parts();
                self.answer = Answer::Body(body);
                Poll::Ready(Ok(parts))
            }
            Poll::Ready(Err(error)) => {
                self.answer = Answer::End;
                Poll::Ready(Err(WireError::new(&error)))
            }
        }
    }

    /// The next piece of the body, `None` at its proper end.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, WireError>> {
        let mut driven = false;
        loop {
            let Answer::Body(body) = &mut self.answer else {
                return Poll::Ready(Ok(None));
            };
            match poll_frame(body) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers say nothing that we need.
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Ok(Some(data)));
                    }
                }
                Poll::Ready(None) => {
                    self.answer = Answer::End;
                    return Poll::Ready(Ok(None));
                }
                Poll::Ready(Some(Err(error))) => {
                    self.answer = Answer::End;
                    return Poll::Ready(Err(WireError::new(&error)));
                }
                Poll::Pending if driven => return Poll::Pending,
                Poll::Pending => {
                    self.link.drive(cx);
                    driven = true;
                }
            }
        }
    }

    /// Gives the connection back once the answer's meaning is complete. `None` when it cannot
    /// carry another request; it is closed then.
    pub(crate) fn finish(self) -> Option<Link> {
        let Self { answer, mut link, .. } = self;
        match answer {
            Answer::Head(_) => return None,
            Answer::Body(body) => link.remainder = Some(body),
            Answer::End => {}
        }
        (link.refresh() || link.is_settling()).then_some(link)
    }
}

/// Polls a body for what the connection has put there.
///
/// Only the connection feeds the body, and only we poll the connection, so the body needs no waker.
/// Taking from it wakes the connection's waker, which would schedule the task that is just running
/// for another round; that wake is muted, since a pending body is always followed by a drive.
fn poll_frame(body: &mut Incoming) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
    MUTED.set(true);
    let polled = Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop()));
    MUTED.set(false);
    polled
}

thread_local! {
    /// This OS thread is inside [`poll_frame`]. Wakes from other threads are never muted.
    static MUTED: Cell<bool> = const { Cell::new(false) };
}

/// The connection's waker: passes wakes on to the task that polled last.
#[derive(Default)]
struct Relay {
    task: AtomicWaker,
}

impl Wake for Relay {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !MUTED.get() {
            self.task.wake();
        }
    }
}

/// Why an exchange failed below HTTP's status codes.
#[derive(Debug, Clone)]
pub(crate) struct WireError {
    pub(crate) message: String,
    /// The peer spoke, but not HTTP as we know it.
    pub(crate) malformed: bool,
}

impl WireError {
    fn new(error: &hyper::Error) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            message.push_str(": ");
            message.push_str(&error.to_string());
            source = error.source();
        }
        Self { message, malformed: error.is_parse() }
    }

    fn misuse(message: &str) -> Self {
        Self { message: message.to_owned(), malformed: false }
    }
}

/// What both ends of a link know about its byte stream.
#[derive(Default)]
struct Wire {
    read: AtomicU64,
    /// hyper has taken the request's body.
    taken: AtomicBool,
    /// It was flushed after that.
    sent: AtomicBool,
}

/// Counts what passes.
struct Metered {
    io: Box<dyn Io>,
    wire: Arc<Wire>,
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut *self.io).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        if read > 0 {
            self.wire.read.fetch_add(read as u64, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.io).poll_flush(cx);
        // hyper flushes the stream only when its own buffer is empty.
        if matches!(polled, Poll::Ready(Ok(()))) && self.wire.taken.load(Ordering::Relaxed) {
            self.wire.sent.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// The request's body, which notes when it is taken.
struct Outgoing {
    data: Option<Bytes>,
    wire: Arc<Wire>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.wire.taken.store(true, Ordering::Relaxed);
        Poll::Ready(self.data.take().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.len() as u64))
    }
}

/// While it lives, the call has a socket, or is opening one.
pub(crate) struct Connected(Arc<CallProbe>);

impl Connected {
    pub(crate) fn new(probe: &Arc<CallProbe>) -> Self {
        probe.set_connected();
        Self(probe.clone())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.clear_connected();
    }
}

/// Counts a closed connection.
struct Closed(Arc<Counters>);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Bound of an answer's head; hyper needs at least 8 KiB.
const MAX_HEAD: usize = 64 * 1024;

/// How much of a finished answer may still arrive before its connection is not worth keeping.
const REMAINDER_PIECES: usize = 8;
