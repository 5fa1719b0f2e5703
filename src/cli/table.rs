//! Aligned tables in plain text.

use std::io::{self, Write};

use super::output::printable;

/// Rows under headings; columns whose cells are all numbers are set to the right.
#[derive(Debug, Default)]
pub(super) struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    pub(super) fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Table { head: head.into_iter().map(Into::into).collect(), rows: Vec::new(), indent: 0 }
    }

    pub(super) fn indented(mut self, spaces: usize) -> Self {
        self.indent = spaces;
        self
    }

    /// Adds a row; missing cells are empty and surplus ones are dropped.
    pub(super) fn row<S: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut cells: Vec<String> = cells.into_iter().map(|cell| printable(cell.as_ref())).collect();
        cells.resize(self.head.len(), String::new());
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns: Vec<Column> = (0..self.head.len()).map(|at| self.column(at)).collect();
        for row in std::iter::once(&self.head).chain(&self.rows) {
            let mut line = " ".repeat(self.indent);
            for (column, cell) in columns.iter().zip(row) {
                column.push(&mut line, cell);
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn column(&self, at: usize) -> Column {
        let cells = || self.rows.iter().map(|row| row[at].as_str());
        let width = cells().chain([self.head[at].as_str()]).map(|cell| cell.chars().count()).max().unwrap_or(0);
        let right = !self.rows.is_empty() && cells().all(is_quantity) && cells().any(|cell| !is_blank(cell));
        Column { width, right }
    }
}

struct Column {
    width: usize,
    right: bool,
}

impl Column {
    fn push(&self, line: &mut String, cell: &str) {
        let padding = " ".repeat(self.width - cell.chars().count());
        let (before, after) = if self.right { (padding.as_str(), "") } else { ("", padding.as_str()) };
        line.push_str(before);
        line.push_str(cell);
        line.push_str(after);
        line.push_str("  ");
    }
}

fn is_blank(cell: &str) -> bool {
    cell.is_empty() || cell == "-"
}

/// A number, alone or with a unit.
fn is_quantity(cell: &str) -> bool {
    let (number, unit) = cell.split_once(' ').unwrap_or((cell, ""));
    is_blank(cell) || (number.parse::<f64>().is_ok() && !unit.contains(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_goes_left_and_quantities_go_right() {
        let mut table = Table::new(["name", "took", "note"]);
        table.row(["a", "1.5 ms", "x"]);
        table.row(["longer", "120 ms", ""]);
        table.row(["b", "-", "y\u{7}"]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "name      took  note\na       1.5 ms  x\nlonger  120 ms\nb            -  y\\u{7}\n");
    }
}
