#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| steering_e2e::untrusted::keys(data));
