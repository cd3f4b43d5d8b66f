//! Reparametrized sampling and the KL from the standard normal, alone or in one pass.

use super::sum::RowSum;
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish};
use crate::element::{Element, Vector};
use crate::kl::Ratio;
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, load, store};
use crate::level::{Kernel, dispatch};
use crate::math::{Deviation, deviation, deviations};
use crate::noise::{GROUP, Noise, Normal, Slot, Visit, one_by_one, slot_of_rows, walk, walk_quietly};
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
    const ROWS: bool = T::USUAL && SAMPLE && !ELEMENTS;

    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Forward { mu, logvar, span, z, kl, .. } = &mut self.work;
        let (stretch, at) = span.stretch(row, column);
        let m = T::load::<L>(mu.within(row, *span), at);
        let sigma = deviation(T::load::<L>(logvar.within(row, *span), at));
        if SAMPLE {
            let eps = T::Math::from_f32::<L>(noise);
            T::store::<L>(m.add(sigma.times(eps)), &mut z[stretch.clone()], at);
        }
        if KL {
            let ratio = Ratio::to_unit(sigma);
            if ELEMENTS {
                let value = ratio.kl(m);
                match kl {
                    KlPiece::Elements(all) => store(value, &mut all[stretch], at),
                    KlPiece::Columns(all) => value.add_to(&mut all[at / LANES]),
                    _ => {}
                }
            } else if let Some(twice) = self.sum.add(ratio.twice_kl(m), at) {
                self.ended(row, 0.5 * twice);
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    fn groups(&mut self, row: usize, column: usize, noise: [[L::F32; GROUP]; 2]) {
        if ELEMENTS || !SAMPLE {
            one_by_one::<L, _>(self, row, column, noise);
            return;
        }
        let Forward { mu, logvar, span, z, .. } = &mut self.work;
        let zero = Vector::<T, L>::splat(T::Math::ZERO);
        let (stretch, at) = span.stretch(row, column);
        let here = at..at + 2 * GROUP * LANES;
        let (mu, logvar) = (&mu.within(row, *span)[here.clone()], &logvar.within(row, *span)[here.clone()]);
        let z = &mut z[stretch][here];
        let mut twice_kl = [zero; 2 * GROUP];
        for i in 0..2 {
            let mut l = [zero; GROUP];
            for j in 0..GROUP {
                l[j] = T::load::<L>(logvar, (i * GROUP + j) * LANES);
            }
            let sigma = deviations(l);
            for j in 0..GROUP {
                let slot = i * GROUP + j;
                let m = T::load::<L>(mu, slot * LANES);
                let eps = T::Math::from_f32::<L>(noise[i][j]);
                T::store::<L>(m.add(sigma[j].times(eps)), z, slot * LANES);
                if KL {
                    twice_kl[slot] = Ratio::to_unit(sigma[j]).twice_kl(m).in_step();
                }
            }
        }
        if KL && let Some(twice) = self.sum.add_all(twice_kl, at) {
            self.ended(row, 0.5 * twice);
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    fn rows<const PER_ROW: usize>(&mut self, first: Slot, noise: [[L::F32; GROUP]; 2]) {
        let Forward { mu, logvar, span, z, .. } = &mut self.work;
        let span = *span;
        let zero = Vector::<T, L>::splat(T::Math::ZERO);
        let mut twice_kl = [zero; 2 * GROUP];
        for i in 0..2 {
            let (mut m, mut l) = ([zero; GROUP], [zero; GROUP]);
            for j in 0..GROUP {
                let (row, column) = slot_of_rows::<PER_ROW>(first, i * GROUP + j);
                let at = column - span.column;
                m[j] = T::load::<L>(mu.within(row, span), at);
                l[j] = T::load::<L>(logvar.within(row, span), at);
            }
            let sigma = deviations(l);
            for j in 0..GROUP {
                let eps = T::Math::from_f32::<L>(noise[i][j]);
                l[j] = m[j].add(sigma[j].times(eps));
                if KL {
                    twice_kl[i * GROUP + j] = Ratio::to_unit(sigma[j]).twice_kl(m[j]).in_step();
                }
            }
            for j in 0..GROUP {
                let (row, column) = slot_of_rows::<PER_ROW>(first, i * GROUP + j);
                let (stretch, at) = span.stretch(row, column);
                T::store::<L>(l[j], &mut z[stretch], at);
            }
        }
        if KL {
            for i in 0..2 * GROUP {
                let (row, column) = slot_of_rows::<PER_ROW>(first, i);
                if let Some(twice) = self.sum.add(twice_kl[i], column - span.column) {
                    self.ended(row, 0.5 * twice);
                }
            }
        }
    }
}

impl<T: Element, L: Vectors, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool>
    ForwardSlots<'_, T, L, SAMPLE, KL, ELEMENTS>
{
    /// Takes the sum of what the span has of a row.
    #[inline(always)]
    fn ended(&mut self, row: usize, of_row: f64) {
        match &mut self.work.kl {
            KlPiece::Rows(all) => all[row - self.work.span.row] = T::Math::from_f64(of_row),
            _ => self.total += of_row,
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
    const ROWS: bool = T::USUAL && SAMPLE && KL && !ELEMENTS;

    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Backward { mu, logvar, sample, kl, span, grad_mu, grad_logvar } = &mut self.0;
        let (stretch, at) = span.stretch(row, column);
        let g_kl = match kl {
            KlGrad::Elements(all) if ELEMENTS => load(all.within(row, *span), at),
            KlGrad::Rows(all) if !ELEMENTS => Vector::<T, L>::splat(all.stretch(row, 0, 1)[0]),
            _ => Vector::<T, L>::splat(T::Math::ZERO),
        };
        let g_z = match sample {
            Some((_, grad)) if SAMPLE => T::load::<L>(grad.within(row, *span), at),
            _ => g_kl,
        };
        let m = match mu {
            Some(mu) if KL => T::load::<L>(mu.within(row, *span), at),
            _ => g_kl,
        };
        let sigma = deviation(T::load::<L>(logvar.within(row, *span), at));
        let eps = T::Math::from_f32::<L>(noise);
        let [of_mu, of_logvar] = gradients::<_, SAMPLE, KL>(sigma, m, eps, g_z, g_kl);
        if KL {
            T::store::<L>(of_mu, &mut grad_mu[stretch.clone()], at);
        }
        T::store::<L>(of_logvar, &mut grad_logvar[stretch], at);
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    fn groups(&mut self, row: usize, column: usize, noise: [[L::F32; GROUP]; 2]) {
        let Backward { mu, logvar, sample, kl, span, grad_mu, grad_logvar } = &mut self.0;
        let (Some(mu), Some((_, grad_z)), KlGrad::Rows(grad_kl), true) =
            (mu, sample, kl, KL && SAMPLE && !ELEMENTS)
        else {
            one_by_one::<L, _>(self, row, column, noise);
            return;
        };
        let g_kl = Vector::<T, L>::splat(grad_kl.stretch(row, 0, 1)[0]);
        let (stretch, at) = span.stretch(row, column);
        let here = at..at + 2 * GROUP * LANES;
        let mu = &mu.within(row, *span)[here.clone()];
        let logvar = &logvar.within(row, *span)[here.clone()];
        let grad_z = &grad_z.within(row, *span)[here.clone()];
        let grad_mu = &mut grad_mu[stretch.clone()][here.clone()];
        let grad_logvar = &mut grad_logvar[stretch][here];
        for i in 0..2 {
            let mut l = [g_kl; GROUP];
            for j in 0..GROUP {
                l[j] = T::load::<L>(logvar, (i * GROUP + j) * LANES);
            }
            let sigma = deviations(l);
            for j in 0..GROUP {
                let at = (i * GROUP + j) * LANES;
                let (m, g_z) = (T::load::<L>(mu, at), T::load::<L>(grad_z, at));
                let eps = T::Math::from_f32::<L>(noise[i][j]);
                let [of_mu, of_logvar] = gradients::<_, true, true>(sigma[j], m, eps, g_z, g_kl);
                T::store::<L>(of_mu, grad_mu, at);
                T::store::<L>(of_logvar, grad_logvar, at);
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "an iterator takes an array of vectors through memory")]
    fn rows<const PER_ROW: usize>(&mut self, first: Slot, noise: [[L::F32; GROUP]; 2]) {
        let Backward { mu, logvar, sample, kl, span, grad_mu, grad_logvar } = &mut self.0;
        let (Some(mu), Some((_, grad_z)), KlGrad::Rows(grad_kl)) = (mu, sample, kl) else {
            unreachable!("this is the body of a latent with all of them")
        };
        let span = *span;
        let zero = Vector::<T, L>::splat(T::Math::ZERO);
        for i in 0..2 {
            let (mut m, mut l, mut g_z) = ([zero; GROUP], [zero; GROUP], [zero; GROUP]);
            for j in 0..GROUP {
                let (row, column) = slot_of_rows::<PER_ROW>(first, i * GROUP + j);
                let at = column - span.column;
                m[j] = T::load::<L>(mu.within(row, span), at);
                l[j] = T::load::<L>(logvar.within(row, span), at);
                g_z[j] = T::load::<L>(grad_z.within(row, span), at);
            }
            let sigma = deviations(l);
            for j in 0..GROUP {
                let (row, _) = slot_of_rows::<PER_ROW>(first, i * GROUP + j);
                let g_kl = Vector::<T, L>::splat(grad_kl.stretch(row, 0, 1)[0]);
                let eps = T::Math::from_f32::<L>(noise[i][j]);
                [m[j], l[j]] = gradients::<_, true, true>(sigma[j], m[j], eps, g_z[j], g_kl);
            }
            for j in 0..GROUP {
                let (row, column) = slot_of_rows::<PER_ROW>(first, i * GROUP + j);
                let (stretch, at) = span.stretch(row, column);
                T::store::<L>(m[j], &mut grad_mu[stretch.clone()], at);
                T::store::<L>(l[j], &mut grad_logvar[stretch], at);
            }
        }
    }
}

/// The gradients of mu and logvar; what there is no gradient of does not count.
#[inline(always)]
pub(super) fn gradients<V: Floats, const SAMPLE: bool, const KL: bool>(
    sigma: Deviation<V>,
    mu: V,
    eps: V,
    g_z: V,
    g_kl: V,
) -> [V; 2] {
    let of_mu = if SAMPLE { g_kl.fma(mu, g_z) } else { g_kl.mul(mu) };
    let mut of_logvar = g_kl.mul(Ratio::to_unit(sigma).of_logvar());
    if SAMPLE {
        let slope = sigma.half_times(eps);
        of_logvar = if KL { g_z.fma(slope, of_logvar) } else { g_z.mul(slope) };
    }
    [of_mu, of_logvar]
}
