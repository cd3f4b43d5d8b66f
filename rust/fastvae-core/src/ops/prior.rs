//! The KL between two diagonal Gaussians.

use super::sum::Sum;
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish, stage};
use crate::element::Element;
use crate::kl::relative;
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::noise::Tiles;
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};

type Vector<T, L> = <<T as Element>::Math as Arithmetic>::Vector<L>;

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

/// Where the gradients go, all contiguous, in the order of [`Gaussians`].
pub type PriorGrads<'a, T> = [&'a mut [T]; 4];

/// KL(N(mu, e^logvar) || N(`prior_mu`, e^`prior_logvar`)) in nats.
///
/// # Panics
/// If the shapes of the arguments differ.
pub fn prior_forward<T: Element>(execution: Execution, gaussians: Gaussians<T>, mut kl: KlTarget<T::Math>) {
    let (rows, columns) = gaussians.shape();
    check_target(&kl, rows, columns);
    let spans = spans(rows, columns);
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
    fn run<L: Vectors>(mut self) {
        let mut stages = [stage::<T>(), stage::<T>(), stage::<T>(), stage::<T>()];
        let mut sum = Sum::<Vector<T, L>>::new();
        let mut total = 0.0;
        let mut done = 0;
        let mut tiles = Tiles::of(self.span);
        while let Some(tile) = tiles.advance() {
            for row in tile.row..tile.row + tile.rows {
                let (from, to) = (tile.column, tile.column + tile.columns);
                let inputs = widen_all(&self.gaussians, row, from, to, &mut stages);
                let out = done..done + tile.columns;
                done = out.end;
                let elements = match &mut self.kl {
                    KlPiece::Elements(all) => Some(&mut all[out]),
                    _ => None,
                };
                forward_row::<Vector<T, L>>(inputs, elements, &mut sum);
                if to == self.span.column + self.span.columns {
                    let of_row = core::mem::replace(&mut sum, Sum::new()).finish();
                    match &mut self.kl {
                        KlPiece::Rows(all) => all[row - self.span.row] = T::Math::from_f64(of_row),
                        _ => total += of_row,
                    }
                }
            }
        }
        if let KlPiece::Partial(partial) = self.kl {
            *partial = total;
        }
    }
}

/// The four parameters of a stretch of a row in the type of their arithmetic.
#[inline(always)]
fn widen_all<'a, T: Element>(
    gaussians: &Gaussians<'a, T>,
    row: usize,
    from: usize,
    to: usize,
    stages: &'a mut [Vec<T::Math>; 4],
) -> [&'a [T::Math]; 4] {
    let [a, b, c, d] = stages;
    let [mu, logvar, prior_mu, prior_logvar] = gaussians.all();
    [
        T::widen(mu.stretch(row, from, to), a),
        T::widen(logvar.stretch(row, from, to), b),
        T::widen(prior_mu.stretch(row, from, to), c),
        T::widen(prior_logvar.stretch(row, from, to), d),
    ]
}

#[inline(always)]
fn forward_row<V: Floats>(
    [mu, logvar, prior_mu, prior_logvar]: [&[V::Scalar]; 4],
    mut elements: Option<&mut [V::Scalar]>,
    sum: &mut Sum<V>,
) {
    let mut at = 0;
    while at < mu.len() {
        let to_prior = relative(
            load::<V>(mu, at),
            load::<V>(logvar, at),
            load::<V>(prior_mu, at),
            load::<V>(prior_logvar, at),
        );
        let value = to_prior.ratio.kl(to_prior.distance);
        if let Some(elements) = elements.as_deref_mut() {
            store(value, elements, at);
        } else {
            sum.add(value);
        }
        at += LANES;
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
    fn run<L: Vectors>(self) {
        let mut stages = [stage::<T>(), stage::<T>(), stage::<T>(), stage::<T>()];
        let mut grad_stages = [stage::<T>(), stage::<T>(), stage::<T>(), stage::<T>()];
        let [a, b, c, d] = self.grads;
        let mut done = 0;
        let mut tiles = Tiles::of(self.span);
        while let Some(tile) = tiles.advance() {
            for row in tile.row..tile.row + tile.rows {
                let (from, to) = (tile.column, tile.column + tile.columns);
                let inputs = widen_all(&self.gaussians, row, from, to, &mut stages);
                let grad_kl = match &self.kl {
                    KlGrad::Rows(all) => all.stretch(row, 0, 1),
                    KlGrad::Elements(all) => all.stretch(row, from, to),
                    KlGrad::Absent => &[],
                };
                let per_row = matches!(self.kl, KlGrad::Rows(_));
                let out = done..done + tile.columns;
                done = out.end;
                let [sa, sb, sc, sd] = &mut grad_stages;
                let [a, b, c, d] =
                    [&mut a[out.clone()], &mut b[out.clone()], &mut c[out.clone()], &mut d[out]];
                let rooms = [T::room(a, sa), T::room(b, sb), T::room(c, sc), T::room(d, sd)];
                backward_row::<Vector<T, L>>(inputs, grad_kl, per_row, rooms);
                T::narrow(sa, a);
                T::narrow(sb, b);
                T::narrow(sc, c);
                T::narrow(sd, d);
            }
        }
    }
}

#[inline(always)]
fn backward_row<V: Floats>(
    [mu, logvar, prior_mu, prior_logvar]: [&[V::Scalar]; 4],
    grad_kl: &[V::Scalar],
    per_row: bool,
    [grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar]: [&mut [V::Scalar]; 4],
) {
    let (half, zero) = (V::splat(V::Scalar::HALF), V::splat(V::Scalar::ZERO));
    let mut at = 0;
    while at < mu.len() {
        let to_prior = relative(
            load::<V>(mu, at),
            load::<V>(logvar, at),
            load::<V>(prior_mu, at),
            load::<V>(prior_logvar, at),
        );
        let g = if per_row { V::splat(grad_kl[0]) } else { load::<V>(grad_kl, at) };
        let of_mu = g.mul(to_prior.distance).mul(to_prior.inverse);
        let growth = to_prior.ratio.variance_growth();
        let spread = to_prior.distance.fma(to_prior.distance, growth);
        store(of_mu, grad_mu, at);
        store(g.mul(growth).mul(half), grad_logvar, at);
        store(zero.sub(of_mu), grad_prior_mu, at);
        store(zero.sub(g.mul(spread).mul(half)), grad_prior_logvar, at);
        at += LANES;
    }
}
