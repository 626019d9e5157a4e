//! One connection: HTTP/1.1 on a byte stream, with its limits and its way to stop.
//!
//! An exchange may end in another protocol ([`Session`], made by `ws`). The session runs inside the
//! connection, so that it has the same place, limits and way to stop as the exchanges before it.
//!
//! A connection that closes while its client is still sending stays open on the reading side for a
//! moment, and what comes is thrown away: a reset would take the answer with it, which is a refusal.
//!
//! A head that is no request, or does not come to its end, is answered by `refused`.
//!
//! **Invariant:** no connection stays for ever without somebody who wants it: one that sends no
//! head, sends nothing between two requests, or does not read its answer is closed. One lazily
//! re-armed timer looks at notes that reads and writes leave behind.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::app::App;
use crate::server::HttpLimits;
use crate::service::HttpService;
use crate::stop::{Stage, Stop};

mod refused;

/// Serves one connection to its end.
pub(crate) fn serve<T>(
    io: T,
    service: HttpService,
    limits: &HttpLimits,
    stop: Arc<Stop>,
) -> Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let notes = service.notes.clone();
    let io = TokioIo::new(Noted {
        io,
        notes: notes.clone(),
        app: service.app.clone(),
        refusal: None,
        lingers: None,
    });
    let http = http1::Builder::new()
        // Small frames are copied into one buffer: one write of few bytes beats a vectored one.
        .writev(false)
        .max_headers(limits.headers)
        .max_header_size(limits.header_bytes)
        .header_read_timeout(None)
        .timer(TokioTimer::new())
        .serve_connection(io, service)
        .with_upgrades();
    let waits = Waits {
        waker: None,
        soft: Box::pin(stop.soft.clone().cancelled_owned()),
        closed: Box::pin(stop.closed.clone().cancelled_owned()),
        hard: Box::pin(stop.hard.clone().cancelled_owned()),
        check: Box::pin(tokio::time::sleep(CHECK_EVERY.min(limits.header_timeout))),
    };
    let limits = Limits {
        header: limits.header_timeout,
        idle: limits.keep_alive,
        stalled: limits.stalled_reader,
    };
    let phase = Phase::Http(Box::new(http));
    Connection { phase, notes, waits, limits, stop, said_close: false, closing: None }
}

/// What speaks on a connection after HTTP. Travels from its handler to the connection among the
/// answer's extensions.
#[derive(Clone)]
pub(crate) struct Session(Arc<Mutex<Option<SessionFuture>>>);

type SessionFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Session {
    pub(crate) fn new(session: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::pin(session)))))
    }

    /// The same, holding on to something until it is over.
    pub(crate) fn with(self, held: impl Send + 'static) -> Self {
        match self.take() {
            Some(session) => Self::new(async move {
                session.await;
                drop(held);
            }),
            None => self,
        }
    }

    fn take(&self) -> Option<SessionFuture> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session")
    }
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    header: Duration,
    idle: Duration,
    stalled: Duration,
}

/// See [`serve`].
pub(crate) struct Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    phase: Phase<T>,
    notes: Arc<Notes>,
    waits: Waits,
    limits: Limits,
    stop: Arc<Stop>,
    said_close: bool,
    /// Set at the hard stop: until then the last bytes may go out.
    closing: Option<Pin<Box<Sleep>>>,
}

/// What the connection speaks.
enum Phase<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    Http(Box<http1::UpgradeableConnection<TokioIo<Noted<T>>, HttpService>>),
    /// For the limits it is one long answer.
    Session {
        session: SessionFuture,
        _exchange: Exchange,
    },
}

impl<T> Phase<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn poll(&mut self, notes: &Arc<Notes>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                Self::Http(http) => {
                    if let Err(error) = ready!(Pin::new(&mut **http).poll(cx)) {
                        tracing::debug!(%error, "connection ended");
                        return Poll::Ready(());
                    }
                    let Some(session) = notes.take_session() else { return Poll::Ready(()) };
                    let exchange = notes.begin();
                    exchange.answered();
                    *self = Self::Session { session, _exchange: exchange };
                }
                Self::Session { session, .. } => return session.as_mut().poll(cx),
            }
        }
    }
}

/// What a connection waits for besides its socket. The futures are polled only when the task's
/// waker changed or one of them fired, not at every token.
struct Waits {
    waker: Option<Waker>,
    soft: Pin<Box<WaitForCancellationFutureOwned>>,
    closed: Pin<Box<WaitForCancellationFutureOwned>>,
    hard: Pin<Box<WaitForCancellationFutureOwned>>,
    check: Pin<Box<Sleep>>,
}

impl Waits {
    fn register(&mut self, cx: &mut Context<'_>) {
        if !self.check.is_elapsed()
            && self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            return;
        }
        self.waker = Some(cx.waker().clone());
        // What they say is read elsewhere; here they only get the waker.
        let _ = self.soft.as_mut().poll(cx);
        let _ = self.closed.as_mut().poll(cx);
        let _ = self.hard.as_mut().poll(cx);
        let _ = self.check.as_mut().poll(cx);
    }
}

impl<T> Future for Connection<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let stage = this.stop.stage();
        // A connection that has asked nothing yet may still ask, as long as there is a listener: a
        // client that comes during the drain is no different.
        let ends = stage >= Stage::Closed || (stage == Stage::Soft && this.notes.has_asked());
        if ends && !this.said_close {
            this.said_close = true;
            if let Phase::Http(http) = &mut this.phase {
                Pin::new(&mut **http).graceful_shutdown();
            }
        }
        if this.phase.poll(&this.notes, cx).is_ready() {
            return Poll::Ready(());
        }
        if stage == Stage::Hard {
            let closing =
                this.closing.get_or_insert_with(|| Box::pin(tokio::time::sleep(LAST_BYTES)));
            ready!(closing.as_mut().poll(cx));
            return Poll::Ready(());
        }
        if this.waits.check.is_elapsed() {
            let now = Instant::now();
            if let Some(why) = this.notes.overdue(now, this.limits) {
                tracing::debug!(why, "connection closed");
                // A head that has begun is answered; the next check bounds that, too.
                if !this.notes.refuse_head() || this.phase.poll(&this.notes, cx).is_ready() {
                    return Poll::Ready(());
                }
            }
            this.waits.check.as_mut().reset(now + CHECK_EVERY.min(this.limits.header));
            this.waits.waker = None;
        }
        this.waits.register(cx);
        // Stages and the timer may have moved while they were registered.
        if this.stop.stage() > stage || this.waits.check.is_elapsed() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

/// What a connection did last: written by whoever reads, writes or answers, read by its timer.
#[derive(Debug)]
pub(crate) struct Notes {
    epoch: Instant,
    /// Exchanges under way, bodies of answers included: 0 or 1.
    open: AtomicU64,
    /// Whether the exchange is still with its handler.
    working: AtomicU64,
    /// Milliseconds since `epoch`.
    last_write: AtomicU64,
    idle_since: AtomicU64,
    /// Since when a head is being read; 0 while there is none.
    head_since: AtomicU64,
    /// Whether something of that head has come.
    head_began: AtomicBool,
    /// Whether that head took too long, and is answered instead of read.
    head_refused: AtomicBool,
    /// Whether there was an exchange.
    asked: AtomicBool,
    /// Whether every answer so far is sent: what is written now belongs to no exchange.
    quiet: AtomicBool,
    /// Whether the client sent, or is sending, what nobody reads.
    unread: AtomicBool,
    /// Since when the last bytes of a client are thrown away; 0 while they are not.
    lingers_since: AtomicU64,
    /// What goes on when the answer under way is sent.
    session: Mutex<Option<Session>>,
}

impl Notes {
    /// A new connection owes a head from the start.
    pub(crate) fn new(now: Instant) -> Self {
        let zero = || AtomicU64::new(0);
        // The epoch lies a moment back, so that 0 can mean "not".
        let epoch = now - Duration::from_millis(1);
        Self {
            epoch,
            open: zero(),
            working: zero(),
            last_write: zero(),
            idle_since: zero(),
            head_since: AtomicU64::new(1),
            head_began: AtomicBool::new(false),
            head_refused: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            quiet: AtomicBool::new(true),
            unread: AtomicBool::new(false),
            lingers_since: zero(),
            session: Mutex::new(None),
        }
    }

    /// The answer under way hands the connection over.
    pub(crate) fn hand_over(&self, session: Session) {
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
    }

    fn take_session(&self) -> Option<SessionFuture> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).take()?.take()
    }

    /// An exchange begins; it ends when the guard is dropped with the answer's body.
    pub(crate) fn begin(self: &Arc<Self>) -> Exchange {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.working.store(1, Ordering::Relaxed);
        self.unread.store(false, Ordering::Relaxed);
        self.head_since.store(0, Ordering::Relaxed);
        self.head_began.store(false, Ordering::Relaxed);
        self.asked.store(true, Ordering::Relaxed);
        self.quiet.store(false, Ordering::Relaxed);
        Exchange(self.clone())
    }

    fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether the head that is overdue gets an answer; once, and only when something of it came and
    /// nothing else is on its way.
    fn refuse_head(&self) -> bool {
        let is_head = self.open.load(Ordering::Relaxed) == 0
            && self.head_began.load(Ordering::Relaxed)
            && self.quiet.load(Ordering::Relaxed)
            && self.lingers_since.load(Ordering::Relaxed) == 0;
        is_head && !self.head_refused.swap(true, Ordering::Relaxed)
    }

    /// A request was answered before its body had been read to the end.
    pub(crate) fn left_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    fn ms(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.epoch).as_millis() as u64
    }

    fn read(&self, bytes: &[u8]) {
        if self.open.load(Ordering::Relaxed) > 0 {
            return;
        }
        if self.head_since.load(Ordering::Relaxed) == 0 {
            self.head_since.store(self.ms(Instant::now()), Ordering::Relaxed);
        }
        // Some clients end a body with a line of its own.
        if bytes.iter().any(|byte| !b"\r\n".contains(byte)) {
            self.head_began.store(true, Ordering::Relaxed);
        }
    }

    /// Everything is written.
    fn flushed(&self) {
        if self.open.load(Ordering::Relaxed) == 0 {
            self.quiet.store(true, Ordering::Relaxed);
        }
    }

    fn wrote(&self) {
        self.last_write.store(self.ms(Instant::now()), Ordering::Relaxed);
    }

    /// Why the connection should be closed now, if it should.
    fn overdue(&self, now: Instant, limits: Limits) -> Option<&'static str> {
        let now = self.ms(now);
        let since = |note: &AtomicU64| {
            Duration::from_millis(now.saturating_sub(note.load(Ordering::Relaxed)))
        };
        if self.lingers_since.load(Ordering::Relaxed) > 0 {
            return (since(&self.lingers_since) >= LINGER).then_some("the client goes on sending");
        }
        if self.working.load(Ordering::Relaxed) > 0 {
            return None; // bounded by the limits of bodies and the deadlines of runs
        }
        if self.open.load(Ordering::Relaxed) > 0 {
            // A stream writes at least a heartbeat, so silence means that nobody reads.
            return (since(&self.last_write) >= limits.stalled)
                .then_some("the client does not read");
        }
        if self.head_since.load(Ordering::Relaxed) > 0 {
            return (since(&self.head_since) >= limits.header)
                .then_some("no complete head in time");
        }
        (since(&self.idle_since) >= limits.idle).then_some("idle")
    }
}

/// An exchange under way.
#[derive(Debug)]
pub(crate) struct Exchange(Arc<Notes>);

impl Exchange {
    /// The handler is done and the answer begins.
    pub(crate) fn answered(&self) {
        self.0.wrote();
        self.0.working.store(0, Ordering::Relaxed);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.ms(Instant::now()), Ordering::Relaxed);
        self.0.working.store(0, Ordering::Relaxed);
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How often a connection looks whether it is overdue.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// How long the last bytes may take after the hard stop.
const LAST_BYTES: Duration = Duration::from_millis(500);

/// How long a client may go on sending after its answer, and how much.
const LINGER: Duration = Duration::from_secs(10);
const LINGER_BYTES: usize = 256 << 20;

/// A byte stream that leaves notes.
#[derive(Debug)]
pub(crate) struct Noted<T> {
    io: T,
    notes: Arc<Notes>,
    app: App,
    /// What is left of the answer to a head that is no request.
    refusal: Option<Bytes>,
    /// Once nothing is written any more: how much is thrown away at most.
    lingers: Option<usize>,
}

impl<T: AsyncRead + Unpin> Noted<T> {
    /// Throws away what the client still sends, up to its end or a bound.
    fn poll_linger(&mut self, mut left: usize, cx: &mut Context<'_>) -> Poll<()> {
        let mut sink = [0; 16 << 10];
        loop {
            let mut read = ReadBuf::new(&mut sink);
            let polled = Pin::new(&mut self.io).poll_read(cx, &mut read);
            self.lingers = Some(left);
            match polled {
                // Without anything on its way there is nothing that could be lost.
                Poll::Pending if !self.notes.unread.load(Ordering::Relaxed) => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    self.notes.left_unread();
                    left = left.saturating_sub(read.filled().len());
                    if left == 0 {
                        break;
                    }
                }
                Poll::Ready(_) => break,
            }
        }
        Poll::Ready(())
    }
}

impl<T: AsyncWrite + Unpin> Noted<T> {
    /// hyper answers a head that is no request itself, without a body. This says more in its place;
    /// hyper closes after it.
    fn poll_refuse(&mut self, said: &[u8], cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (app, notes) = (&self.app, &self.notes);
        let left = self.refusal.get_or_insert_with(|| {
            // The client may be sending what comes after such a head.
            notes.left_unread();
            match notes.head_refused.load(Ordering::Relaxed) {
                true => refused::too_slow(app),
                false => refused::not_a_request(app, said),
            }
        });
        while left.has_remaining() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            left.advance(written);
            notes.wrote();
        }
        Poll::Ready(Ok(said.len()))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Noted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.notes.head_refused.load(Ordering::Relaxed) && buf.remaining() >= SPOILER.len() {
            buf.put_slice(SPOILER);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        if let read @ [_, ..] = &buf.filled()[before..] {
            self.notes.read(read);
        }
        Poll::Ready(result)
    }
}

/// Ends a head, wherever it stands, as one that cannot be parsed: hyper has no other way to be told
/// that it should answer now, and close.
const SPOILER: &[u8] = b"\0\r\n\r\n";

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Noted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.notes.quiet.load(Ordering::Relaxed) {
            return self.poll_refuse(buf, cx);
        }
        let result = ready!(Pin::new(&mut self.io).poll_write(cx, buf));
        self.notes.wrote();
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.io).poll_flush(cx));
        // hyper flushes when it has nothing more to write.
        self.notes.flushed();
        Poll::Ready(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let left = match self.lingers {
            Some(left) => left,
            None => {
                ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
                let now = self.notes.ms(Instant::now());
                self.notes.lingers_since.store(now, Ordering::Relaxed);
                LINGER_BYTES
            }
        };
        self.poll_linger(left, cx).map(Ok)
    }
}
