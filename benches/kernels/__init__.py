"""The comparisons of ``bench_kernels.py``, a file for each kind of work."""

from kernels import batches, latent, likelihood, normals, step

COMPARISONS = {
    comparison.name: comparison
    for module in (normals, latent, likelihood, batches, step)
    for comparison in module.COMPARISONS
}
