//! Dividing work: into spans whose shape depends on the tensor alone, and among threads.

use core::ops::Range;
use std::sync::Mutex;
use std::thread;

/// Columns of the longest stretch that is worked on in one piece.
pub(crate) const SEGMENT: usize = 16384;

/// Elements below which another thread costs more than it saves while torch's own threads still spin.
///
/// Miri, which looks for data races, would need hours for as many.
const ELEMENTS_PER_THREAD: usize = if cfg!(miri) { 1 << 8 } else { 1 << 18 };

/// A block of a matrix, contiguous in a contiguous one: whole rows, or a stretch of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// First row.
    pub row: usize,
    /// Number of rows.
    pub rows: usize,
    /// First column.
    pub column: usize,
    /// Number of columns.
    pub columns: usize,
}

impl Span {
    /// Where a row is in a contiguous block of the span's shape, and how far into it a column is.
    #[inline(always)]
    pub(crate) fn stretch(&self, row: usize, column: usize) -> (Range<usize>, usize) {
        let start = (row - self.row) * self.columns;
        (start..start + self.columns, column - self.column)
    }

    /// Number of elements.
    #[must_use]
    pub(crate) fn elements(&self) -> usize {
        self.rows * self.columns
    }
}

/// The spans of a matrix in row-major order.
#[must_use]
pub(crate) fn spans(rows: usize, columns: usize) -> Vec<Span> {
    if rows == 0 || columns == 0 {
        return Vec::new();
    }
    if columns <= SEGMENT {
        let step = (SEGMENT / columns).max(1);
        return (0..rows)
            .step_by(step)
            .map(|row| Span { row, rows: step.min(rows - row), column: 0, columns })
            .collect();
    }
    (0..rows)
        .flat_map(|row| {
            (0..columns).step_by(SEGMENT).map(move |column| Span {
                row,
                rows: 1,
                column,
                columns: SEGMENT.min(columns - column),
            })
        })
        .collect()
}

/// Into how many spans each row is cut (1 where spans hold whole rows).
#[must_use]
pub(crate) fn segments(columns: usize) -> usize {
    columns.div_ceil(SEGMENT).max(1)
}

/// Cuts a slice into consecutive pieces of the given lengths.
pub(crate) fn pieces<T>(
    mut slice: &mut [T],
    lengths: impl Iterator<Item = usize>,
) -> impl Iterator<Item = &mut [T]> {
    lengths.map(move |length| {
        let (piece, rest) = core::mem::take(&mut slice).split_at_mut(length);
        slice = rest;
        piece
    })
}

/// How many threads pay for this many elements.
#[must_use]
pub(crate) fn threads_for(elements: usize, threads: usize) -> usize {
    threads.min(elements / ELEMENTS_PER_THREAD).max(1)
}

/// Calls `work` once for every item, on up to `threads` threads.
///
/// The threads live for the call alone, so a forked process never waits for one that it did not inherit, and
/// they take items as they get free, so a busy core delays nothing but its own item. Where the system refuses
/// a thread, the others do its work.
///
/// # Panics
/// If `work` panics.
pub(crate) fn for_each<T: Send>(items: Vec<T>, threads: usize, work: impl Fn(T) + Sync) {
    let threads = threads.min(items.len());
    if threads <= 1 {
        items.into_iter().for_each(work);
        return;
    }
    let queue = Mutex::new(items.into_iter());
    let drain = || {
        loop {
            let item = queue.lock().expect("taking an item does not panic").next();
            match item {
                Some(item) => work(item),
                None => break,
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            if thread::Builder::new().spawn_scoped(scope, drain).is_err() {
                break;
            }
        }
        drain();
    });
}
