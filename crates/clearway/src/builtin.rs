//! The examples in the binary: what `clearway dev` serves in a folder without a `clearway.toml`.
//!
//! They are real files, so that they can be read, copied and checked like anybody's.

/// The configuration.
pub(crate) const CONFIG: &str = include_str!("builtin/clearway.toml");

/// The prompts it names.
pub(crate) const PROMPTS: &[(&str, &str)] =
    &[("prompts/cofounder.md", include_str!("builtin/prompts/cofounder.md"))];
