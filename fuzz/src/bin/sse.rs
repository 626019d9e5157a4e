//! The event decoder: however a stream is cut, the events are the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clearway_upstream::sse::fuzz(data));
