//! Networks of dense layers: near the numbers of their formulas in float64, and the same bits on every level, any number of
//! threads and in whatever pieces.

mod strategies;

use fastvae_core::ops::{Layer, LayerGrad, dense_backward, dense_forward};
use fastvae_core::{Execution, noise};
use proptest::prelude::*;
use strategies::{Extent, bits, config, extents, plain, threads, under_every_execution};

/// Terms of a sum that the kernels add up one after the other.
const CHAIN: usize = 256;

/// Widths of the samples and of what each layer gives: around a tile, a vector, a panel and a chain.
fn widths() -> BoxedStrategy<Vec<usize>> {
    let small = prop_oneof![1_usize..=9, 15_usize..=17, 47_usize..=49];
    if cfg!(miri) {
        return prop::collection::vec(prop_oneof![1_usize..=3, 15_usize..=17], 2..4).boxed();
    }
    let large = CHAIN - 1..=2 * CHAIN + 1;
    prop::collection::vec(prop_oneof![4 => small, 1 => large], 2..5).boxed()
}

fn samples() -> BoxedStrategy<usize> {
    if cfg!(miri) {
        return (1_usize..=5).boxed();
    }
    prop_oneof![4 => 1_usize..=9, 2 => 19_usize..=21, 1 => 127_usize..=129, 1 => CHAIN - 1..=CHAIN + 2]
        .boxed()
}

#[derive(Clone, Debug)]
struct Case {
    widths: Vec<usize>,
    samples: usize,
    seed: u64,
    extent: Extent,
}

fn cases() -> impl Strategy<Value = Case> {
    (widths(), samples(), any::<u64>(), extents()).prop_map(|(widths, samples, seed, extent)| Case {
        widths,
        samples,
        seed,
        extent,
    })
}

/// What a network is given and gives.
#[derive(Clone, Debug, PartialEq)]
struct Network {
    widths: Vec<usize>,
    samples: usize,
    x: Vec<f32>,
    grad: Vec<f32>,
    weights: Vec<Vec<f32>>,
    biases: Vec<Vec<f32>>,
}

/// What is computed of it.
struct Results {
    hidden: Vec<f32>,
    y: Vec<f32>,
    of_weights: Vec<Vec<f32>>,
    of_biases: Vec<Vec<f32>>,
    of_x: Vec<f32>,
    finite: bool,
}

impl Case {
    fn network(&self) -> Network {
        let numbers = |what: u64, count: usize| -> Vec<f32> {
            let seed = noise::fold_in(self.seed, what);
            (0..count).map(|i| self.extent.value(noise::fold_in(seed, i as u64)) as f32).collect()
        };
        let (first, last) = (self.widths[0], self.widths[self.widths.len() - 1]);
        let pairs = || self.widths.windows(2).zip(1_u64..);
        Network {
            widths: self.widths.clone(),
            samples: self.samples,
            x: numbers(0, self.samples * first),
            grad: numbers(100, self.samples * last),
            weights: pairs().map(|(pair, i)| numbers(2 * i, pair[0] * pair[1])).collect(),
            biases: pairs().map(|(pair, i)| numbers(2 * i + 1, pair[1])).collect(),
        }
    }
}

impl Network {
    fn layers(&self) -> Vec<Layer<'_>> {
        self.weights.iter().zip(&self.biases).map(|(weight, bias)| Layer { weight, bias }).collect()
    }

    fn hidden(&self) -> usize {
        self.samples * self.widths[1..self.widths.len() - 1].iter().sum::<usize>()
    }

    /// The most products of a layer: what its threads are counted by.
    fn products(&self) -> usize {
        self.samples * self.widths.windows(2).map(|pair| pair[0] * pair[1]).max().unwrap_or(0)
    }

    /// Everything, written over what is no number.
    fn run(&self, execution: Execution) -> Results {
        let nan = |count: usize| vec![f32::NAN; count];
        let layers = self.layers();
        let mut results = Results {
            hidden: nan(self.hidden()),
            y: nan(self.grad.len()),
            of_weights: self.weights.iter().map(|weight| nan(weight.len())).collect(),
            of_biases: self.biases.iter().map(|bias| nan(bias.len())).collect(),
            of_x: nan(self.x.len()),
            finite: false,
        };
        dense_forward(execution, self.samples, &self.x, &layers, &mut results.hidden, &mut results.y);
        let pairs = results.of_weights.iter_mut().zip(&mut results.of_biases);
        let mut grads: Vec<_> = pairs.map(|(weight, bias)| LayerGrad { weight, bias }).collect();
        results.finite = dense_backward(
            execution,
            self.samples,
            &self.grad,
            &self.x,
            &layers,
            &results.hidden,
            &mut grads,
            Some(&mut results.of_x),
            &mut nan(self.hidden()),
        );
        results
    }
}

impl Results {
    fn all(&self) -> Vec<Vec<u64>> {
        let gradients = self.of_weights.iter().chain(&self.of_biases);
        [&self.hidden, &self.y, &self.of_x]
            .into_iter()
            .chain(gradients)
            .map(|numbers| bits(numbers))
            .collect()
    }

    fn are_finite(&self) -> bool {
        self.of_weights.iter().chain(&self.of_biases).flatten().all(|number| number.is_finite())
    }
}

/// Products of two matrices, the second one transposed, in float64: each with the sum of its terms' sizes.
fn product(left: &[f64], right: &[f64], terms: usize) -> Vec<(f64, f64)> {
    let sum = |row: &[f64], column: &[f64]| {
        let terms = row.iter().zip(column).map(|(a, b)| a * b);
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    left.chunks(terms).flat_map(|row| right.chunks(terms).map(move |column| sum(row, column))).collect()
}

fn transposed(matrix: &[f64], width: usize) -> Vec<f64> {
    (0..width).flat_map(|column| matrix.iter().skip(column).step_by(width).copied()).collect()
}

fn wide(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().copied().map(f64::from).collect()
}

/// Fails where a number is further from its sum than adding up so many terms of that size explains.
fn check(what: &str, numbers: &[f32], sums: &[(f64, f64)], terms: usize) -> Result<(), TestCaseError> {
    prop_assert_eq!(numbers.len(), sums.len());
    // A chain, then one sum for each chain, and the bias.
    let roundings = terms.min(CHAIN) + terms.div_ceil(CHAIN) + 1;
    for (&number, &(sum, size)) in numbers.iter().zip(sums) {
        let bound = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * size + f64::from(f32::MIN_POSITIVE);
        prop_assert!(
            (f64::from(number) - sum).abs() <= bound,
            "{what}: {number:e} is not {sum:e} of {size:e}"
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(if cfg!(miri) { 4 } else { 300 }))]

    #[test]
    fn every_execution_gives_the_same_bits(case in cases()) {
        let network = case.network();
        let expected = network.run(plain());
        under_every_execution(0, |execution| {
            let got = network.run(execution);
            assert!(got.all() == expected.all(), "{execution:?}");
            assert_eq!(got.finite, expected.are_finite(), "{execution:?}");
        });
    }

    /// Layer by layer, each from what the one before it gave: so errors do not add up.
    #[test]
    fn sums_are_those_of_the_formulas(case in cases()) {
        let network = Network {
            // Of numbers that are not extreme no product is lost.
            ..Case { extent: Extent::Ordinary, ..case }.network()
        };
        let results = network.run(plain());
        let (samples, count) = (network.samples, network.weights.len());
        let mut hidden = &results.hidden[..];
        let mut x = wide(&network.x);
        let mut given = Vec::new();
        for (number, (weight, bias)) in network.weights.iter().zip(&network.biases).enumerate() {
            let inputs = network.widths[number];
            let mut sums = product(&x, &wide(weight), inputs);
            for (sum, &bias) in sums.iter_mut().zip(bias.iter().cycle()) {
                *sum = (sum.0 + f64::from(bias), sum.1 + f64::from(bias).abs());
            }
            given.push(x);
            if number + 1 == count {
                check("the last layer", &results.y, &sums, inputs)?;
                x = Vec::new();
            } else {
                let (own, rest) = hidden.split_at(samples * bias.len());
                hidden = rest;
                let sums: Vec<_> = sums.iter().map(|&(sum, size)| (sum.max(0.0), size)).collect();
                check("a hidden layer", own, &sums, inputs)?;
                prop_assert!(own.iter().all(|&number| number >= 0.0), "nothing below 0");
                x = wide(own);
            }
        }
        // The gradients of the last layer come from what is given; those of the first from what is not: two layers say all.
        let (grad, last) = (wide(&network.grad), network.widths[count]);
        let of_weight = product(&transposed(&grad, last), &transposed(&given[count - 1], network.widths[count - 1]), samples);
        check("the gradient of the last weight", &results.of_weights[count - 1], &of_weight, samples)?;
        let ones = vec![1.0; samples];
        check("the gradient of the last bias", &results.of_biases[count - 1], &product(&transposed(&grad, last), &ones, samples), samples)?;
        if count == 1 {
            let of_x = product(&grad, &transposed(&wide(&network.weights[0]), network.widths[0]), last);
            check("the gradient of the samples", &results.of_x, &of_x, last)?;
        }
    }
}

/// The gradient through hidden layers is that of layers one by one, with what a `ReLU` stopped set to 0 between them.
#[test]
fn a_network_is_its_layers_one_after_the_other() {
    let widths = if cfg!(miri) { vec![5, 17, 3] } else { vec![70, 50, 33, 20] };
    let network =
        Case { widths, samples: if cfg!(miri) { 5 } else { 21 }, seed: 3, extent: Extent::Ordinary }
            .network();
    let results = network.run(plain());
    let (mut grad, mut ends) = (network.grad.clone(), network.hidden());
    for number in (0..network.weights.len()).rev() {
        let inputs = network.widths[number];
        let x = if number == 0 {
            network.x.clone()
        } else {
            ends -= network.samples * inputs;
            results.hidden[ends..][..network.samples * inputs].to_vec()
        };
        let own = Network {
            widths: network.widths[number..=number + 1].to_vec(),
            samples: network.samples,
            x,
            grad,
            weights: vec![network.weights[number].clone()],
            biases: vec![network.biases[number].clone()],
        };
        let alone = own.run(plain());
        assert_eq!(bits(&alone.of_weights[0]), bits(&results.of_weights[number]));
        assert_eq!(bits(&alone.of_biases[0]), bits(&results.of_biases[number]));
        grad = alone.of_x.iter().zip(&own.x).map(|(&of_x, &x)| if x > 0.0 { of_x } else { 0.0 }).collect();
        if number == 0 {
            assert_eq!(bits(&alone.of_x), bits(&results.of_x));
        }
    }
}

/// Numbers that are not finite in one place of what is given make some of the gradients so, and are found on any thread.
#[test]
#[cfg_attr(miri, ignore = "as many products as several threads take would last for hours")]
fn what_is_not_finite_is_found_wherever_it_is() {
    let case = Case { widths: vec![300, 200, 150], samples: 64, seed: 1, extent: Extent::Ordinary };
    let network = case.network();
    assert!(network.run(plain()).finite);
    for place in [0, 1000, network.grad.len() - 1] {
        let mut spoiled = network.clone();
        spoiled.grad[place] = if place == 0 { f32::NAN } else { f32::INFINITY };
        under_every_execution(0, |execution| assert!(!spoiled.run(execution).finite, "{execution:?}"));
    }
}

#[test]
#[cfg_attr(miri, ignore = "as many products as several threads take would last for hours")]
fn several_threads_work_where_they_pay() {
    let network = Case { widths: vec![400, 300], samples: 100, seed: 1, extent: Extent::Ordinary }.network();
    let execution = Execution { threads: 2, ..plain() };
    assert!(threads::pay(network.products() / 16));
    assert_eq!(threads::used_by(|| drop(network.run(execution))), 2);
    let small = Case { widths: vec![40, 30], samples: 4, seed: 1, extent: Extent::Ordinary }.network();
    assert_eq!(threads::used_by(|| drop(small.run(execution))), 1);
}

#[test]
#[should_panic(expected = "a weight for each input of each output")]
fn a_weight_of_another_size_is_refused() {
    let layers = [Layer { weight: &[0.0; 5], bias: &[0.0; 2] }];
    dense_forward(plain(), 1, &[0.0; 3], &layers, &mut [], &mut [0.0; 2]);
}

#[test]
#[should_panic(expected = "what the hidden layers give")]
fn hidden_numbers_of_another_size_are_refused() {
    let layer = Layer { weight: &[0.0; 4], bias: &[0.0; 2] };
    dense_forward(plain(), 1, &[0.0; 2], &[layer, layer], &mut [0.0; 3], &mut [0.0; 2]);
}
