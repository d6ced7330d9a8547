import numpy as np
from numpy.typing import NDArray

def resize_window(
    part: NDArray[np.uint8],
    size: tuple[int, int],
    corner: tuple[int, int],
    target: tuple[int, int],
    window: tuple[int, int, int, int],
    is_cubic: bool,
    arithmetic: int,
    is_mirrored: bool,
    out: NDArray[np.uint8],
    /,
) -> None: ...
