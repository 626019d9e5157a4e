//! Keys: who may ask, what for, and how often.
//!
//! Once a key is configured every address needs one, except the few that tell a load balancer
//! whether the server is there. The check stands in front of everything else that a request could
//! reach, so a new address is guarded without anybody thinking of it.
//!
//! **Invariant:** only hashes of keys are kept; comparing takes the same time whatever was sent.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use clearway_core::Code;
use http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Request};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::Problem;
use crate::caller::{IDENTITY, Identity};

/// A key that opens the server, as configured.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// For people and logs.
    pub name: String,
    hash: [u8; 32],
    /// In whose name it acts; without one it acts for all users of its tenant.
    pub user: Option<String>,
    pub tenant: String,
    /// Sees everybody's things, and may do everything.
    pub admin: bool,
    pub scopes: Vec<Scope>,
    pub limits: KeyLimits,
}

impl ApiKey {
    /// A key that may read and start things in its tenant.
    pub fn new(name: &str, secret: &str, tenant: &str) -> Self {
        Self {
            name: name.to_owned(),
            hash: hash(secret),
            user: None,
            tenant: tenant.to_owned(),
            admin: false,
            scopes: vec![Scope::Read, Scope::Write],
            limits: KeyLimits::default(),
        }
    }

    fn may(&self, scope: Scope) -> bool {
        self.admin || self.scopes.contains(&scope)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a key is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Look.
    Read,
    /// Start, answer, cancel.
    Write,
    /// Change how the server works: slots, providers.
    Operate,
}

impl Scope {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Operate => "operate",
        }
    }

    fn of(request: &Request<Body>) -> Self {
        let path = request.uri().path();
        match *request.method() {
            Method::GET | Method::HEAD | Method::OPTIONS => Self::Read,
            _ if ASKED.contains(&path) || is_search_of_store(path) => Self::Read,
            _ if OPERATED.iter().any(|prefix| path.starts_with(prefix)) => Self::Operate,
            _ => Self::Write,
        }
    }
}

/// Addresses whose changes concern everybody.
const OPERATED: &[&str] = &["/providers/", "/pools/"];

/// Questions that are posted because they do not fit into an address.
const ASKED: &[&str] = &["/knowledge/search"];

/// `POST /v1/vector_stores/{id}/search` only looks, too.
fn is_search_of_store(path: &str) -> bool {
    path.strip_prefix("/v1/vector_stores/")
        .and_then(|rest| rest.strip_suffix("/search"))
        .is_some_and(|id| !id.is_empty() && !id.contains('/'))
}

/// Addresses that need no key: they say only whether the server is there.
pub(crate) const PUBLIC: &[&str] = &["/health/live", "/health/ready", "/ok"];

/// How much a key may ask; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    pub per_minute: Option<u32>,
    /// Exchanges at once, streams included.
    pub concurrent: Option<u32>,
}

/// The configured keys at work.
#[derive(Debug, Default)]
pub(crate) struct Auth {
    keys: Vec<Held>,
}

#[derive(Debug)]
struct Held {
    key: ApiKey,
    bucket: Mutex<Bucket>,
    places: Option<Arc<Semaphore>>,
}

/// Requests that are left, refilled as time goes by.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// A place among a key's exchanges, held until the answer's body is over.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

impl Auth {
    pub(crate) fn new(keys: &[ApiKey]) -> Self {
        let held = |key: &ApiKey| Held {
            bucket: Mutex::new(Bucket {
                left: f64::from(key.limits.per_minute.unwrap_or(0)),
                at: Instant::now(),
            }),
            places: key.limits.concurrent.map(|most| Arc::new(Semaphore::new(most as usize))),
            key: key.clone(),
        };
        Self { keys: keys.iter().map(held).collect() }
    }

    /// Lets a request in, with its caller written down in it.
    ///
    /// # Errors
    /// `unauthorized`, `forbidden` for what the key is not good for, `overloaded` over its limits.
    pub(crate) fn admit(&self, request: &mut Request<Body>) -> Result<Option<Place>, Problem> {
        request.headers_mut().remove(IDENTITY);
        if self.keys.is_empty() || PUBLIC.contains(&request.uri().path()) {
            return Ok(None);
        }
        let given = given(request.headers()).ok_or_else(|| {
            unauthorized("this server needs a key: send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`")
        })?;
        let held = self.find(&given).ok_or_else(|| unauthorized("the key is not known here"))?;
        let scope = Scope::of(request);
        if !held.key.may(scope) {
            let text = format!("the key `{}` has no scope `{}`", held.key.name, scope.as_str());
            return Err(Problem::new(Code::Forbidden, text));
        }
        held.spend()?;
        let place = held.place()?;
        let ApiKey { name, tenant, user, admin, .. } = &held.key;
        let identity = Identity {
            key: name.clone(),
            tenant: tenant.clone(),
            user: user.clone(),
            admin: *admin,
        };
        identity.write(request.headers_mut());
        Ok(place)
    }

    /// Looks at all keys whatever it finds, so that time tells nothing.
    fn find(&self, given: &str) -> Option<&Held> {
        let given = hash(given);
        let mut found = None;
        for held in &self.keys {
            if bool::from(held.key.hash.ct_eq(&given)) {
                found = Some(held);
            }
        }
        found
    }
}

impl Held {
    fn spend(&self) -> Result<(), Problem> {
        let Some(per_minute) = self.key.limits.per_minute.map(f64::from) else { return Ok(()) };
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let refilled = now.saturating_duration_since(bucket.at).as_secs_f64() * per_minute / 60.0;
        bucket.left = (bucket.left + refilled).min(per_minute);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - bucket.left) * 60.0 / per_minute);
        let text = format!("the key `{}` may ask {per_minute} times a minute", self.key.name);
        Err(Problem::new(Code::Overloaded, text)
            .status(http::StatusCode::TOO_MANY_REQUESTS)
            .retry_after(wait))
    }

    fn place(&self) -> Result<Option<Place>, Problem> {
        let Some(places) = &self.places else { return Ok(None) };
        match places.clone().try_acquire_owned() {
            Ok(permit) => Ok(Some(Arc::new(permit))),
            Err(_) => {
                let most = self.key.limits.concurrent.unwrap_or(0);
                let text = format!("the key `{}` may ask {most} things at once", self.key.name);
                Err(Problem::new(Code::Overloaded, text)
                    .status(http::StatusCode::TOO_MANY_REQUESTS)
                    .retry_after(Duration::from_secs(1)))
            }
        }
    }
}

/// The key that a request brings, wherever its client can put one.
fn given(headers: &HeaderMap) -> Option<String> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(value) = text(AUTHORIZATION.as_str()) {
        let (scheme, key) = value.trim().split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned());
    }
    if let Some(key) = text("x-api-key") {
        return Some(key.trim().to_owned());
    }
    // A browser's WebSocket has no headers of its own, only names of protocols.
    let mut offered = crate::ws::offered(headers);
    (offered.next() == Some("bearer")).then(|| offered.next().map(ToOwned::to_owned)).flatten()
}

fn hash(key: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, key.as_bytes()).as_ref());
    bytes
}

fn unauthorized(text: &str) -> Problem {
    Problem::new(Code::Unauthorized, text)
        .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"clearway\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, path: &str, header: Option<(&str, &str)>) -> Request<Body> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        request.body(Body::empty()).unwrap()
    }

    fn auth(change: impl FnOnce(&mut ApiKey)) -> Auth {
        let mut key = ApiKey::new("ann", "secret", "acme");
        change(&mut key);
        Auth::new(&[ApiKey::new("other", "other-secret", "b"), key])
    }

    #[tokio::test(start_paused = true)]
    async fn keys_come_in_three_ways_and_no_other() {
        let auth = auth(|key| key.user = Some("ann".to_owned()));
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("authorization", "bearer  secret "),
            ("x-api-key", "secret"),
            ("sec-websocket-protocol", "bearer, secret"),
        ] {
            let mut request = request(Method::GET, "/runs", Some((name, value)));
            auth.admit(&mut request).unwrap();
            let identity = Identity::read(request.headers()).unwrap();
            assert_eq!((identity.user.as_deref(), identity.tenant.as_str()), (Some("ann"), "acme"));
        }
        for (name, value) in [
            ("authorization", "secret"),
            ("authorization", "Basic secret"),
            ("authorization", "Bearer secre"),
            ("x-api-key", ""),
            (
                "x-clearway-identity",
                "{\"key\":\"k\",\"tenant\":\"acme\",\"user\":null,\"admin\":true}",
            ),
        ] {
            let mut request = request(Method::GET, "/runs", Some((name, value)));
            let problem = auth.admit(&mut request).unwrap_err();
            assert_eq!(problem.code(), Code::Unauthorized, "{name}: {value}");
        }
        assert!(auth.admit(&mut request(Method::GET, "/health/live", None)).is_ok());
    }

    #[test]
    fn nobody_writes_an_identity_into_a_request() {
        let forged = "{\"key\":\"k\",\"tenant\":\"acme\",\"user\":null,\"admin\":true}";
        let mut request = request(Method::GET, "/runs", Some(("x-clearway-identity", forged)));
        Auth::default().admit(&mut request).unwrap();
        assert_eq!(Identity::read(request.headers()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn scopes_and_limits_hold() {
        let ask = |auth: &Auth, method: Method, path: &str| {
            let mut request = request(method, path, Some(("x-api-key", "secret")));
            auth.admit(&mut request)
        };
        let plain = auth(|_| {});
        assert!(ask(&plain, Method::POST, "/chat").is_ok());
        let refused = ask(&plain, Method::PATCH, "/pools/chat").unwrap_err();
        assert_eq!(refused.code(), Code::Forbidden);
        let reader = auth(|key| key.scopes = vec![Scope::Read]);
        assert!(ask(&reader, Method::GET, "/runs").is_ok());
        assert!(ask(&reader, Method::POST, "/chat").is_err());
        assert!(ask(&reader, Method::POST, "/v1/vector_stores/vs_1/search").is_ok());
        assert!(ask(&reader, Method::POST, "/v1/vector_stores/vs_1/files").is_err());

        let slow = auth(|key| key.limits.per_minute = Some(2));
        assert!(ask(&slow, Method::GET, "/a").is_ok() && ask(&slow, Method::GET, "/a").is_ok());
        assert_eq!(ask(&slow, Method::GET, "/a").unwrap_err().code(), Code::Overloaded);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(ask(&slow, Method::GET, "/a").is_ok());

        let narrow = auth(|key| key.limits.concurrent = Some(1));
        let place = ask(&narrow, Method::GET, "/a").unwrap();
        assert!(ask(&narrow, Method::GET, "/a").is_err());
        drop(place);
        assert!(ask(&narrow, Method::GET, "/a").is_ok());
    }
}
