"""What the Triton kernels share; to be imported only where Triton is (:func:`fastvae.ops.cuda.has_triton`).

The mathematics is that of ``rust/fastvae-core/src/math.rs``, operation by operation: explicit fused
multiply-adds, correctly rounded divisions and roots, and :data:`fastvae.ops.cuda.OPTIONS`, which keeps the
compiler from fusing more. So what is made of one element has the same bits as on the CPU.
"""
