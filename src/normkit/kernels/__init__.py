"""The kernels: how a normalization is computed, once functional has decided which way.

    composed   differentiable torch operations with careful numerics; works everywhere
    native     the C++ core for the CPU
    aten       PyTorch's own kernels

A kernel takes tensors and numbers. It knows no module, no autograd graph and no running statistics' policy.
"""
