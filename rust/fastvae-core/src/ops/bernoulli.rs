//! The log-probability of data under Bernoulli variables that are given by their logits, in nats.
//!
//! With x the value, l the logit and w the weight of the side that the logit is against (1 - x for l > 0, else x),
//! -log p = |l| w + log(1 + e^-|l|): two terms that are never negative, so nothing cancels, however large the logit.

use super::observed::{Observed, Value};
use super::sum::RowSum;
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish};
use crate::element::{Element, Vector};
use crate::lanes::{Floats, LANES, Scalar, Vectors, first, store};
use crate::level::{Kernel, dispatch};
use crate::math::{exponential, log_1p};
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
        let mut sum = RowSum::new(span);
        let mut total = 0.0;
        for row in span.row..span.row + span.rows {
            let (l_row, x_row) = (logits.within(row, span), observed.within(row, span));
            for at in (0..span.columns).step_by(LANES) {
                let side = Side::<Vector<T, L>>::new(
                    T::load::<L>(l_row, at),
                    X::load::<L>(x_row, at),
                    observed.max(),
                );
                let value = side.log_prob(observed.unit());
                if let KlPiece::Elements(all) = &mut self.log_prob {
                    store(value, &mut all[span.stretch(row, span.column).0], at);
                } else if let Some(of_row) = sum.add(first(value, span.columns - at), at) {
                    match &mut self.log_prob {
                        KlPiece::Rows(all) => all[row - span.row] = T::Math::from_f64(of_row),
                        _ => total += of_row,
                    }
                }
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
            let (l_row, x_row) = (logits.within(row, span), observed.within(row, span));
            let target = &mut grad_logits[span.stretch(row, span.column).0];
            for at in (0..span.columns).step_by(LANES) {
                let side = Side::<Vector<T, L>>::new(
                    T::load::<L>(l_row, at),
                    X::load::<L>(x_row, at),
                    observed.max(),
                );
                let g = grad.at::<L>(row, span, at);
                T::store::<L>(g.mul(side.slope(observed.unit())), target, at);
            }
        }
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
}

impl<V: Floats> Side<V> {
    #[inline(always)]
    fn new(logit: V, x: V, max: V) -> Self {
        let zero = V::splat(V::Scalar::ZERO);
        let distance = logit.abs();
        Self {
            logit,
            distance,
            e: exponential(zero.sub(distance)).value,
            against: logit.select_above(zero, max.sub(x), x),
        }
    }

    #[inline(always)]
    fn log_prob(self, unit: V) -> V {
        let zero = V::splat(V::Scalar::ZERO);
        let agreed = log_1p(self.e);
        let all = self.distance.mul(unit).fma(self.against, agreed);
        // Where nothing is against it, an infinite logit costs nothing.
        zero.sub(self.against.select_within(zero, agreed, all))
    }

    /// x - sigmoid(l): with s = e^-|l| / (1 + e^-|l|) no 1 is subtracted from a number near it.
    #[inline(always)]
    fn slope(self, unit: V) -> V {
        let zero = V::splat(V::Scalar::ZERO);
        let s = self.e.div(self.e.add(V::splat(V::Scalar::ONE)));
        let upward = zero.sub(self.against).fma(unit, s);
        self.logit.select_above(zero, upward, zero.sub(upward))
    }
}
