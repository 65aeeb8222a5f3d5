"""Fused Triton kernels for CUDA (and ROCm); the same maths in plain torch is in model/elementwise.py and
model/fp8.py, which choose.

Every chain is computed in float32 and rounded once. Nothing is compiled before the first launch.
"""
