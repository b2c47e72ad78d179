//! Tables that fit a terminal.

use std::fmt::Write as _;

use super::text::{cut, pad, width};

const INDENT: &str = "  ";
const GAP: &str = "  ";
/// No column is made narrower than this.
const LEAST: usize = 6;
/// A cell's bound where there is no terminal whose width could be one.
const MOST: usize = 240;

#[derive(Debug, Default)]
pub(super) struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// A text of one line, and how it is coloured.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) colour: Option<Colour>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
    Cyan = 36,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, colour: None }
    }
}

/// Where it is printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Page {
    /// In columns; None where the other side is no terminal.
    pub width: Option<usize>,
    pub has_colour: bool,
    /// Milliseconds since 1970, which ages count to.
    pub now: u64,
}

impl Table {
    pub(super) fn new(headers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { headers: headers.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    pub(super) fn push(&mut self, row: Vec<Cell>) {
        self.rows.push(row);
    }

    pub(super) fn render(&self, page: Page) -> String {
        let mut widths: Vec<_> = self.headers.iter().map(|header| width(header)).collect();
        for row in &self.rows {
            for (widest, cell) in widths.iter_mut().zip(row) {
                *widest = (*widest).max(width(&cell.text)).min(MOST);
            }
        }
        if let Some(limit) = page.width {
            let gaps = INDENT.len() + GAP.len() * widths.len().saturating_sub(1);
            narrow(&mut widths, limit.saturating_sub(gaps));
        }
        let mut text = String::new();
        let headers: Vec<Cell> = self.headers.iter().cloned().map(Cell::from).collect();
        for row in std::iter::once(&headers).chain(&self.rows) {
            let mut line = String::from(INDENT);
            for (i, (cell, columns)) in row.iter().zip(&widths).enumerate() {
                if i > 0 {
                    line.push_str(GAP);
                }
                let shown = pad(&cut(&cell.text, *columns), *columns);
                match cell.colour.filter(|_| page.has_colour) {
                    Some(colour) => {
                        _ = write!(line, "\x1b[{}m{shown}\x1b[0m", colour as u8);
                    }
                    None => line.push_str(&shown),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Takes from the widest columns until all of them fit.
fn narrow(widths: &mut [usize], limit: usize) {
    while widths.iter().sum::<usize>() > limit {
        let widest = widths.iter().copied().max().unwrap_or_default();
        if widest <= LEAST {
            return;
        }
        let next = widths.iter().copied().filter(|&w| w < widest).max().unwrap_or(0).max(LEAST);
        let count = widths.iter().filter(|&&w| w == widest).count();
        let excess = widths.iter().sum::<usize>() - limit;
        let cut = (widest - next).min(excess.div_ceil(count)).max(1);
        // One column at a time gives up the remainder, so that no width is wasted.
        let mut left = excess.min(cut * count);
        for w in widths.iter_mut().filter(|w| **w == widest) {
            let take = cut.min(left);
            *w -= take;
            left -= take;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_as_wide_as_the_terminal_and_no_wider() {
        let mut widths = [10, 40, 60];
        narrow(&mut widths, 74);
        assert_eq!(widths, [10, 32, 32]);
        let mut tight = [10, 40, 60];
        narrow(&mut tight, 5);
        assert_eq!(tight, [6, 6, 6]);
    }
}
