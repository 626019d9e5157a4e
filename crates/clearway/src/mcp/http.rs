//! MCP over HTTP: each message is a request of its own, answered by JSON or by events that end with
//! the answer.
//!
//! What a server would say by itself, over a stream that stays open, is not asked for: lists of tools
//! are read anew from time to time instead.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clearway_upstream::{Allowed, Endpoint, Outward, OutwardError, OutwardPolicy};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use rmcp::model::ClientJsonRpcMessage;
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse,
};
use sse_stream::{Error as SseError, Sse, SseStream};

use crate::config::Secret;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Http {
    outward: Arc<Outward>,
    deadline: Duration,
    headers: Arc<[(HeaderName, HeaderValue)]>,
}

/// Bytes of one answer.
const ANSWER: usize = 8 << 20;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");

type Failed = StreamableHttpError<OutwardError>;

impl Http {
    /// A client of the server at `url`, and how it is to be used.
    ///
    /// # Errors
    /// What is wrong with the address or a header.
    pub(super) fn new(
        url: &str,
        headers: &[(String, Secret)],
        deadline: Duration,
    ) -> Result<(Self, StreamableHttpClientTransportConfig), String> {
        let host = Endpoint::parse(url)?.host;
        let mut parsed = Vec::with_capacity(headers.len());
        for (name, value) in headers {
            let unfit = || format!("the header `{name}` cannot be sent");
            let name = HeaderName::try_from(name).map_err(|_| unfit())?;
            let mut value = HeaderValue::try_from(value.expose()).map_err(|_| unfit())?;
            value.set_sensitive(true);
            parsed.push((name, value));
        }
        // The operator wrote this address down, so it may be one of the own network.
        let allow = match host.parse() {
            Ok(address) => Allowed::Net(address, if address.is_ipv4() { 32 } else { 128 }),
            Err(_) => Allowed::Host(host),
        };
        let outward = Arc::new(Outward::new(OutwardPolicy { allow: vec![allow] }));
        let config = StreamableHttpClientTransportConfig::with_uri(url);
        Ok((Self { outward, deadline, headers: parsed.into() }, config))
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        session: Option<&str>,
        auth: Option<&str>,
        custom: HashMap<HeaderName, HeaderValue>,
        body: Bytes,
    ) -> Result<Response<Bytes>, Failed> {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(headers) = request.headers_mut() {
            headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            headers.extend(self.headers.iter().cloned());
            headers.extend(custom);
            let text = |text: &str| HeaderValue::try_from(text).ok();
            if let Some(session) = session.and_then(text) {
                headers.insert(SESSION, session);
            }
            if let Some(auth) = auth.and_then(|auth| text(&format!("Bearer {auth}"))) {
                headers.insert(AUTHORIZATION, auth);
            }
        }
        let request = request.body(body);
        let request = request.map_err(|error| unexpected(error.to_string()))?;
        let deadline = Instant::now() + self.deadline;
        let answer = self.outward.send(request, deadline.into(), ANSWER).await;
        answer.map_err(StreamableHttpError::Client)
    }
}

fn unexpected(what: impl Into<std::borrow::Cow<'static, str>>) -> Failed {
    StreamableHttpError::UnexpectedServerResponse(what.into())
}

impl StreamableHttpClient for Http {
    type Error = OutwardError;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let body = Bytes::from(serde_json::to_vec(&message)?);
        let (session, auth) = (session_id.as_deref(), auth_header.as_deref());
        let answer = self.send(Method::POST, &uri, session, auth, custom_headers, body).await?;
        let status = answer.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if status == StatusCode::NOT_FOUND && session_id.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        if !status.is_success() {
            let text = String::from_utf8_lossy(answer.body());
            let excerpt: String = text.chars().take(200).collect();
            return Err(unexpected(format!("status {status}: {excerpt}")));
        }
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let session = header(SESSION).map(ToOwned::to_owned);
        let kind = header(CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
        if kind.starts_with("text/event-stream") {
            let bytes = Ok::<_, std::io::Error>(answer.into_body());
            let events = SseStream::from_bytes_stream(stream::iter([bytes]));
            return Ok(StreamableHttpPostResponse::Sse(events.boxed(), session));
        }
        if kind.starts_with("application/json") {
            let message = serde_json::from_slice(answer.body())?;
            return Ok(StreamableHttpPostResponse::Json(message, session));
        }
        Err(StreamableHttpError::UnexpectedContentType(Some(kind)))
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failed> {
        let auth = auth_header.as_deref();
        let session = Some(&*session_id);
        self.send(Method::DELETE, &uri, session, auth, custom_headers, Bytes::new()).await?;
        Ok(())
    }

    async fn get_stream(
        &self,
        _uri: Arc<str>,
        _session_id: Option<Arc<str>>,
        _last_event_id: Option<String>,
        _auth_header: Option<String>,
        _custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failed> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}
