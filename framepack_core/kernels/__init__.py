"""Fused Triton kernels for CUDA (and ROCm); the same maths in plain torch is model/elementwise.py, which chooses.

Every chain is computed in float32 and rounded once. Nothing is compiled before the first launch.
"""
