//! One batch to the collector: a POST with its answer, bounded in time and size.
//!
//! Names are resolved and TLS is spoken by the same code that calls providers, so there are no
//! helper threads. Not here: what is sent when, and what becomes of a batch that fails (`export`).

use std::time::Duration;

use bytes::Bytes;
use clearway_upstream::{Dial, Endpoint, TcpDial};
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Error;
use crate::config;

/// For a batch, from dialling to the last byte of the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// The largest answer that is read.
const MOST_BYTES: usize = 64 << 10;

/// Where spans go.
#[derive(Debug)]
pub(super) struct Collector {
    endpoint: Endpoint,
    dial: TcpDial,
    target: Uri,
    headers: HeaderMap,
}

/// Why a batch was not taken.
#[derive(Debug)]
pub(super) struct Refused {
    pub problem: String,
    /// Later it may be.
    pub again: bool,
}

impl Collector {
    pub(super) fn new(config: &config::Telemetry) -> Result<Self, Error> {
        let fails =
            |problem: String| Error::Endpoint { endpoint: config.endpoint.clone(), problem };
        let endpoint = Endpoint::parse(&config.endpoint).map_err(fails)?;
        let uri: Uri = config.endpoint.parse().map_err(|error| fails(format!("{error}")))?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let name: HeaderName = name.parse().map_err(|error| fails(format!("{error}")))?;
            let mut value: HeaderValue =
                value.expose().parse().map_err(|error| fails(format!("{error}")))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        let host = uri.authority().map_or(endpoint.host.as_str(), |authority| authority.as_str());
        headers.insert(HOST, host.parse().map_err(|error| fails(format!("{error}")))?);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("clearway/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let target = target.parse().map_err(|error| fails(format!("{error}")))?;
        Ok(Self { endpoint, dial: TcpDial::new(), target, headers })
    }

    /// Sends a batch; answers how many of its spans the collector did not want.
    pub(super) async fn post(&self, batch: Bytes) -> Result<u64, Refused> {
        match timeout(LIMIT, self.exchange(batch)).await {
            Ok(answer) => answer,
            Err(_) => Err(Refused::for_now(format!("no answer within {} s", LIMIT.as_secs()))),
        }
    }

    async fn exchange(&self, batch: Bytes) -> Result<u64, Refused> {
        let dialled = self.dial.dial(&self.endpoint, &|_| {}).await;
        let stream = dialled.map_err(|error| Refused::for_now(error.to_string()))?;
        let broken =
            |error: hyper::Error| Refused::for_now(format!("the connection broke: {error}"));
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with this exchange, however that ends.
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            // Its error reaches whoever waits for the answer, too.
            let _ = connection.await;
        });
        let mut request = Request::new(Full::new(batch));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.target.clone();
        *request.headers_mut() = self.headers.clone();
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        if !status.is_success() {
            return Err(Refused { problem: format!("status {status}"), again: is_passing(status) });
        }
        // The batch is taken; an answer that cannot be read does not change that.
        let Ok(body) = Limited::new(response.into_body(), MOST_BYTES).collect().await else {
            return Ok(0);
        };
        let answer = ExportTraceServiceResponse::decode(body.to_bytes()).unwrap_or_default();
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(u64::try_from(rejected).unwrap_or(0))
    }
}

impl Refused {
    const fn for_now(problem: String) -> Self {
        Self { problem, again: true }
    }
}

/// The statuses after which OTLP asks for another try.
fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}
