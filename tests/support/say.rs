//! What a test tells whoever runs it, whether it fails or not: figures, and what it had to skip.
use std::fmt::Display;
use std::io::Write;

/// Writes past the runner's capture, which keeps what a test that holds prints; on a line of its
/// own, since a runner with one thread has begun one for the test's name.
pub(crate) fn say(line: impl Display) {
    let told = writeln!(std::io::stdout().lock(), "\n{line}");
    told.expect("somebody takes what the tests say");
}
