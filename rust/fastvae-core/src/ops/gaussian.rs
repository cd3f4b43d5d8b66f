//! The log-density of data under Gaussian variables, in nats.

use super::observed::{Observed, Value};
use super::sum::RowSum;
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish};
use crate::element::{Element, Vector};
use crate::lanes::{Floats, LANES, Scalar, Vectors, first, store};
use crate::level::{Kernel, dispatch};
use crate::math::decay;
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};

/// ln(2 pi).
const LN_2_PI: f64 = 1.8378770664093453;

/// The logarithm of a variance.
#[derive(Clone, Copy, Debug)]
pub enum LogVariance<'a, T: Element> {
    /// One per element.
    Each(Matrix<'a, T>),
    /// One for all.
    All(T::Math),
}

/// Gaussian variables.
#[derive(Clone, Copy, Debug)]
pub struct Density<'a, T: Element> {
    /// Their means.
    pub mean: Matrix<'a, T>,
    /// The logarithm of their variances.
    pub logvar: LogVariance<'a, T>,
}

impl<T: Element> Density<'_, T> {
    fn shape(&self) -> (usize, usize) {
        let shape = (self.mean.rows(), self.mean.columns());
        if let LogVariance::Each(logvar) = self.logvar {
            assert_eq!(shape, (logvar.rows(), logvar.columns()), "mean and logvar differ in shape");
        }
        shape
    }
}

/// -1/2 (logvar + (x - mean)^2 e^-logvar + ln(2 pi)), per element or summed over rows.
///
/// # Panics
/// If the shapes of the arguments differ.
pub fn gaussian_forward<T: Element, X: Value<T::Math>>(
    execution: Execution,
    density: Density<T>,
    observed: Observed<X>,
    mut log_prob: KlTarget<T::Math>,
) {
    let (rows, columns) = density.shape();
    observed.check(rows, columns);
    check_target(&log_prob, rows, columns);
    let spans = spans(rows, columns);
    let mut partials = Vec::new();
    let items: Vec<_> = spans
        .iter()
        .zip(distribute(&mut log_prob, &mut partials, &spans, columns))
        .map(|(&span, log_prob)| Forward { density, observed, span, log_prob })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
    finish(&mut log_prob, &partials, columns);
}

struct Forward<'a, T: Element, X> {
    density: Density<'a, T>,
    observed: Observed<'a, X>,
    span: Span,
    log_prob: KlPiece<'a, T::Math>,
}

impl<T: Element, X: Value<T::Math>> Kernel for Forward<'_, T, X> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(mut self) {
        let Self { density, observed, span, .. } = self;
        // What every element of a row adds is added once, in `f64`.
        let (spread, of_all) = match density.logvar {
            LogVariance::Each(_) => (None, 0.0),
            LogVariance::All(logvar) => (Some(Spread::new(Vector::<T, L>::splat(logvar))), logvar.into()),
        };
        let constant = span.columns as f64 * (of_all + LN_2_PI);
        let mut sum = RowSum::new(span);
        let mut total = 0.0;
        for row in span.row..span.row + span.rows {
            let (m_row, x_row) = (density.mean.within(row, span), observed.within(row, span));
            for at in (0..span.columns).step_by(LANES) {
                let Spread { logvar, inverse } = spread_at::<T, L>(spread, density.logvar, row, span, at);
                let steps = steps(T::load::<L>(m_row, at), X::load::<L>(x_row, at), observed.max());
                let scaled = steps.mul(observed.unit()).mul(inverse);
                if let KlPiece::Elements(all) = &mut self.log_prob {
                    let constant = Vector::<T, L>::splat(T::Math::from_f64(LN_2_PI));
                    let twice = scaled.fma(scaled, logvar.add(constant));
                    let value = twice.mul(Vector::<T, L>::splat(T::Math::ZERO - T::Math::HALF));
                    store(value, &mut all[span.stretch(row, span.column).0], at);
                    continue;
                }
                let value = if spread.is_some() { scaled.mul(scaled) } else { scaled.fma(scaled, logvar) };
                if let Some(of_row) = sum.add(first(value, span.columns - at), at) {
                    let of_row = -0.5 * (of_row + constant);
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

/// Where the gradient of the logarithm of the variance goes.
#[derive(Debug)]
pub enum LogVarianceGrad<'a, T: Element> {
    /// One per element, contiguous.
    Each(&'a mut [T]),
    /// The sum over everything.
    All(&'a mut T::Math),
}

/// The gradients of [`gaussian_forward`] with respect to the mean and the logarithm of the variance.
///
/// # Panics
/// If the shapes of the arguments differ, or there is no gradient.
pub fn gaussian_backward<T: Element, X: Value<T::Math>>(
    execution: Execution,
    density: Density<T>,
    observed: Observed<X>,
    grad: KlGrad<T::Math>,
    grad_mean: &mut [T],
    grad_logvar: LogVarianceGrad<T>,
) {
    let (rows, columns) = density.shape();
    observed.check(rows, columns);
    check_grad(&grad, rows, columns);
    assert!(!matches!(grad, KlGrad::Absent), "there is no gradient to pass on");
    assert_eq!(grad_mean.len(), rows * columns, "the gradient of the mean has the wrong length");
    let spans = spans(rows, columns);
    let (each, all) = match grad_logvar {
        LogVarianceGrad::Each(each) => (each, None),
        LogVarianceGrad::All(all) => (&mut [] as &mut [T], Some(all)),
    };
    let for_each_element = matches!(density.logvar, LogVariance::Each(_));
    assert_eq!(all.is_none(), for_each_element, "logvar and its gradient are of two kinds");
    let length = if for_each_element { rows * columns } else { 0 };
    assert_eq!(each.len(), length, "the gradient of logvar has the wrong length");
    let mut partials = vec![0.0; spans.len()];
    let each = pieces(each, spans.iter().map(|span| if for_each_element { span.elements() } else { 0 }));
    let items: Vec<_> = spans
        .iter()
        .zip(pieces(grad_mean, spans.iter().map(Span::elements)))
        .zip(each.zip(&mut partials))
        .map(|((&span, grad_mean), (grad_logvar, partial))| Backward {
            density,
            observed,
            grad,
            span,
            grad_mean,
            grad_logvar,
            partial,
        })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
    if let Some(all) = all {
        *all = T::Math::from_f64(partials.iter().sum());
    }
}

struct Backward<'a, T: Element, X> {
    density: Density<'a, T>,
    observed: Observed<'a, X>,
    grad: KlGrad<'a, T::Math>,
    span: Span,
    grad_mean: &'a mut [T],
    /// Empty where one variance is for all: then the sum goes to `partial`.
    grad_logvar: &'a mut [T],
    partial: &'a mut f64,
}

impl<T: Element, X: Value<T::Math>> Kernel for Backward<'_, T, X> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let Self { density, observed, grad, span, grad_mean, grad_logvar, partial } = self;
        let spread = match density.logvar {
            LogVariance::Each(_) => None,
            LogVariance::All(logvar) => Some(Spread::new(Vector::<T, L>::splat(logvar))),
        };
        let (half, minus_one) =
            (Vector::<T, L>::splat(T::Math::HALF), Vector::<T, L>::splat(T::Math::ZERO - T::Math::ONE));
        let mut sum = RowSum::new(span);
        for row in span.row..span.row + span.rows {
            let (m_row, x_row) = (density.mean.within(row, span), observed.within(row, span));
            let stretch = span.stretch(row, span.column).0;
            for at in (0..span.columns).step_by(LANES) {
                let Spread { inverse, .. } = spread_at::<T, L>(spread, density.logvar, row, span, at);
                let steps = steps(T::load::<L>(m_row, at), X::load::<L>(x_row, at), observed.max());
                let scaled = steps.mul(observed.unit()).mul(inverse);
                let g = grad.at::<L>(row, span, at);
                T::store::<L>(g.mul(scaled).mul(inverse), &mut grad_mean[stretch.clone()], at);
                let of_logvar = g.mul(scaled.fma(scaled, minus_one)).mul(half);
                if spread.is_none() {
                    T::store::<L>(of_logvar, &mut grad_logvar[stretch.clone()], at);
                } else if let Some(of_row) = sum.add(first(of_logvar, span.columns - at), at) {
                    *partial += of_row;
                }
            }
        }
    }
}

/// A variance by its logarithm, and one over the standard deviation.
#[derive(Clone, Copy)]
struct Spread<V> {
    logvar: V,
    inverse: V,
}

impl<V: Floats> Spread<V> {
    #[inline(always)]
    fn new(logvar: V) -> Self {
        // Its square would overflow half an exponent range earlier.
        let least = V::splat(V::Scalar::ZERO - V::Scalar::EXP_SATURATES);
        let inverse = decay(logvar.mul(V::splat(V::Scalar::HALF)).at_least(least));
        Self { logvar, inverse }
    }
}

/// The variance of sixteen elements: the one for all, or their own.
#[inline(always)]
fn spread_at<T: Element, L: Vectors>(
    of_all: Option<Spread<Vector<T, L>>>,
    logvar: LogVariance<T>,
    row: usize,
    span: Span,
    at: usize,
) -> Spread<Vector<T, L>> {
    match (of_all, logvar) {
        (Some(spread), _) => spread,
        (None, LogVariance::Each(matrix)) => Spread::new(T::load::<L>(matrix.within(row, span), at)),
        (None, LogVariance::All(value)) => Spread::new(Vector::<T, L>::splat(value)),
    }
}

/// x - mean in steps of the data, rounded once: near the mean, 254/255 rounded first would leave no right digit.
#[inline(always)]
fn steps<V: Floats>(mean: V, x: V, max: V) -> V {
    V::splat(V::Scalar::ZERO).sub(mean).fma(max, x)
}
