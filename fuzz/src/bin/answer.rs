//! Answers in one piece and refusals: nothing panics, and no key gets into a message.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clearway_upstream::codec::failure::fuzz(data));
