//! Where a KL goes, and where its gradient comes from.

#![allow(unsafe_code)]

use super::{Strided, product};
use crate::memory::Memory;
use fastvae_core::Matrix;
use fastvae_core::ops::{KlGrad, KlTarget};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Memory of the values of a KL, or of its gradient: per element (1), per row (2), in total (3) or per column (4).
fn kl_shape(kind: u8, rows: usize, columns: usize) -> PyResult<(usize, usize)> {
    match kind {
        0 => Ok((0, 0)),
        1 => Ok((rows, columns)),
        2 => Ok((rows, 1)),
        3 => Ok((1, 1)),
        4 => Ok((1, columns)),
        other => Err(PyValueError::new_err(format!("unknown kind of KL {other}"))),
    }
}

/// A checked output for a KL.
pub(crate) struct KlOutput {
    kind: u8,
    pub(crate) memory: Memory,
}

impl KlOutput {
    pub(crate) fn new<M>(kind: u8, address: usize, rows: usize, columns: usize) -> PyResult<Self> {
        let (rows, columns) = kl_shape(kind, rows, columns)?;
        Ok(Self { kind, memory: Memory::new::<M>("kl", address, product(rows, columns)?)? })
    }

    /// # Safety
    /// As [`Memory::write`].
    pub(crate) unsafe fn target<'a, M>(&self) -> KlTarget<'a, M> {
        // SAFETY: the caller's promise.
        let values = unsafe { self.memory.write() };
        match self.kind {
            0 => KlTarget::Nowhere,
            1 => KlTarget::Elements(values),
            2 => KlTarget::Rows(values),
            4 => KlTarget::Columns(values),
            _ => KlTarget::Total(&mut values[0]),
        }
    }
}

/// A checked gradient of a KL.
pub(crate) struct KlInput {
    kind: u8,
    pub(crate) memory: Memory,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl KlInput {
    pub(crate) fn new<M>(
        kind: u8,
        (address, stride): Strided,
        rows: usize,
        columns: usize,
    ) -> PyResult<Self> {
        let (stride, kind) = match kind {
            // A total is a column in which every row is the same element.
            3 => (0, 2),
            // One value per column is a matrix in which every row is the same.
            4 => (0, 1),
            _ => (stride, kind),
        };
        let (rows, columns) = kl_shape(kind, rows, columns)?;
        let memory = Memory::of_matrix::<M>("grad_kl", address, rows, columns, stride)?;
        Ok(Self { kind, memory, rows, columns, stride })
    }

    /// # Safety
    /// As [`Memory::read`].
    pub(crate) unsafe fn grad<'a, M>(&self) -> KlGrad<'a, M> {
        // SAFETY: the caller's promise.
        let values = Matrix::new(unsafe { self.memory.read() }, self.rows, self.columns, self.stride);
        match self.kind {
            0 => KlGrad::Absent,
            1 => KlGrad::Elements(values),
            _ => KlGrad::Rows(values),
        }
    }
}
