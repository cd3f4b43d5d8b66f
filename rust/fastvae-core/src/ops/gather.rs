//! Rows of a data set as a batch: gathered, brought to floats, scaled and made binary in one pass.

use crate::element::Element;
use crate::lanes::{Floats, Vectors, Words, padded};
use crate::level::{Kernel, dispatch};
use crate::noise::{Noise, Rows, Uniform, Upper24, Visit, walk, walk_quietly};
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};
use core::ops::Range;

/// The largest byte: what pixels are divided by.
const PIXEL_MAX: f32 = 255.0;

/// Above this a value is 1 where a threshold makes it binary.
const THRESHOLD: f32 = 0.5;

/// How far ahead of their use rows are asked for: about as long as memory takes to answer.
const BYTES_AHEAD: usize = 4096;
const ROWS_AHEAD: usize = 16;

/// A dtype that samples are kept in.
pub trait Sample: Copy + Send + Sync + 'static {
    /// Reads sixteen elements from `source[at..]` as floats, exactly, with zeros past its end.
    fn load<L: Vectors>(source: &[Self], at: usize) -> L::F32;
    /// The matrix, if it is one of bytes.
    fn bytes(matrix: Matrix<Self>) -> Option<Matrix<u8>>;
}

impl<T: Element<Math = f32>> Sample for T {
    #[inline(always)]
    fn load<L: Vectors>(source: &[T], at: usize) -> L::F32 {
        <T as Element>::load::<L>(source, at)
    }

    fn bytes(_: Matrix<T>) -> Option<Matrix<u8>> {
        None
    }
}

impl Sample for u8 {
    #[inline(always)]
    fn load<L: Vectors>(source: &[u8], at: usize) -> L::F32 {
        L::F32::load_u8(&padded(source, at))
    }

    fn bytes(matrix: Matrix<u8>) -> Option<Matrix<u8>> {
        Some(matrix)
    }
}

/// How values become zeros and ones.
#[derive(Clone, Copy, Debug)]
pub enum Binarize<'a> {
    /// They do not.
    No,
    /// 1 above 1/2.
    Threshold,
    /// 1 where the uniform of an element is below its value: with the value as probability.
    Draw(&'a Noise<'a>),
}

/// Copies row `index[i]` of `data`, divided by `divisor`, to row `i` of the contiguous `target`.
///
/// The quotient is rounded to `f32`; what is binary is decided by that, and what is not is rounded to `T`.
///
/// # Panics
/// If `target` has not `columns` elements for each index, if an index is not a row of `data`, or if fewer row
/// numbers are listed for the noise than there are indices.
pub fn gather_batch<S: Sample, T: Element<Math = f32>>(
    execution: Execution,
    data: Matrix<S>,
    index: &[i64],
    divisor: Option<f32>,
    binarize: Binarize,
    target: &mut [T],
) {
    let (rows, columns) = (index.len(), data.columns());
    assert_eq!(target.len(), rows * columns, "target has the wrong length");
    assert_eq!(out_of_range(index, data.rows()), None, "an index is not a row of the data");
    if let Binarize::Draw(Noise { rows: Rows::Listed(numbers), .. }) = binarize {
        assert_eq!(numbers.len(), rows, "one row number per row");
    }
    let spans = spans(rows, columns);
    let targets = pieces(target, spans.iter().map(Span::elements));
    let items: Vec<_> = spans
        .iter()
        .zip(targets)
        .map(|(&span, target)| Gather { rows: Picked { data, index, span }, divisor, binarize, target })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
}

/// The first position of an index that is not in `0..rows`.
#[must_use]
pub fn out_of_range(index: &[i64], rows: usize) -> Option<usize> {
    // As an unsigned number a negative one is beyond every length.
    index.iter().position(|&row| row as u64 >= rows as u64)
}

/// The rows of the data that a span of the batch takes.
struct Picked<'a, S> {
    data: Matrix<'a, S>,
    index: &'a [i64],
    span: Span,
}

impl<'a, S: Sample> Picked<'a, S> {
    /// The row of the data that becomes a row of the batch.
    #[inline(always)]
    fn row<L: Vectors>(&self, row: usize, column: usize) -> &'a [S] {
        if column == self.span.column {
            self.ask_ahead::<L>(row);
        }
        self.data.within(self.index[row] as usize, self.span)
    }

    /// Asks for the beginning of a later row: which one it is, no processor can guess.
    #[inline(always)]
    fn ask_ahead<L: Vectors>(&self, row: usize) {
        let bytes = (self.span.columns * size_of::<S>()).max(1);
        let later = row + (BYTES_AHEAD / bytes).clamp(1, ROWS_AHEAD);
        // Past the span too: the same thread most likely takes the next one. The end of a segment is no such place.
        if later < self.index.len() && self.span.columns == self.data.columns() {
            let values = self.data.within(self.index[later] as usize, self.span);
            L::prefetch(&values[..values.len().min(BYTES_AHEAD / size_of::<S>())]);
        }
    }
}

struct Gather<'a, S, T> {
    rows: Picked<'a, S>,
    divisor: Option<f32>,
    binarize: Binarize<'a>,
    target: &'a mut [T],
}

impl<S: Sample, T: Element<Math = f32>> Kernel for Gather<'_, S, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(mut self) {
        let Picked { data, index, span } = self.rows;
        match self.binarize {
            Binarize::Draw(noise) => match S::bytes(data) {
                Some(data) if self.divisor == Some(PIXEL_MAX) => {
                    let rows = Picked { data, index, span };
                    walk::<L, Upper24>(noise, span, &mut DrawnPixels { rows, target: self.target });
                }
                _ => walk::<L, Uniform>(noise, span, &mut Drawn(self)),
            },
            Binarize::Threshold => walk_quietly::<L>(span, &mut Threshold(self)),
            Binarize::No => walk_quietly::<L>(span, &mut self),
        }
    }
}

impl<S: Sample, T: Element<Math = f32>> Gather<'_, S, T> {
    /// The values of a slot, and where they go.
    #[inline(always)]
    fn values<L: Vectors>(&self, row: usize, column: usize) -> (L::F32, Range<usize>, usize) {
        let (stretch, at) = self.rows.span.stretch(row, column);
        let values = S::load::<L>(self.rows.row::<L>(row, column), at);
        let values = match self.divisor {
            Some(divisor) => values.div(L::F32::splat(divisor)),
            None => values,
        };
        (values, stretch, at)
    }
}

impl<L: Vectors, S: Sample, T: Element<Math = f32>> Visit<L> for Gather<'_, S, T> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, _: L::F32) {
        let (values, stretch, at) = self.values::<L>(row, column);
        T::store::<L>(values, &mut self.target[stretch], at);
    }
}

struct Threshold<'a, S, T>(Gather<'a, S, T>);

impl<L: Vectors, S: Sample, T: Element<Math = f32>> Visit<L> for Threshold<'_, S, T> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, _: L::F32) {
        let (values, stretch, at) = self.0.values::<L>(row, column);
        let (one, zero) = (L::F32::splat(1.0), L::F32::splat(0.0));
        let binary = values.select_above(L::F32::splat(THRESHOLD), one, zero);
        T::store::<L>(binary, &mut self.0.target[stretch], at);
    }
}

struct Drawn<'a, S, T>(Gather<'a, S, T>);

impl<L: Vectors, S: Sample, T: Element<Math = f32>> Visit<L> for Drawn<'_, S, T> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, uniforms: L::F32) {
        let (values, stretch, at) = self.0.values::<L>(row, column);
        let (one, zero) = (L::F32::splat(1.0), L::F32::splat(0.0));
        T::store::<L>(values.select_above(uniforms, one, zero), &mut self.0.target[stretch], at);
    }
}

/// [`Drawn`] for bytes divided by 255, in integers: that is what training spends its time on.
struct DrawnPixels<'a, T> {
    rows: Picked<'a, u8>,
    target: &'a mut [T],
}

impl<L: Vectors, T: Element<Math = f32>> Visit<L> for DrawnPixels<'_, T> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let (stretch, at) = self.rows.span.stretch(row, column);
        let pixels = L::U32::load_u8(&padded(self.rows.row::<L>(row, column), at));
        let (one, zero) = (L::F32::splat(1.0), L::F32::splat(0.0));
        let binary = L::U32::from_bits(noise).select_below(bound(pixels), one, zero);
        T::store::<L>(binary, &mut self.target[stretch], at);
    }
}

/// How many of the 2^24 uniforms are below p / 255, rounded to `f32`: 65793 p + 1, but none below 0.
///
/// 2^24 p / 255 = 65793 p + p / 255, and the rounded number lies in (65793 p, 65793 p + 1] as well: a test
/// compares all of them.
#[inline(always)]
fn bound<W: Words>(pixels: W) -> W {
    let some = pixels.add(W::splat(255)).shift_right::<8>();
    pixels.multiply(65793).add(some)
}

#[cfg(test)]
mod tests {
    use super::bound;
    use crate::lanes::{Floats, LANES, Vectors, Words};
    use crate::level::{Kernel, Level, dispatch};

    struct Bounds([u8; LANES]);

    impl Kernel for Bounds {
        type Output = [u32; LANES];

        #[inline(always)]
        fn run<L: Vectors>(self) -> Self::Output {
            let mut lanes = [0.0; LANES];
            bound(L::U32::load_u8(&self.0)).to_floats().store(&mut lanes);
            lanes.map(f32::to_bits)
        }
    }

    #[test]
    fn the_bound_of_every_pixel_parts_the_uniforms_below_it_from_the_others() {
        for level in Level::available() {
            for first in (0..=255).step_by(LANES) {
                let pixels = core::array::from_fn(|lane| (first + lane) as u8);
                for (pixel, bound) in pixels.into_iter().zip(dispatch(level, Bounds(pixels))) {
                    let value = f32::from(pixel) / 255.0;
                    let uniform = |word: u32| word as f32 / 16_777_216.0;
                    // Uniforms grow with their words, so the two at the bound speak for all of them.
                    assert!(bound == 0 || uniform(bound - 1) < value, "{pixel}");
                    assert!(bound == 1 << 24 || uniform(bound) >= value, "{pixel}");
                }
            }
        }
    }
}
