//! One line of the picture: a store's addresses from left to right, as far as they are used.

use std::io::{self, Write};

/// Width of a line.
pub(super) const WIDTH: u32 = 1160;
/// Columns of a line that is not drawn extent by extent.
const COLUMNS: usize = 580;
/// Shades of a column.
const SHADES: u64 = 4;
/// What can still be seen.
const NARROWEST: f64 = 0.6;

/// What something is drawn as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fill {
    Data,
    Zero,
    Hole,
    /// Data that is never read directly.
    Closed,
}

impl Fill {
    const COUNT: usize = 4;

    fn class(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Zero => "zero",
            Self::Hole => "hole",
            Self::Closed => "closed",
        }
    }
}

/// See the module.
pub(super) struct Line {
    from: u64,
    to: u64,
    /// Offset, length and kind.
    pieces: Vec<(u64, u64, Fill)>,
    /// Bytes of each kind in each column.
    columns: Vec<[u64; Fill::COUNT]>,
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a pixel is much more than a bit of a double"
)]
impl Line {
    /// A line that shows `from..to`.
    pub(super) fn new(from: u64, to: u64) -> Self {
        Self {
            from,
            to: to.max(from + 1),
            pieces: Vec::new(),
            columns: vec![[0; Fill::COUNT]; COLUMNS],
        }
    }

    /// The addresses at its ends.
    pub(super) fn window(&self) -> (u64, u64) {
        (self.from, self.to)
    }

    /// Puts a stretch onto it, by itself or into its columns.
    pub(super) fn put(&mut self, offset: u64, len: u64, fill: Fill, exact: bool) {
        if exact {
            self.pieces.push((offset, len, fill));
            return;
        }
        let end = offset.saturating_add(len).min(self.to);
        let mut at = offset.max(self.from);
        let mut column = self.column_of(at);
        while at < end && column < COLUMNS {
            let next = self.start_of(column + 1).clamp(at, end);
            self.columns[column][fill as usize] += next - at;
            at = next;
            column += 1;
        }
    }

    fn len(&self) -> u128 {
        u128::from(self.to - self.from)
    }

    fn column_of(&self, offset: u64) -> usize {
        let column = u128::from(offset - self.from) * COLUMNS as u128 / self.len();
        usize::try_from(column).map_or(COLUMNS - 1, |column| column.min(COLUMNS - 1))
    }

    /// The first address of a column; the end of the line behind the last.
    fn start_of(&self, column: usize) -> u64 {
        let offset = (self.len() * column as u128).div_ceil(COLUMNS as u128);
        self.from + u64::try_from(offset).unwrap_or(u64::MAX - self.from)
    }

    /// Left and right end of a stretch, in pixels.
    pub(super) fn span(&self, offset: u64, len: u64) -> (f64, f64) {
        let scale = f64::from(WIDTH) / self.len() as f64;
        let x = |at: u64| f64::from(super::LEFT) + at.saturating_sub(self.from) as f64 * scale;
        let (left, right) = (x(offset), x(offset.saturating_add(len)));
        (left, right.max(left + NARROWEST))
    }

    /// Draws what was put onto it.
    pub(super) fn draw(&self, y: u32, height: u32, exact: bool, out: &mut dyn Write) -> io::Result<()> {
        if exact {
            return self.pieces.iter().try_for_each(|&(offset, len, fill)| {
                let (left, right) = self.span(offset, len);
                let class = fill.class();
                writeln!(
                    out,
                    r#"<rect class="{class}" x="{left:.1}" y="{y}" width="{:.1}" height="{height}"><title>{class}, {len} bytes at {offset}</title></rect>"#,
                    right - left
                )
            });
        }
        let mut column = 0;
        while column < COLUMNS {
            let look = self.look(column);
            let end = (column + 1..COLUMNS)
                .find(|&next| self.look(next) != look)
                .unwrap_or(COLUMNS);
            if let Some((fill, shade)) = look {
                let pixels = WIDTH as usize / COLUMNS;
                writeln!(
                    out,
                    r#"<rect class="{}" x="{}" y="{y}" width="{}" height="{height}" fill-opacity="{:.2}"/>"#,
                    fill.class(),
                    super::LEFT as usize + column * pixels,
                    (end - column) * pixels,
                    shade as f64 / SHADES as f64
                )?;
            }
            column = end;
        }
        Ok(())
    }

    /// What most of a column is, and how full it is of what is not a hole. `None`: nothing is there.
    fn look(&self, column: usize) -> Option<(Fill, u64)> {
        let bytes = &self.columns[column];
        let of = |fill: Fill| bytes[fill as usize];
        let filled = bytes.iter().sum::<u64>() - of(Fill::Hole);
        let all = (self.start_of(column + 1) - self.start_of(column)).max(1);
        let most = [Fill::Data, Fill::Zero, Fill::Closed]
            .into_iter()
            .max_by_key(|&fill| of(fill))?;
        let shade = (u128::from(filled) * u128::from(SHADES)).div_ceil(u128::from(all));
        (filled > 0).then(|| {
            (
                most,
                u64::try_from(shade).map_or(SHADES, |shade| shade.min(SHADES)),
            )
        })
    }
}
