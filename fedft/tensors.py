"""The import path of `fedft.arithmetic.tensors` for strategies outside this package."""

from fedft.arithmetic.tensors import Tensors, add, digest, dot, norm, scale, sub, weighted_mean, zeros_like

__all__ = ["Tensors", "add", "digest", "dot", "norm", "scale", "sub", "weighted_mean", "zeros_like"]
