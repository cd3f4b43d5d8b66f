//! Several samples of one posterior, and the logarithm of the importance weight of each.
//!
//! With z = mu + sigma eps, log p(z) - log q(z | x) = 1/2 sum(eps^2 + logvar - z^2): the constants of the two
//! densities cancel. The difference of squares is a product, (eps - z)(eps + z), whose first factor
//! -(mu + (sigma - 1) eps) comes without cancellation from sigma - 1: where the posterior is the prior, the
//! weight is exactly 1.

use super::sum::{RUN, RowSum, Sums};
use super::{KlPiece, KlTarget, distribute, finish};
use crate::element::{Element, Vector};
use crate::lanes::{Arithmetic, Floats, LANES, Scalar, Vectors, first, load, store};
use crate::level::{Kernel, dispatch};
use crate::math::deviation;
use crate::noise::{Draws, GROUP, Noise, Normal, Visit, walk};
use crate::split::{Span, finer, for_each, pieces, spans, spans_of, threads_for};
use crate::{Execution, Matrix};
use core::ops::Range;

/// Elements that the backward sums over the samples at a time: its buffers stay in the first cache, and the few
/// latents of a batch still make work for several threads.
const SUMMED: usize = 512;

/// Elements of one sample that the forward takes at a time, in a run of samples: likewise.
const SAMPLED: usize = 1024;

/// `samples` times z = mu + exp(logvar / 2) * eps into `z`, and log p(z) - log q(z | x) in nats, one per row of
/// every sample, into `log_weight`; both contiguous, sample by sample.
///
/// Sample `k` has the noise of draw `noise.draw + k`.
///
/// # Panics
/// If the shapes of the arguments differ, or the draws do not fit in 32 bits.
pub fn log_weight_forward<T: Element>(
    execution: Execution,
    mu: Matrix<T>,
    logvar: Matrix<T>,
    noise: &Noise,
    samples: usize,
    z: &mut [T],
    log_weight: &mut [T::Math],
) {
    let (rows, columns) = (mu.rows(), mu.columns());
    assert_eq!((rows, columns), (logvar.rows(), logvar.columns()), "mu and logvar differ in shape");
    assert_eq!(z.len(), samples * rows * columns, "z has the wrong length");
    assert_eq!(log_weight.len(), samples * rows, "one weight per row and sample");
    check_draws(noise, samples);
    let spans = spans_of(rows, columns, SAMPLED);
    // One piece for each span of each sample, sample by sample.
    let all: Vec<_> = spans.iter().copied().cycle().take(samples * spans.len()).collect();
    let mut partials = Vec::new();
    let mut target = KlTarget::Rows(log_weight);
    let mut items = Vec::new();
    let mut outputs =
        pieces(z, all.iter().map(Span::elements)).zip(distribute(&mut target, &mut partials, &all, columns));
    for first in (0..samples).step_by(RUN) {
        let noise = Noise { draw: noise.draw + first as u32, ..*noise };
        let begun = items.len();
        items.extend(spans.iter().map(|&span| Forward {
            mu,
            logvar,
            noise,
            span,
            samples: Vec::with_capacity(RUN),
        }));
        for _ in first..samples.min(first + RUN) {
            for (item, output) in items[begun..].iter_mut().zip(&mut outputs) {
                item.samples.push(output);
            }
        }
    }
    drop(outputs);
    for_each(items, threads_for(z_elements(samples, rows, columns), execution.threads), |item| {
        dispatch(execution.level, item);
    });
    finish(&mut target, &partials, columns);
}

fn z_elements(samples: usize, rows: usize, columns: usize) -> usize {
    samples * rows * columns
}

fn check_draws(noise: &Noise, samples: usize) {
    assert!(u64::from(noise.draw) + samples as u64 <= 1 << 32, "the draws do not fit in 32 bits");
}

/// A span in up to eight samples.
struct Forward<'a, T: Element> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    /// Of the first of them.
    noise: Noise<'a>,
    span: Span,
    samples: Vec<(&'a mut [T], KlPiece<'a, T::Math>)>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        let Self { mu, logvar, noise, span, samples } = self;
        match <[_; RUN]>::try_from(samples) {
            Ok(samples) => in_a_run::<T, L>([mu, logvar], &noise, span, samples),
            Err(samples) => {
                let mut draw = noise.draw;
                for (z, log_weight) in samples {
                    let mut slots =
                        ForwardSlots::<T, L> { mu, logvar, span, z, log_weight, sum: RowSum::new(span) };
                    walk::<L, Normal>(&Noise { draw, ..noise }, span, &mut slots);
                    draw = draw.wrapping_add(1);
                }
            }
        }
    }
}

/// A span in eight samples: what all of them share is computed once, and each slot in the eight side by side.
#[inline(always)]
fn in_a_run<T: Element, L: Vectors>(
    [mu, logvar]: [Matrix<T>; 2],
    noise: &Noise,
    span: Span,
    mut samples: [(&mut [T], KlPiece<T::Math>); RUN],
) {
    let keys = noise.keys();
    let mut draws = Draws::<L>::new(noise, &keys, (span.row, span.column));
    for row in span.row..span.row + span.rows {
        let mut sums = Sums::<Vector<T, L>, RUN>::new();
        for column in (span.column..span.column + span.columns).step_by(LANES) {
            let eps = draws.take::<Normal>(span.after(row, column));
            let (stretch, at) = span.stretch(row, column);
            let m = T::load::<L>(mu.within(row, span), at);
            let l = T::load::<L>(logvar.within(row, span), at);
            let sigma = deviation(l);
            let growth = sigma.growth();
            let mut twice = [l; RUN];
            for i in 0..RUN {
                let eps = T::Math::from_f32::<L>(eps[i / GROUP][i % GROUP]);
                let z = m.add(sigma.times(eps));
                T::store::<L>(z, &mut samples[i].0[stretch.clone()], at);
                twice[i] = twice_log_weight(m, l, growth, eps, z);
            }
            sums.add(twice);
        }
        for ((_, log_weight), twice) in samples.iter_mut().zip(sums.finish()) {
            give(log_weight, row - span.row, twice);
        }
    }
}

/// eps^2 + logvar - z^2: where the row has ended, mu = logvar = 0 make this 0, whatever the noise.
#[inline(always)]
fn twice_log_weight<V: Floats>(mu: V, logvar: V, growth: V, eps: V, z: V) -> V {
    logvar.sub(growth.fma(eps, mu).mul(eps.add(z)))
}

/// Writes the weight of a row.
#[inline(always)]
fn give<M: Scalar>(log_weight: &mut KlPiece<M>, row: usize, twice: f64) {
    match log_weight {
        KlPiece::Rows(all) => all[row] = M::from_f64(0.5 * twice),
        KlPiece::Partial(partial) => **partial = 0.5 * twice,
        _ => {}
    }
}

struct ForwardSlots<'a, T: Element, L: Vectors> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    span: Span,
    z: &'a mut [T],
    log_weight: KlPiece<'a, T::Math>,
    sum: RowSum<Vector<T, L>>,
}

impl<T: Element, L: Vectors> Visit<L> for ForwardSlots<'_, T, L> {
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let (stretch, at) = self.span.stretch(row, column);
        let m = T::load::<L>(self.mu.within(row, self.span), at);
        let l = T::load::<L>(self.logvar.within(row, self.span), at);
        let eps = T::Math::from_f32::<L>(noise);
        let sigma = deviation(l);
        let z = m.add(sigma.times(eps));
        T::store::<L>(z, &mut self.z[stretch], at);
        if let Some(twice) = self.sum.add(twice_log_weight(m, l, sigma.growth(), eps, z), at) {
            give(&mut self.log_weight, row - self.span.row, twice);
        }
    }
}

/// The gradients of [`log_weight_forward`] with respect to mu and logvar, summed over the samples, with the noise
/// drawn again.
///
/// `grad_z` has a row for every row of every sample, `grad_log_weight` a column of them; at least one is there.
/// The sum over the samples is of fixed shape: runs of eight in the type itself, `f64` from there on.
///
/// # Panics
/// If the shapes of the arguments differ, the draws do not fit in 32 bits, or there is no gradient.
pub fn log_weight_backward<T: Element>(
    execution: Execution,
    mu: Matrix<T>,
    logvar: Matrix<T>,
    noise: &Noise,
    samples: usize,
    grad_z: Option<Matrix<T>>,
    grad_log_weight: Option<Matrix<T::Math>>,
    [grad_mu, grad_logvar]: [&mut [T]; 2],
) {
    let (rows, columns) = (mu.rows(), mu.columns());
    assert_eq!((rows, columns), (logvar.rows(), logvar.columns()), "mu and logvar differ in shape");
    assert!(grad_z.is_some() || grad_log_weight.is_some(), "there is no gradient to pass on");
    if let Some(grad) = &grad_z {
        assert_eq!((samples * rows, columns), (grad.rows(), grad.columns()), "one gradient per value of z");
    }
    if let Some(grad) = &grad_log_weight {
        assert_eq!((samples * rows, 1), (grad.rows(), grad.columns()), "one gradient per weight");
    }
    for grad in [&grad_mu, &grad_logvar] {
        assert_eq!(grad.len(), rows * columns, "a gradient has the wrong length");
    }
    check_draws(noise, samples);
    let spans = finer(&spans(rows, columns), SUMMED);
    let mu_pieces = pieces(grad_mu, spans.iter().map(Span::elements));
    let logvar_pieces = pieces(grad_logvar, spans.iter().map(Span::elements));
    let items: Vec<_> = spans
        .iter()
        .zip(mu_pieces.zip(logvar_pieces))
        .map(|(&span, outputs)| Backward {
            mu,
            logvar,
            noise: *noise,
            samples,
            grad_z,
            grad_log_weight,
            span,
            outputs: outputs.into(),
        })
        .collect();
    for_each(items, threads_for(z_elements(samples, rows, columns), execution.threads), |item| {
        dispatch(execution.level, item);
    });
}

struct Backward<'a, T: Element> {
    mu: Matrix<'a, T>,
    logvar: Matrix<'a, T>,
    noise: Noise<'a>,
    samples: usize,
    grad_z: Option<Matrix<'a, T>>,
    grad_log_weight: Option<Matrix<'a, T::Math>>,
    span: Span,
    outputs: [&'a mut [T]; 2],
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Vectors>(self) {
        match (self.grad_z.is_some(), self.grad_log_weight.is_some()) {
            (true, true) => self.run_with::<L, true, true>(),
            (true, false) => self.run_with::<L, true, false>(),
            (false, _) => self.run_with::<L, false, true>(),
        }
    }
}

impl<T: Element> Backward<'_, T> {
    #[inline(always)]
    fn run_with<L: Vectors, const SAMPLE: bool, const WEIGHT: bool>(self) {
        let (span, first, samples) = (self.span, self.noise, self.samples);
        let sums = [SampleSum::<T::Math>::new(span, samples), SampleSum::new(span, samples)];
        let mut slots = BackwardSlots::<T, SAMPLE, WEIGHT> { work: self, sums, sample: 0 };
        let whole = samples / RUN * RUN;
        for sample in (0..whole).step_by(RUN) {
            slots.sample = sample;
            slots.run::<L>(&Noise { draw: first.draw + sample as u32, ..first });
        }
        for sample in whole..samples {
            slots.sample = sample;
            walk::<L, Normal>(&Noise { draw: first.draw + sample as u32, ..first }, span, &mut slots);
        }
        if whole < samples {
            for sum in &mut slots.sums {
                sum.flush::<L>();
            }
        }
        for (sum, output) in slots.sums.iter().zip(slots.work.outputs) {
            for at in (0..output.len()).step_by(LANES) {
                T::store::<L>(sum.total::<L>(at), output, at);
            }
        }
    }
}

struct BackwardSlots<'a, T: Element, const SAMPLE: bool, const WEIGHT: bool> {
    work: Backward<'a, T>,
    sums: [SampleSum<T::Math>; 2],
    sample: usize,
}

impl<T: Element, const SAMPLE: bool, const WEIGHT: bool> BackwardSlots<'_, T, SAMPLE, WEIGHT> {
    /// Takes all of the span in eight samples: what they share is computed once, and each slot in the eight side by
    /// side.
    #[inline(always)]
    fn run<L: Vectors>(&mut self, noise: &Noise) {
        let (keys, span) = (noise.keys(), self.work.span);
        let mut draws = Draws::<L>::new(noise, &keys, (span.row, span.column));
        for row in span.row..span.row + span.rows {
            for column in (span.column..span.column + span.columns).step_by(LANES) {
                let eps = draws.take::<Normal>(span.after(row, column));
                let (stretch, at) = span.stretch(row, column);
                let m = T::load::<L>(self.work.mu.within(row, span), at);
                let sigma = deviation(T::load::<L>(self.work.logvar.within(row, span), at));
                let [mut of_mu, mut of_logvar] = [m, m];
                for i in 0..RUN {
                    let eps = T::Math::from_f32::<L>(eps[i / GROUP][i % GROUP]);
                    let gradients = self.gradients::<L>(self.sample + i, row, at, m, sigma.times(eps));
                    if i == 0 {
                        [of_mu, of_logvar] = gradients;
                    } else {
                        of_mu = of_mu.add(gradients[0]);
                        of_logvar = of_logvar.add(gradients[1]);
                    }
                }
                let [sum_mu, sum_logvar] = &mut self.sums;
                sum_mu.add_run::<L>(of_mu, stretch.clone(), at);
                sum_logvar.add_run::<L>(of_logvar, stretch, at);
            }
        }
    }

    /// The gradients of mu and logvar from one sample, for sixteen elements of what the span has of a row.
    #[inline(always)]
    fn gradients<L: Vectors>(
        &self,
        sample: usize,
        row: usize,
        at: usize,
        mu: Vector<T, L>,
        step: Vector<T, L>,
    ) -> [Vector<T, L>; 2] {
        let Backward { grad_z, grad_log_weight, span, .. } = &self.work;
        let half = Vector::<T, L>::splat(T::Math::HALF);
        let of_sample = sample * self.work.mu.rows() + row;
        // What reaches z, by itself and by way of the weight, whose own part is -z.
        let mut of_z = half;
        let mut of_logvar = half;
        if SAMPLE && let Some(grad) = grad_z {
            of_z = T::load::<L>(grad.within(of_sample, *span), at);
        }
        if WEIGHT && let Some(grad) = grad_log_weight {
            let g = Vector::<T, L>::splat(grad.stretch(of_sample, 0, 1)[0]);
            let zero = Vector::<T, L>::splat(T::Math::ZERO);
            let towards_prior = zero.sub(mu.add(step));
            of_z = if SAMPLE { g.fma(towards_prior, of_z) } else { g.mul(towards_prior) };
            of_logvar = g.mul(half);
        }
        let chain = of_z.mul(half);
        of_logvar = if WEIGHT { chain.fma(step, of_logvar) } else { chain.mul(step) };
        [of_z, of_logvar]
    }
}

impl<T: Element, L: Vectors, const SAMPLE: bool, const WEIGHT: bool> Visit<L>
    for BackwardSlots<'_, T, SAMPLE, WEIGHT>
{
    #[inline(always)]
    fn slot(&mut self, row: usize, column: usize, noise: L::F32) {
        let Backward { mu, logvar, span, .. } = &self.work;
        let (stretch, at) = span.stretch(row, column);
        let m = T::load::<L>(mu.within(row, *span), at);
        let sigma = deviation(T::load::<L>(logvar.within(row, *span), at));
        let step = sigma.times(T::Math::from_f32::<L>(noise));
        let [of_mu, of_logvar] = self.gradients::<L>(self.sample, row, at, m, step);
        let [sum_mu, sum_logvar] = &mut self.sums;
        let first = self.sample.is_multiple_of(RUN);
        sum_mu.add::<L>(of_mu, first, stretch.clone(), at);
        sum_logvar.add::<L>(of_logvar, first, stretch, at);
    }
}

/// One sum over the samples for each element of a span: runs in the type itself, added up in `f64`.
struct SampleSum<M> {
    run: Vec<M>,
    /// Empty where all samples are one run; else with room for a vector beyond the last element.
    totals: Vec<f64>,
}

impl<M: Arithmetic> SampleSum<M> {
    fn new(span: Span, samples: usize) -> Self {
        let elements = span.elements();
        let totals = if samples > RUN { elements + LANES } else { 0 };
        Self { run: vec![M::ZERO; elements], totals: vec![0.0; totals] }
    }

    /// Takes the slot that begins `at` elements into a stretch; the first sample of a run begins it.
    #[inline(always)]
    fn add<L: Vectors>(&mut self, value: M::Vector<L>, first: bool, stretch: Range<usize>, at: usize) {
        let of_row = &mut self.run[stretch];
        let sum = if first { value } else { load::<M::Vector<L>>(of_row, at).add(value) };
        store(sum, of_row, at);
    }

    /// Takes a whole run of such a slot.
    #[inline(always)]
    fn add_run<L: Vectors>(&mut self, value: M::Vector<L>, stretch: Range<usize>, at: usize) {
        if self.totals.is_empty() {
            store(value, &mut self.run[stretch], at);
        } else if let Some(total) = self.totals[stretch.start + at..].first_chunk_mut() {
            // What the vector has beyond the row is of the next one.
            first(value, stretch.len() - at).add_to(total);
        }
    }

    /// Ends a run.
    #[inline(always)]
    fn flush<L: Vectors>(&mut self) {
        let (totals, _) = self.totals.as_chunks_mut();
        for (index, total) in totals.iter_mut().enumerate().take(self.run.len().div_ceil(LANES)) {
            load::<M::Vector<L>>(&self.run, index * LANES).add_to(total);
        }
    }

    /// The sums of the elements from `at`, a multiple of the lanes, on.
    #[inline(always)]
    fn total<L: Vectors>(&self, at: usize) -> M::Vector<L> {
        if self.totals.is_empty() {
            return load(&self.run, at);
        }
        let mut lanes = [M::ZERO; LANES];
        for (lane, &total) in lanes.iter_mut().zip(&self.totals[at..]) {
            *lane = M::from_f64(total);
        }
        M::Vector::<L>::load(&lanes)
    }
}
