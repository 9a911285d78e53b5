"""How many bytes kernels read and write, counted from the loads and stores that the interpreter carries out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import interpreter_builder


@contextmanager
def counted(tensors: dict[str, Tensor]) -> Iterator[tuple[Counter[str], Counter[str]]]:
    """Within the block: (bytes read, bytes written) of each tensor by name, and of all other memory as "others".

    What a program makes meanwhile is another memory; name it afterwards with `of`.
    """
    places = [(name, t.data_ptr(), t.data_ptr() + t.nbytes) for name, t in tensors.items()]
    read, written = Counter[str](), Counter[str]()
    load, store = interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def count(into: Counter[str], pointers: Any, mask: Any) -> None:
        addresses = np.asarray(pointers.data)[np.asarray(mask.data, dtype=bool)]
        size = pointers.get_element_ty().primitive_bitwidth // 8
        left = addresses.size
        for name, start, end in places:
            here = int(((addresses >= start) & (addresses < end)).sum())
            into[name] += here * size
            left -= here
        into["others"] += left * size

    def counting_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        count(read, pointers, mask)
        return load(pointers, mask, *rest)

    def counting_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        count(written, pointers, mask)
        return store(pointers, value, mask, *rest)

    interpreter_builder.create_masked_load = counting_load
    interpreter_builder.create_masked_store = counting_store
    try:
        yield read, written
    finally:
        interpreter_builder.create_masked_load = load
        interpreter_builder.create_masked_store = store
