//! Request bodies of every address: whatever the bytes are, they are taken or refused.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| clearway_server::fuzz_request_bodies(data));
