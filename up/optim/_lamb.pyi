from typing import Any

from numpy.typing import NDArray

def step(
    memory: NDArray[Any],  # int64, (T, 5): addresses of weights, gradients, means and squares, and the number of elements
    corrections: NDArray[Any],  # float64, (T, 2)
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    divisor: float,
    is_adapted: bool,
    is_capped: bool,
    threads: int,
    /,
) -> None: ...
