//! A tensor as the kernels see it.

use crate::split::Span;

/// Rows of unit-stride columns at any distance from each other, which may be 0 (an expanded tensor).
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// How many elements `data` must have.
    ///
    /// `None` if the number does not fit in memory.
    #[must_use]
    pub fn extent(rows: usize, columns: usize, row_stride: usize) -> Option<usize> {
        if rows == 0 || columns == 0 {
            return Some(0);
        }
        (rows - 1).checked_mul(row_stride)?.checked_add(columns)
    }

    /// A view of `data`.
    ///
    /// # Panics
    /// If `data` is shorter than [`Matrix::extent`].
    #[must_use]
    pub fn new(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        let extent = Self::extent(rows, columns, row_stride).expect("extent overflows");
        assert!(data.len() >= extent, "data has {} elements, needs {extent}", data.len());
        Self { data, rows, columns, row_stride }
    }

    /// A view of contiguous `data`.
    #[must_use]
    pub fn contiguous(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::new(data, rows, columns, columns)
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// What a span has of one row.
    #[inline(always)]
    pub(crate) fn within(&self, row: usize, span: Span) -> &'a [T] {
        self.stretch(row, span.column, span.column + span.columns)
    }

    /// A stretch of one row.
    #[inline(always)]
    pub(crate) fn stretch(&self, row: usize, from: usize, to: usize) -> &'a [T] {
        let start = row * self.row_stride;
        &self.data[start + from..start + to]
    }
}
