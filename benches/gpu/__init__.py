"""What ``bench_gpu.py`` compares on a CUDA device, a file for each kind of work."""

from gpu import captured, latent, likelihood

COMPARISONS = {
    comparison.name: comparison
    for module in (latent, likelihood, captured)
    for comparison in module.COMPARISONS
}
