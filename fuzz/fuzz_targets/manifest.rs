#![no_main]

#[path = "../decoders.rs"]
#[allow(dead_code, reason = "each target calls one of them")]
mod decoders;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    decoders::manifest(bytes);
});
