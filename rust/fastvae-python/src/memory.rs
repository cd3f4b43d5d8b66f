//! From addresses to slices.

#![allow(unsafe_code)]

use fastvae_core::Matrix;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::ops::Range;

/// Memory of a tensor: the address of its first element, and how many elements it spans.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    address: usize,
    length: usize,
}

impl Memory {
    /// Checks an address for a number of elements of a type.
    pub(crate) fn new<T>(name: &str, address: usize, length: usize) -> PyResult<Self> {
        if length == 0 {
            return Ok(Self { address: 0, length });
        }
        let bytes = length.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
        if address == 0 {
            return Err(PyValueError::new_err(format!(
                "{name}: {length} elements at a null address (a tensor without memory of its own)"
            )));
        }
        if !address.is_multiple_of(align_of::<T>()) {
            return Err(PyValueError::new_err(format!("{name}: address {address:#x} is not aligned")));
        }
        if bytes.and_then(|bytes| address.checked_add(bytes)).is_none() {
            return Err(PyValueError::new_err(format!("{name}: {length} elements do not fit in memory")));
        }
        Ok(Self { address, length })
    }

    /// The memory of a matrix.
    pub(crate) fn of_matrix<T>(
        name: &str,
        address: usize,
        rows: usize,
        columns: usize,
        stride: usize,
    ) -> PyResult<Self> {
        let length = Matrix::<T>::extent(rows, columns, stride).ok_or_else(|| {
            PyValueError::new_err(format!("{name}: {rows} rows {stride} apart do not fit in memory"))
        })?;
        Self::new::<T>(name, address, length)
    }

    /// How many elements it spans.
    pub(crate) fn length(self) -> usize {
        self.length
    }

    fn range<T>(self) -> Range<usize> {
        self.address..self.address + self.length * size_of::<T>()
    }

    /// Whether two pieces of memory share a byte.
    pub(crate) fn overlaps<T, U>(self, other: Self) -> bool {
        let (a, b) = (self.range::<T>(), other.range::<U>());
        a.start < b.end && b.start < a.end
    }

    /// The elements, to read.
    ///
    /// # Safety
    /// The memory must hold initialised elements of the type, and nobody may write to it for `'a`.
    pub(crate) unsafe fn read<'a, T>(self) -> &'a [T] {
        if self.length == 0 {
            return &[];
        }
        // SAFETY: the address is not null and aligned, and the size fits in `isize` (`Memory::new`); the rest is
        // the caller's promise.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address), self.length) }
    }

    /// The elements of a new tensor, to write.
    ///
    /// # Safety
    /// The memory must be the caller's alone for `'a`.
    pub(crate) unsafe fn write<'a, T>(self) -> &'a mut [T] {
        prefer_huge_pages(self.range::<T>());
        // SAFETY: the same promise.
        unsafe { self.update() }
    }

    /// The elements of a tensor that has been in use, so that the system needs no advice about its memory.
    ///
    /// # Safety
    /// The memory must be the caller's alone for `'a`.
    pub(crate) unsafe fn update<'a, T>(self) -> &'a mut [T] {
        if self.length == 0 {
            return &mut [];
        }
        // SAFETY: as for `read`; every bit pattern is an element of the types used here.
        unsafe {
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(self.address), self.length)
        }
    }
}

/// Outputs from this many bytes on are worth a call to the system.
#[cfg(target_os = "linux")]
const LARGE: usize = 1 << 22;

/// Asks Linux to back the memory of a large output with huge pages, which it may decline.
///
/// Fresh memory is mapped at the first touch, a page at a time: in small pages that takes longer than a kernel's
/// arithmetic. Nothing but the speed of the memory depends on it.
#[cfg(target_os = "linux")]
fn prefer_huge_pages(bytes: Range<usize>) {
    const PAGE: usize = 1 << 21;
    let (start, end) = (bytes.start.next_multiple_of(PAGE), bytes.end / PAGE * PAGE);
    if bytes.len() >= LARGE && start < end {
        // SAFETY: the range is within one allocation; the advice changes neither what is in memory nor who owns it.
        unsafe {
            libc::madvise(std::ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn prefer_huge_pages(_: Range<usize>) {}

/// Fails if an output shares memory with an input or another output.
pub(crate) fn check_disjoint<T, U>(outputs: &[Memory], inputs: &[Memory]) -> PyResult<()> {
    for (i, output) in outputs.iter().enumerate() {
        let clash = inputs.iter().any(|input| output.overlaps::<T, U>(*input))
            || outputs[..i].iter().any(|other| output.overlaps::<T, T>(*other));
        if clash {
            return Err(PyValueError::new_err("an output shares memory with another tensor of the call"));
        }
    }
    Ok(())
}

/// Whether no memory that is written to shares a byte with any other, for any number of them.
pub(crate) fn are_apart<T>(written: &[Memory], read: &[Memory]) -> bool {
    let ranges = |memories: &[Memory]| {
        let mut ranges: Vec<_> = memories.iter().map(|memory| memory.range::<T>()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges
    };
    let written = ranges(written);
    // Those apart from each other end in the order in which they begin.
    written.is_sorted_by(|one, next| one.end <= next.start)
        && ranges(read).iter().all(|read| {
            let behind = written.partition_point(|written| written.end <= read.start);
            written.get(behind).is_none_or(|written| read.end <= written.start)
        })
}
