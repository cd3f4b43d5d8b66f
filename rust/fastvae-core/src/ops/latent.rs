//! Reparametrized sampling and the KL from the standard normal, alone or in one pass.

use super::sum::Sum;
use super::{KlGrad, KlPiece, KlTarget, check_grad, check_target, distribute, finish, stage};
use crate::element::Element;
use crate::kl::Ratio;
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, load, load_f32, store};
use crate::level::{Kernel, dispatch};
use crate::math::exponential;
use crate::noise::{Noise, Normal, TILE, Tiles, fill, pitch};
use crate::split::{Span, for_each, pieces, spans, threads_for};
use crate::{Execution, Matrix};

type Vector<T, L> = <<T as Element>::Math as Arithmetic>::Vector<L>;

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
    let spans = spans(rows, columns);
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
            matches!(self.kl, KlPiece::Elements(_)),
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
    fn run_with<L: Vectors, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool>(mut self) {
        let mut eps = [0.0; TILE];
        let (mut mu_stage, mut logvar_stage, mut z_stage) = (stage::<T>(), stage::<T>(), stage::<T>());
        let mut sum = Sum::<Vector<T, L>>::new();
        let mut total = 0.0;
        let mut done = 0;
        let mut tiles = Tiles::of(self.span);
        while let Some(tile) = tiles.advance() {
            let pitch = pitch(tile.columns);
            if SAMPLE && let Some(noise) = self.noise {
                fill::<L, Normal>(noise, tile, &mut eps[..tile.rows * pitch]);
            }
            for row in 0..tile.rows {
                let (from, to) = (tile.column, tile.column + tile.columns);
                let mu = T::widen(self.mu.stretch(tile.row + row, from, to), &mut mu_stage);
                let logvar = T::widen(self.logvar.stretch(tile.row + row, from, to), &mut logvar_stage);
                let out = done..done + tile.columns;
                done = out.end;
                let z = if SAMPLE { &mut self.z[out.clone()] } else { &mut self.z[..0] };
                let kl = match &mut self.kl {
                    KlPiece::Elements(all) if ELEMENTS => &mut all[out],
                    _ => &mut [],
                };
                forward_row::<Vector<T, L>, SAMPLE, KL, ELEMENTS>(
                    mu,
                    logvar,
                    &eps[row * pitch..],
                    T::room(z, &mut z_stage),
                    kl,
                    &mut sum,
                );
                if SAMPLE {
                    T::narrow(&z_stage, z);
                }
                if KL && !ELEMENTS && to == self.span.column + self.span.columns {
                    let of_row = core::mem::replace(&mut sum, Sum::new()).finish();
                    match &mut self.kl {
                        KlPiece::Rows(all) => all[tile.row + row - self.span.row] = T::Math::from_f64(of_row),
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

#[inline(always)]
fn forward_row<V: Floats, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool>(
    mu: &[V::Scalar],
    logvar: &[V::Scalar],
    eps: &[f32],
    z: &mut [V::Scalar],
    kl: &mut [V::Scalar],
    sum: &mut Sum<V>,
) {
    let half = V::splat(V::Scalar::HALF);
    let mut at = 0;
    while at < mu.len() {
        let m = load::<V>(mu, at);
        let e = exponential(load::<V>(logvar, at).mul(half));
        if SAMPLE {
            store(m.add(e.times(load_f32::<V>(eps, at))), z, at);
        }
        if KL {
            let value = Ratio::to_unit(e).kl(m);
            if ELEMENTS {
                store(value, kl, at);
            } else {
                sum.add(value);
            }
        }
        at += LANES;
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
        let mut eps = [0.0; TILE];
        let (mut mu_stage, mut logvar_stage, mut z_stage) = (stage::<T>(), stage::<T>(), stage::<T>());
        let (mut grad_mu_stage, mut grad_logvar_stage) = (stage::<T>(), stage::<T>());
        let mut done = 0;
        let mut tiles = Tiles::of(self.span);
        while let Some(tile) = tiles.advance() {
            let pitch = pitch(tile.columns);
            if SAMPLE && let Some((noise, _)) = self.sample {
                fill::<L, Normal>(noise, tile, &mut eps[..tile.rows * pitch]);
            }
            for row in 0..tile.rows {
                let number = tile.row + row;
                let (from, to) = (tile.column, tile.column + tile.columns);
                let logvar = T::widen(self.logvar.stretch(number, from, to), &mut logvar_stage);
                let mu = match &self.mu {
                    Some(mu) if KL => T::widen(mu.stretch(number, from, to), &mut mu_stage),
                    _ => &[],
                };
                let grad_z = match &self.sample {
                    Some((_, grad)) if SAMPLE => T::widen(grad.stretch(number, from, to), &mut z_stage),
                    _ => &[],
                };
                let grad_kl = match &self.kl {
                    KlGrad::Rows(all) if KL => all.stretch(number, 0, 1),
                    KlGrad::Elements(all) if KL => all.stretch(number, from, to),
                    _ => &[],
                };
                let out = done..done + tile.columns;
                done = out.end;
                let grad_mu = if KL { &mut self.grad_mu[out.clone()] } else { &mut self.grad_mu[..0] };
                let grad_logvar = &mut self.grad_logvar[out];
                backward_row::<Vector<T, L>, SAMPLE, KL, ELEMENTS>(
                    mu,
                    logvar,
                    &eps[row * pitch..],
                    grad_z,
                    grad_kl,
                    T::room(grad_mu, &mut grad_mu_stage),
                    T::room(grad_logvar, &mut grad_logvar_stage),
                );
                if KL {
                    T::narrow(&grad_mu_stage, grad_mu);
                }
                T::narrow(&grad_logvar_stage, grad_logvar);
            }
        }
    }
}

#[inline(always)]
fn backward_row<V: Floats, const SAMPLE: bool, const KL: bool, const ELEMENTS: bool>(
    mu: &[V::Scalar],
    logvar: &[V::Scalar],
    eps: &[f32],
    grad_z: &[V::Scalar],
    grad_kl: &[V::Scalar],
    grad_mu: &mut [V::Scalar],
    grad_logvar: &mut [V::Scalar],
) {
    let half = V::splat(V::Scalar::HALF);
    let of_row = if KL && !ELEMENTS { V::splat(grad_kl[0]) } else { half };
    let mut at = 0;
    while at < logvar.len() {
        let e = exponential(load::<V>(logvar, at).mul(half));
        let g_kl = if KL && ELEMENTS { load::<V>(grad_kl, at) } else { of_row };
        let mut of_logvar = half;
        if KL {
            let m = load::<V>(mu, at);
            let of_mu = if SAMPLE { g_kl.fma(m, load::<V>(grad_z, at)) } else { g_kl.mul(m) };
            store(of_mu, grad_mu, at);
            of_logvar = g_kl.mul(Ratio::to_unit(e).variance_growth());
        }
        if SAMPLE {
            let slope = e.times(load_f32::<V>(eps, at));
            let g_z = load::<V>(grad_z, at);
            of_logvar = if KL { g_z.fma(slope, of_logvar) } else { g_z.mul(slope) };
        }
        store(of_logvar.mul(half), grad_logvar, at);
        at += LANES;
    }
}
