//! What every handler can reach, and the table of addresses.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::handler::Handler;
use axum::routing::MethodRouter;
use clearway_core::RunId;
use clearway_engine::{Engine, Health, Lanes};
use http::Method;
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use crate::auth::Auth;
use crate::campaigns::Folds;
use crate::server::ServerOptions;
use crate::stop::Stop;

/// Shared by all connections.
#[derive(Clone, Debug)]
pub(crate) struct App(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub engine: Engine,
    pub options: ServerOptions,
    pub stop: Arc<Stop>,
    pub auth: Auth,
    /// Logs of campaigns, read so far.
    pub folds: Folds,
    /// For work that blocks.
    pub lanes: Lanes,
    /// Owns what must outlive a handler: cancels on behalf of clients that left.
    pub tasks: TaskTracker,
    /// `GET /openapi.json`, made once.
    pub openapi: bytes::Bytes,
    health: Mutex<Option<(Instant, Arc<Health>)>>,
    measuring: AtomicBool,
}

impl std::ops::Deref for App {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    pub(crate) fn new(engine: Engine, options: ServerOptions, health: Option<Health>) -> Self {
        let auth = Auth::new(&options.keys);
        let openapi = crate::openapi::document(&options).to_string().into();
        let lanes = engine.lanes().clone();
        Self(Arc::new(Inner {
            engine,
            options,
            stop: Arc::default(),
            auth,
            folds: Folds::default(),
            lanes,
            tasks: TaskTracker::new(),
            openapi,
            health: Mutex::new(health.map(|health| (Instant::now(), Arc::new(health)))),
            measuring: AtomicBool::new(false),
        }))
    }

    /// The engine's health, at most [`HEALTH_AGE`] old. `None` when it cannot be told in time,
    /// which is an answer, too.
    pub(crate) async fn health(&self) -> Option<Arc<Health>> {
        match self.known_health() {
            Some((at, health)) if at.elapsed() < HEALTH_AGE => Some(health),
            _ => self.measure().await,
        }
    }

    /// The health as it was measured last, for answers that must not wait. When that is a while
    /// ago the next measurement is started behind the answer.
    pub(crate) fn last_health(&self) -> Option<Arc<Health>> {
        let known = self.known_health();
        let is_old = known.as_ref().is_none_or(|(at, _)| at.elapsed() > HEALTH_OLD);
        if is_old && !self.measuring.swap(true, Ordering::AcqRel) {
            let app = self.clone();
            self.tasks.spawn(async move {
                app.measure().await;
                app.measuring.store(false, Ordering::Release);
            });
        }
        known.map(|(_, health)| health)
    }

    fn known_health(&self) -> Option<(Instant, Arc<Health>)> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn measure(&self) -> Option<Arc<Health>> {
        let health = Arc::new(timeout(HEALTH_LIMIT, self.engine.health()).await.ok()?);
        let mut known = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((Instant::now(), health.clone()));
        Some(health)
    }

    /// Asks a run to end in a task of its own, for callers that are being dropped.
    pub(crate) fn cancel_detached(&self, run: RunId) {
        let engine = self.engine.clone();
        self.tasks.spawn(async move {
            if let Err(error) = engine.cancel(run, "client_gone").await {
                tracing::warn!(run.id = %run, %error, "a client left, and its run could not be cancelled");
            }
        });
    }
}

const HEALTH_AGE: Duration = Duration::from_millis(200);
const HEALTH_OLD: Duration = Duration::from_secs(1);
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

/// Addresses under construction: the router, and what is in it.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    router: Router<App>,
    known: BTreeSet<Address>,
}

/// A method and a path, as in the OpenAPI document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub path: String,
    pub method: String,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Routes {
    /// # Errors
    /// Another door has the address.
    pub(crate) fn add(
        mut self,
        method: Method,
        path: impl Into<String>,
        handler: MethodRouter<App>,
    ) -> Result<Self, Address> {
        let address = Address { path: path.into(), method: method.to_string() };
        if !self.known.insert(address.clone()) {
            return Err(address);
        }
        self.router = self.router.route(&address.path, handler);
        Ok(self)
    }

    /// What answers where no address is, and where the address has other methods.
    pub(crate) fn elsewhere<H, T, I, U>(mut self, nothing: H, wrong_method: I) -> Self
    where
        H: Handler<T, App>,
        I: Handler<U, App>,
        T: 'static,
        U: 'static,
    {
        self.router = self.router.fallback(nothing).method_not_allowed_fallback(wrong_method);
        self
    }

    pub(crate) fn into_parts(self) -> (Router<App>, BTreeSet<Address>) {
        (self.router, self.known)
    }
}
