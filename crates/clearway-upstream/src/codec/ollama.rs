//! Ollama's own chat: a document a line, tool calls in one piece, sampling parameters apart.
//!
//! [`request`] writes a request's body; [`stream`] reads a streamed answer and one that came in one
//! document, which has the shape of the last line.

pub mod request;
pub mod stream;
