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
        self.sum.add(value);
        (at + LANES >= self.columns).then(|| core::mem::replace(&mut self.sum, Sum::new()).finish())
    }
}
