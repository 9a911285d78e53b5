"""What raises: torch decides, by the class of the error; what torch has no form of may raise any clear error."""

from __future__ import annotations

import math

from .case import Case
from .finding import Finding, Outcome
from .norms import NORMS, channels
from .pools import DTYPES, WRONG_ACTIVATIONS, WRONG_EPS
from .promised import is_fake, is_promised
from .truth import Truth

# Errors that speak of a program's inside, not of its input.
_OWN = (
    AssertionError, AttributeError, LookupError, NameError, ArithmeticError, RecursionError, SystemError, MemoryError,
    StopIteration,
)  # fmt: skip
_OWN_TEXTS = (
    "std::", "INTERNAL ASSERT", "nanobind", "not supported between instances", "unsupported operand type",
    "not enough values to unpack", "unexpected keyword argument", "aten._local_scalar_dense",
)  # fmt: skip
_TORCHS_FAULTS = ("INTERNAL ASSERT", "tensor does not have a device")
_MIXED = ("expected scalar type", "mixed dtype")  # normkit takes more dtypes together, as its page says
# Hooks that give back what autograd did not keep: any clear error will do.
_BROKEN_HOOKS = ("stay_sparse", "wrapper", "subclass", "meta", "flat", "shorter", "freed", "none")


def raised(case: Case, error: BaseException, theirs: Outcome | None, near: Outcome | None = None) -> Finding | None:
    """What is wrong with an error of normkit's. near: what torch's nearest norm finds where it has no such norm."""
    text, name = _text(error), type(error).__name__
    if is_promised(case, text):
        return None
    own = isinstance(error, _OWN) or any(t in text for t in _OWN_TEXTS) or not text
    broken = is_broken(case)
    mixed = bool(case.transform or case.contexts) and any(t in text for t in _MIXED)  # where torch may decompose
    if theirs is None:
        if own:
            return Finding("unclear error", f"{name}: {text}", "no error of the user's", 2 if broken else 4)
        unanswered = near is None or near.error is not None or case.mask in ("float", "wrong")
        if unanswered or broken or mixed or _says_nothing(case):
            return None
        return Finding("refused", f"{name}: {text}", "torch computes the nearest norm that it has", 3)
    if theirs.error is None:
        if not own and (broken or mixed or _says_nothing(case)):
            return None
        kind = "unclear error" if own else "refused"
        return Finding(kind, f"{name}: {text}", "torch computes this", 4 if own else 3)
    if isinstance(error, type(theirs.error)) or name == type(theirs.error).__name__:
        return None
    detail = f"torch raises {type(theirs.error).__name__}: {_text(theirs.error)}"
    if own and not is_special(case):
        return Finding("unclear error", f"{name}: {text}", detail, 3)
    if own or is_special(case) or _several_wrongs(case):
        return None
    return Finding("other error", f"{name}: {text}", detail, 1)


def accepted(case: Case, theirs: Outcome | None, truth: Truth | None) -> Finding | None:
    """An error of torch's that normkit does not raise. Where the numbers are right, only plain calls have to raise."""
    if theirs is None or theirs.error is None or (truth is not None and 0 in case.shape):
        return None
    error = theirs.error
    if (case.transform or case.contexts) and case.eps in WRONG_EPS:
        return None  # composed operations add what torch can add
    if isinstance(error, IndexError) or any(t in str(error) for t in _TORCHS_FAULTS) or is_promised(case, str(error)):
        return None  # an index error: tensors without channels
    if truth is not None and any(t in str(error) for t in _MIXED):
        return None
    if truth is not None and (is_special(case) or any(a.trick for a in case.tensors.values())):
        return None
    text = f"{type(error).__name__}: {_text(error)}"
    return Finding("accepted", text, "torch raises this, normkit computes", 1 if truth is not None else 3)


def is_broken(case: Case) -> bool:
    """Whether hooks give back what autograd did not keep."""
    return any(f"saved({h!r})" in case.contexts for h in _BROKEN_HOOKS)


def is_special(case: Case) -> bool:
    """Whether more than one call of a norm on whole tensors is at stake."""
    special = case.contexts or case.around or case.transform or case.edit or case.hook or case.after
    return bool(special) or case.plan not in ("none", "backward", "grad", "sum") or case.activation in WRONG_ACTIVATIONS


def _several_wrongs(case: Case) -> bool:
    """Whether it is a matter of order which error comes first."""
    untracked = "running" in NORMS[case.norm].takes and not case.training and "running_mean" not in case.tensors
    wrongs = [untracked, case.momentum == "None" and not case.layer, case.eps == "None", 0 in case.shape, case.part < 1]
    wrongs.append(case.training and math.prod(case.shape) == channels(case))  # one value per channel
    wrongs += [a.size is not None or a.dtype not in DTYPES for a in case.tensors.values()]
    return sum(wrongs) > 1


def _says_nothing(case: Case) -> bool:
    """Whether an error is as good as a result."""
    empty = 0 in case.shape
    given = {name: array for name, array in case.tensors.items() if name != "dy"}
    no_norm = any(a.dtype not in DTYPES for a in given.values())  # whole numbers, bools, complex parameters
    # torch does not look at other tensors where there are no values, nor for the statistics of an evaluation
    unlooked = empty and any(a.size is not None or a.trick for a in case.tensors.values())
    unlooked = unlooked or (empty and not case.training and "running_mean" not in case.tensors)
    immutable = any(a.trick == "zerotensor" for n, a in given.items() if n.startswith("running"))  # torch writes to it
    layouts = ("sparse", "mkldnn")  # torch adds what is sparse, and fake tensors hide what a layout makes impossible
    sparse = any(
        a.trick in layouts for n, a in case.tensors.items() if n in ("residual", "scale", "shift") or is_fake(case)
    )
    return no_norm or unlooked or immutable or sparse or case.activation in WRONG_ACTIVATIONS


def _text(error: BaseException) -> str:
    """Its words in one line, without a C++ trace."""
    return " ".join(str(error).split("Exception raised from")[0].split())[:160]
