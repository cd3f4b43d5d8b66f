//! Rows of a data set as a batch.

#![allow(unsafe_code)]

use super::{check_counters, execution, product, run};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::ops::gather::out_of_range;
use fastvae_core::ops::{Binarize, Sample, gather_batch as gather};
use fastvae_core::{Element, Matrix, Noise, Rows};
use half::{bf16, f16};
use pyo3::exceptions::{PyIndexError, PyValueError};
use pyo3::prelude::*;

/// Gathers rows of a matrix into a contiguous one, divided by a number where there is one, as zeros and ones where
/// `binarize` is 1 (above 1/2) or 2 (drawn, with the noise).
///
/// `data` is (address, rows, distance of rows), `index` is (address, rows), `noise` is (seed, draw, address of
/// the row numbers, 0 for the index itself).
#[pyfunction]
pub(crate) fn gather_batch(
    py: Python<'_>,
    dtypes: (u8, u8),
    data: (usize, usize, usize),
    columns: usize,
    index: (usize, usize),
    divisor: Option<f32>,
    binarize: u8,
    noise: (i64, u32, usize),
    target: usize,
    threads: usize,
) -> PyResult<()> {
    let call = Call { data, columns, index, divisor, binarize, noise, target, threads };
    match dtypes {
        (0, 0) => call.run::<f32, f32>(py),
        (0, 2) => call.run::<f32, bf16>(py),
        (2, 0) => call.run::<bf16, f32>(py),
        (2, 2) => call.run::<bf16, bf16>(py),
        (3, 0) => call.run::<f16, f32>(py),
        (3, 2) => call.run::<f16, bf16>(py),
        (4, 0) => call.run::<u8, f32>(py),
        (4, 2) => call.run::<u8, bf16>(py),
        (from, to) => Err(PyValueError::new_err(format!("unknown dtype codes {from} and {to}"))),
    }
}

/// The arguments of one call.
struct Call {
    data: (usize, usize, usize),
    columns: usize,
    index: (usize, usize),
    divisor: Option<f32>,
    binarize: u8,
    noise: (i64, u32, usize),
    target: usize,
    threads: usize,
}

impl Call {
    fn run<S: Sample, T: Element<Math = f32>>(self, py: Python<'_>) -> PyResult<()> {
        let (address, samples, stride) = self.data;
        let (rows, columns) = (self.index.1, self.columns);
        let (seed, draw, row_ids) = self.noise;
        let elements = product(rows, columns)?;
        let execution = execution(self.threads)?;
        let drawn = match self.binarize {
            0 | 1 => false,
            2 => true,
            other => return Err(PyValueError::new_err(format!("unknown binarize code {other}"))),
        };
        let data = Memory::of_matrix::<S>("data", address, samples, columns, stride)?;
        let index = Memory::new::<i64>("index", self.index.0, rows)?;
        let numbers = Memory::new::<i64>("rows", row_ids, if drawn && row_ids != 0 { rows } else { 0 })?;
        let target = Memory::new::<T>("out", self.target, elements)?;
        check_disjoint::<T, S>(&[target], &[data])?;
        check_disjoint::<T, i64>(&[target], &[index, numbers])?;
        // SAFETY: the caller holds the tensors for the length of the call, and they share no memory with `out`.
        let (data, index, numbers) =
            unsafe { (data.read::<S>(), index.read::<i64>(), numbers.read::<i64>()) };
        if let Some(position) = out_of_range(index, samples) {
            return Err(PyIndexError::new_err(format!(
                "gather_batch: index must lie in [0, {samples}), the rows of data, got {} at position {position}",
                index[position]
            )));
        }
        if drawn {
            check_counters(rows, columns, 0)?;
            if let Some(negative) = numbers.iter().find(|&&number| number < 0) {
                return Err(PyValueError::new_err(format!(
                    "gather_batch: rows must lie in [0, 2^63), got {negative}"
                )));
            }
        }
        let matrix = Matrix::new(data, samples, columns, stride);
        let numbers = if row_ids == 0 { index } else { numbers };
        run(py, elements, || {
            // SAFETY: the caller made `out` or was given it to write to, holds it for the length of the call, and
            // it shares no memory with the other tensors.
            let target = unsafe { target.write::<T>() };
            let noise = Noise { seed: seed as u64, draw, rows: Rows::Listed(numbers) };
            let binarize = match self.binarize {
                0 => Binarize::No,
                1 => Binarize::Threshold,
                _ => Binarize::Draw(&noise),
            };
            gather(execution, matrix, index, self.divisor, binarize, target);
        });
        Ok(())
    }
}
