"""Which norm of a state belongs to which layer of the model.

Rules: by the names that are given, else by equal names, both separators apart and but for what all of the state's names
begin with (the model's own name); where each side has one norm, they belong together; by order only on request, for two
layers of one size could change places unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from ..model.select import Site
from .foreign_norm import ForeignNorm
from .nested import canonical

Names: TypeAlias = "Mapping[str, str | Sequence[str]] | str | None"
ORDER = "order"


def first_names(names: Names) -> dict[str, str]:
    """The model's name -> the state's norm; TypeError for what is no such mapping."""
    if names is None or names == ORDER:
        return {}
    if not isinstance(names, Mapping):
        raise TypeError(
            f"names must be a mapping from the model's layers to the state's, 'order' or None, not {names!r}"
        )
    return {mine: theirs if isinstance(theirs, str) else theirs[0] for mine, theirs in names.items()}


def second_names(names: Names) -> dict[str, str]:
    """The state's norm -> the layer with its gamma and beta, where names gives both, as Caffe needs it."""
    pairs = [theirs for theirs in names.values() if not isinstance(theirs, str)] if isinstance(names, Mapping) else []
    for pair in pairs:
        if len(pair) != 2:
            raise ValueError(f"names takes a name, or a pair (norm, its scale), got {pair!r}")
    return {pair[0]: pair[1] for pair in pairs}


def matched(sites: Sequence[Site], norms: Sequence[ForeignNorm], names: Names) -> dict[Site, ForeignNorm]:
    """ValueError where a name is not there, nothing belongs together, or the order does not fit."""
    if names == ORDER:
        return _in_order(sites, norms)
    given = first_names(names)
    pairs = _named(sites, norms, given)
    taken = set(map(id, pairs.values()))
    left = [site for site in sites if site not in pairs]
    for by_name in _called([norm for norm in norms if id(norm) not in taken]):
        equal = {site: by_name[name] for site in left for name in map(canonical, site.names) if name in by_name}
        if equal:
            pairs |= equal
            break
    if not pairs and not given and len(sites) == len(norms) == 1:
        pairs = {sites[0]: norms[0]}
    if not pairs:
        raise ValueError(_nothing(sites, norms))
    return {site: pairs[site] for site in sites if site in pairs}


def _named(sites: Sequence[Site], norms: Sequence[ForeignNorm], given: Mapping[str, str]) -> dict[Site, ForeignNorm]:
    mine = {name: site for site in sites for name in site.names}
    theirs = {norm.name: norm for norm in norms}
    loosely: dict[str, ForeignNorm] = {}
    for by_name in _called(norms):
        loosely = by_name | loosely  # the whole name goes before one without what all begin with
    pairs: dict[Site, ForeignNorm] = {}
    for name, other in given.items():
        if name not in mine:
            raise ValueError(f"names: the model has no norm {name!r}; it has {_listed(mine)}")
        norm = theirs.get(other) or loosely.get(canonical(other))
        if norm is None:
            raise ValueError(f"names: the state has no norm {other!r}; it has {_listed(theirs)}")
        if any(norm is used for used in pairs.values()):
            raise ValueError(f"names: {other!r} is given to two layers of the model")
        pairs[mine[name]] = norm
    return pairs


def _called(norms: Sequence[ForeignNorm]) -> Iterator[dict[str, ForeignNorm]]:
    """The norms by their names; then with one more of the leading parts gone that all of them share."""
    split = [canonical(norm.name).split(".") for norm in norms]
    shared = 0
    while split and all(len(parts) > shared + 1 and parts[shared] == split[0][shared] for parts in split):
        shared += 1
    for gone in range(shared + 1):
        yield {".".join(parts[gone:]): norm for parts, norm in zip(split, norms, strict=True)}


def _in_order(sites: Sequence[Site], norms: Sequence[ForeignNorm]) -> dict[Site, ForeignNorm]:
    if len(sites) != len(norms):
        raise ValueError(
            f"names='order' needs as many norms on both sides; the model has {len(sites)} ({_mine(sites)}), the state "
            f"{len(norms)} ({_theirs(norms)})"
        )
    return dict(zip(sites, norms, strict=True))


def _nothing(sites: Sequence[Site], norms: Sequence[ForeignNorm]) -> str:
    return (
        f"no norm of the state is called as one of the model: the model has {_mine(sites)}; the state has "
        f"{_theirs(norms)}. Pass names={{{sites[0].name!r}: {norms[0].name!r}, ...}}, or names='order' where both "
        "lists are in the same order"
    )


def _mine(sites: Sequence[Site]) -> str:
    return _listed([site.name or "(the model itself)" for site in sites])


def _theirs(norms: Sequence[ForeignNorm]) -> str:
    return _listed([norm.described() for norm in norms])


def _listed(names: Sequence[str] | Mapping[str, object], most: int = 8) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (f", ... ({len(shown)} in all)" if len(shown) > most else "")
