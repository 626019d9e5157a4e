//! WebSockets: a feed as text frames, one JSON object each.
//!
//! The handshake is an ordinary exchange: whoever may not ask over HTTP may not ask here. What
//! follows runs inside the connection (`conn`), under its limits and its way to stop.
//!
//! **Invariant:** a socket whose peer shows no life for a few heartbeats is closed, and nothing is
//! kept for a peer that does not read.

use std::future::poll_fn;

use axum::extract::Request;
use axum::response::Response;
use clearway_core::Code;
use futures_util::{SinkExt, StreamExt};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::{Duration, Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::Problem;
use crate::app::App;
use crate::conn::Session;
use crate::feed::{Feed, Item, More, stopping};

/// A client's wish to speak WebSocket, found to be in order.
#[derive(Debug)]
pub(crate) struct Handshake {
    upgrade: OnUpgrade,
    accept: String,
    protocol: Option<HeaderValue>,
}

impl Handshake {
    /// # Errors
    /// The request asks for something else; the problem says what was expected.
    pub(crate) fn read(request: &mut Request) -> Result<Self, Problem> {
        let headers = request.headers();
        let wants = has(headers, &CONNECTION, "upgrade") && has(headers, &UPGRADE, "websocket");
        let fits = headers.get(SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
        let key = headers.get(SEC_WEBSOCKET_KEY).filter(|key| key.len() == 24);
        let refuse = |text: &str| {
            Problem::new(Code::InvalidRequest, text)
                .status(StatusCode::UPGRADE_REQUIRED)
                .header(UPGRADE, HeaderValue::from_static("websocket"))
                .header(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))
                .hint("Connect with a WebSocket client (ws://…), or read the same over /stream.")
        };
        let (true, true, Some(key)) = (wants, fits, key) else {
            let text =
                "this address speaks WebSocket (version 13); the request does not ask for it";
            return Err(refuse(text));
        };
        let accept = derive_accept_key(key.as_bytes());
        // Browsers cannot send headers with a WebSocket; a key comes as a second protocol then.
        let protocol = offered(headers).next().map(HeaderValue::from_str).and_then(Result::ok);
        let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
            // As a proxy speaks that was not told otherwise.
            return Err(refuse("WebSocket needs HTTP/1.1; this request came over HTTP/1.0"));
        };
        Ok(Self { upgrade, accept, protocol })
    }

    /// The answer after which the connection tells the feed.
    pub(crate) fn accept<F: Feed>(self, app: App, feed: F) -> Response {
        let mut response = Response::default();
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::try_from(self.accept) {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(protocol) = self.protocol {
            headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let upgrade = self.upgrade;
        response.extensions_mut().insert(Session::new(async move {
            if let Ok(io) = upgrade.await {
                // An error means that the peer is gone, which ends the talk as well as anything.
                let _ = talk(&app, io, feed).await;
            }
        }));
        response
    }
}

/// The protocols that a client offers, in its order.
pub(crate) fn offered(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(',')).map(str::trim)
}

fn has(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

type Failed = tokio_tungstenite::tungstenite::Error;

/// Tells the feed until one of the three ends: the feed, the peer, the server.
async fn talk<F: Feed>(app: &App, io: Upgraded, mut feed: F) -> Result<(), Failed> {
    let config = WebSocketConfig::default()
        .read_buffer_size(4 << 10)
        .write_buffer_size(16 << 10)
        .max_write_buffer_size(4 << 20)
        .max_message_size(Some(MESSAGE))
        .max_frame_size(Some(MESSAGE));
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(io), Role::Server, Some(config)).await;
    let every = app.options.limits.heartbeat;
    let mut beat = interval_at(Instant::now() + every, every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut due = Vec::new();
    loop {
        tokio::select! {
            () = app.stop.hard.cancelled() => {
                return leave(&mut socket, feed.failure(&stopping())).await;
            }
            () = app.stop.soft.cancelled(), if F::ENDLESS => {
                return leave(&mut socket, feed.failure(&stopping())).await;
            }
            // What was appended before another arm won stays in `due`.
            more = poll_fn(|cx| feed.poll_due(cx, &mut due)) => {
                for item in due.drain(..) {
                    socket.feed(text(item)).await?;
                }
                socket.flush().await?;
                if more == More::No {
                    return close(&mut socket, CloseCode::Normal, "the end").await;
                }
            }
            message = socket.next() => match message {
                Some(Ok(message)) => {
                    heard = Instant::now();
                    // Pings are answered and closings confirmed underneath.
                    if let Message::Text(words) = message {
                        feed.hear(&words);
                    }
                }
                Some(Err(error)) => return Err(error),
                None => return Ok(()),
            },
            _ = beat.tick() => {
                if heard.elapsed() > every * SILENT_BEATS {
                    return Ok(());
                }
                socket.feed(text(Item { id: None, data: feed.heartbeat() })).await?;
                socket.send(Message::Ping(Vec::new().into())).await?;
            }
        }
    }
}

/// The largest message that a client may send.
const MESSAGE: usize = 64 << 10;
/// A peer that answers no ping for so many heartbeats is gone.
const SILENT_BEATS: u32 = 4;
/// How long a peer may take to confirm the end.
const FAREWELL: Duration = Duration::from_secs(2);

/// One frame; the id that stands beside an event elsewhere stands in it here.
fn text(item: Item) -> Message {
    let Item { id, mut data } = item;
    if let (Some(id), Value::Object(object)) = (id, &mut data) {
        object.insert("event_id".to_owned(), id.into());
    }
    Message::text(data.to_string())
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn leave(socket: &mut Socket, data: Value) -> Result<(), Failed> {
    socket.send(text(Item { id: None, data })).await?;
    close(socket, CloseCode::Away, "the server stops").await
}

async fn close(socket: &mut Socket, code: CloseCode, reason: &'static str) -> Result<(), Failed> {
    socket.close(Some(CloseFrame { code, reason: reason.into() })).await?;
    let confirmed = async { while let Some(Ok(_)) = socket.next().await {} };
    let _ = timeout(FAREWELL, confirmed).await;
    Ok(())
}
