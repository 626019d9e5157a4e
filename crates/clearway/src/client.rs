//! A client for the addresses of all runs, as the command line needs it.
//!
//! One connection per request, and a limit on everything: connecting, the answer, the silence between
//! two events. Names are resolved and TLS is spoken by the same code that calls providers.
//!
//! Not here: the doors. Their clients exist already.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clearway_upstream::{Dial, Endpoint, TcpDial};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use self::sse::ServerEvent;

mod sse;

/// For connecting.
const CONNECT: Duration = Duration::from_secs(5);
/// For an answer that is not a stream.
const ANSWER: Duration = Duration::from_secs(30);
/// A server sends a heartbeat every 15 seconds; after three of them it is gone.
const SILENCE: Duration = Duration::from_secs(50);
/// The largest answer that is read.
const MOST_BYTES: usize = 64 << 20;

/// Talks to one server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    endpoint: Endpoint,
    dial: Arc<dyn Dial>,
    authority: String,
    /// What the server knows us by.
    key: Option<HeaderValue>,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("`{url}` cannot be a server's address: {problem}")]
    Url { url: String, problem: String },
    #[error("the key holds something that cannot be sent in a header")]
    Key,
    #[error("cannot reach {server}: {problem}")]
    Unreachable { server: String, problem: String },
    #[error("{server} did not answer within {} s", limit.as_secs())]
    Timeout { server: String, limit: Duration },
    #[error("{server} answered with something else than expected: {problem}")]
    Unexpected { server: String, problem: String },
    /// The server says why.
    #[error("{0}")]
    Problem(Problem),
}

/// An `application/problem+json` answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub status: u16,
    /// Stable: `run_not_found`, `overloaded`, …
    pub code: String,
    pub detail: String,
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl Client {
    /// For a server such as `http://127.0.0.1:8123`.
    ///
    /// # Errors
    /// The text is no address.
    pub fn new(url: &str) -> Result<Self, Error> {
        let endpoint =
            Endpoint::parse(url).map_err(|problem| Error::Url { url: url.to_owned(), problem })?;
        let authority = match (endpoint.host.contains(':'), endpoint.port) {
            (true, port) => format!("[{}]:{port}", endpoint.host),
            (false, port) => format!("{}:{port}", endpoint.host),
        };
        Ok(Self { endpoint, dial: Arc::new(TcpDial::new()), authority, key: None })
    }

    /// Sends this key with every request.
    ///
    /// # Errors
    /// The key cannot be sent in a header.
    pub fn with_key(mut self, key: &str) -> Result<Self, Error> {
        let value = HeaderValue::try_from(format!("Bearer {}", key.trim()));
        let mut value = value.map_err(|_| Error::Key)?;
        value.set_sensitive(true);
        self.key = Some(value);
        Ok(self)
    }

    /// `GET`, answered with JSON.
    ///
    /// # Errors
    /// [`Error`] says who failed.
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.json(Method::GET, path, None, ANSWER).await
    }

    /// `POST`, answered with JSON.
    ///
    /// # Errors
    /// [`Error`] says who failed.
    pub async fn post(&self, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        self.json(Method::POST, path, body, ANSWER).await
    }

    /// `PATCH`, answered with JSON.
    ///
    /// # Errors
    /// [`Error`] says who failed.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.json(Method::PATCH, path, Some(body), ANSWER).await
    }

    /// `GET`, answered with any bytes.
    ///
    /// # Errors
    /// [`Error`] says who failed.
    pub async fn download(&self, path: &str) -> Result<Bytes, Error> {
        self.within(ANSWER, async {
            let request = Request::builder().method(Method::GET);
            let (response, _connection) = self.send(request, path, Bytes::new()).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response).await?);
            }
            self.collect(response).await
        })
        .await
    }

    /// Opens a stream of events, behind the event `after` if one is given.
    ///
    /// # Errors
    /// [`Error`] says who failed.
    pub async fn events(&self, path: &str, after: Option<&str>) -> Result<Events, Error> {
        let mut request =
            Request::builder().method(Method::GET).header(ACCEPT, "text/event-stream");
        if let Some(id) = after {
            request = request.header("last-event-id", id);
        }
        let (response, connection) =
            self.within(ANSWER, self.send(request, path, Bytes::new())).await?;
        if response.status() != StatusCode::OK {
            return Err(self.within(ANSWER, self.refusal(response)).await?);
        }
        let events = Events {
            server: self.to_string(),
            body: response.into_body(),
            decoder: sse::Decoder::default(),
            _connection: connection,
        };
        Ok(events)
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Value, Error> {
        self.within(limit, async {
            let mut request = Request::builder().method(method).header(ACCEPT, "application/json");
            if body.is_some() {
                request = request.header(CONTENT_TYPE, "application/json");
            }
            let body = body.map(Value::to_string).unwrap_or_default();
            let (response, _connection) = self.send(request, path, body.into()).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response).await?);
            }
            let bytes = self.collect(response).await?;
            serde_json::from_slice(&bytes)
                .map_err(|error| self.unexpected(format!("no JSON: {error}")))
        })
        .await
    }

    /// Sends a request on a connection of its own, which lives as long as the second value.
    async fn send(
        &self,
        request: http::request::Builder,
        path: &str,
        body: Bytes,
    ) -> Result<(Response<Incoming>, JoinSet<()>), Error> {
        let request = request
            .uri(format!("{}{path}", self.endpoint.path))
            .header(HOST, &self.authority)
            .header(USER_AGENT, concat!("clearway/", env!("CARGO_PKG_VERSION")));
        let request = match &self.key {
            Some(key) => request.header(AUTHORIZATION, key),
            None => request,
        };
        let request = request
            .body(Full::new(body))
            .map_err(|error| self.unexpected(format!("the request cannot be sent: {error}")))?;
        let unreachable =
            |problem: String| Error::Unreachable { server: self.to_string(), problem };
        let dialled = timeout(CONNECT, self.dial.dial(&self.endpoint, &|_| {})).await;
        let stream = dialled
            .map_err(|_| unreachable(format!("no connection within {} s", CONNECT.as_secs())))?
            .map_err(|error| unreachable(error.to_string()))?;
        let broken = |error: hyper::Error| unreachable(format!("the connection broke: {error}"));
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            // Its error reaches the reader of the body, too.
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.map_err(broken)?;
        Ok((response, connections))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, Error> {
        match Limited::new(response.into_body(), MOST_BYTES).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(self.unexpected("the answer is too long".to_owned()))
            }
            Err(error) => Err(self.unexpected(format!("the answer broke off: {error}"))),
        }
    }

    /// What an answer that is no success says.
    async fn refusal(&self, response: Response<Incoming>) -> Result<Error, Error> {
        let status = response.status();
        let bytes = self.collect(response).await?;
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = |key: &str| body[key].as_str().map(ToOwned::to_owned);
        // Doors for older clients put the sentence one level deeper.
        let nested = || body["detail"]["error_message"].as_str().map(ToOwned::to_owned);
        Ok(match text("detail").or_else(nested) {
            Some(detail) => Error::Problem(Problem {
                status: status.as_u16(),
                code: text("code").unwrap_or_default(),
                detail,
                hint: text("hint"),
            }),
            None => self.unexpected(format!("status {status}")),
        })
    }

    async fn within<T>(
        &self,
        limit: Duration,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        match timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { server: self.to_string(), limit }),
        }
    }

    fn unexpected(&self, problem: String) -> Error {
        Error::Unexpected { server: self.to_string(), problem }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({self})")
    }
}

/// An open stream of events. Dropping it closes the connection.
#[derive(Debug)]
pub struct Events {
    server: String,
    body: Incoming,
    decoder: sse::Decoder,
    _connection: JoinSet<()>,
}

impl Events {
    /// The next event; `None` at the stream's end.
    ///
    /// # Errors
    /// The connection broke, or the server was silent for longer than its heartbeat.
    pub async fn next(&mut self) -> Result<Option<ServerEvent>, Error> {
        loop {
            if let Some(event) = self.decoder.next() {
                return Ok(Some(event));
            }
            let frame = timeout(SILENCE, self.body.frame())
                .await
                .map_err(|_| Error::Timeout { server: self.server.clone(), limit: SILENCE })?;
            let broken =
                |problem: String| Error::Unexpected { server: self.server.clone(), problem };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(broken(format!("the stream broke off: {error}"))),
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.decoder
                        .feed(&data)
                        .map_err(|()| broken("an event is too long".to_owned()))?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
