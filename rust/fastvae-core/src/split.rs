//! Dividing work: into spans whose shape depends on the tensor alone, and among threads.

use crate::lanes::LANES;
use core::ops::Range;
use std::collections::VecDeque;
use std::sync::{Mutex, OnceLock};
use std::thread;

/// Columns of the longest stretch that is worked on in one piece.
///
/// Miri, which looks for data races too, would need hours for as much work as has several of them, or several threads.
pub(crate) const SEGMENT: usize = if cfg!(miri) { 1 << 9 } else { 1 << 14 };

/// Elements below which another thread of a lent pool costs more than it saves.
const ELEMENTS_PER_LENT_THREAD: usize = if cfg!(miri) { 1 << 8 } else { 1 << 15 };

/// The same for a thread that has to be started, perhaps while the pool's own threads still spin.
const ELEMENTS_PER_NEW_THREAD: usize = if cfg!(miri) { 1 << 8 } else { 1 << 18 };

/// Threads that somebody else keeps: calls the work on up to so many of them, the calling one included, at the
/// same time, and returns when all are done. Gives false, having called nothing, where it cannot.
///
/// One call at least has to be made; each of them takes what there is to do until nothing is left. It is told the
/// number of its thread, below the number of threads: a thread that has the same in each call finds in its caches what
/// it worked on before.
pub type Pool = fn(usize, &(dyn Fn(usize) + Sync)) -> bool;

static POOL: OnceLock<Pool> = OnceLock::new();

/// Lends a pool of threads to every kernel from now on; without one, threads are started for each call.
///
/// Two sets of threads on the same cores get in each other's way, so a program that has one should lend it.
/// The first one lent stays.
pub fn lend_pool(pool: Pool) {
    POOL.get_or_init(|| pool);
}

/// Rows of a band at least: the `f64` sums of one take a sixteenth of the memory of its elements, or less.
///
/// Smaller bands, for more threads where rows are few and wide, cost more in sums than the threads gained.
const ROWS_PER_BAND: usize = 32;

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

    /// The slot after one, in row-major order; behind the last comes the last.
    #[inline(always)]
    pub(crate) fn after(&self, row: usize, column: usize) -> (usize, usize) {
        if column + LANES < self.column + self.columns {
            (row, column + LANES)
        } else if row + 1 < self.row + self.rows {
            (row + 1, self.column)
        } else {
            (row, column)
        }
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
    spans_of(rows, columns, SEGMENT)
}

/// The same with fewer rows to a span, for work that repeats: as many as have so many elements.
#[must_use]
pub(crate) fn spans_of(rows: usize, columns: usize, elements: usize) -> Vec<Span> {
    if rows == 0 || columns == 0 {
        return Vec::new();
    }
    if columns <= SEGMENT {
        let step = (elements / columns).max(1);
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

/// Bands of whole rows, for sums over the rows: not many, as each has a sum of its own for every column.
#[must_use]
pub(crate) fn bands(rows: usize, columns: usize) -> Vec<Span> {
    if rows == 0 || columns == 0 {
        return Vec::new();
    }
    let step = (SEGMENT / columns).max(ROWS_PER_BAND);
    (0..rows).step_by(step).map(|row| Span { row, rows: step.min(rows - row), column: 0, columns }).collect()
}

/// The same spans cut into ones of at most `longest` elements, a multiple of sixteen: for work that keeps
/// more per element than the caches hold of a whole span.
#[must_use]
pub(crate) fn finer(spans: &[Span], longest: usize) -> Vec<Span> {
    let mut cut = Vec::new();
    for &span in spans {
        let rows = (longest / span.columns).max(1);
        for row in (0..span.rows).step_by(rows) {
            let columns = span.columns.min(longest);
            for column in (0..span.columns).step_by(columns) {
                cut.push(Span {
                    row: span.row + row,
                    rows: rows.min(span.rows - row),
                    column: span.column + column,
                    columns: columns.min(span.columns - column),
                });
            }
        }
    }
    cut
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

/// How many threads pay, of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Threads {
    lent: usize,
    new: usize,
}

impl Threads {
    /// As many as may work, of either kind.
    pub(crate) fn most(self) -> usize {
        self.lent.max(self.new)
    }
}

/// How many threads pay for this many elements.
#[must_use]
pub(crate) fn threads_for(elements: usize, threads: usize) -> Threads {
    let at = |elements_per_thread| threads.min(elements / elements_per_thread).max(1);
    Threads { lent: at(ELEMENTS_PER_LENT_THREAD), new: at(ELEMENTS_PER_NEW_THREAD) }
}

/// Calls `work` once for every item, on up to so many threads: on lent ones if there are any that can work, which
/// those that a process had before it was forked cannot.
///
/// Each begins with a share of its own, the same in each call, so that what it has in its caches is what it wrote the
/// last time, or what torch, which divides alike, did. A thread that has done its share takes items from the others: a
/// busy core delays no more than the item that it has.
///
/// # Panics
/// If `work` panics.
pub(crate) fn for_each<T: Send>(items: Vec<T>, threads: Threads, work: impl Fn(T) + Sync) {
    let (lent, new) = (threads.lent.min(items.len()), threads.new.min(items.len()));
    let pool = POOL.get().filter(|_| lent > 1);
    if pool.is_none() && new <= 1 {
        items.into_iter().for_each(work);
        return;
    }
    let shares = Shares::new(items, if pool.is_some() { lent } else { new });
    let drain = |thread| {
        while let Some(item) = shares.take(thread) {
            work(item);
        }
    };
    if !pool.is_some_and(|pool| pool(lent, &drain)) {
        on_new_threads(new, &drain);
    }
}

/// Items in as many shares, of neighbours, as threads are to work on them.
struct Shares<T>(Vec<Mutex<VecDeque<T>>>);

impl<T> Shares<T> {
    fn new(items: Vec<T>, count: usize) -> Self {
        let (total, mut items) = (items.len(), items.into_iter());
        let share = |i: usize| items.by_ref().take((i + 1) * total / count - i * total / count).collect();
        Self((0..count).map(share).map(Mutex::new).collect())
    }

    /// The next item of a thread's share, or the last one of somebody else's.
    fn take(&self, thread: usize) -> Option<T> {
        let lock = |share: usize| self.0[share % self.0.len()].lock().expect("taking an item does not panic");
        let own = lock(thread).pop_front();
        own.or_else(|| (1..self.0.len()).find_map(|other| lock(thread + other).pop_back()))
    }
}

/// Starts threads that live for the call alone, so a forked process never waits for one that it did not inherit.
///
/// Where the system refuses a thread, the others do its work.
fn on_new_threads(threads: usize, work: &(dyn Fn(usize) + Sync)) {
    thread::scope(|scope| {
        for number in 1..threads {
            if thread::Builder::new().spawn_scoped(scope, move || work(number)).is_err() {
                break;
            }
        }
        work(0);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::time::{Duration, Instant};

    /// Works on as many items, each of which takes until `threads` have been at work; gives how many have.
    fn at_work(items: usize, threads: usize, allowed: Threads) -> usize {
        let ids = Mutex::new(HashSet::new());
        let deadline = Instant::now() + Duration::from_secs(60);
        let at_work = || ids.lock().expect("nothing panics").len();
        for_each((0..items).collect(), allowed, |_| {
            ids.lock().expect("nothing panics").insert(thread::current().id());
            while at_work() < threads && Instant::now() < deadline {
                thread::yield_now();
            }
        });
        at_work()
    }

    #[test]
    fn a_thread_takes_its_share_in_order_and_then_the_ends_of_others() {
        let shares = Shares::new((0..8).collect(), 3);
        let mut take = |thread| shares.take(thread);
        assert_eq!([0, 1, 2].map(&mut take), [Some(0), Some(2), Some(5)]);
        assert_eq!([0; 2].map(&mut take), [Some(1), Some(4)], "the second has more than one left");
        assert_eq!([2; 3].map(&mut take), [Some(6), Some(7), Some(3)]);
        assert_eq!([0, 1, 2].map(&mut take), [None; 3]);
    }

    #[test]
    fn every_item_is_in_one_share() {
        for (items, count) in (0..20).flat_map(|items| (1..8).map(move |count| (items, count))) {
            let Shares(shares) = Shares::new((0..items).collect(), count);
            let shares: Vec<_> = shares.into_iter().map(|share| share.into_inner().unwrap()).collect();
            assert_eq!(shares.len(), count);
            assert!(shares.iter().all(|share| share.len().abs_diff(items / count) <= 1), "{items} {count}");
            assert!(shares.into_iter().flatten().eq(0..items));
        }
    }

    #[test]
    fn a_thread_of_any_number_finds_work() {
        let shares = Shares::new(vec!['a', 'b'], 2);
        assert_eq!([7, 4, 9].map(|thread| shares.take(thread)), [Some('b'), Some('a'), None]);
    }

    #[test]
    fn new_threads_are_started_for_more_work_than_lent_ones() {
        let few = threads_for(3 * ELEMENTS_PER_LENT_THREAD, 4);
        assert_eq!(few.lent, 3);
        assert!(few.new <= few.lent);
        assert_eq!(threads_for(0, 4), Threads { lent: 1, new: 1 });
        assert_eq!(threads_for(usize::MAX, 4), Threads { lent: 4, new: 4 });
        // No pool is lent in this process; one that cannot work is the same.
        assert_eq!(at_work(3, 1, Threads { lent: 3, new: 1 }), 1);
        assert_eq!(at_work(3, 3, Threads { lent: 3, new: 3 }), 3);
        assert_eq!(at_work(2, 2, Threads { lent: 3, new: 3 }), 2);
    }
}
