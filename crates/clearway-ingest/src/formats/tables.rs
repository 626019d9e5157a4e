//! Tables: each row says its columns' names again, so that it can be understood alone.

use std::fmt::Write;
use std::io::Cursor;

use calamine::{Data, Reader, open_workbook_auto_from_rs};

use super::{Builder, office};
use crate::protocol::{Parsed, Trouble, TroubleKind};

pub(super) fn csv(text: &str, delimiter: Option<u8>) -> Result<Parsed, Trouble> {
    let delimiter = delimiter.unwrap_or_else(|| guess(text));
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .flexible(true)
        .has_headers(false)
        .from_reader(text.as_bytes());
    let mut builder = Builder::new("csv");
    let mut rows = Rows::default();
    for record in reader.records() {
        let record = record.map_err(|error| {
            Trouble::new(TroubleKind::Broken, format!("it is no valid CSV: {error}"))
        })?;
        rows.row(&mut builder, record.iter().map(ToOwned::to_owned).collect());
    }
    Ok(builder.finish())
}

/// The separator that is most frequent in the first line.
fn guess(text: &str) -> u8 {
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let count = |separator: &u8| line.bytes().filter(|byte| byte == separator).count();
    [b'|', b'\t', b';', b','].into_iter().max_by_key(count).unwrap_or(b',')
}

pub(super) fn workbook(bytes: &[u8]) -> Result<Parsed, Trouble> {
    if bytes.starts_with(b"PK") {
        office::refuse_bomb(bytes)?;
    }
    let broken = |error: String| {
        let encrypted = error.to_lowercase().contains("password");
        let kind = if encrypted { TroubleKind::Encrypted } else { TroubleKind::Broken };
        Trouble::new(kind, format!("it cannot be read as a workbook: {error}"))
    };
    let mut book = open_workbook_auto_from_rs(Cursor::new(bytes))
        .map_err(|error| broken(error.to_string()))?;
    let mut builder = Builder::new("sheet");
    for name in book.sheet_names() {
        let range = match book.worksheet_range(&name) {
            Ok(range) => range,
            Err(error) => {
                builder.out.notes.push(format!("sheet {name:?} cannot be read: {error}"));
                continue;
            }
        };
        if range.is_empty() {
            continue;
        }
        builder.heading(1, &name);
        let mut rows = Rows::default();
        for row in range.rows() {
            rows.row(&mut builder, row.iter().map(cell).collect());
        }
    }
    Ok(builder.finish())
}

fn cell(cell: &Data) -> String {
    match cell {
        Data::Empty => String::new(),
        other => other.to_string(),
    }
}

/// The rows of one table; the first one with text names the columns.
#[derive(Debug, Default)]
struct Rows {
    names: Option<Vec<String>>,
}

impl Rows {
    fn row(&mut self, builder: &mut Builder, cells: Vec<String>) {
        let cells: Vec<String> = cells.iter().map(|cell| super::one_line(cell, 4000)).collect();
        if cells.iter().all(String::is_empty) {
            return;
        }
        let Some(names) = &self.names else {
            self.names = Some(cells);
            return;
        };
        let mut line = String::new();
        for (at, cell) in cells.iter().enumerate().filter(|(_, cell)| !cell.is_empty()) {
            if !line.is_empty() {
                line.push_str("; ");
            }
            match names.get(at).filter(|name| !name.is_empty()) {
                Some(name) => {
                    let _ = write!(line, "{name}: {cell}");
                }
                None => line.push_str(cell),
            }
        }
        builder.line(&line);
    }
}
