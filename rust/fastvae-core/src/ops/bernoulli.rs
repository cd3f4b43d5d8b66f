//! The log-probability of data under Bernoulli variables that are given by their logits, in nats.
//!
//! With x the value, l the logit and w the weight of the side that the logit is against (1 - x for l > 0, else x),
//! -log p = |l| w + log(1 + e^-|l|): two terms that are never negative, so nothing cancels, however large the logit.
//! In a sum the second terms are the logarithm of a product.

use super::observed::{Observed, Value};
use super::sum::{RUN, Sum};
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish};
use crate::element::{Element, Vector};
use crate::lanes::{Floats, LANES, Scalar, Vectors, first, store};
use crate::level::{Kernel, dispatch};
use crate::math::{decay, log_1p, log_1p_of_unit};
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};

/// x log p + (1 - x) log(1 - p) with logit(p) = `logits`, per element or summed over rows.
///
/// # Panics
/// If the shapes of the arguments differ.
pub fn bernoulli_forward<T: Element, X: Value<T::Math>>(
    execution: Execution,
    logits: Matrix<T>,
    observed: Observed<X>,
    mut log_prob: KlTarget<T::Math>,
) {
    let (rows, columns) = (logits.rows(), logits.columns());
    observed.check(rows, columns);
    check_target(&log_prob, rows, columns);
    let spans = spans(rows, columns);
    let mut partials = Vec::new();
    let items: Vec<_> = spans
        .iter()
        .zip(distribute(&mut log_prob, &mut partials, &spans, columns))
        .map(|(&span, log_prob)| Forward { logits, observed, span, log_prob })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
    finish(&mut log_prob, &partials, columns);
}

struct Forward<'a, T: Element, X> {
    logits: Matrix<'a, T>,
    observed: Observed<'a, X>,
    span: Span,
    log_prob: KlPiece<'a, T::Math>,
}

impl<T: Element, X: Value<T::Math>> Kernel for Forward<'_, T, X> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(mut self) {
        let Self { logits, observed, span, .. } = self;
        let mut total = 0.0;
        for row in span.row..span.row + span.rows {
            let pairs = Pairs::<T, X>::new(logits, observed, row, span);
            if let KlPiece::Elements(all) = &mut self.log_prob {
                let target = &mut all[span.stretch(row, span.column).0];
                for at in (0..span.columns).step_by(LANES) {
                    let cost = pairs.at::<L>(at).cost();
                    let nats = cost.distance.add(log_1p_of_unit(cost.growth));
                    store(Vector::<T, L>::splat(T::Math::ZERO).sub(nats), target, at);
                }
                continue;
            }
            let of_row = pairs.log_prob::<L>();
            match &mut self.log_prob {
                KlPiece::Rows(all) => all[row - span.row] = T::Math::from_f64(of_row),
                _ => total += of_row,
            }
        }
        if let KlPiece::Partial(partial) = self.log_prob {
            *partial = total;
        }
    }
}

/// The gradient of [`bernoulli_forward`] with respect to the logits, x - sigmoid(l).
///
/// # Panics
/// If the shapes of the arguments differ, or there is no gradient.
pub fn bernoulli_backward<T: Element, X: Value<T::Math>>(
    execution: Execution,
    logits: Matrix<T>,
    observed: Observed<X>,
    grad: KlGrad<T::Math>,
    grad_logits: &mut [T],
) {
    let (rows, columns) = (logits.rows(), logits.columns());
    observed.check(rows, columns);
    check_grad(&grad, rows, columns);
    assert!(!matches!(grad, KlGrad::Absent), "there is no gradient to pass on");
    assert_eq!(grad_logits.len(), rows * columns, "the gradient of the logits has the wrong length");
    let spans = spans(rows, columns);
    let items: Vec<_> = spans
        .iter()
        .zip(pieces(grad_logits, spans.iter().map(Span::elements)))
        .map(|(&span, grad_logits)| Backward { logits, observed, grad, span, grad_logits })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
}

struct Backward<'a, T: Element, X> {
    logits: Matrix<'a, T>,
    observed: Observed<'a, X>,
    grad: KlGrad<'a, T::Math>,
    span: Span,
    grad_logits: &'a mut [T],
}

impl<T: Element, X: Value<T::Math>> Kernel for Backward<'_, T, X> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let Self { logits, observed, grad, span, grad_logits } = self;
        for row in span.row..span.row + span.rows {
            let pairs = Pairs::<T, X>::new(logits, observed, row, span);
            let target = &mut grad_logits[span.stretch(row, span.column).0];
            for at in (0..span.columns).step_by(LANES) {
                let slope = pairs.at::<L>(at).slope();
                T::store::<L>(grad.at::<L>(row, span, at).mul(slope), target, at);
            }
        }
    }
}

/// Columns for which one logarithm is taken: 64 vectors, so that the product stays below 2^64.
const BLOCK: usize = 8 * RUN * LANES;

/// The logits of a row, the data they meet, and the logits that are read next.
#[derive(Clone, Copy)]
struct Pairs<'a, T, X> {
    logits: &'a [T],
    data: &'a [X],
    observed: Observed<'a, X>,
    next: &'a [T],
}

impl<'a, T: Element, X: Value<T::Math>> Pairs<'a, T, X> {
    #[inline(always)]
    fn new(logits: Matrix<'a, T>, observed: Observed<'a, X>, row: usize, span: Span) -> Self {
        let next = logits.within((row + 1).min(logits.rows() - 1), span);
        Self { logits: logits.within(row, span), data: observed.within(row, span), observed, next }
    }

    /// The pairs from a column on.
    #[inline(always)]
    fn at<L: Vectors>(&self, at: usize) -> Side<Vector<T, L>> {
        // By itself the processor looks ahead no further than the end of a page.
        if let Some(later) = self.next[at..].first_chunk::<LANES>() {
            L::prefetch(later);
        }
        let (logit, x) = (T::load::<L>(self.logits, at), X::load::<L>(self.data, at));
        Side::new(logit, x, self.observed.max(), self.observed.unit())
    }

    /// The log-probability of the row.
    #[inline(always)]
    fn log_prob<L: Vectors>(&self) -> f64 {
        let columns = self.logits.len();
        let mut sum = Sum::new();
        for block in (0..columns).step_by(BLOCK) {
            // Two by turns: half as many roundings one after the other.
            let (mut cost, mut other) = (Cost::nothing(), Cost::nothing());
            for start in (block..columns.min(block + BLOCK)).step_by(RUN * LANES) {
                let mut of_run = Cost::<Vector<T, L>>::nothing();
                for at in (start..columns.min(start + RUN * LANES)).step_by(LANES) {
                    of_run = of_run.and(self.at::<L>(at).cost().first(columns - at));
                }
                (cost, other) = (other, cost.and(of_run));
            }
            sum.add_run(cost.and(other).nats());
        }
        0.0 - sum.finish()
    }
}

/// A logit, and what of the data is on the other side of it.
#[derive(Clone, Copy)]
struct Side<V> {
    logit: V,
    distance: V,
    /// e^-|l|.
    e: V,
    /// The weight of the other side, in steps of the data: exact for integers, where 1 - x is not.
    against: V,
    /// What a step is worth.
    unit: V,
}

impl<V: Floats> Side<V> {
    #[inline(always)]
    fn new(logit: V, x: V, max: V, unit: V) -> Self {
        let distance = logit.abs();
        let against = logit.select_above(V::splat(V::Scalar::ZERO), max.sub(x), x);
        Self { logit, distance, e: decay(distance), against, unit }
    }

    #[inline(always)]
    fn cost(self) -> Cost<V> {
        let zero = V::splat(V::Scalar::ZERO);
        let distance = self.distance.mul(self.unit).mul(self.against);
        // Where nothing is against it, an infinite logit costs nothing.
        Cost { distance: self.against.select_within(zero, zero, distance), growth: self.e }
    }

    /// x - sigmoid(l): with s = e^-|l| / (1 + e^-|l|) no 1 is subtracted from a number near it.
    #[inline(always)]
    fn slope(self) -> V {
        let zero = V::splat(V::Scalar::ZERO);
        let s = self.e.div(self.e.add(V::splat(V::Scalar::ONE)));
        let against = self.logit.select_above(zero, zero.sub(self.against), self.against);
        against.fma(self.unit, self.logit.select_above(zero, s, zero.sub(s)))
    }
}

/// -log p of several elements: their log(1 + e) as the logarithm of a product.
#[derive(Clone, Copy)]
struct Cost<V> {
    /// The sum of |l| w.
    distance: V,
    /// The product of all 1 + e, minus 1: as exact as a sum of the e where they are tiny.
    growth: V,
}

impl<V: Floats> Cost<V> {
    #[inline(always)]
    fn nothing() -> Self {
        Self { distance: V::splat(V::Scalar::ZERO), growth: V::splat(V::Scalar::ZERO) }
    }

    /// The cost of the first elements; past a row's end logits and weights are 0, but e^0 is 1.
    #[inline(always)]
    fn first(self, count: usize) -> Self {
        Self { distance: self.distance, growth: first(self.growth, count) }
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self {
            distance: self.distance.add(other.distance),
            growth: self.growth.fma(other.growth, self.growth.add(other.growth)),
        }
    }

    #[inline(always)]
    fn nats(self) -> V {
        self.distance.add(log_1p(self.growth))
    }
}
