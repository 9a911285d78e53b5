"""A failure that needs other cases before it: the fewest of them that it comes back after, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .case import Case
from .child import Child
from .finding import Finding
from .findings import key


def after(child: Child, earlier: Sequence[Case], case: Case) -> Finding | None:
    """What a case finds in a process that has run the earlier ones."""
    child.close()
    for other in earlier:
        child.run(other)
    is_same = not earlier or child.ran == len(earlier)  # where a process has died, another goes on
    return child.run(case) if is_same else None


def fewest(
    child: Child, earlier: list[int], draw: Callable[[int], Case], case: Case, finding: Finding, most: int = 16
) -> list[int] | None:
    """The numbers of the cases that are left, within `most` trials; None where not even all of them bring it back."""

    def fails(numbers: list[int]) -> bool:
        found = after(child, [draw(number) for number in numbers], case)
        return found is not None and key(found) == key(finding)

    if not fails(earlier):
        return None
    size = len(earlier) // 2
    while size > 0 and most > 0:
        for begin in range(0, len(earlier), size):
            rest = earlier[:begin] + earlier[begin + size :]
            most -= 1
            if fails(rest):
                earlier = rest
                break
            if most <= 0:
                break
        else:
            size //= 2
        size = min(size, len(earlier))
    return earlier
