//! Sums of a fixed shape.

use crate::lanes::{Floats, LANES, Scalar};
use crate::split::Span;

/// Vectors that are added in the type itself before their sum is widened: it bounds the error by that of
/// seven additions, whatever the length.
pub(super) const RUN: usize = 8;

/// Adds up vectors: sixteen lanes, runs of eight vectors, `f64` from there on, and a tree over the lanes.
///
/// Its shape depends on how many vectors are added, and on nothing else.
#[derive(Clone, Copy)]
pub(super) struct Sum<V> {
    run: V,
    length: usize,
    total: [f64; LANES],
}

impl<V: Floats> Sum<V> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { run: V::splat(V::Scalar::ZERO), length: 0, total: [0.0; LANES] }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, value: V) {
        self.run = self.run.add(value);
        self.length += 1;
        if self.length == RUN {
            self.flush();
        }
    }

    /// The same for several vectors, in order, with one question where they are a whole run.
    #[inline(always)]
    fn add_all<const N: usize>(&mut self, values: [V; N]) {
        if N == RUN && self.length == 0 {
            for value in values {
                self.run = self.run.add(value);
            }
            self.flush();
        } else {
            for value in values {
                self.add(value);
            }
        }
    }

    /// Adds a vector that is the sum of a run already.
    #[inline(always)]
    pub(super) fn add_run(&mut self, run: V) {
        run.add_to(&mut self.total);
    }

    #[inline(always)]
    fn flush(&mut self) {
        self.run.add_to(&mut self.total);
        (self.run, self.length) = (V::splat(V::Scalar::ZERO), 0);
    }

    #[inline(always)]
    pub(super) fn finish(mut self) -> f64 {
        self.flush();
        let mut lanes = self.total;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// Several sums of the same length, each of the shape of [`Sum`].
pub(super) struct Sums<V, const N: usize> {
    runs: [V; N],
    length: usize,
    totals: [[f64; LANES]; N],
}

#[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
impl<V: Floats, const N: usize> Sums<V, N> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        Self { runs: [V::splat(V::Scalar::ZERO); N], length: 0, totals: [[0.0; LANES]; N] }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, values: [V; N]) {
        for i in 0..N {
            self.runs[i] = self.runs[i].add(values[i]);
        }
        self.length += 1;
        if self.length == RUN {
            self.flush();
        }
    }

    #[inline(always)]
    fn flush(&mut self) {
        for i in 0..N {
            self.runs[i].add_to(&mut self.totals[i]);
        }
        (self.runs, self.length) = ([V::splat(V::Scalar::ZERO); N], 0);
    }

    #[inline(always)]
    pub(super) fn finish(mut self) -> [f64; N] {
        self.flush();
        let mut sums = [0.0; N];
        for i in 0..N {
            sums[i] = Sum { run: self.runs[i], length: 0, total: self.totals[i] }.finish();
        }
        sums
    }
}

/// The sums of the rows of a span, from slots in row-major order.
pub(crate) struct RowSum<V> {
    sum: Sum<V>,
    columns: usize,
}

impl<V: Floats> RowSum<V> {
    #[inline(always)]
    pub(crate) fn new(span: Span) -> Self {
        Self { sum: Sum::new(), columns: span.columns }
    }

    /// Takes the slot that begins `at` columns into the row; gives the sum of the row after its last one.
    ///
    /// Lanes beyond the end of the row have to be 0.
    #[inline(always)]
    pub(crate) fn add(&mut self, value: V, at: usize) -> Option<f64> {
        self.add_all([value], at)
    }

    /// Takes several slots, in order.
    #[inline(always)]
    pub(crate) fn add_all<const N: usize>(&mut self, values: [V; N], at: usize) -> Option<f64> {
        self.sum.add_all(values);
        // Not `bool::then`: a closure is compiled without the instructions of the level wherever it is not inlined.
        if at + N * LANES < self.columns {
            return None;
        }
        Some(core::mem::replace(&mut self.sum, Sum::new()).finish())
    }
}
