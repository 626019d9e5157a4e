//! One HTTP/1.1 request on one connection, driven by whoever waits for it.
//!
//! No task runs on behalf of a connection: an [`Exchange`] writes and reads inside its own polls. So
//! there is no task hop per token, nothing goes on for a caller that left, and dropping an exchange
//! closes its socket there and then. What arrives is lent to the caller, who copies what he keeps:
//! a stream has one buffer, and a connection without a request has none.
//!
//! Not here: what the bytes of HTTP mean (`http1`), which connection (`pool`), time limits
//! (`attempt`), what the body means (`sse`).

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, response};
use tokio::io::ReadBuf;

use crate::call::CallProbe;
use crate::dial::Io;
use crate::http1::{self, Body, Invalid, MAX_HEAD, Step};
use crate::pool::Counters;

/// A connection between requests, or under one.
pub(crate) struct Link {
    io: Box<dyn Io>,
    input: Input,
    /// What is left of an answer whose meaning is complete; it is read away before the next request.
    remainder: Option<Body>,
    done: bool,
    // Last, so that the count moves after the socket is closed.
    _closed: Closed,
}

impl Link {
    /// Puts HTTP on a fresh byte stream.
    pub(crate) fn new(io: Box<dyn Io>, counters: Arc<Counters>) -> Self {
        counters.opened.fetch_add(1, Ordering::Relaxed);
        let (input, remainder) = (Input::default(), None);
        Self { io, input, remainder, done: false, _closed: Closed(counters) }
    }

    /// Takes up what the peer did while the connection was idle, and says whether it can take a
    /// request now. Whoever gets `false` drops the link, unless [`Link::is_settling`].
    pub(crate) fn refresh(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut reads = 0;
        while let Some(body) = &mut self.remainder {
            match body.step(self.input.unread()) {
                Ok(Step::Data { skip, length }) => self.input.consume(skip + length),
                Ok(Step::End { used }) => {
                    self.input.consume(used);
                    self.remainder = None;
                }
                // A peer that has still more is not done.
                Ok(Step::More { .. }) if reads == REMAINDER_READS => return false,
                Ok(Step::More { used }) => {
                    self.input.consume(used);
                    reads += 1;
                    match self.input.fill(&mut self.io, &mut cx) {
                        Poll::Pending => return false,
                        Poll::Ready(Ok(1..)) => {}
                        Poll::Ready(_) => self.done = true,
                    }
                }
                Err(_) => self.done = true,
            }
            if self.done {
                return false;
            }
        }
        // Bytes that nobody asked for, the end, an error: each makes it unfit for a request.
        self.done = self.done
            || !self.input.unread().is_empty()
            || Pin::new(&mut *self.io).poll_read(&mut cx, &mut ReadBuf::new(&mut [0])).is_ready();
        self.input = Input::default();
        !self.done
    }

    /// The end of the last answer has not arrived yet, and still may.
    pub(crate) const fn is_settling(&self) -> bool {
        !self.done && self.remainder.is_some()
    }
}

/// One request and its answer.
///
/// Dropping it before [`Exchange::finish`] closes the connection at once.
pub(crate) struct Exchange {
    output: Output,
    stage: Stage,
    /// Where in the input the data is that was found last.
    data: Range<usize>,
    answered: bool,
    keep_alive: bool,
    link: Link,
    // Last: the socket is closed when it says so.
    _probe: Connected,
}

enum Stage {
    Head,
    Body(Body),
    End,
}

impl Exchange {
    /// Hands the request over; it leaves while the exchange is polled.
    pub(crate) fn start(link: Link, request: Request<Bytes>, probe: Connected) -> Self {
        let head = http1::encode(&request, request.body().len());
        let output = Output::Rest { head, body: request.into_body(), written: 0 };
        Self {
            output,
            stage: Stage::Head,
            data: 0..0,
            answered: false,
            keep_alive: false,
            link,
            _probe: probe,
        }
    }

    /// The whole request has left this process.
    pub(crate) const fn is_sent(&self) -> bool {
        matches!(self.output, Output::Sent)
    }

    /// Something of the answer has arrived, be it half a status line.
    pub(crate) const fn has_answered(&self) -> bool {
        self.answered
    }

    pub(crate) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<response::Parts, WireError>> {
        if !matches!(self.stage, Stage::Head) {
            return Poll::Ready(Err(WireError::cut("the head was taken already")));
        }
        self.output.send(&mut self.link.io, cx);
        loop {
            match http1::read_head(self.link.input.unread()) {
                Ok(Some(head)) => {
                    self.link.input.consume(head.used);
                    let Some(answer) = head.answer else { continue };
                    self.stage = Stage::Body(answer.body);
                    self.keep_alive = answer.keep_alive;
                    return Poll::Ready(Ok(answer.parts));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.end(error.into()))),
            }
            let read = std::task::ready!(self.link.input.fill(&mut self.link.io, cx));
            let error = match (read, &self.output) {
                (Ok(1..), _) => {
                    self.answered = true;
                    continue;
                }
                // Why it could not be sent says more than that nothing came.
                (_, Output::Failed(error)) => WireError::io(error),
                (Ok(_), _) => WireError::cut("the connection was closed"),
                (Err(error), _) => WireError::io(&error),
            };
            return Poll::Ready(Err(self.end(error)));
        }
    }

    /// Waits for the next piece of the body; `false` is its proper end.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, WireError>> {
        self.data = 0..0;
        loop {
            let Stage::Body(body) = &mut self.stage else { return Poll::Ready(Ok(false)) };
            let input = &mut self.link.input;
            match body.step(input.unread()) {
                Ok(Step::Data { skip, length }) => {
                    let start = input.start + skip;
                    self.data = start..start + length;
                    input.consume(skip + length);
                    return Poll::Ready(Ok(true));
                }
                Ok(Step::End { used }) => {
                    input.consume(used);
                    self.stage = Stage::End;
                    return Poll::Ready(Ok(false));
                }
                Ok(Step::More { used }) => input.consume(used),
                Err(error) => return Poll::Ready(Err(self.end(error.into()))),
            }
            // Some answer before they have read everything.
            self.output.send(&mut self.link.io, cx);
            let may_end = body.may_end();
            let error = match std::task::ready!(input.fill(&mut self.link.io, cx)) {
                Ok(1..) => continue,
                Ok(_) if may_end => {
                    self.stage = Stage::End;
                    return Poll::Ready(Ok(false));
                }
                Ok(_) => WireError::cut("the connection was closed in the middle of the body"),
                Err(error) => WireError::io(&error),
            };
            return Poll::Ready(Err(self.end(error)));
        }
    }

    /// What [`Exchange::poll_data`] found last.
    pub(crate) fn data(&self) -> &[u8] {
        &self.link.input.buffer[self.data.clone()]
    }

    /// Nothing of this connection can be trusted any more.
    fn end(&mut self, error: WireError) -> WireError {
        (self.stage, self.keep_alive) = (Stage::End, false);
        error
    }

    /// Gives the connection back once the answer's meaning is complete. `None` when it cannot
    /// carry another request; it is closed then.
    pub(crate) fn finish(self) -> Option<Link> {
        if !self.keep_alive || !self.is_sent() {
            return None;
        }
        let Self { stage, mut link, .. } = self;
        match stage {
            Stage::Head => return None,
            Stage::Body(body) => link.remainder = Some(body),
            Stage::End => {}
        }
        (link.refresh() || link.is_settling()).then_some(link)
    }
}

/// What is still to be sent of a request.
enum Output {
    Rest {
        head: Vec<u8>,
        body: Bytes,
        written: usize,
    },
    /// Written, and not flushed.
    Written,
    Sent,
    /// The peer does not take it; it may have answered all the same.
    Failed(io::Error),
}

impl Output {
    /// Sends what the connection takes.
    fn send(&mut self, io: &mut Box<dyn Io>, cx: &mut Context<'_>) {
        if let Poll::Ready(Err(error)) = self.poll_send(io, cx) {
            *self = Self::Failed(error);
        }
    }

    fn poll_send(&mut self, io: &mut Box<dyn Io>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Rest { head, body, written } = self {
            while *written < head.len() + body.len() {
                let slices = match written.checked_sub(head.len()) {
                    None => [&head[*written..], &body[..]],
                    Some(of_body) => [&body[of_body..], &[]],
                };
                let slices = slices.map(IoSlice::new);
                match std::task::ready!(Pin::new(&mut **io).poll_write_vectored(cx, &slices))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    count => *written += count,
                }
            }
            *self = Self::Written;
        }
        if let Self::Written = self {
            std::task::ready!(Pin::new(&mut **io).poll_flush(cx))?;
            *self = Self::Sent;
        }
        Poll::Ready(Ok(()))
    }
}

/// What has arrived and was not used.
#[derive(Default)]
struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn unread(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }

    /// Reads once, behind what is unread; says how many bytes. The buffer grows for a peer that
    /// fills it.
    fn fill(&mut self, io: &mut Box<dyn Io>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.end == self.buffer.len() {
            // `read_head` refuses a head of this size, and of a body nothing stays unread.
            let size = (self.buffer.len() * 4).clamp(READ, MAX_HEAD);
            self.buffer.resize(size, 0);
        }
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let mut room = ReadBuf::new(&mut self.buffer[self.end..]);
        std::task::ready!(Pin::new(&mut **io).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        self.end += read;
        Poll::Ready(Ok(read))
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
    fn io(error: &io::Error) -> Self {
        Self { message: error.to_string(), malformed: false }
    }

    fn cut(message: &str) -> Self {
        Self { message: message.to_owned(), malformed: false }
    }
}

impl From<Invalid> for WireError {
    fn from(Invalid(message): Invalid) -> Self {
        Self { message, malformed: true }
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

/// Bytes of a stream's buffer: some twenty tokens as providers send them.
const READ: usize = 4 * 1024;

/// How often more of a finished answer may arrive before its connection is not worth keeping.
const REMAINDER_READS: usize = 8;
