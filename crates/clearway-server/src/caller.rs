//! Who asks: the one place that turns a request into a tenant and an owner.
//!
//! Without configured keys there is one tenant, and a dialect's `user_id` is data that the caller
//! may choose. Keys will be read here, and nowhere else.

use http::HeaderMap;

/// In whose name a request acts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub tenant: String,
    /// The user, where the door knows one.
    pub owner: Option<String>,
}

/// The tenant while no keys are configured.
pub(crate) const TENANT: &str = "default";

pub(crate) fn caller(_headers: &HeaderMap, user: Option<&str>) -> Caller {
    Caller { tenant: TENANT.to_owned(), owner: user.map(ToOwned::to_owned) }
}
