//! The KL between two diagonal Gaussians.

use super::sum::RowSum;
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish};
use crate::element::{Element, Vector};
use crate::kl::{Relative, relative};
use crate::lanes::{Floats, LANES, Scalar, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::noise::{Visit, walk_quietly};
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};

/// The parameters of posterior and prior, all of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Gaussians<'a, T> {
    /// Posterior mean.
    pub mu: Matrix<'a, T>,
    /// Logarithm of the posterior variance.
    pub logvar: Matrix<'a, T>,
    /// Prior mean.
    pub prior_mu: Matrix<'a, T>,
    /// Logarithm of the prior variance.
    pub prior_logvar: Matrix<'a, T>,
}

impl<'a, T> Gaussians<'a, T> {
    fn all(&self) -> [&Matrix<'a, T>; 4] {
        [&self.mu, &self.logvar, &self.prior_mu, &self.prior_logvar]
    }

    fn shape(&self) -> (usize, usize) {
        let shape = (self.mu.rows(), self.mu.columns());
        for matrix in self.all() {
            assert_eq!(shape, (matrix.rows(), matrix.columns()), "the parameters differ in shape");
        }
        shape
    }
}

impl<T: Element> Gaussians<'_, T> {
    /// The posterior as seen from the prior, for the slot that begins `at` columns into a span's row.
    #[inline(always)]
    fn at<L: Vectors>(&self, row: usize, span: Span, at: usize) -> Relative<Vector<T, L>> {
        relative(
            T::load::<L>(self.mu.within(row, span), at),
            T::load::<L>(self.logvar.within(row, span), at),
            T::load::<L>(self.prior_mu.within(row, span), at),
            T::load::<L>(self.prior_logvar.within(row, span), at),
        )
    }
}

/// Where the gradients go, all contiguous, in the order of [`Gaussians`].
pub type PriorGrads<'a, T> = [&'a mut [T]; 4];

/// KL(N(mu, e^logvar) || N(`prior_mu`, e^`prior_logvar`)) in nats.
///
/// # Panics
/// If the shapes of the arguments differ.
pub fn prior_forward<T: Element>(execution: Execution, gaussians: Gaussians<T>, mut kl: KlTarget<T::Math>) {
    let (rows, columns) = gaussians.shape();
    check_target(&kl, rows, columns);
    let spans = kl.spans(rows, columns);
    let mut partials = Vec::new();
    let items: Vec<_> = spans
        .iter()
        .zip(distribute(&mut kl, &mut partials, &spans, columns))
        .map(|(&span, kl)| Forward { gaussians, span, kl })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
    finish(&mut kl, &partials, columns);
}

struct Forward<'a, T: Element> {
    gaussians: Gaussians<'a, T>,
    span: Span,
    kl: KlPiece<'a, T::Math>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let span = self.span;
        let mut slots = ForwardSlots::<T, L> { work: self, sum: RowSum::new(span), total: 0.0 };
        walk_quietly(span, &mut slots);
        if let KlPiece::Partial(partial) = slots.work.kl {
            *partial = slots.total;
        }
    }
}

struct ForwardSlots<'a, T: Element, L: Vectors> {
    work: Forward<'a, T>,
    sum: RowSum<Vector<T, L>>,
    total: f64,
}

impl<T: Element, L: Vectors> Visit<L> for ForwardSlots<'_, T, L> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, _: L::F32) {
        let Forward { gaussians, span, kl } = &mut self.work;
        let (stretch, at) = span.stretch(row, column);
        let to_prior = gaussians.at::<L>(row, *span, at);
        let value = to_prior.ratio.kl(to_prior.distance);
        if let KlPiece::Elements(all) = kl {
            store(value, &mut all[stretch], at);
        } else if let KlPiece::Columns(all) = kl {
            value.add_to(&mut all[at / LANES]);
        } else if let Some(of_row) = self.sum.add(value, at) {
            match kl {
                KlPiece::Rows(all) => all[row - span.row] = T::Math::from_f64(of_row),
                _ => self.total += of_row,
            }
        }
    }
}

/// The gradients of [`prior_forward`] with respect to its four inputs.
///
/// # Panics
/// If the shapes of the arguments differ, or there is no gradient of the KL.
pub fn prior_backward<T: Element>(
    execution: Execution,
    gaussians: Gaussians<T>,
    kl: KlGrad<T::Math>,
    grads: PriorGrads<T>,
) {
    let (rows, columns) = gaussians.shape();
    check_grad(&kl, rows, columns);
    assert!(!matches!(kl, KlGrad::Absent), "there is no gradient to pass on");
    for grad in &grads {
        assert_eq!(grad.len(), rows * columns, "a gradient has the wrong length");
    }
    let spans = spans(rows, columns);
    let [a, b, c, d] = grads.map(|grad| pieces(grad, spans.iter().map(Span::elements)));
    let items: Vec<_> = spans
        .iter()
        .zip(a.zip(b).zip(c.zip(d)))
        .map(|(&span, ((a, b), (c, d)))| Backward { gaussians, kl, span, grads: [a, b, c, d] })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
}

struct Backward<'a, T: Element> {
    gaussians: Gaussians<'a, T>,
    kl: KlGrad<'a, T::Math>,
    span: Span,
    grads: PriorGrads<'a, T>,
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(mut self) {
        walk_quietly::<L>(self.span, &mut self);
    }
}

impl<T: Element, L: Vectors> Visit<L> for Backward<'_, T> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, _: L::F32) {
        let Self { gaussians, kl, span, grads: [of_mu, of_logvar, of_prior_mu, of_prior_logvar] } = self;
        let splat = Vector::<T, L>::splat;
        let (half, zero) = (splat(T::Math::HALF), splat(T::Math::ZERO));
        let (stretch, at) = span.stretch(row, column);
        let to_prior = gaussians.at::<L>(row, *span, at);
        let g = match kl {
            KlGrad::Rows(all) => splat(all.stretch(row, 0, 1)[0]),
            KlGrad::Elements(all) => load(all.within(row, *span), at),
            KlGrad::Absent => zero,
        };
        let mean = g.mul(to_prior.distance).mul(to_prior.inverse);
        let growth = to_prior.ratio.of_logvar();
        let spread = half.mul(to_prior.distance).fma(to_prior.distance, growth);
        T::store::<L>(mean, &mut of_mu[stretch.clone()], at);
        T::store::<L>(g.mul(growth), &mut of_logvar[stretch.clone()], at);
        T::store::<L>(zero.sub(mean), &mut of_prior_mu[stretch.clone()], at);
        T::store::<L>(zero.sub(g.mul(spread)), &mut of_prior_logvar[stretch], at);
    }
}
