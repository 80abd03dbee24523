"""The loss of a classifier, its gradient, and how many images were right."""

from typing import Any

import numpy as np

from fastdl_lib.core.arrays import array_module, wide

Array = Any  # numpy.ndarray or cupy.ndarray


def check_labels(labels: Array, images: int, classes: int) -> None:
    """Refuse labels that are not one whole number from 0 to classes - 1 for each image
    (ValueError, TypeError)."""
    array_module(labels)
    if labels.shape != (images,):
        raise ValueError(
            f"labels must have the shape ({images},), one for each image; got {labels.shape}."
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"labels must be whole numbers, got {labels.dtype}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"there are {classes} classes: labels must lie in 0..{classes - 1}, got {low}..{high}."
        )


def loss_and_right(loss: Array, logits: Array, labels: Array) -> tuple[float, int]:
    """The loss and how many images are right, fetched together: a GPU is waited for once."""
    right = (logits.argmax(axis=1) == labels).sum()
    loss, right = array_module(logits).stack([loss, right.astype(loss.dtype)]).tolist()
    return loss, int(right)


def loss_and_gradient(logits: Array, labels: Array, scale: float = 1.0) -> tuple[Array, Array]:
    """Return the mean loss of a softmax, nats an image, and its gradient by the logits.

    logits: (N, classes), float; float16 is computed in float32. labels: (N,), checked before, so
    that nothing waits for a GPU. ``scale`` multiplies the gradient before it is rounded to the
    logits' dtype, in which a small one would vanish.

    >>> import numpy as np
    >>> loss, grad = loss_and_gradient(np.zeros((2, 10), np.float32), np.array([0, 1]))
    >>> round(float(loss), 4), grad.shape  # ln 10
    (2.3026, (2, 10))
    """
    xp = array_module(logits)
    shifted = logits.astype(wide(logits.dtype), copy=False)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    exponentials = xp.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    rows = xp.arange(len(labels))
    loss = (xp.log(sums[:, 0]) - shifted[rows, labels]).mean()
    loss += (0 * logits).sum()  # NaN also where the logit of another class is minus infinity
    grad = exponentials / sums
    grad[rows, labels] -= 1
    # Rounded once, so that the gradient of a share of a batch has the digits of the whole batch's.
    grad = grad.astype(np.float64) * (scale / len(labels))
    return loss, grad.astype(logits.dtype, copy=False)
