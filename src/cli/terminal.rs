//! What is on the other side of stdout and stderr.

#![expect(clippy::disallowed_methods, reason = "COLUMNS and NO_COLOR are the terminal's words")]

use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::time::Duration;

use super::table::Page;
use crate::clock::Clock;

/// How wide results may be, and whether they are coloured.
pub(super) fn page() -> Page {
    let is_terminal = stdout().is_terminal();
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let width = columns.or_else(|| is_terminal.then(terminal_width).flatten());
    let has_colour = is_terminal
        && std::env::var("NO_COLOR").unwrap_or_default().is_empty()
        && std::env::var("TERM").is_ok_and(|term| term != "dumb");
    Page { width: width.filter(|width| *width > 0), has_colour, now: Clock::default().wall() }
}

fn terminal_width() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stdout()).ok()?;
    Some(usize::from(size.ws_col))
}

/// A line on stderr that says what is waited for; nothing where nobody sees it.
pub(super) struct Progress {
    is_shown: bool,
    is_there: bool,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { is_shown: stderr().is_terminal(), is_there: false }
    }

    /// How often it changes, and how long it is kept back.
    pub(super) const PACE: Duration = Duration::from_secs(1);

    /// Whether anybody sees it.
    pub(super) fn is_shown(&self) -> bool {
        self.is_shown
    }

    pub(super) fn tell(&mut self, line: &str) {
        if self.is_shown {
            drop(write!(stderr().lock(), "\r\x1b[K{line}"));
            self.is_there = true;
        }
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.is_there) {
            drop(write!(stderr().lock(), "\r\x1b[K"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
