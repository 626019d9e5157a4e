//! What a client wants to see.

/// What a client wants to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::langgraph) struct Modes(u16);

impl Modes {
    pub(in crate::langgraph) const NONE: Self = Self(0);
    pub(in crate::langgraph) const VALUES: Self = Self(1);
    pub(in crate::langgraph) const UPDATES: Self = Self(2);
    /// `messages-tuple`: a message in pieces.
    pub(in crate::langgraph) const TUPLES: Self = Self(4);
    /// `messages`: a message as far as it has come.
    pub(in crate::langgraph) const PARTIALS: Self = Self(8);
    pub(in crate::langgraph) const CUSTOM: Self = Self(16);
    pub(in crate::langgraph) const TASKS: Self = Self(32);
    pub(in crate::langgraph) const CHECKPOINTS: Self = Self(64);
    pub(in crate::langgraph) const DEBUG: Self = Self(128);
    pub(in crate::langgraph) const EVENTS: Self = Self(256);
    pub(in crate::langgraph) const ALL: Self = Self(511);

    const NAMES: [(&'static str, Self); 9] = [
        ("values", Self::VALUES),
        ("updates", Self::UPDATES),
        ("messages-tuple", Self::TUPLES),
        ("messages", Self::PARTIALS),
        ("custom", Self::CUSTOM),
        ("tasks", Self::TASKS),
        ("checkpoints", Self::CHECKPOINTS),
        ("debug", Self::DEBUG),
        ("events", Self::EVENTS),
    ];

    pub(in crate::langgraph) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(in crate::langgraph) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(in crate::langgraph) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// # Errors
    /// No mode has this name; says which there are.
    pub(in crate::langgraph) fn parse(name: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, mode)| *mode).ok_or_else(|| {
            let known: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            let name = crate::extract::shown(name);
            format!("no stream mode is called `{name}`; there are: {}", known.join(", "))
        })
    }

    pub(in crate::langgraph) fn names(self) -> Vec<&'static str> {
        Self::NAMES.iter().filter(|(_, mode)| self.has(*mode)).map(|(name, _)| *name).collect()
    }
}
