#![no_main]

#[path = "../targets/parameters.rs"]
mod parameters;

libfuzzer_sys::fuzz_target!(|data: &[u8]| parameters::run(data));
