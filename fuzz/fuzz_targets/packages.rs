#![no_main]

#[path = "../targets/packages.rs"]
mod packages;

libfuzzer_sys::fuzz_target!(|data: &[u8]| packages::run(data));
