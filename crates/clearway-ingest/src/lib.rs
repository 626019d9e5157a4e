//! What documents say: files of many formats as text with structure.
//!
//! Files come from outside and so do their tricks: a parser may crash on one, loop, or swell to
//! gigabytes. Therefore nothing is parsed in the server. A process of the same binary reads files
//! one after the other, under limits of the operating system ([`reader`]), and whoever needs a
//! document asks it over a pipe in the words of [`protocol`]. A file that kills its reader costs an
//! entry in a report.
//!
//! **Invariants:** whatever the bytes, the answer is a [`protocol::Parsed`] or a
//! [`protocol::Trouble`]; its size is bounded by the request; offsets in it are at character
//! boundaries of its text, in ascending order.
//!
//! Not here: starting, watching and killing the process; what becomes of the text.

#[cfg(feature = "formats")]
mod formats;
pub mod protocol;
#[cfg(feature = "formats")]
pub mod reader;
