//! The noise contract (`docs/noise.md`): a pure function of (seed, draw, row, column).

use crate::lanes::{Floats, LANES, Vectors, Words, store};
use crate::level::{Kernel, dispatch};
use crate::math::{circle, radius};
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, philox};

/// Columns that one Philox block serves.
pub const BLOCK: usize = 4;

/// Slots whose noise is made together: with sixteen lanes a vector of blocks gives four vectors of values.
const GROUP: usize = 4;

/// The block of each lane, counted from the first of a group: the transposition that brings the four values of a
/// block next to each other then stays within squares of four lanes, which is cheap at every level.
const ORDER: [u32; LANES] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];

/// The block of each lane, counted from the first of its slot.
const WITHIN_SLOT: [u32; LANES] = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3];

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

    /// The counters of four slots that follow each other in a row.
    #[inline(always)]
    fn neighbours<W: Words>(&self, row: usize, column: usize) -> [W; 4] {
        let number = self.rows.number(row);
        let columns = W::load(&ORDER).add(W::splat((column / BLOCK) as u32));
        [columns, W::splat(self.draw), W::splat(number as u32), W::splat((number >> 32) as u32)]
    }

    /// The counters of any four slots.
    #[inline(always)]
    fn scattered<W: Words>(&self, slots: [(usize, usize); GROUP]) -> [W; 4] {
        let numbers = slots.map(|(row, _)| self.rows.number(row));
        let columns = W::repeat(slots.map(|(_, column)| (column / BLOCK) as u32));
        [
            columns.add(W::load(&WITHIN_SLOT)),
            W::splat(self.draw),
            W::repeat(numbers.map(|number| number as u32)),
            W::repeat(numbers.map(|number| (number >> 32) as u32)),
        ]
    }
}

/// What becomes of the four words of a block.
pub trait Distribution {
    /// Four values from four words, for several vectors of blocks.
    fn transform<W: Words, const N: usize>(blocks: [[W; 4]; N]) -> [[W::Floats; 4]; N];
}

/// Standard normals by Box-Muller on word pairs.
#[derive(Clone, Copy, Debug)]
pub struct Normal;

impl Distribution for Normal {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(blocks: [[W; 4]; N]) -> [[W::Floats; 4]; N] {
        let (mut first, mut second) = ([blocks[0][0]; N], [blocks[0][1]; N]);
        let (mut third, mut fourth) = ([blocks[0][2]; N], [blocks[0][3]; N]);
        for i in 0..N {
            [first[i], second[i], third[i], fourth[i]] = blocks[i];
        }
        let (r, s) = (radius(first), radius(third));
        let (p, q) = (circle(second), circle(fourth));
        let mut values = [[W::Floats::splat(0.0); 4]; N];
        for i in 0..N {
            values[i] = [r[i].mul(p[i].0), r[i].mul(p[i].1), s[i].mul(q[i].0), s[i].mul(q[i].1)];
        }
        values
    }
}

/// Uniforms on [0, 1): the upper 24 bits of a word.
#[derive(Clone, Copy, Debug)]
pub struct Uniform;

impl Distribution for Uniform {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(blocks: [[W; 4]; N]) -> [[W::Floats; 4]; N] {
        let mut values = [[W::Floats::splat(0.0); 4]; N];
        for i in 0..N {
            let [a, b, c, d] = blocks[i];
            values[i] = [unit(a), unit(b), unit(c), unit(d)];
        }
        values
    }
}

/// The upper 24 bits of a word, as the bits of a float: uniforms for those who compare integers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Upper24;

impl Distribution for Upper24 {
    #[inline(always)]
    fn transform<W: Words, const N: usize>(blocks: [[W; 4]; N]) -> [[W::Floats; 4]; N] {
        let mut values = [[W::Floats::splat(0.0); 4]; N];
        for i in 0..N {
            let [a, b, c, d] = blocks[i];
            values[i] = [upper(a), upper(b), upper(c), upper(d)];
        }
        values
    }
}

#[inline(always)]
fn upper<W: Words>(word: W) -> W::Floats {
    word.shift_right::<8>().to_floats()
}

/// The upper 24 bits of a word as a fraction.
#[inline(always)]
fn unit<W: Words>(word: W) -> W::Floats {
    word.shift_right::<8>().signed_to_floats().mul(W::Floats::splat(1.0 / 16_777_216.0))
}

/// What is done with a slot: a stretch of a row of up to sixteen columns.
///
/// Not a closure, which cannot be told to be inlined: see [`Kernel`].
pub(crate) trait Visit<L: Vectors> {
    /// Takes the slot that begins at a column of a row, with its noise (zeros where none is wanted).
    fn slot(&mut self, row: usize, column: usize, noise: L::F32);
}

/// Visits the slots of a span in row-major order, with the noise of each still in registers.
///
/// The span starts at a multiple of sixteen columns.
#[inline(always)]
pub(crate) fn walk<L: Vectors, D: Distribution>(noise: &Noise, span: Span, visitor: &mut impl Visit<L>) {
    if L::CHAINS == 1 {
        walk_in_chains::<L, D, 1>(noise, span, visitor);
    } else {
        walk_in_chains::<L, D, 2>(noise, span, visitor);
    }
}

#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
fn walk_in_chains<L: Vectors, D: Distribution, const CHAINS: usize>(
    noise: &Noise,
    span: Span,
    visitor: &mut impl Visit<L>,
) {
    let keys = philox::schedule(noise.key());
    let end = span.column + span.columns;
    let (mut row, mut column) = (span.row, span.column);
    while row < span.row + span.rows {
        let within_row = column + CHAINS * GROUP * LANES <= end;
        if within_row && L::WRITTEN_OUT {
            let mut counters = [noise.neighbours::<L::U32>(row, column); CHAINS];
            for i in 1..CHAINS {
                counters[i][0] = counters[i][0].add(L::U32::splat((i * LANES) as u32));
            }
            let values = D::transform(philox::blocks::<L::U32, CHAINS>(counters, &keys));
            for i in 0..CHAINS {
                let [a, b, c, d] = L::U32::transpose(values[i]);
                visitor.slot(row, column, a);
                visitor.slot(row, column + LANES, b);
                visitor.slot(row, column + 2 * LANES, c);
                visitor.slot(row, column + 3 * LANES, d);
                column += GROUP * LANES;
            }
            if column == end {
                (row, column) = (row + 1, span.column);
            }
            continue;
        }
        // The end of a row and the beginning of the next ones with it.
        let mut slots = [[(row, column); GROUP]; CHAINS];
        let mut used = 0;
        while used < CHAINS * GROUP && row < span.row + span.rows {
            slots[used / GROUP][used % GROUP] = (row, column);
            used += 1;
            column += LANES;
            if column >= end {
                (row, column) = (row + 1, span.column);
            }
        }
        let mut counters = [noise.scattered::<L::U32>(slots[0]); CHAINS];
        for i in 1..CHAINS {
            counters[i] = noise.scattered(slots[i]);
        }
        let mut values = D::transform(philox::blocks::<L::U32, CHAINS>(counters, &keys));
        for group in &mut values {
            *group = L::U32::transpose(*group);
        }
        for i in 0..used {
            let (row, column) = slots[i / GROUP][i % GROUP];
            visitor.slot(row, column, values[i / GROUP][i % GROUP]);
        }
    }
}

/// Visits the slots of a span likewise, where no noise is wanted.
#[inline(always)]
pub(crate) fn walk_quietly<L: Vectors>(span: Span, visitor: &mut impl Visit<L>) {
    let none = L::F32::splat(0.0);
    for row in span.row..span.row + span.rows {
        for column in (span.column..span.column + span.columns).step_by(LANES) {
            visitor.slot(row, column, none);
        }
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
    fn run<L: Vectors>(mut self) {
        walk::<L, D>(self.noise, self.span, &mut self);
    }
}

impl<L: Vectors, D: Distribution> Visit<L> for FillSpan<'_, D> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let (stretch, at) = self.span.stretch(row, column);
        store(noise, &mut self.target[stretch], at);
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
