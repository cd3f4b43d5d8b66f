//! Adam: the numbers of its formulas, each operation rounded once, on every level and thread count; and steps that are
//! called off.

mod strategies;

use fastvae_core::noise;
use fastvae_core::ops::{Adam, Trained};
use proptest::prelude::*;
use strategies::{Extent, bits, config, extents, plain, under_every_execution};

const BETAS: [f32; 2] = [0.9, 0.999];
const EPS: f64 = 1e-8;
const RATE: f64 = 1e-2;

/// Lengths of several tensors: around a vector, a group of them, and what a thread takes at a time.
fn lengths() -> impl Strategy<Value = Vec<usize>> {
    let small = prop_oneof![0_usize..=2, 15_usize..=17, 63_usize..=65, 70_usize..300];
    let large = if cfg!(miri) { 300_usize..=400 } else { 32_767_usize..=33_000 };
    prop::collection::vec(prop_oneof![4 => small, 1 => large], 1..6)
}

/// As many numbers of some extent that are finite.
fn numbers(length: usize, seed: u64, extent: Extent) -> Vec<f32> {
    let number = |at| extent.value(noise::fold_in(seed, at as u64)) as f32;
    (0..length).map(number).map(|x| if x.is_finite() { x } else { f32::MAX.copysign(x) }).collect()
}

/// What a test trains: its tensors, and what it does in each step.
#[derive(Clone, Debug)]
struct Case {
    lengths: Vec<usize>,
    seed: u64,
    extent: Extent,
}

fn cases() -> impl Strategy<Value = Case> {
    (lengths(), any::<u64>(), extents()).prop_map(|(lengths, seed, extent)| Case { lengths, seed, extent })
}

impl Case {
    fn tensors(&self, number: u64) -> Vec<Vec<f32>> {
        let seed = |tensor| noise::fold_in(noise::fold_in(self.seed, number), tensor as u64);
        self.lengths.iter().enumerate().map(|(t, &length)| numbers(length, seed(t), self.extent)).collect()
    }

    /// Whether a tensor has a gradient in a step: nearly always.
    fn has_gradient(&self, step: u64, tensor: usize) -> bool {
        !noise::fold_in(self.seed ^ step, tensor as u64).is_multiple_of(8)
    }

    /// The weight decay of a tensor.
    fn decay(tensor: usize) -> f64 {
        if tensor.is_multiple_of(2) { 0.0 } else { 0.1 }
    }

    fn adam(&self) -> Adam {
        let tensor = |(tensor, &length)| (length, RATE, Self::decay(tensor));
        Adam::new(BETAS, EPS, self.lengths.iter().enumerate().map(tensor))
            .expect("there is memory for a test")
    }
}

/// Each tensor with its gradient.
fn paired<'a>(values: &'a mut [Vec<f32>], gradients: &'a [Vec<f32>]) -> Vec<Option<Trained<'a>>> {
    values
        .iter_mut()
        .zip(gradients)
        .map(|(values, gradient)| Some((&mut values[..], &gradient[..])))
        .collect()
}

const STEPS: u64 = 3;

/// An average, or 0 where it is at the end of the normal numbers.
fn unless_faded(average: f32) -> f32 {
    if average.abs() <= f32::MIN_POSITIVE { 0.0 } else { average }
}

/// The formulas, a number at a time.
fn expected(case: &Case) -> Vec<Vec<f32>> {
    let mut all = case.tensors(0);
    for (tensor, values) in all.iter_mut().enumerate() {
        let (mut powers, mut averages) = ([1.0_f64; 2], vec![[0.0_f32; 2]; values.len()]);
        for step in 1..=STEPS {
            if !case.has_gradient(step, tensor) {
                continue;
            }
            powers = [0, 1].map(|i| powers[i] * f64::from(BETAS[i]));
            let spread = (1.0 - powers[1]).sqrt();
            let rate = (RATE / (1.0 - powers[0]) * spread) as f32;
            let (floor, decay) = ((EPS * spread) as f32, (RATE * Case::decay(tensor)) as f32);
            let gradient = &case.tensors(step)[tensor];
            for ((value, [mean, square]), &g) in values.iter_mut().zip(&mut averages).zip(gradient) {
                *mean = unless_faded(BETAS[0].mul_add(*mean, (1.0 - BETAS[0]) * g));
                *square = unless_faded(BETAS[1].mul_add(*square, (1.0 - BETAS[1]) * (g * g)));
                let kept = (0.0 - decay).mul_add(*value, *value);
                *value = (-rate).mul_add(*mean / (square.sqrt() + floor), kept);
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn every_level_and_thread_count_gives_the_numbers_of_the_formulas(case in cases()) {
        let expected: Vec<_> = expected(&case).iter().map(|values| bits(values)).collect();
        let elements = (1..=STEPS).map(|step| {
            let there = |&(tensor, _): &(usize, &usize)| case.has_gradient(step, tensor);
            case.lengths.iter().enumerate().filter(there).map(|(_, &length)| length).sum()
        });
        under_every_execution(elements.max().unwrap_or(0), |execution| {
            let (mut adam, mut all) = (case.adam(), case.tensors(0));
            for step in 1..=STEPS {
                let gradients = case.tensors(step);
                let tensors = all.iter_mut().zip(&gradients).enumerate();
                let tensors = tensors
                    .map(|(tensor, (values, gradient))| {
                        case.has_gradient(step, tensor).then_some((&mut values[..], &gradient[..]))
                    })
                    .collect();
                assert!(adam.step(execution, tensors, &[&[f32::MAX, f32::MIN], &[]], false));
            }
            let got: Vec<_> = all.iter().map(|values| bits(values)).collect();
            assert_eq!(expected, got, "{execution:?}");
        });
    }

    #[test]
    fn a_number_that_is_not_finite_calls_a_step_off(
        case in cases(),
        place in any::<prop::sample::Index>(),
        value in prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY)],
        of_an_output in any::<bool>(),
    ) {
        let elements = case.lengths.iter().sum::<usize>();
        prop_assume!(elements > 0);
        let (before, mut gradients) = (case.tensors(0), case.tensors(1));
        let (mut others, next) = (case.tensors(2), case.tensors(3));
        let spoiled = if of_an_output { &mut others } else { &mut gradients };
        *spoiled.iter_mut().flatten().nth(place.index(elements)).expect("it is one of them") = value;
        let others: Vec<_> = others.iter().map(|values| &values[..]).collect();
        under_every_execution(0, |execution| {
            let (mut adam, mut all) = (case.adam(), before.clone());
            assert!(!adam.step(execution, paired(&mut all, &gradients), &others, false), "{execution:?}");
            assert!(before == all, "{execution:?}");
            let (mut fresh, mut undisturbed) = (case.adam(), before.clone());
            assert!(adam.step(execution, paired(&mut all, &next), &[], false));
            assert!(fresh.step(execution, paired(&mut undisturbed, &next), &[], false));
            assert!(undisturbed == all, "{execution:?}");
        });
    }
}

#[test]
fn another_one_with_the_same_averages_goes_on_alike() {
    let gradients = [[0.5_f32, -2.0, 1e-3], [1.0, 0.0, 3.0]];
    let new = || Adam::new(BETAS, EPS, [(3, RATE, 0.1)]).expect("there is memory for three numbers");
    let (mut adam, mut other, mut values) = (new(), new(), [1.0_f32, 2.0, 3.0]);
    let step = |adam: &mut Adam, values: &mut [f32; 3], gradient: &[f32; 3]| {
        assert!(adam.step(plain(), vec![Some((values, gradient))], &[], false));
    };
    step(&mut adam, &mut values, &gradients[0]);
    let mut as_values = values;
    for (kept, of_other) in adam.averages().zip(other.averages()) {
        of_other.means.copy_from_slice(kept.means);
        of_other.squares.copy_from_slice(kept.squares);
        *of_other.powers = *kept.powers;
    }
    step(&mut adam, &mut values, &gradients[1]);
    step(&mut other, &mut as_values, &gradients[1]);
    assert_eq!(bits(&values), bits(&as_values));
    let mut anew = as_values;
    step(&mut new(), &mut anew, &gradients[1]);
    step(&mut adam, &mut values, &gradients[1]);
    assert_ne!(bits(&values), bits(&anew), "what was kept matters");
}

#[test]
#[should_panic(expected = "a tensor stays as long as it was")]
fn a_tensor_of_another_length_is_refused() {
    let mut adam = Adam::new(BETAS, EPS, [(3, RATE, 0.0)]).expect("there is memory for three numbers");
    adam.step(plain(), vec![Some((&mut [0.0; 3], &[0.0; 4]))], &[], false);
}

#[test]
fn more_than_fits_in_memory_is_an_error() {
    for length in [usize::MAX, usize::MAX / 4, isize::MAX as usize / 4] {
        assert!(Adam::new(BETAS, EPS, [(3, RATE, 0.0), (length, RATE, 0.0)]).is_err());
    }
}
