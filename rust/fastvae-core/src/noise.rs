//! The noise contract (`docs/noise.md`): a pure function of (seed, draw, row, column).

use crate::lanes::{Floats, LANES, Vectors, Words};
use crate::level::{Kernel, dispatch};
use crate::math::{circle, radius};
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, philox};

/// Columns that one Philox block serves.
pub const BLOCK: usize = 4;

/// Columns that are worked on at a time; the tiles of a row start at its multiples.
pub(crate) const TILE: usize = 1024;

const ASCENDING: [u32; LANES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Counter words 2 and 3 of [`fold_in`]; the second is beyond every row number.
const FOLD_IN_DOMAIN: [u32; 2] = [0x464F_4C44, 0xFFFF_FFFF];

/// The row number of each row.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a> {
    /// Consecutive numbers from this one on.
    From(u64),
    /// These numbers.
    Listed(&'a [i64]),
}

impl Rows<'_> {
    #[inline(always)]
    fn number(self, row: usize) -> u64 {
        match self {
            Rows::From(first) => first.wrapping_add(row as u64),
            Rows::Listed(numbers) => numbers[row] as u64,
        }
    }
}

/// One stream of noise.
#[derive(Clone, Copy, Debug)]
pub struct Noise<'a> {
    /// The key.
    pub seed: u64,
    /// Number of the draw.
    pub draw: u32,
    /// Row numbers.
    pub rows: Rows<'a>,
}

impl Noise<'_> {
    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }
}

/// What becomes of the four words of a block.
pub trait Distribution {
    /// Four values from four words.
    fn transform<W: Words>(words: [W; 4]) -> [W::Floats; 4];
}

/// Standard normals by Box-Muller on word pairs.
#[derive(Clone, Copy, Debug)]
pub struct Normal;

impl Distribution for Normal {
    #[inline(always)]
    fn transform<W: Words>([w0, w1, w2, w3]: [W; 4]) -> [W::Floats; 4] {
        let (r, s) = (radius(w0), radius(w2));
        let ((x, y), (u, v)) = (circle(w1), circle(w3));
        [r.mul(x), r.mul(y), s.mul(u), s.mul(v)]
    }
}

/// Uniforms on [0, 1): the upper 24 bits of a word.
#[derive(Clone, Copy, Debug)]
pub struct Uniform;

impl Distribution for Uniform {
    #[inline(always)]
    fn transform<W: Words>([w0, w1, w2, w3]: [W; 4]) -> [W::Floats; 4] {
        [unit(w0), unit(w1), unit(w2), unit(w3)]
    }
}

/// The upper 24 bits of a word as a fraction.
#[inline(always)]
fn unit<W: Words>(word: W) -> W::Floats {
    word.shift_right::<8>().signed_to_floats().mul(W::Floats::splat(1.0 / 16_777_216.0))
}

/// The distance of rows in a filled tile: their columns in whole blocks.
#[inline(always)]
pub(crate) fn pitch(columns: usize) -> usize {
    columns.next_multiple_of(BLOCK)
}

/// Fills `target` with the noise of a span, its rows [`pitch`] apart; the span starts at a block.
#[inline(always)]
pub(crate) fn fill<L: Vectors, D: Distribution>(noise: &Noise, span: Span, target: &mut [f32]) {
    let key = noise.key();
    let draw = L::U32::splat(noise.draw);
    let first_block = (span.column / BLOCK) as u32;
    let row_blocks = span.columns.div_ceil(BLOCK);
    let ascending = L::U32::load(&ASCENDING);
    let (mut row, mut block) = (0, 0);
    for group in target.chunks_mut(BLOCK * LANES) {
        if block == row_blocks {
            (row, block) = (row + 1, 0);
        }
        let counter = if block + LANES <= row_blocks {
            let number = noise.rows.number(span.row + row);
            let columns = ascending.add(L::U32::splat(first_block.wrapping_add(block as u32)));
            block += LANES;
            [columns, draw, L::U32::splat(number as u32), L::U32::splat((number >> 32) as u32)]
        } else {
            let (mut columns, mut low, mut high) = ([0; LANES], [0; LANES], [0; LANES]);
            let lanes = columns.iter_mut().zip(low.iter_mut().zip(&mut high));
            for (column, (low, high)) in lanes.take(group.len() / BLOCK) {
                if block == row_blocks {
                    (row, block) = (row + 1, 0);
                }
                let number = noise.rows.number(span.row + row);
                *column = first_block.wrapping_add(block as u32);
                (*low, *high) = (number as u32, (number >> 32) as u32);
                block += 1;
            }
            [L::U32::load(&columns), draw, L::U32::load(&low), L::U32::load(&high)]
        };
        let values = D::transform(philox::blocks(counter, key));
        if let Ok(full) = <&mut [f32; BLOCK * LANES]>::try_from(&mut *group) {
            L::U32::store_interleaved(values, full);
        } else {
            let mut all = [0.0; BLOCK * LANES];
            L::U32::store_interleaved(values, &mut all);
            let length = group.len();
            group.copy_from_slice(&all[..length]);
        }
    }
}

/// Spans of at most [`TILE`] noise values within a span, in row-major order: whole rows or stretches of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    span: Span,
    row: usize,
    column: usize,
}

impl Tiles {
    #[inline(always)]
    pub(crate) fn of(span: Span) -> Self {
        Self { span, row: 0, column: 0 }
    }

    /// The next tile.
    #[inline(always)]
    pub(crate) fn advance(&mut self) -> Option<Span> {
        let Span { row, rows, column, columns } = self.span;
        if self.row == rows {
            return None;
        }
        let start = (row + self.row, column + self.column);
        if pitch(columns) <= TILE {
            let take = (TILE / pitch(columns)).min(rows - self.row);
            self.row += take;
            return Some(Span { row: start.0, rows: take, column: start.1, columns });
        }
        let take = TILE.min(columns - self.column);
        self.column += take;
        if self.column == columns {
            (self.row, self.column) = (self.row + 1, 0);
        }
        Some(Span { row: start.0, rows: 1, column: start.1, columns: take })
    }
}

struct FillSpan<'a, D> {
    noise: &'a Noise<'a>,
    span: Span,
    target: &'a mut [f32],
    distribution: core::marker::PhantomData<D>,
}

impl<D: Distribution> Kernel for FillSpan<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        if self.span.columns.is_multiple_of(BLOCK) {
            fill::<L, D>(self.noise, self.span, self.target);
            return;
        }
        let mut buffer = [0.0; TILE];
        let mut tiles = Tiles::of(self.span);
        let mut rest = self.target;
        while let Some(tile) = tiles.advance() {
            let pitch = pitch(tile.columns);
            let filled = &mut buffer[..tile.rows * pitch];
            fill::<L, D>(self.noise, tile, filled);
            let (now, later) = rest.split_at_mut(tile.elements());
            for (from, to) in filled.chunks(pitch).zip(now.chunks_mut(tile.columns)) {
                to.copy_from_slice(&from[..tile.columns]);
            }
            rest = later;
        }
    }
}

/// Fills a contiguous matrix with noise.
///
/// # Panics
/// If `target` is not `rows * columns` long, or fewer row numbers are listed than there are rows.
pub fn sample<D: Distribution>(
    execution: Execution,
    noise: &Noise,
    rows: usize,
    columns: usize,
    target: &mut [f32],
) {
    assert_eq!(target.len(), rows * columns, "target has the wrong length");
    if let Rows::Listed(numbers) = noise.rows {
        assert_eq!(numbers.len(), rows, "one row number per row");
    }
    let spans = spans(rows, columns);
    let targets = pieces(target, spans.iter().map(Span::elements));
    let items: Vec<_> = spans.iter().copied().zip(targets).collect();
    for_each(items, threads_for(rows * columns, execution.threads), |(span, target)| {
        let distribution = core::marker::PhantomData::<D>;
        dispatch(execution.level, FillSpan { noise, span, target, distribution });
    });
}

/// A new seed from a seed and a tag.
#[must_use]
pub fn fold_in(seed: u64, tag: u64) -> u64 {
    let counter = [tag as u32, (tag >> 32) as u32, FOLD_IN_DOMAIN[0], FOLD_IN_DOMAIN[1]];
    let [low, high, ..] = philox::block(counter, [seed as u32, (seed >> 32) as u32]);
    u64::from(low) | u64::from(high) << 32
}

/// Fills `target` with the order that sorts the 63-bit keys of rows `0..n`, ties by row.
///
/// # Errors
/// If the keys do not fit in memory.
pub fn permutation(
    seed: u64,
    draw: u32,
    target: &mut [i64],
) -> Result<(), std::collections::TryReserveError> {
    let key = [seed as u32, (seed >> 32) as u32];
    let mut keyed = Vec::new();
    keyed.try_reserve_exact(target.len())?;
    keyed.extend((0..target.len() as u64).map(|row| {
        let [low, high, ..] = philox::block([0, draw, row as u32, (row >> 32) as u32], key);
        ((u64::from(high) << 32 | u64::from(low)) >> 1, row)
    }));
    keyed.sort_unstable();
    for (slot, (_, row)) in target.iter_mut().zip(keyed) {
        *slot = row as i64;
    }
    Ok(())
}
