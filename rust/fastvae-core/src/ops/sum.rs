//! Sums of a fixed shape.

use crate::lanes::{Floats, LANES};

/// Vectors that are added in the type itself before their sum is widened: it bounds the error by that of
/// seven additions, whatever the length.
const RUN: usize = 8;

/// Adds up vectors: sixteen lanes, runs of eight vectors, `f64` from there on, and a tree over the lanes.
///
/// Its shape depends on how many vectors are added, and on nothing else.
#[derive(Clone, Copy)]
pub(crate) struct Sum<V> {
    run: V,
    length: usize,
    total: [f64; LANES],
}

impl<V: Floats> Sum<V> {
    #[inline(always)]
    pub(crate) fn new() -> Self {
        use crate::lanes::Scalar;
        Self { run: V::splat(V::Scalar::ZERO), length: 0, total: [0.0; LANES] }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, value: V) {
        self.run = self.run.add(value);
        self.length += 1;
        if self.length == RUN {
            self.flush();
        }
    }

    #[inline(always)]
    fn flush(&mut self) {
        use crate::lanes::Scalar;
        let run = self.run.to_f64();
        for (total, lane) in self.total.iter_mut().zip(run) {
            *total += lane;
        }
        (self.run, self.length) = (V::splat(V::Scalar::ZERO), 0);
    }

    #[inline(always)]
    pub(crate) fn finish(mut self) -> f64 {
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
