//! A map as a picture: the volume's line above, each store's line below it, and what lies where joined from line to line.
//!
//! The size of the picture is bounded. A map of more extents than can be told apart is drawn in columns, each as full as what lies
//! there, and only some of its extents are joined; the picture says so.

mod line;

use std::collections::BTreeMap;
use std::fmt::{self, Display, Write as _};
use std::io::{self, Write};

use volmap::map::Content;
use volmap::probe::{MappedExtent, VolumeMap};
use volmap::store::StoreId;

use line::{Fill, Line, WIDTH};

/// Extents that are drawn one by one. More than this are narrower than what an eye can tell apart.
const EXACT_MAX: usize = 400;
/// Extents that are joined from line to line where not all are.
const JOINED: usize = 150;
/// Stores that get a line.
const STORES_MAX: usize = 24;
/// Reasons against direct reads that are told.
const REASONS_MAX: usize = 5;

const LEFT: u32 = 20;
const TOP: u32 = 64;
/// From one line to the next.
const PITCH: u32 = 92;
const BAR: u32 = 20;

const STYLE: &str = "text{font:13px sans-serif;fill:#222}.small{font-size:11px;fill:#555}.bar{fill:#f4f4f4;stroke:#999}\
    .data{fill:#2f6db5}.zero{fill:#a9c4e4}.hole{fill:#fff}.closed{fill:#d9822b}.join{fill:#2f6db5;fill-opacity:.13;stroke:#2f6db5;\
    stroke-opacity:.35;stroke-width:.5}";

/// Text inside of XML.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|character| match character {
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '&' => f.write_str("&amp;"),
            '"' => f.write_str("&quot;"),
            // XML has no way to write them.
            control if control.is_control() || matches!(control, '\u{FFFE}' | '\u{FFFF}') => {
                f.write_char('\u{FFFD}')
            }
            other => f.write_char(other),
        })
    }
}

/// Bytes in the largest unit that leaves a number of some digits.
struct Size(u64);

impl Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} bytes", self.0);
        }
        let mut tenths = u128::from(self.0) * 10 / 1024;
        let mut unit = 0;
        while tenths >= 10_240 {
            tenths /= 1024;
            unit += 1;
        }
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// Draws `map`, under the name of its volume.
pub(super) fn draw(map: &VolumeMap, volume: &str, out: &mut dyn Write) -> io::Result<()> {
    let survey = Survey::of(map);
    let picture = Picture::of(map, &survey);
    let reasons = survey.dearest_reasons();
    let height = picture.bottom() + 46 + 18 * u32::try_from(reasons.len()).unwrap_or(0);
    let total = LEFT * 2 + WIDTH;
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" viewBox="0 0 {total} {height}">"#
    )?;
    writeln!(out, "<style>{STYLE}</style>")?;
    writeln!(out, r##"<rect width="{total}" height="{height}" fill="#fff"/>"##)?;
    let volume = Escaped(volume);
    writeln!(out, "<title>The map of {volume}</title>")?;
    writeln!(
        out,
        r#"<text x="{LEFT}" y="22">{volume}: {}, {} extents</text>"#,
        Size(map.size),
        survey.extents
    )?;
    writeln!(
        out,
        r#"<text class="small" x="{LEFT}" y="40">{}</text>"#,
        picture.note()
    )?;
    picture.draw_joins(out)?;
    picture.draw_lines(out)?;
    let mut y = picture.bottom() + 10;
    legend(y, out)?;
    for (reason, bytes) in reasons {
        y += 18;
        writeln!(
            out,
            r#"<text class="small" x="{LEFT}" y="{}">{} never direct: {}</text>"#,
            y + 12,
            Size(bytes),
            Escaped(reason)
        )?;
    }
    writeln!(out, "</svg>")
}

/// What has to be known of all extents before one is drawn. A map may have tens of millions of them, so they are gone through
/// again rather than kept.
#[derive(Default)]
struct Survey {
    extents: usize,
    /// Extents with a chain that leads below the volume.
    chained: usize,
    /// The greatest depth at which a store was met, and the first and the last address that is used of it.
    stores: BTreeMap<StoreId, (usize, u64, u64)>,
    /// Bytes that cannot be read directly, by the reason.
    reasons: BTreeMap<String, u64>,
}

impl Survey {
    fn of(map: &VolumeMap) -> Self {
        let mut survey = Self::default();
        for extent in map.extents() {
            survey.extents += 1;
            survey.chained += usize::from(is_chained(&extent));
            for (depth, place) in extent.chain.iter().enumerate().skip(1) {
                let end = place.offset.saturating_add(extent.range.len());
                let (deepest, from, to) =
                    survey
                        .stores
                        .entry(place.store)
                        .or_insert((depth, place.offset, end));
                *deepest = depth.max(*deepest);
                *from = place.offset.min(*from);
                *to = end.max(*to);
            }
            if let Some(reason) = extent.opaque {
                *survey.reasons.entry(reason).or_default() += extent.range.len();
            }
        }
        survey
    }

    /// Why parts of the volume cannot be read directly, and how much each costs; the most expensive first.
    fn dearest_reasons(&self) -> Vec<(&str, u64)> {
        let mut sorted: Vec<(&str, u64)> = (self.reasons.iter())
            .map(|(reason, bytes)| (reason.as_str(), *bytes))
            .collect();
        sorted.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        if sorted.len() > REASONS_MAX {
            let rest: u64 = sorted.drain(REASONS_MAX - 1..).map(|(_, bytes)| bytes).sum();
            sorted.push(("for other reasons", rest));
        }
        sorted
    }
}

/// Whether the chain leads below the volume. Its uppermost store is the volume itself, with the same offsets.
fn is_chained(extent: &MappedExtent) -> bool {
    extent.chain.len() > 1
}

fn legend(y: u32, out: &mut dyn Write) -> io::Result<()> {
    let words = [
        ("data", "data"),
        ("zero", "allocated, reads as zeroes"),
        ("hole", "hole"),
        ("closed", "data that is never read directly"),
    ];
    let mut x = LEFT;
    for (class, word) in words {
        writeln!(
            out,
            r##"<rect class="{class}" x="{x}" y="{y}" width="14" height="14" stroke="#999"/><text class="small" x="{}" y="{}">{word}</text>"##,
            x + 20,
            y + 11
        )?;
        x += 60 + 7 * u32::try_from(word.len()).unwrap_or(0);
    }
    Ok(())
}

/// Everything that is drawn.
struct Picture<'a> {
    map: &'a VolumeMap,
    lines: Vec<Line>,
    /// The line of each store.
    of_store: BTreeMap<StoreId, usize>,
    stores_left_out: usize,
    is_exact: bool,
    /// One of so many chains is joined from line to line.
    joined_every: usize,
}

impl<'a> Picture<'a> {
    fn of(map: &'a VolumeMap, survey: &Survey) -> Self {
        let mut stores: Vec<(usize, StoreId)> = (survey.stores.iter())
            .map(|(store, (depth, _, _))| (*depth, *store))
            .collect();
        stores.sort_unstable();
        let stores_left_out = stores.len().saturating_sub(STORES_MAX);
        stores.truncate(STORES_MAX);
        // The first line is the volume's.
        let of_store: BTreeMap<StoreId, usize> = (1..)
            .zip(&stores)
            .map(|(line, (_, store))| (*store, line))
            .collect();
        let mut lines = vec![Line::new(0, map.size)];
        lines.extend(stores.iter().filter_map(|(_, store)| {
            let (_, from, to) = survey.stores.get(store)?;
            Some(Line::new(*from, *to))
        }));
        let is_exact = survey.extents <= EXACT_MAX;
        let joined_every = if is_exact {
            1
        } else {
            survey.chained.div_ceil(JOINED).max(1)
        };
        let mut picture = Self {
            map,
            lines,
            of_store,
            stores_left_out,
            is_exact,
            joined_every,
        };
        picture.fill();
        picture
    }

    /// Puts every extent on its lines.
    fn fill(&mut self) {
        for extent in self.map.extents() {
            let fill = match (extent.content, &extent.opaque) {
                (Content::Hole, _) => Fill::Hole,
                (Content::Zero, _) => Fill::Zero,
                (Content::Data, None) => Fill::Data,
                (Content::Data, Some(_)) => Fill::Closed,
            };
            self.lines[0].put(extent.range.start(), extent.range.len(), fill, self.is_exact);
            for place in extent.chain.iter().skip(1) {
                let is_end = extent.chain.last() == Some(place);
                let fill = if is_end && extent.opaque.is_some() {
                    Fill::Closed
                } else {
                    Fill::Data
                };
                if let Some(&line) = self.of_store.get(&place.store) {
                    self.lines[line].put(place.offset, extent.range.len(), fill, self.is_exact);
                }
            }
        }
    }

    fn bottom(&self) -> u32 {
        y_of(self.lines.len() - 1) + BAR + 14
    }

    fn note(&self) -> String {
        let mut note = "The volume was not frozen for this map, which may be outdated already.".to_owned();
        if !self.is_exact {
            let _ = write!(
                note,
                " Too many extents to tell apart: columns show how full they are, and one chain of {} is joined.",
                self.joined_every
            );
        }
        if self.stores_left_out > 0 {
            let _ = write!(note, " {} more stores are left out.", self.stores_left_out);
        }
        note
    }

    fn draw_joins(&self, out: &mut dyn Write) -> io::Result<()> {
        for extent in self.map.extents().filter(is_chained).step_by(self.joined_every) {
            let len = extent.range.len();
            let mut upper = (0, extent.range.start());
            for place in extent.chain.iter().skip(1) {
                let Some(&line) = self.of_store.get(&place.store) else {
                    break;
                };
                let (a, b) = self.lines[upper.0].span(upper.1, len);
                let (c, d) = self.lines[line].span(place.offset, len);
                let (from, to) = (y_of(upper.0) + BAR, y_of(line));
                writeln!(
                    out,
                    r#"<polygon class="join" points="{a:.1},{from} {b:.1},{from} {d:.1},{to} {c:.1},{to}"/>"#
                )?;
                upper = (line, place.offset);
            }
        }
        Ok(())
    }

    fn draw_lines(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut labels = vec![("volume".to_owned(), None)];
        let mut stores: Vec<(&StoreId, &usize)> = self.of_store.iter().collect();
        stores.sort_unstable_by_key(|(_, line)| **line);
        labels.extend(stores.into_iter().map(|(store, _)| {
            let store = self.map.graph.store(*store);
            (
                format!("{} {} ({})", store.kind, store.identity, store.label),
                Some(store.size),
            )
        }));
        for (index, (line, (label, size))) in self.lines.iter().zip(labels).enumerate() {
            let y = y_of(index);
            write!(
                out,
                r#"<text x="{LEFT}" y="{}">{}</text>"#,
                y - 18,
                Escaped(&shortened(&label))
            )?;
            let (from, to) = line.window();
            write!(
                out,
                r#"<text class="small" x="{LEFT}" y="{}">{from}</text>"#,
                y - 4
            )?;
            write!(
                out,
                r#"<text class="small" x="{}" y="{}" text-anchor="end">{to}{}</text>"#,
                LEFT + WIDTH,
                y - 4,
                size.map(|size| format!(" of {size}")).unwrap_or_default()
            )?;
            writeln!(
                out,
                r#"<rect class="bar" x="{LEFT}" y="{y}" width="{WIDTH}" height="{BAR}"/>"#
            )?;
            line.draw(y, BAR, self.is_exact, out)?;
        }
        Ok(())
    }
}

fn y_of(line: usize) -> u32 {
    TOP + 24 + PITCH * u32::try_from(line).unwrap_or(0)
}

/// As much of a label as fits beside the picture.
fn shortened(label: &str) -> String {
    const LONGEST: usize = 130;
    if label.chars().count() <= LONGEST {
        return label.to_owned();
    }
    label.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests;
