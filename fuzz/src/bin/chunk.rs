//! The chunk reader: nothing panics, and nothing is whole that is not.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clearway_upstream::codec::openai::stream::fuzz(data));
