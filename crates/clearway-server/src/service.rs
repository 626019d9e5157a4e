//! What happens to every exchange, whatever its address: its id, who may ask and from where, a panic
//! caught, a problem rendered, one log event at the end of the handler.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use clearway_core::Code;
use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Request, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio::time::Instant;

use crate::app::App;
use crate::auth::Place;
use crate::conn::{Exchange, Notes, Session};
use crate::stop::Stage;
use crate::{Problem, caller, cors, guard, problem};

/// One connection's service.
#[derive(Clone, Debug)]
pub(crate) struct HttpService {
    pub app: App,
    pub router: Router,
    pub notes: Arc<Notes>,
}

impl Service<Request<Incoming>> for HttpService {
    type Response = http::Response<AnswerBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let exchange = self.notes.begin();
        let notes = self.notes.clone();
        let asked = |inner| AskedBody { inner, notes: self.notes.clone(), is_read: false };
        let request = request.map(|body| Body::new(asked(body)));
        let answer = answer(self.app.clone(), self.router.clone(), request);
        let stop = self.app.stop.clone();
        Box::pin(async move {
            let mut response = answer.await;
            exchange.answered();
            let is_session = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if stop.stage() >= Stage::Soft && !is_session {
                // The next request belongs to a server that stays.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            if is_session && let Some(session) = response.extensions_mut().remove::<Session>() {
                let place = response.extensions_mut().remove::<Place>();
                notes.hand_over(session.with(place));
            }
            let place = response.extensions_mut().remove::<Place>();
            Ok(response.map(|inner| AnswerBody { inner, _exchange: exchange, _place: place }))
        })
    }
}

/// One exchange, from head to head.
pub(crate) async fn answer(app: App, router: Router, mut request: Request<Body>) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers(), &app);
    request.headers_mut().insert("x-request-id", id.clone());
    let settled = guard::settle(&mut request);
    cut_slash(&mut request);
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let is_page = cors::is_page(request.headers());
    // A browser asks beforehand whether it may ask, and cannot send a key with that.
    let mut admitted =
        settled.and_then(|()| guard::check(&app.options, request.headers())).map(|()| None);
    if let (Ok(_), Some(mut preflight)) = (&admitted, cors::preflight(&request)) {
        cors::allow(preflight.headers_mut());
        return problem::finish(preflight, &id);
    }
    if admitted.is_ok() {
        admitted = app.auth.admit(&mut request);
    }
    if admitted.is_ok()
        && let Err(problem) = caller::check_path(&app, request.headers(), &path).await
    {
        admitted = Err(problem);
    }
    if admitted.is_ok()
        && let Err(problem) = guard::check_coding(&request)
    {
        admitted = Err(problem);
    }
    let mut response = match admitted {
        Err(problem) => problem.into_response(),
        Ok(place) => {
            let handled = TowerToHyperService::new(router).call(request);
            let mut response = match CatchUnwind(Box::pin(handled)).await {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(panic) => panicked(&*panic, &id),
            };
            if let Some(place) = place {
                response.extensions_mut().insert(place);
            }
            response
        }
    };
    if is_page {
        cors::allow(response.headers_mut());
    }
    tracing::debug!(
        request.id = id.to_str().unwrap_or_default(),
        %method,
        path,
        status = response.status().as_u16(),
        ms = started.elapsed().as_millis() as u64,
        "request"
    );
    problem::finish(response, &id)
}

/// Clients may end any address with a slash: the old services sent them to the one without, and
/// LangGraph's does not mind.
fn cut_slash(request: &mut Request<Body>) {
    let Some(short) = cors::without_slash(request.uri().path()) else { return };
    let query = request.uri().query();
    let short = query.map_or_else(|| short.to_owned(), |query| format!("{short}?{query}"));
    if let Ok(uri) = short.parse() {
        *request.uri_mut() = uri;
    }
}

/// The client's `X-Request-Id` when it is usable, else a new one.
fn request_id(headers: &HeaderMap, app: &App) -> HeaderValue {
    let usable = |value: &&HeaderValue| {
        (1..=128).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    headers.get("x-request-id").filter(usable).cloned().unwrap_or_else(|| {
        let id = app.engine.new_id().to_string();
        HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("unknown"))
    })
}

fn panicked(panic: &(dyn Any + Send), id: &HeaderValue) -> Response {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    // A person must look: a handler never panics by design.
    tracing::error!(
        request.id = id.to_str().unwrap_or_default(),
        panic = text,
        "a handler panicked"
    );
    Problem::new(Code::Internal, "the server made a mistake with this request").into_response()
}

/// A future whose panic is a value.
struct CatchUnwind<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchUnwind<F> {
    type Output = Result<F::Output, Box<dyn Any + Send>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // After a panic the future is dropped and never looked at again.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    }
}

/// A request's body. What is left of it when nobody wants it any more is noted.
#[derive(Debug)]
struct AskedBody {
    inner: Incoming,
    notes: Arc<Notes>,
    is_read: bool,
}

impl http_body::Body for AskedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        self.is_read |= frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for AskedBody {
    fn drop(&mut self) {
        if !self.is_read && !http_body::Body::is_end_stream(&self.inner) {
            self.notes.left_unread();
        }
    }
}

/// An answer's body, which keeps its exchange open.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    inner: Body,
    _exchange: Exchange,
    _place: Option<Place>,
}

impl http_body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
