import numpy as np
from numpy.typing import NDArray

def resize(
    part: NDArray[np.uint8],
    size: tuple[int, int],
    corner: tuple[int, int],
    target: tuple[int, int],
    window: tuple[int, int, int, int],
    is_cubic: bool,
    may_start_across: bool,
    out: NDArray[np.uint8],
    /,
) -> None: ...
