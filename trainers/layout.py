"""The names, dtypes and shapes of a pytree, for comparing and for messages."""

from typing import Any

import jax
import numpy as np


def layout(tree: Any) -> dict[str, str]:
    """Path to dtype and shape, whatever device or mesh the arrays lie on.

    Example:
        >>> import numpy as np
        >>> layout({"w": np.zeros((2, 3), np.float32)})
        {"['w']": 'float32[2,3]'}
    """
    return {
        jax.tree_util.keystr(path).strip("."): _describe(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _describe(leaf: Any) -> str:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)
    return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"
