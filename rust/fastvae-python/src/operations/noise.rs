//! The noise contract.

#![allow(unsafe_code)]

use super::{check_counters, execution, level, product, run};
use crate::memory::{Memory, check_disjoint};
use fastvae_core::noise::{self, Distribution, Normal, Uniform};
use fastvae_core::{Level, Noise, Rows};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;

/// The instruction-set levels of this processor, the fastest last.
#[pyfunction]
pub(crate) fn levels() -> Vec<&'static str> {
    Level::available().into_iter().map(Level::name).collect()
}

/// The instruction-set level in use.
#[pyfunction]
pub(crate) fn simd_level() -> PyResult<&'static str> {
    Ok(level()?.name())
}

/// A new 64-bit seed from a seed and a tag.
#[pyfunction]
pub(crate) fn fold_in(seed: i64, tag: i64) -> i64 {
    noise::fold_in(seed as u64, tag as u64) as i64
}

pub(crate) fn fill<D: Distribution>(
    py: Python<'_>,
    target: usize,
    (rows, columns): (usize, usize),
    seed: i64,
    draw: u32,
    row_offset: u64,
    row_ids: usize,
    threads: usize,
) -> PyResult<()> {
    check_counters(rows, columns, row_offset)?;
    let elements = product(rows, columns)?;
    let target = Memory::new::<f32>("target", target, elements)?;
    let listed = if row_ids == 0 { None } else { Some(Memory::new::<i64>("row_ids", row_ids, rows)?) };
    check_disjoint::<f32, i64>(&[target], listed.as_slice())?;
    let execution = execution(threads)?;
    // SAFETY: the caller holds the tensor for the length of the call, and it shares no memory with `target`.
    let listed = listed.map(|ids| unsafe { ids.read::<i64>() });
    if let Some(negative) = listed.and_then(|ids| ids.iter().find(|&&id| id < 0)) {
        return Err(PyValueError::new_err(format!("row numbers lie in [0, 2^63), got {negative}")));
    }
    run(py, elements, || {
        // SAFETY: the caller made `target` for this call and holds it.
        let target = unsafe { target.write::<f32>() };
        let rows_of_noise = listed.map_or(Rows::From(row_offset), Rows::Listed);
        let noise = Noise { seed: seed as u64, draw, rows: rows_of_noise };
        noise::sample::<D>(execution, &noise, rows, columns, target);
    });
    Ok(())
}

/// Fills a contiguous float32 matrix with standard normals.
#[pyfunction]
pub(crate) fn normal(
    py: Python<'_>,
    target: usize,
    rows: usize,
    columns: usize,
    seed: i64,
    draw: u32,
    row_offset: u64,
    row_ids: usize,
    threads: usize,
) -> PyResult<()> {
    fill::<Normal>(py, target, (rows, columns), seed, draw, row_offset, row_ids, threads)
}

/// Fills a contiguous float32 matrix with uniforms on [0, 1).
#[pyfunction]
pub(crate) fn uniform(
    py: Python<'_>,
    target: usize,
    rows: usize,
    columns: usize,
    seed: i64,
    draw: u32,
    row_offset: u64,
    row_ids: usize,
    threads: usize,
) -> PyResult<()> {
    fill::<Uniform>(py, target, (rows, columns), seed, draw, row_offset, row_ids, threads)
}

/// Fills an int64 vector with a random order of 0..n-1.
#[pyfunction]
pub(crate) fn permutation(py: Python<'_>, target: usize, n: usize, seed: i64, draw: u32) -> PyResult<()> {
    let target = Memory::new::<i64>("target", target, n)?;
    let mut result = Ok(());
    run(py, n, || {
        // SAFETY: the caller made `target` for this call and holds it.
        result = noise::permutation(seed as u64, draw, unsafe { target.write() });
    });
    result.map_err(|error| PyMemoryError::new_err(format!("permutation of {n} numbers: {error}")))
}
