//! Threads that are lent to the kernels, which use several of those long before they would start any.

use super::SEGMENT;
use fastvae_core::lend_pool;
use std::cell::Cell;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Elements for which a kernel takes another thread that is lent, as `split.rs` has it.
const PER_THREAD: usize = 1 << 15;

/// Whether every kernel has several threads work on so many elements: they pay, and are in more than one span.
///
/// Under Miri they pay sooner, but not in every kernel.
pub(crate) fn pay(elements: usize) -> bool {
    !cfg!(miri) && elements >= 2 * PER_THREAD.max(SEGMENT)
}

thread_local! {
    /// The most threads that did the work of one call, of the calls that this thread makes.
    static MOST: Cell<usize> = const { Cell::new(1) };
    /// Whether this thread's calls are lent nothing.
    static REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// Does the work on so many threads at a time.
fn pool(threads: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
    if REFUSED.get() {
        return false;
    }
    let (begun, together) = (AtomicUsize::new(0), Barrier::new(threads));
    let take_part = || {
        let number = begun.fetch_add(1, Ordering::Relaxed);
        // Else the first could have done everything before the second is there.
        together.wait();
        work(number);
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(take_part);
        }
        take_part();
    });
    MOST.set(MOST.get().max(begun.into_inner()));
    true
}

/// The most threads that did the work of one of the calls that a function makes; it is lent as many as it asks for.
pub(crate) fn used_by(calls: impl FnOnce()) -> usize {
    lend_pool(pool);
    MOST.set(1);
    calls();
    MOST.get()
}

/// Makes calls that are lent nothing, as in a forked process: they start threads for much work (`split.rs`).
pub(crate) fn with_none_lent(calls: impl FnOnce()) {
    lend_pool(pool);
    REFUSED.set(true);
    calls();
    REFUSED.set(false);
}
