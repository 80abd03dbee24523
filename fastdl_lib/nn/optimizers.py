"""What turns gradients into steps: the optimisers, and how the learning rate goes over a run."""

import math
from collections.abc import Callable
from typing import Any

from fastdl_lib.core.arrays import array_module, wide
from fastdl_lib.core.checks import check_number
from fastdl_lib.core.threads import in_flat_blocks
from fastdl_lib.kernels import updates
from fastdl_lib.nn.network import Network

Array = Any  # numpy.ndarray or cupy.ndarray

Schedule = Callable[[float], float]
"""Takes the share of a run that is done, 0 to 1, and returns the learning rate's factor."""


class Optimizer:
    """What the optimisers share: they change a network's weights in place. One of your own defines
    ``_update`` and names in ``memory`` what it asks ``_remembered`` for.

    The arrays of ``state`` lie beside the weights, on the CPU or the GPU, and belong to one
    network: make a new optimiser for another one. For float16 weights they are float32, and steps
    are computed in float32: squares of small gradients would vanish in float16.
    """

    memory: tuple[str, ...] = ()
    """What it keeps for each weight from the first step on; the names of ``state`` begin so."""
    not_negative: tuple[str, ...] = ()
    """Of these, what holds no number below 0."""
    loss_scale = 1.0
    """What the loss's gradient is to be multiplied by before it goes back through the network."""

    def __init__(self, learning_rate: float, **settings: float) -> None:
        check_number("learning_rate", learning_rate, low=0, low_included=False)
        self.learning_rate = float(learning_rate)
        """May be set between two steps, as ``fit``'s schedule does."""
        self.steps = 0
        """Steps taken."""
        self.state: dict[str, Array] = {}
        """What is remembered from step to step, such as ``"velocity.conv1.weight"``."""
        self.numbers: dict[str, float] = {}
        """What else is remembered, plain numbers from 0 up; a checkpoint keeps them too."""
        self._settings = settings

    @property
    def settings(self) -> dict[str, Any]:
        """The kind and its constants; two optimisers with the same settings do the same.

        >>> SGD(0.1, momentum=0.9).settings
        {'optimizer': 'SGD', 'learning_rate': 0.1, 'momentum': 0.9, 'weight_decay': 0.0}
        """
        kind = type(self).__name__
        return {"optimizer": kind, "learning_rate": self.learning_rate, **self._settings}

    def step(self, network: Network) -> None:
        """Change ``network``'s weights, in place, by the gradients of its last backward pass; see
        :meth:`checked_gradients`."""
        self.update(network.parameters, self.checked_gradients(network))
        for layer in network.layers.values():
            layer.after_step()

    def update(self, weights: dict[str, Array], gradients: dict[str, Array]) -> None:
        """Change named weights, in place, by the gradients of the same names: one step. ValueError,
        and no change, where one has another shape than its weight."""
        for name, weight in weights.items():
            if gradients[name].shape != weight.shape:
                shapes = f"{gradients[name].shape}, the weight {weight.shape}"
                raise ValueError(f"the gradient of {name} is {shapes}.")
        self.steps += 1
        for name, weight in weights.items():
            self._update(name, weight, gradients[name])

    def checked_gradients(self, network: Network) -> dict[str, Array]:
        """The network's gradients, once a step can be taken whole.

        Raises RuntimeError where there are none, ValueError where this optimiser knows a network
        with other shapes or another dtype.
        """
        parameters, gradients = network.parameters, network.gradients
        if gradients.keys() != parameters.keys():
            missing = [name for name in parameters if name not in gradients]
            raise RuntimeError(
                f"{type(self).__name__}.step() needs the gradients of {network.name}: call "
                f"network.loss_and_gradients(x, labels) first; there is none for {missing}."
            )
        for key, kept in self.state.items():
            weight = parameters.get(key.partition(".")[2], kept)
            if kept.shape != weight.shape or kept.dtype != wide(weight.dtype):
                raise ValueError(
                    f"this {type(self).__name__} has worked on another network: its {key} is "
                    f"{kept.dtype} {kept.shape}, the weight {weight.dtype} {weight.shape}; "
                    "make a new one."
                )
        return gradients

    def _update(self, name: str, weight: Array, gradient: Array) -> None:
        raise NotImplementedError

    def _remembered(self, what: str, name: str, weight: Array) -> Array:
        """The array of ``state`` for a weight, zeros at first; ``memory`` has its name."""
        if what not in self.memory:
            raise KeyError(f"{type(self).__name__}.memory must name {what!r}, for checkpoints.")
        key = f"{what}.{name}"
        if key not in self.state:
            self.state[key] = array_module(weight).zeros_like(weight, dtype=wide(weight.dtype))
        return self.state[key]


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum and weight decay where they are given.

    g = gradient + weight_decay * weight, velocity = momentum * velocity + g,
    weight -= learning_rate * velocity. That is PyTorch's form; Sutskever et al., "On the importance
    of initialization and momentum in deep learning", ICML 2013, after Polyak 1964, multiply g by
    the learning rate before it enters the velocity, which is the same for a constant one.

    Args:
        learning_rate: above 0.
        momentum: from 0 to below 1.
        weight_decay: from 0 up; biases decay as well.

    >>> import numpy as np
    >>> weights, optimizer = {"w": np.ones(2)}, SGD(0.1, momentum=0.9)
    >>> optimizer.update(weights, {"w": np.array([1.0, -1.0])})
    >>> weights["w"].tolist(), optimizer.state["velocity.w"].tolist()
    ([0.9, 1.1], [1.0, -1.0])
    """

    def __init__(
        self, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        check_number("momentum", momentum, low=0, high=1)
        check_number("weight_decay", weight_decay, low=0)
        # Plain floats: NumPy's own would widen float32 weights.
        self.momentum, self.weight_decay = float(momentum), float(weight_decay)
        super().__init__(learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)

    @property
    def memory(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def _update(self, name: str, weight: Array, gradient: Array) -> None:
        rate = float(self.learning_rate)
        arrays = [weight, gradient]
        if self.momentum:
            arrays.append(self._remembered("velocity", name, weight))

        def change(w: Array, g: Array, v: Array | None = None) -> None:
            if updates.fits(w, g):
                constants = map(w.dtype.type, (rate, self.momentum, self.weight_decay))
                updates.momentum()(w, g, w if v is None else v, *constants)
                return
            g = g.astype(wide(w.dtype), copy=False)
            if self.weight_decay:
                g = g + self.weight_decay * w.astype(g.dtype, copy=False)
            if v is not None:
                v *= self.momentum
                v += g
                g = v
            w -= rate * g

        in_flat_blocks(change, arrays)


class Adam(Optimizer):
    """Adam: each weight's step is scaled by running means of its gradient and of its square.

    Source: D. P. Kingma, J. Ba, "Adam: A method for stochastic optimization", ICLR 2015,
    algorithm 1.

    Args:
        learning_rate: above 0.
        beta1, beta2: how much of the old mean, of its square, stays at each step; 0 to below 1.
        epsilon: above 0, keeps the quotient finite.

    >>> import numpy as np
    >>> weights = {"w": np.ones(2)}
    >>> Adam(0.1).update(weights, {"w": np.array([5.0, -0.5])})
    >>> weights["w"].round(6).tolist()
    [0.9, 1.1]
    """

    memory, not_negative = ("mean", "square"), ("square",)

    def __init__(
        self,
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        check_number("beta1", beta1, low=0, high=1)
        check_number("beta2", beta2, low=0, high=1)
        check_number("epsilon", epsilon, low=0, low_included=False)
        self.beta1, self.beta2, self.epsilon = float(beta1), float(beta2), float(epsilon)
        super().__init__(learning_rate, beta1=self.beta1, beta2=self.beta2, epsilon=self.epsilon)

    def _update(self, name: str, weight: Array, gradient: Array) -> None:
        mean = self._remembered("mean", name, weight)
        square = self._remembered("square", name, weight)
        # Both begin at 0; the paper divides that bias out.
        rate = float(self.learning_rate) / (1 - self.beta1**self.steps)
        square_bias = 1 - self.beta2**self.steps

        def change(w: Array, g: Array, m: Array, s: Array) -> None:
            if updates.fits(w, g, m, s):
                betas = self.beta1, 1 - self.beta1, self.beta2, 1 - self.beta2
                constants = map(w.dtype.type, (*betas, rate, square_bias, self.epsilon))
                updates.adam()(w, g, m, s, *constants)
                return
            g = g.astype(m.dtype, copy=False)
            m *= self.beta1
            m += (1 - self.beta1) * g
            s *= self.beta2
            s += (1 - self.beta2) * g * g
            w -= rate * m / ((s / square_bias) ** 0.5 + self.epsilon)

        in_flat_blocks(change, [weight, gradient, mean, square])


def warmup_cosine(warmup: float = 0.1) -> Schedule:
    """Make a schedule: the learning rate rises along a line, then falls along half a cosine.

    Args:
        warmup: the share of the run that rises; from 0 to below 1.

    Sources: I. Loshchilov, F. Hutter, "SGDR", ICLR 2017 (cosine); P. Goyal et al., "Accurate, large
    minibatch SGD", 2017, section 2.2 (warm-up).

    >>> schedule = warmup_cosine(0.2)
    >>> [round(schedule(done), 2) for done in (0, 0.1, 0.2, 0.6, 1)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    check_number("warmup", warmup, low=0, high=1)

    def factor(done: float) -> float:
        if done < warmup:
            return done / warmup
        return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    return factor
