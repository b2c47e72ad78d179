//! Replays what fuzzing has found worth keeping.

#[path = "../fuzz/targets/frames.rs"]
mod frames;
#[path = "../fuzz/targets/packages.rs"]
mod packages;
#[path = "../fuzz/targets/parameters.rs"]
mod parameters;
#[path = "../fuzz/targets/tokens.rs"]
mod tokens;

fn replay(target: &str, run: fn(&[u8])) {
    let corpus = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut inputs = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        run(&std::fs::read(file.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs > 10, "{target}: only {inputs} inputs");
}

#[test]
fn the_corpus_of_parameters_is_taken_or_refused() {
    replay("parameters", parameters::run);
}

#[test]
fn the_corpus_of_frames_is_taken_or_refused() {
    replay("frames", frames::run);
}

#[test]
fn the_corpus_of_what_dpkg_and_apt_write_is_read() {
    replay("packages", packages::run);
}

#[test]
fn the_corpus_of_tokens_is_believed_or_refused() {
    replay("tokens", tokens::run);
}
