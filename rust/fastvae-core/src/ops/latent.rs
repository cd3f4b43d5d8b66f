//! Reparametrized sampling and the KL from the standard normal, alone or in one pass.

use super::sum::RowSum;
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish};
use crate::element::{Element, Vector};
use crate::kl::Ratio;
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::math::exponential;
use crate::noise::{Noise, Normal, Visit, walk, walk_quietly};
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};

/// z = mu + exp(logvar / 2) * eps into `sample` (contiguous) and the KL from N(0, I) in nats into `kl`.
///
/// # Panics
/// If the shapes of the arguments differ.
pub fn latent_forward<T: Element>(
    execution: Execution,
    mu: Matrix<T>,
    logvar: Matrix<T>,
    sample: Option<(&Noise, &mut [T])>,
    mut kl: KlTarget<T::Math>,
) {
    let (rows, columns) = (mu.rows(), mu.columns());
    assert_eq!((rows, columns), (logvar.rows(), logvar.columns()), "mu and logvar differ in shape");
    check_target(&kl, rows, columns);
    let spans = kl.spans(rows, columns);
    let (noise, z) = match sample {
        Some((noise, z)) => {
            assert_eq!(z.len(), rows * columns, "z has the wrong length");
            (Some(noise), z)
        }
        None => (None, &mut [] as &mut [T]),
    };
    let mut partials = Vec::new();
    let sampled = noise.is_some();
    let samples = pieces(z, spans.iter().map(|span| if sampled { span.elements() } else { 0 }));
    let items: Vec<_> = spans
        .iter()
        .zip(samples)
        .zip(distribute(&mut kl, &mut partials, &spans, columns))
        .map(|((&span, z), kl)| Forward { mu, logvar, noise, span, z, kl })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
    finish(&mut kl, &partials, columns);
}

struct Forward<'a, T: Element> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    noise: Option<&'a Noise<'a>>,
    span: Span,
    z: &'a mut [T],
    kl: KlPiece<'a, T::Math>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        match (
            self.noise.is_some(),
            matches!(self.kl, KlPiece::Nowhere),
            // Each element has a place of its own to go to: no sum over the row is kept.
            matches!(self.kl, KlPiece::Elements(_) | KlPiece::Columns(_)),
        ) {
            (true, true, _) => self.run_with::<L, true, false, false>(),
            (true, false, false) => self.run_with::<L, true, true, false>(),
            (true, false, true) => self.run_with::<L, true, true, true>(),
            (false, _, false) => self.run_with::<L, false, true, false>(),
            (false, _, true) => self.run_with::<L, false, true, true>(),
        }
    }
}

impl<T: Element> Forward<'_, T> {
    #[inline(always)]
    fn run_with<L: Vectors, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool>(self) {
        let (span, noise) = (self.span, self.noise);
        let mut slots =
            ForwardSlots::<T, L, SAMPLE, KL, ELEMENTS> { work: self, sum: RowSum::new(span), total: 0.0 };
        match noise {
            Some(noise) if SAMPLE => walk::<L, Normal>(noise, span, &mut slots),
            _ => walk_quietly(span, &mut slots),
        }
        if let KlPiece::Partial(partial) = slots.work.kl {
            *partial = slots.total;
        }
    }
}

struct ForwardSlots<'a, T: Element, L: Vectors, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool> {
    work: Forward<'a, T>,
    sum: RowSum<Vector<T, L>>,
    total: f64,
}

impl<T: Element, L: Vectors, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool> Visit<L>
    for ForwardSlots<'_, T, L, SAMPLE, KL, ELEMENTS>
{
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Forward { mu, logvar, span, z, kl, .. } = &mut self.work;
        let half = Vector::<T, L>::splat(T::Math::HALF);
        let (stretch, at) = span.stretch(row, column);
        let m = T::load::<L>(mu.within(row, *span), at);
        let e = exponential(T::load::<L>(logvar.within(row, *span), at).mul(half));
        if SAMPLE {
            let eps = T::Math::from_f32::<L>(noise);
            T::store::<L>(m.add(e.times(eps)), &mut z[stretch.clone()], at);
        }
        if KL {
            let value = Ratio::to_unit(e).kl(m);
            if ELEMENTS {
                match kl {
                    KlPiece::Elements(all) => store(value, &mut all[stretch], at),
                    KlPiece::Columns(all) => value.add_to(&mut all[at / LANES]),
                    _ => {}
                }
            } else if let Some(of_row) = self.sum.add(value, at) {
                match kl {
                    KlPiece::Rows(all) => all[row - span.row] = T::Math::from_f64(of_row),
                    _ => self.total += of_row,
                }
            }
        }
    }
}

/// The gradients of [`latent_forward`], with the noise drawn again.
///
/// `sample` is the noise and the gradient of z, `kl` the gradient of the KL. The gradients of mu and logvar go to
/// `grads`; without a KL the gradient of mu is that of z, and nothing is written for it.
///
/// # Panics
/// If the shapes of the arguments differ.
pub fn latent_backward<T: Element>(
    execution: Execution,
    mu: Option<Matrix<T>>,
    logvar: Matrix<T>,
    sample: Option<(&Noise, Matrix<T>)>,
    kl: KlGrad<T::Math>,
    [grad_mu, grad_logvar]: [&mut [T]; 2],
) {
    let (rows, columns) = (logvar.rows(), logvar.columns());
    let spans = spans(rows, columns);
    check_grad(&kl, rows, columns);
    let with_kl = !matches!(kl, KlGrad::Absent);
    assert_eq!(mu.is_some(), with_kl, "mu is what the gradient of a KL needs");
    for matrix in [mu.as_ref(), sample.as_ref().map(|(_, grad)| grad)].into_iter().flatten() {
        assert_eq!((rows, columns), (matrix.rows(), matrix.columns()), "the inputs differ in shape");
    }
    assert_eq!(grad_logvar.len(), rows * columns, "the gradient of logvar has the wrong length");
    assert_eq!(
        grad_mu.len(),
        if with_kl { rows * columns } else { 0 },
        "the gradient of mu has the wrong length"
    );
    let mu_pieces = pieces(grad_mu, spans.iter().map(|span| if with_kl { span.elements() } else { 0 }));
    let logvar_pieces = pieces(grad_logvar, spans.iter().map(Span::elements));
    let items: Vec<_> = spans
        .iter()
        .zip(mu_pieces.zip(logvar_pieces))
        .map(|(&span, (grad_mu, grad_logvar))| Backward {
            mu,
            logvar,
            sample,
            kl,
            span,
            grad_mu,
            grad_logvar,
        })
        .collect();
    for_each(items, threads_for(rows * columns, execution.threads), |item| dispatch(execution.level, item));
}

struct Backward<'a, T: Element> {
    mu: Option<Matrix<'a, T>>,
    logvar: Matrix<'a, T>,
    sample: Option<(&'a Noise<'a>, Matrix<'a, T>)>,
    kl: KlGrad<'a, T::Math>,
    span: Span,
    grad_mu: &'a mut [T],
    grad_logvar: &'a mut [T],
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        match (self.sample.is_some(), self.kl) {
            (_, KlGrad::Absent) => self.run_with::<L, true, false, false>(),
            (true, KlGrad::Rows(_)) => self.run_with::<L, true, true, false>(),
            (true, KlGrad::Elements(_)) => self.run_with::<L, true, true, true>(),
            (false, KlGrad::Rows(_)) => self.run_with::<L, false, true, false>(),
            (false, KlGrad::Elements(_)) => self.run_with::<L, false, true, true>(),
        }
    }
}

impl<T: Element> Backward<'_, T> {
    #[inline(always)]
    fn run_with<L: Vectors, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool>(self) {
        let (span, sample) = (self.span, self.sample);
        let mut slots = BackwardSlots::<T, SAMPLE, KL, ELEMENTS>(self);
        match sample {
            Some((noise, _)) if SAMPLE => walk::<L, Normal>(noise, span, &mut slots),
            _ => walk_quietly::<L>(span, &mut slots),
        }
    }
}

struct BackwardSlots<'a, T: Element, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool>(
    Backward<'a, T>,
);

impl<T: Element, L: Vectors, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool> Visit<L>
    for BackwardSlots<'_, T, SAMPLE, KL, ELEMENTS>
{
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Backward { mu, logvar, sample, kl, span, grad_mu, grad_logvar } = &mut self.0;
        let half = Vector::<T, L>::splat(T::Math::HALF);
        let (stretch, at) = span.stretch(row, column);
        let e = exponential(T::load::<L>(logvar.within(row, *span), at).mul(half));
        let g_z = match sample {
            Some((_, grad)) if SAMPLE => T::load::<L>(grad.within(row, *span), at),
            _ => half,
        };
        let mut of_logvar = half;
        if KL && let Some(mu) = mu {
            let g_kl = match kl {
                KlGrad::Elements(all) if ELEMENTS => load(all.within(row, *span), at),
                KlGrad::Rows(all) if !ELEMENTS => Vector::<T, L>::splat(all.stretch(row, 0, 1)[0]),
                _ => half,
            };
            let m = T::load::<L>(mu.within(row, *span), at);
            let of_mu = if SAMPLE { g_kl.fma(m, g_z) } else { g_kl.mul(m) };
            T::store::<L>(of_mu, &mut grad_mu[stretch.clone()], at);
            of_logvar = g_kl.mul(Ratio::to_unit(e).variance_growth());
        }
        if SAMPLE {
            let slope = e.times(T::Math::from_f32::<L>(noise));
            of_logvar = if KL { g_z.fma(slope, of_logvar) } else { g_z.mul(slope) };
        }
        T::store::<L>(of_logvar.mul(half), &mut grad_logvar[stretch], at);
    }
}
