#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = conclave_cli::fuzz_targets::TARGETS.iter().find(|target| target.name == "log_block");
    (target.expect("a target").run)(data);
});
