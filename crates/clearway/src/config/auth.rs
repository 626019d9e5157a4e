//! `[auth]`: the keys that open the server.

use std::collections::BTreeSet;

use clearway_server::{KeyLimits, Scope};

use super::AuthKey;
use super::walk::{Table, Value, is_name};

/// The tenant of keys that name none, and of everything while there are no keys.
const TENANT: &str = "default";
/// Shorter keys can be guessed.
const SHORT: usize = 16;

pub(super) fn read(table: Table<'_>) -> Vec<AuthKey> {
    let Some(list) = table.get("keys") else {
        table.finish();
        return Vec::new();
    };
    let items = list.list();
    if list.is_list() && items.is_empty() {
        list.problem(
            format!("`{}` is empty", list.path),
            "no key in it",
            "leave `auth` out for a server without keys",
        );
    }
    let mut names = BTreeSet::new();
    let keys: Vec<AuthKey> = items.iter().filter_map(|item| key(item, &mut names)).collect();
    for (at, key) in keys.iter().enumerate() {
        let twin = keys[..at].iter().find(|other| other.secret == key.secret);
        if let (Some(twin), Some(item)) = (twin, items.get(at)) {
            item.hidden_problem(
                format!("the keys `{}` and `{}` are the same text", twin.name, key.name),
                "whose is it?",
                "give each its own",
            );
        }
    }
    table.finish();
    keys
}

fn key(value: &Value<'_>, names: &mut BTreeSet<String>) -> Option<AuthKey> {
    let table = value.table()?;
    let shape = "write { name = \"ann\", key = \"${ANN_KEY}\", user = \"ann\" }";
    let name = table.require("name", shape).and_then(|value| {
        let name = value.name()?.value;
        if !is_name(&name) {
            value.problem(
                format!("`{name}` cannot be a name"),
                "here",
                "names have 1 to 64 letters, digits, `_`, `-` and `.`",
            );
        } else if !names.insert(name.clone()) {
            value.problem(format!("there are two keys `{name}`"), "the second", "");
        }
        Some(name)
    });
    let secret = table.require("key", shape).and_then(|value| {
        let secret = value.secret()?;
        let text = secret.expose();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            value.hidden_problem(
                format!("`{}` cannot be a key", value.path),
                "here",
                "keys are printable ASCII without spaces",
            );
            return None;
        }
        if text.len() < SHORT {
            table.walk.warn(format!(
                "`{}` is shorter than {SHORT} characters and can be guessed: openssl rand -hex 32 makes a better one",
                value.path
            ));
        }
        Some(secret)
    });
    let user = table.get("user").and_then(|value| value.name()).map(|user| user.value);
    let tenant = table.get("tenant").and_then(|value| value.name()).map(|tenant| tenant.value);
    let admin = table.get("admin").and_then(|value| value.boolean()).unwrap_or(false);
    let scopes = table.get("scopes").map(|value| scopes(&value));
    let limits = limits(table.sub("limits"));
    table.finish();
    Some(AuthKey {
        name: name?,
        secret: secret?,
        user,
        tenant: tenant.unwrap_or_else(|| TENANT.to_owned()),
        admin,
        scopes: scopes.unwrap_or_else(|| vec![Scope::Read, Scope::Write]),
        limits,
    })
}

fn scopes(value: &Value<'_>) -> Vec<Scope> {
    let all: Vec<(&str, Scope)> = [Scope::Read, Scope::Write, Scope::Operate]
        .into_iter()
        .map(|scope| (scope.as_str(), scope))
        .collect();
    value.list().iter().filter_map(|item| item.one_of(&all)).collect()
}

fn limits(table: Table<'_>) -> KeyLimits {
    let count = |key| table.get(key).and_then(|value| value.count(1..=100_000_000));
    let limits = KeyLimits { per_minute: count("per_minute"), concurrent: count("concurrent") };
    table.finish();
    limits
}
