//! Streams and whole answers in every dialect: nothing panics, cuts change nothing, and nothing is
//! whole that is not.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clearway_upstream::codec::fuzz(data));
