"""Formulas in numpy that several tests compare with, written down without a look at the code under test."""

import math

import numpy as np


def unit(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """x over its Euclidean length along an axis."""
    return x / np.sqrt((x**2).sum(axis=axis, keepdims=True))


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """exp(x) over its sum along an axis."""
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def resize_matrix(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """(n_out, n_in) of linear interpolation, clamped at the border."""
    matrix = np.zeros((n_out, n_in))
    for i in range(n_out):
        x = i * (n_in - 1) / (n_out - 1) if align_corners else (i + 0.5) * n_in / n_out - 0.5
        x = min(max(x, 0), n_in - 1)
        left = min(math.floor(x), n_in - 2)
        matrix[i, left] += 1 - (x - left)
        matrix[i, left + 1] += x - left
    return matrix
