//! The Python module `fastvae._core`: kernels of `fastvae-core` on the memory of CPU tensors.
//!
//! Tensors arrive as integers: the address of the first element and the distance of rows, in elements. The
//! caller (`fastvae.ops.*.cpu`) holds the tensors for the length of the call and has checked their storage;
//! [`memory`] checks what can be checked here before it forms a slice. The functions of [`operations::plain`] take
//! the tensors themselves: [`exchange`] reads and checks them.

mod exchange;
mod memory;
mod operations;
mod pool;

use pyo3::prelude::*;

#[pymodule]
mod _core {
    #[pymodule_export]
    use crate::exchange::use_torch_tensors;
    #[pymodule_export]
    use crate::operations::adam::Adam;
    #[pymodule_export]
    use crate::operations::dense::Dense;
    #[pymodule_export]
    use crate::operations::free_bits::{free_bits_backward, free_bits_forward};
    #[pymodule_export]
    use crate::operations::gather::gather_batch;
    #[pymodule_export]
    use crate::operations::latent::{latent_backward, latent_forward};
    #[pymodule_export]
    use crate::operations::likelihood::{
        bernoulli_backward, bernoulli_forward, gaussian_backward, gaussian_forward,
    };
    #[pymodule_export]
    use crate::operations::log_weight::{log_weight_backward, log_weight_forward};
    #[pymodule_export]
    use crate::operations::noise::{fold_in, levels, normal, permutation, simd_level, uniform};
    #[pymodule_export]
    use crate::operations::plain::{
        all_described, plain_bernoulli_log_prob, plain_bernoulli_log_prob_backward, plain_gather_batch,
        plain_gaussian_kl, plain_gaussian_kl_backward, plain_gaussian_log_prob,
        plain_gaussian_log_prob_backward, plain_latent, plain_normal, plain_reparametrize,
        plain_reparametrize_backward, plain_reparametrize_kl, plain_reparametrize_kl_backward,
        plain_reparametrize_log_weight, plain_reparametrize_log_weight_backward, plain_uniform,
    };
    #[pymodule_export]
    use crate::operations::prior::{prior_backward, prior_forward};
    #[pymodule_export]
    use crate::pool::use_torch_threads;

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        // A level that was asked for and cannot be had is an error at once, not at the first call.
        crate::operations::level().map(|_| ())
    }
}
