//! Gathered batches are those of one plain loop, at every instruction-set level and thread count.

mod strategies;

use fastvae_core::noise::{self, Uniform};
use fastvae_core::ops::gather::out_of_range;
use fastvae_core::ops::{Binarize, Sample, gather_batch};
use fastvae_core::{Element, Execution, Level, Matrix, Noise, Rows};
use half::{bf16, f16};
use proptest::prelude::*;
use strategies::{Distance, config, distances, plain, shapes, under_every_execution};

/// Where the rows of a batch come from, and what they are called in the noise.
#[derive(Debug)]
struct Batch {
    columns: usize,
    samples: usize,
    stride: usize,
    index: Vec<i64>,
    numbers: Vec<i64>,
    seed: u64,
    draw: u32,
}

impl Batch {
    /// Any order, with repetitions.
    fn new(
        (rows, columns): (usize, usize),
        samples: usize,
        distance: Distance,
        seed: u64,
        draw: u32,
    ) -> Self {
        let index = (0..rows as u64).map(|i| (noise::fold_in(seed, i) % samples as u64) as i64).collect();
        let numbers = (0..rows as u64).map(|i| (noise::fold_in(!seed, i) >> 1) as i64).collect();
        Self { columns, samples, stride: distance.stride(columns), index, numbers, seed, draw }
    }

    fn elements(&self) -> usize {
        self.index.len() * self.columns
    }

    /// Numbers of the data, which ends with its last row.
    fn length(&self) -> usize {
        Matrix::<u8>::extent(self.samples, self.columns, self.stride).expect("shapes of tests are small")
    }

    fn noise(&self) -> Noise<'_> {
        Noise { seed: self.seed, draw: self.draw, rows: Rows::Listed(&self.numbers) }
    }

    fn uniforms(&self) -> Vec<f32> {
        let mut uniforms = vec![0.0; self.elements()];
        noise::sample::<Uniform>(plain(), &self.noise(), self.index.len(), self.columns, &mut uniforms);
        uniforms
    }

    /// The quotients, one after the other.
    fn values(&self, value: impl Fn(usize) -> f32, divisor: Option<f32>) -> Vec<f32> {
        let row = |&row: &i64| row as usize * self.stride;
        self.index
            .iter()
            .flat_map(|i| (row(i)..row(i) + self.columns).map(&value))
            .map(|value| divisor.map_or(value, |divisor| value / divisor))
            .collect()
    }

    /// Compares what the kernel makes of data with what a plain loop makes of the same as floats.
    fn check<S: Sample>(&self, data: &[S], value: impl Fn(usize) -> f32, divisor: Option<f32>) {
        let values = self.values(value, divisor);
        let binary = |is_one: Vec<bool>| is_one.into_iter().map(|one| f32::from(u8::from(one))).collect();
        let drawn = values.iter().zip(self.uniforms()).map(|(value, uniform)| uniform < *value).collect();
        let above = values.iter().map(|&value| value > 0.5).collect();
        let noise = self.noise();
        let cases: [(Binarize, Vec<f32>); 3] = [
            (Binarize::No, values.clone()),
            (Binarize::Threshold, binary(above)),
            (Binarize::Draw(&noise), binary(drawn)),
        ];
        for (binarize, expected) in cases {
            let rounded: Vec<_> = expected.iter().map(|&value| bf16::from_f32(value)).collect();
            let half: Vec<_> = expected.iter().map(|&value| f16::from_f32(value)).collect();
            under_every_execution(self.elements(), |execution| {
                self.check_one::<S, f32>(execution, data, divisor, binarize, &expected);
                self.check_one::<S, bf16>(execution, data, divisor, binarize, &rounded);
                self.check_one::<S, f16>(execution, data, divisor, binarize, &half);
            });
        }
    }

    fn check_one<S: Sample, T: Element<Math = f32> + Into<f64>>(
        &self,
        execution: Execution,
        data: &[S],
        divisor: Option<f32>,
        binarize: Binarize,
        expected: &[T],
    ) {
        let data = Matrix::new(data, self.samples, self.columns, self.stride);
        let mut target = vec![T::ZERO; self.elements()];
        gather_batch(execution, data, &self.index, divisor, binarize, &mut target);
        let same = |a: &T, b: &T| {
            let (a, b): (f64, f64) = ((*a).into(), (*b).into());
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
        };
        let wrong = target.iter().zip(expected).position(|(a, b)| !same(a, b));
        assert_eq!(wrong, None, "{execution:?} {divisor:?} {binarize:?}");
    }
}

/// Bytes as they fall, with zeros and 255 as often as in pictures.
fn byte(bits: u64) -> u8 {
    match bits % 8 {
        0 => 0,
        1 => 255,
        _ => (bits >> 8) as u8,
    }
}

/// Numbers between -1/4 and 5/4, and some that are none of these.
fn float(bits: u64) -> f32 {
    match bits % 32 {
        0 => f32::NAN,
        1 => f32::INFINITY,
        2 => f32::NEG_INFINITY,
        3 => -0.0,
        4 => 0.5,
        5 => f32::MIN_POSITIVE / 4.0,
        _ => (bits >> 40) as f32 / 16_777_216.0 * 1.5 - 0.25,
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn bytes(
        shape in shapes(), samples in 1_usize..9, distance in distances(), seed: u64, draw: u32,
        divisor in prop_oneof![Just(None), Just(Some(255.0)), Just(Some(7.0))]
    ) {
        let batch = Batch::new(shape, samples, distance, seed, draw);
        let data: Vec<u8> =
            (0..batch.length()).map(|i| byte(noise::fold_in(seed, i as u64))).collect();
        batch.check(&data, |at| f32::from(data[at]), divisor);
    }

    #[test]
    fn floats(
        shape in shapes(), samples in 1_usize..9, distance in distances(), seed: u64, draw: u32,
        divisor in prop_oneof![Just(None), Just(Some(255.0)), Just(Some(0.3))]
    ) {
        let batch = Batch::new(shape, samples, distance, seed, draw);
        let data: Vec<f32> =
            (0..batch.length()).map(|i| float(noise::fold_in(seed, i as u64))).collect();
        batch.check(&data, |at| data[at], divisor);
        let narrow: Vec<_> = data.iter().map(|&value| bf16::from_f32(value)).collect();
        batch.check(&narrow, |at| narrow[at].to_f32(), divisor);
        let narrow: Vec<_> = data.iter().map(|&value| f16::from_f32(value)).collect();
        batch.check(&narrow, |at| narrow[at].to_f32(), divisor);
    }
}

/// All pixels against the two uniforms on either side of their probability, which no random data would meet.
#[test]
fn a_drawn_pixel_is_one_exactly_where_its_uniform_is_below_it() {
    // Rows that are all one value, drawn with the same noise: the number of ones grows with the value.
    let (columns, step) = if cfg!(miri) { (20, 51) } else { (20_000, 1) };
    let values: Vec<u8> = (0..=255).step_by(step).collect();
    let data: Vec<u8> = values.iter().flat_map(|&value| std::iter::repeat_n(value, columns)).collect();
    let batch = Batch {
        columns,
        samples: values.len(),
        stride: columns,
        index: (0..values.len() as i64).collect(),
        numbers: vec![3; values.len()],
        seed: 7,
        draw: 1,
    };
    batch.check(&data, |at| f32::from(data[at]), Some(255.0));
}

#[test]
fn an_index_out_of_range_is_found() {
    assert_eq!(out_of_range(&[0, 4, 5, -1], 5), Some(2));
    assert_eq!(out_of_range(&[0, -1, 5], 5), Some(1));
    assert_eq!(out_of_range(&[i64::MIN], 5), Some(0));
    assert_eq!(out_of_range(&[0, 4], 5), None);
    assert_eq!(out_of_range(&[], 0), None);
}

#[test]
#[should_panic(expected = "an index is not a row of the data")]
fn nothing_is_read_beyond_the_data() {
    let execution = Execution { level: Level::best(), threads: 1 };
    let data = Matrix::contiguous(&[0_u8; 6], 2, 3);
    gather_batch(execution, data, &[2], None, Binarize::No, &mut [0.0_f32; 3]);
}
