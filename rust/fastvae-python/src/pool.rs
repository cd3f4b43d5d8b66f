//! torch's own threads, by way of the stable C interface of libtorch (`torch_parallel_for`, since torch 2.10).
//!
//! A second set of threads would fight with torch's for the same cores: after each of its own operations torch's
//! threads go on spinning for a while, waiting for the next.

#![allow(unsafe_code)]

use fastvae_core::lend_pool;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

/// `int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain_size, ParallelFunc func, void* ctx)`:
/// 0 if all went well.
type ParallelFor = unsafe extern "C" fn(i64, i64, i64, ParallelFunc, *mut c_void) -> i32;
/// `void (*ParallelFunc)(int64_t begin, int64_t end, void* ctx)`.
type ParallelFunc = extern "C" fn(i64, i64, *mut c_void);

/// The function, and the process that found it: its threads do not survive `fork`.
static TORCH: OnceLock<(ParallelFor, u32)> = OnceLock::new();

/// Runs kernels on torch's threads from now on, given the address of `torch_parallel_for`.
#[pyfunction]
pub(crate) fn use_torch_threads(torch_parallel_for: usize) -> PyResult<()> {
    if torch_parallel_for == 0 {
        return Err(PyValueError::new_err("torch_parallel_for has no address"));
    }
    let address: *const c_void = std::ptr::with_exposed_provenance(torch_parallel_for);
    // SAFETY: the caller (`fastvae.ops.threads`) took the address of the function of this name from libtorch, whose
    // signature is part of torch's stable interface; libtorch is never unloaded.
    let function = unsafe { std::mem::transmute::<*const c_void, ParallelFor>(address) };
    TORCH.get_or_init(|| (function, std::process::id()));
    lend_pool(run);
    Ok(())
}

/// What the threads share for one call.
struct Call<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

fn run(threads: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
    let Some(&(parallel_for, owner)) = TORCH.get() else { return false };
    if std::process::id() != owner {
        return false;
    }
    let call = Call { work, panic: Mutex::new(None) };
    // SAFETY: `enter` takes the context for a `Call`, and `call` outlives the function, which returns when every
    // thread has. What it does otherwise is to call `enter`, on this thread alone if need be.
    let failed = unsafe { parallel_for(0, threads as i64, 1, enter, (&raw const call).cast_mut().cast()) };
    if let Some(panic) = call.panic.into_inner().unwrap_or_else(PoisonError::into_inner) {
        resume_unwind(panic);
    }
    failed == 0
}

extern "C" fn enter(begin: i64, _: i64, context: *mut c_void) {
    // SAFETY: `run` passes a `Call` that lives until all threads are done; it is only read.
    let call = unsafe { &*context.cast::<Call>() };
    // A panic must not unwind through torch.
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (call.work)(begin as usize)))
        && let Ok(mut slot) = call.panic.lock()
    {
        slot.get_or_insert(panic);
    }
}
