//! Who asks: the one place that turns a request into a tenant and an owner.
//!
//! Without configured keys there is one tenant, and a dialect's `user_id` is data that the caller
//! may choose. With keys `auth` has found out whose the request is before any handler sees it, and
//! has written it down in a header that no client can set; here it is read.
//!
//! **Invariant:** a caller that is bound to a user never gets another one's tenant or owner out of
//! here, whatever the request says.

use clearway_core::thread::ThreadRecord;
use clearway_core::{Code, RunId, RunRecord, ThreadId};
use clearway_engine::{RunQuery, RunView};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::Problem;
use crate::app::App;
use crate::extract::shown;

/// In whose name a request acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub tenant: String,
    /// The user, where the key or the door knows one.
    pub owner: Option<String>,
    /// Sees what belongs to others, too.
    pub admin: bool,
    /// A key is behind it: others' things are hidden.
    pub bound: bool,
}

/// Whose key a request came with, as `auth` writes it down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub key: String,
    pub tenant: String,
    pub user: Option<String>,
    pub admin: bool,
}

/// Where the identity stands. It is removed from whatever comes in.
pub(crate) const IDENTITY: HeaderName = HeaderName::from_static("x-clearway-identity");

impl Identity {
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let text = serde_json::to_string(self).unwrap_or_default();
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            headers.insert(IDENTITY, value);
        }
    }

    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        serde_json::from_slice(headers.get(IDENTITY)?.as_bytes()).ok()
    }
}

/// The tenant while no keys are configured.
pub(crate) const TENANT: &str = "default";

/// Who asks, for a door that names the user `user`, if it does.
///
/// # Errors
/// `forbidden` when the key belongs to another user.
pub(crate) fn caller(headers: &HeaderMap, user: Option<&str>) -> Result<Caller, Problem> {
    let named = user.map(ToOwned::to_owned);
    let Some(identity) = Identity::read(headers) else {
        let tenant = TENANT.to_owned();
        return Ok(Caller { tenant, owner: named, admin: false, bound: false });
    };
    let Identity { tenant, user: bound, admin, key } = identity;
    if let (Some(named), Some(bound), false) = (&named, &bound, admin)
        && named != bound
    {
        let text = format!(
            "the key `{key}` belongs to the user `{bound}` and cannot act for `{}`",
            shown(named)
        );
        return Err(Problem::new(Code::Forbidden, text));
    }
    let owner = named.or(bound);
    Ok(Caller { tenant, owner, admin, bound: true })
}

impl Caller {
    /// Whether something of this tenant and owner may be shown.
    pub(crate) fn owns(&self, tenant: &str, owner: Option<&str>) -> bool {
        !self.bound
            || self.admin
            || (tenant == self.tenant && (self.owner.is_none() || owner == self.owner.as_deref()))
    }

    /// A list's conditions, narrowed to what the caller may see.
    pub(crate) fn narrow(&self, query: RunQuery) -> RunQuery {
        if self.admin {
            return query;
        }
        RunQuery { tenant: Some(self.tenant.clone()), owner: self.owner.clone(), ..query }
    }

    /// # Errors
    /// `run_not_found`, as for a run that does not exist, when it is somebody else's.
    pub(crate) fn check(&self, record: &RunRecord) -> Result<(), Problem> {
        if self.owns(&record.tenant, record.owner.as_deref()) {
            return Ok(());
        }
        Err(Problem::new(Code::RunNotFound, format!("no run {}", record.id)))
    }

    /// A run that the caller may see.
    ///
    /// # Errors
    /// `run_not_found`, also when it is somebody else's.
    pub(crate) async fn run(&self, app: &App, run: RunId) -> Result<RunView, Problem> {
        let view = app.engine.run(run).await?;
        self.check(&view.record)?;
        Ok(view)
    }
}

/// The run with this id, if the request's caller may see it.
///
/// # Errors
/// `run_not_found`.
pub(crate) async fn own_run(
    app: &App,
    headers: &HeaderMap,
    run: RunId,
) -> Result<RunView, Problem> {
    caller(headers, None)?.run(app, run).await
}

/// Refuses an address that names somebody else's thread or run, whichever door it belongs to. So a
/// new address below them is guarded without anybody thinking of it.
///
/// # Errors
/// `thread_not_found` or `run_not_found`, as for what does not exist.
pub(crate) async fn check_path(app: &App, headers: &HeaderMap, path: &str) -> Result<(), Problem> {
    if Identity::read(headers).is_none_or(|identity| identity.admin) {
        return Ok(());
    }
    let caller = caller(headers, None)?;
    let mut parts = path.split('/');
    while let Some(part) = parts.next() {
        let is_thread = match part {
            "threads" => true,
            "runs" => false,
            _ => continue,
        };
        let Some(id) = parts.clone().next().and_then(|id| id.parse::<Uuid>().ok()) else {
            continue;
        };
        if is_thread {
            let thread = app.engine.thread(ThreadId(id)).await?;
            let owns = |thread: ThreadRecord| caller.owns(&thread.tenant, thread.owner.as_deref());
            if !thread.is_none_or(owns) {
                return Err(Problem::new(Code::ThreadNotFound, format!("no thread {id}")));
            }
        } else {
            match app.engine.run(RunId(id)).await {
                Ok(view) => caller.check(&view.record)?,
                // Whoever handles it says so in its own words.
                Err(error) if error.code() == Code::RunNotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(user: Option<&str>, admin: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let identity = Identity {
            key: "k".to_owned(),
            tenant: "acme".to_owned(),
            user: user.map(ToOwned::to_owned),
            admin,
        };
        identity.write(&mut headers);
        headers
    }

    #[test]
    fn a_key_of_a_user_acts_for_nobody_else() {
        let ann = headers(Some("ann \u{e9}"), false);
        let caller_of = |user| caller(&ann, user);
        let own = caller_of(None).unwrap();
        assert_eq!((own.tenant.as_str(), own.owner.as_deref()), ("acme", Some("ann \u{e9}")));
        assert_eq!(caller_of(Some("ann \u{e9}")).unwrap(), own);
        assert_eq!(caller_of(Some("bob")).unwrap_err().code(), Code::Forbidden);
        assert!(own.owns("acme", Some("ann \u{e9}")));
        for (tenant, owner) in
            [("acme", Some("bob")), ("acme", None), ("other", Some("ann \u{e9}"))]
        {
            assert!(!own.owns(tenant, owner), "{tenant} {owner:?}");
        }
        assert_eq!(own.narrow(RunQuery::default()).owner.as_deref(), Some("ann \u{e9}"));
    }

    #[test]
    fn admins_see_all_and_keys_without_a_user_see_their_tenant() {
        let admin = caller(&headers(Some("root"), true), Some("bob")).unwrap();
        assert_eq!(admin.owner.as_deref(), Some("bob"));
        assert!(admin.owns("other", None));
        assert_eq!(admin.narrow(RunQuery::default()).tenant, None);
        let service = caller(&headers(None, false), None).unwrap();
        assert!(service.owns("acme", Some("bob")) && !service.owns("other", None));
    }

    #[test]
    fn without_keys_a_user_is_what_the_request_says() {
        let free = caller(&HeaderMap::new(), Some("bob")).unwrap();
        assert_eq!((free.tenant.as_str(), free.owner.as_deref()), (TENANT, Some("bob")));
        assert!(free.owns("anything", None));
    }
}
