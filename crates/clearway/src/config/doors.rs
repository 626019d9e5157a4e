//! `[doors]`: which dialects are spoken, and where.
//!
//! What must stay true: a server starts with every set of doors that is fine here. It has the same
//! rules about mounts, and about addresses that it cannot give to two doors, and looks once more.

use std::collections::BTreeMap;
use std::ops::Range;

use super::report::Problem;
use super::walk::{At, Table, Walk, nearest};
use super::{Dialect, Door};

#[derive(Debug)]
pub(super) struct DoorDraft {
    pub(super) door: Door,
    pub(super) agent: Option<At<String>>,
    pub(super) source: Option<At<String>>,
    /// Of its mount, or of its table when it names none; `None` when the mount is wrong, which is
    /// reported already.
    place: Option<Range<usize>>,
}

/// What happens to a run whose client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDisconnect {
    Continue,
    Cancel,
}

const DIALECTS: &[(&str, Dialect)] = &[
    ("cofounder", Dialect::CoFounder),
    ("campaigns", Dialect::Campaign),
    ("knowledge", Dialect::Knowledge),
];

/// Dialects that are documented and not built yet.
const FUTURE_DIALECTS: &[&str] = &["langgraph", "openai", "mcp", "runs"];

/// A door is called like its dialect, or says which one it speaks.
fn known_dialect(table: &Table<'_>, name: &str) -> Option<Dialect> {
    if let Some((_, dialect)) = DIALECTS.iter().find(|(known, _)| *known == name) {
        return Some(*dialect);
    }
    let names = || DIALECTS.iter().map(|(name, _)| *name);
    let (message, help) = if FUTURE_DIALECTS.contains(&name) {
        (format!("the door `{name}` is not supported by this version"), "leave it out".to_owned())
    } else {
        let help = match nearest(name, names()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "say which dialect it speaks: dialect = \"{}\"",
                names().collect::<Vec<_>>().join("\" or \"")
            ),
        };
        (format!("there is no dialect `{name}`"), help)
    };
    table
        .walk
        .note(Problem::new(message).at(&table.walk.source, table.span.clone(), "").help(help));
    None
}

/// `[doors.NAME]`.
pub(super) fn read(name: &str, table: Table<'_>) -> Option<DoorDraft> {
    let mount_at = table.get("mount");
    let mount = mount_at.as_ref().map(|value| value.parsed(mount));
    let place = match (&mount_at, &mount) {
        (_, Some(None)) => None,
        (Some(value), _) => Some(value.span().unwrap_or_else(|| table.span.clone())),
        (None, _) => Some(table.span.clone()),
    };
    let agent = table.get("agent").and_then(|value| value.name());
    let expose_state = table.get("expose_state").and_then(|value| value.boolean());
    let source = table.get("source").and_then(|value| value.name());
    let dialect = match table.get("dialect") {
        Some(value) => value.one_of(DIALECTS),
        None => known_dialect(&table, name),
    };
    if let Some(value) = table.get("on_disconnect") {
        let choices = [("continue", OnDisconnect::Continue), ("cancel", OnDisconnect::Cancel)];
        if value.one_of(&choices) == Some(OnDisconnect::Cancel) {
            value.problem(
                "`on_disconnect = \"cancel\"` is not supported by this version",
                "not supported yet",
                "clients can ask for it: /chat/stream?on_disconnect=cancel",
            );
        }
    }
    table.unsupported(&["keys", "auth", "cors", "deadline", "limits"]);
    table.finish();
    let dialect = dialect?;
    let usual = || match dialect {
        Dialect::Knowledge => "/knowledge-agent".to_owned(),
        Dialect::CoFounder | Dialect::Campaign => "/".to_owned(),
    };
    let door = Door {
        dialect,
        mount: mount.flatten().unwrap_or_else(usual),
        agent: agent.as_ref().map(|agent| agent.value.clone()),
        expose_state: expose_state.unwrap_or(false),
        source: source.as_ref().map(|source| source.value.clone()),
    };
    Some(DoorDraft { door, agent, source, place })
}

/// Where a door may be: plain segments, so that no client, proxy or router reads the path in another
/// way than the next.
fn mount(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/-_.~".contains(c);
    let why = if text == "/" {
        return Ok(text.to_owned());
    } else if !text.starts_with('/') {
        "must begin with a slash"
    } else if text.ends_with('/') {
        "must not end with a slash"
    } else if text.contains("//") {
        "has two slashes with nothing between"
    } else if !text.chars().all(is_plain) {
        "has something else than letters, digits, and - _ . ~ between its slashes"
    } else if text.split('/').any(|segment| matches!(segment, "." | "..")) {
        "has a `.` or `..`, which clients resolve before they ask"
    } else {
        return Ok(text.to_owned());
    };
    Err(format!("`{text}` {why}; it is a path such as /cofounder"))
}

/// Notes the doors that a server could not open, because what they answer has an owner.
pub(super) fn note_collisions(walk: &Walk<'_>, doors: &BTreeMap<String, DoorDraft>) {
    let mut sound: Vec<(&String, &Door, &Range<usize>)> = doors
        .iter()
        .filter_map(|(name, draft)| Some((name, &draft.door, draft.place.as_ref()?)))
        .collect();
    sound.sort_by_key(|(_, _, place)| place.start);
    for (at, (name, door, place)) in sound.iter().enumerate() {
        let taken = sound[..at].iter().find_map(|(first, other, _)| {
            let (address, help) = shared(other, door)?;
            Some((address, format!("the door `{first}` has already"), help))
        });
        let taken = taken.or_else(|| of_server(door));
        if let Some((address, owner, help)) = taken {
            let problem = Problem::new(format!("the door `{name}` needs {address}, which {owner}"));
            walk.note(problem.help(help).at(&walk.source, (*place).clone(), "taken"));
        }
    }
}

/// An address of the door that the server has beside all doors.
fn of_server(door: &Door) -> Option<(String, String, &'static str)> {
    (door.dialect == Dialect::Knowledge && door.mount == "/").then(|| {
        let owner = "every server has already".to_owned();
        ("POST /chat/async".to_owned(), owner, "give it another mount, such as /knowledge-agent")
    })
}

/// An address that both doors would have, if there is one, and what to do about it.
fn shared(one: &Door, other: &Door) -> Option<(String, &'static str)> {
    const MOVE: &str = "give one of them another mount";
    let is_chat = |door: &Door| matches!(door.dialect, Dialect::CoFounder | Dialect::Knowledge);
    let at = |mount: &str, address: &str| format!("{}{address}", mount.trim_end_matches('/'));
    if one.mount == other.mount {
        // Every dialect has this one.
        let health = || format!("GET {}", at(&one.mount, "/health"));
        let chat = || format!("POST {}", at(&one.mount, "/chat"));
        let address = if is_chat(one) && is_chat(other) { chat() } else { health() };
        return Some((address, MOVE));
    }
    match (one.dialect, other.dialect) {
        // Pages that were handed out have no mount in front.
        (Dialect::Campaign, Dialect::Campaign) => Some((
            "GET /campaigns/view/{campaign_id}".to_owned(),
            "leave one of them out: a server has one door of this dialect",
        )),
        (Dialect::Knowledge, Dialect::Knowledge) => {
            let below = |outer: &Door, inner: &Door| at(&outer.mount, "/config") == inner.mount;
            (below(one, other) || below(other, one)).then(|| {
                let inner = if below(one, other) { other } else { one };
                (format!("GET {}", at(&inner.mount, "/notes")), MOVE)
            })
        }
        _ => None,
    }
}
