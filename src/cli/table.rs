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
            let limit = limit.saturating_sub(gaps);
            // Half an id is of no use to anybody, so those give way last.
            let is_id = |header: &String| matches!(header.as_str(), "ID" | "JOB ID" | "MACHINE ID");
            let ids: usize =
                self.headers.iter().zip(&widths).filter(|(h, _)| is_id(h)).map(|(_, w)| w).sum();
            let mut others: Vec<_> = self.headers.iter().zip(&mut widths).collect();
            others.retain(|(header, _)| !is_id(header));
            narrow(others.into_iter().map(|(_, width)| width), limit.saturating_sub(ids));
            narrow(widths.iter_mut(), limit);
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
fn narrow<'a>(widths: impl Iterator<Item = &'a mut usize>, limit: usize) {
    let mut widths: Vec<_> = widths.collect();
    while widths.iter().map(|w| **w).sum::<usize>() > limit {
        let widest = widths.iter().map(|w| **w).max().unwrap_or_default();
        if widest <= LEAST {
            return;
        }
        let next = widths.iter().map(|w| **w).filter(|w| *w < widest).max();
        let next = next.unwrap_or(0).max(LEAST);
        let count = widths.iter().filter(|w| ***w == widest).count();
        let excess = widths.iter().map(|w| **w).sum::<usize>() - limit;
        let cut = (widest - next).min(excess.div_ceil(count)).max(1);
        // One column at a time gives up the remainder, so that no width is wasted.
        let mut left = excess.min(cut * count);
        for w in widths.iter_mut().filter(|w| ***w == widest) {
            let take = cut.min(left);
            **w -= take;
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
        narrow(widths.iter_mut(), 74);
        assert_eq!(widths, [10, 32, 32]);
        let mut tight = [10, 40, 60];
        narrow(tight.iter_mut(), 5);
        assert_eq!(tight, [6, 6, 6]);
        let mut table = Table::new(["ID", "PATH"]);
        table.push(["x".repeat(36), "y".repeat(100)].map(Cell::from).into());
        let page = Page { width: Some(60), ..Page::default() };
        assert!(table.render(page).contains(&"x".repeat(36)));
    }
}
