//! Answers of providers as HTTP/1.1: however they are cut, they read the same.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clearway_upstream::http1::fuzz(data));
