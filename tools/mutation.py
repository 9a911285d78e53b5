"""Plant classic bugs one at a time in a copy of the package and see whether the tests notice.

    python -m tools.mutation            all of them, one after the other
    python -m tools.mutation NAME ...   some
    python -m tools.mutation --list     their names

Each bug replaces one piece of text in one file of a temporary copy of src/normkit; the real tree is never touched. The
tests named beside it run against that copy, in a process bounded in time. Exit code 1 when a bug is missed or when its
text is no longer there (then the code has moved on, and the bug must be planted anew).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 240  # seconds for one bug's tests

# The editable install finds the package before any path does; the copy must come first, in child processes too.
CUSTOMIZE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "Redirecting" not in type(f).__name__]
"""

BATCH = "tests/functional/test_batch_norm.py"
DERIVATIVES = "tests/functional/test_batch_norm_derivatives.py"
RUNNING = "tests/functional/test_running.py"
CHECKPOINT = "tests/functional/test_checkpoint.py"
MASK = "tests/functional/test_mask.py"
MOMENTS = "tests/test_moments.py"
GHOST, RENORM = "tests/nn/test_ghost_batch_norm.py", "tests/nn/test_batch_renorm.py"
FROZEN, SYNC = "tests/nn/test_frozen_batch_norm.py", "tests/nn/test_sync_batch_norm.py"
DEFERRED = "tests/statistics/test_deferred.py"
OPTIONS, CONSTRUCTORS = "tests/nn/test_options.py", "tests/nn/test_constructors.py"
ARGUMENTS, INSTANCE = "tests/functional/test_arguments.py", "tests/functional/test_instance_norm.py"
EDGES, IN_PLACE = "tests/functional/test_edges_of_the_road.py", "tests/model/test_in_place.py"
GAP, PAGE = "tests/doctor/test_gap.py", "tests/doctor/test_page.py"
DOCTOR = "tests/doctor/test_diagnose.py"
COMPILE, EXPORT = "tests/test_compile.py", "tests/test_export.py"


@dataclass(frozen=True)
class Bug:
    """One bug: what it is, in which file which text becomes which, and the tests that should see it."""

    what: str
    file: str
    old: str
    new: str
    tests: str


BUGS: dict[str, Bug] = {
    "biased_running_variance": Bug(
        "the running variance averages the biased variance", "functional/running.py",
        "var = spread / (count - 1) if samples is None else spread",
        "var = spread / count if samples is None else spread", RUNNING),
    "native_move_forgets_the_count": Bug(
        "a batch that the core could not move by is taken for one of another size", "functional/batch_norm.py",
        "input.numel() // max(1, input.shape[1])", "input.numel()", DEFERRED),
    "momentum_turned_round": Bug(
        "momentum weighs the old value", "functional/running.py",
        "moved = buffer.to(new.dtype) * (1 - factor) + new * factor",
        "moved = buffer.to(new.dtype) * factor + new * (1 - factor)", RUNNING),
    "cumulative_average_off_by_one": Bug(
        "momentum=None divides by the batches before this one", "functional/running.py",
        "factor = 1.0 / batches.to(mean.dtype).clamp(min=1).unsqueeze(-1)",
        "factor = 1.0 / (batches.to(mean.dtype) - 1).clamp(min=1).unsqueeze(-1)", RUNNING),
    "eps_outside_the_root": Bug(
        "1 / (sqrt(var) + eps)", "kernels/composed.py",
        "torch.rsqrt((var if real is None else torch.where(real, var, 1)) + eps)",
        "(1 / ((var if real is None else torch.where(real, var, 1)).sqrt() + eps))", BATCH),
    "unbiased_variance_in_the_output": Bug(
        "the output is scaled by the unbiased variance", "kernels/composed.py",
        "_rstd(beside.m2 / values, eps, real)", "_rstd(beside.m2 / (values - 1), eps, real)", BATCH),
    "detached_statistics": Bug(
        "no gradient flows through mean and variance", "kernels/composed.py",
        "beside = moments.beside(wide)", "beside = moments.detach().beside(wide)", BATCH),
    "bias_before_scale": Bug(
        "y = (xhat + bias) * weight", "kernels/composed.py",
        "    if weight is not None:\n        y = y * weight\n    if bias is not None:\n        y = y + bias\n",
        "    if bias is not None:\n        y = y + bias\n    if weight is not None:\n        y = y * weight\n", BATCH),
    "sums_in_the_input_dtype": Bug(
        "statistics are summed in float32", "moments.py", "wide = x.to(accumulator_dtype(x))", "wide = x", MOMENTS),
    "square_of_the_mean": Bug(
        "m2 = sum(x^2) - n*mean^2", "moments.py", "        m2 = deviation.square().sum(dims)",
        "        m2 = (wide * wide).sum(dims) - (0 * mean if mask is not None else mean * mean * count).sum(dims)",
        MOMENTS),
    "merge_without_the_between_term": Bug(
        "merged m2 forgets the distance of the means", "moments.py",
        "self.m2 + other.m2 + delta.square() * (share * n_a)", "self.m2 + other.m2", MOMENTS),
    "merge_with_the_other_share": Bug(
        "the merged mean weighs the wrong set", "moments.py", "share: float | Tensor = n_b / (n_a + n_b)",
        "share: float | Tensor = n_a / (n_a + n_b)", MOMENTS),
    "dropped_layout": Bug(
        "channels_last comes back contiguous", "kernels/composed.py",
        "    return cleared(y, mask)\n\n", "    return cleared(y.contiguous(), mask)\n\n", BATCH),
    "mask_that_multiplies": Bug(
        "values under the mask are multiplied by 0, so NaN leaks", "moments.py",
        "mean = torch.where(full, wide, 0).sum(dims, keepdim=True)", "mean = (wide * full).sum(dims, keepdim=True)",
        MASK),
    "mask_before_the_activation": Bug(
        "padding is not zeroed at the end", "kernels/composed.py",
        "    return cleared(y, mask)\n\n", "    return y\n\n", MASK),
    "mask_without_count": Bug(
        "masked sums are divided by all positions", "moments.py", "kept = full.sum(dims, keepdim=True)",
        "kept = torch.ones_like(full).sum(dims, keepdim=True)", MASK),
    "residual_under_the_mask": Bug(
        "the residual reaches masked positions", "kernels/composed.py",
        "y = y + cleared(residual, mask)", "y = y + (residual if mask is None else residual * mask)", MASK),
    "length_off_by_one": Bug(
        "a mask from lengths keeps one value too many", "functional/mask.py",
        "torch.arange(max_length, device=lengths.device) < lengths", "torch.arange(max_length) <= lengths", MASK),
    "checkpoint_counts_twice": Bug(
        "a recomputation moves the running statistics", "functional/running.py",
        "return not torch.compiler.is_compiling() and core.is_recomputation()", "return False",
        CHECKPOINT),
    "poisoned_by_one_inf": Bug(
        "a batch that is not finite moves the statistics", "functional/running.py",
        "finite = (mean.to(running_mean.dtype).isfinite() & var.to(running_var.dtype).isfinite()).all(-1)",
        "finite = torch.ones((), dtype=torch.bool)", RUNNING),
    "empty_batch_counts": Bug(
        "an empty batch is counted", "functional/running.py",
        "        if count < 2:\n            return\n    elif",
        "        if count < 2:\n            return running.batches.add_(1)\n    elif", RUNNING),
    "narrow_after_half": Bug(
        ".bfloat16() rounds the running statistics", "nn/base.py", "            if is_narrow(new):",
        "            if False:", RUNNING),
    "narrow_after_assign": Bug(
        "load_state_dict(assign=True) brings bfloat16 statistics in", "nn/base.py",
        "        super()._load_from_state_dict(*arguments)\n        self._widen_statistics()",
        "        super()._load_from_state_dict(*arguments)", RUNNING),
    "second_derivative_by_the_core": Bug(
        "create_graph=True gets gradients without a graph", "functional/_autograd.py",
        "        if not _takes_operations(dy):\n", "        if True:\n",
        DERIVATIVES),
    "double_backward_by_fixed_statistics": Bug(
        "second derivatives hold mean and variance fixed", "functional/batch_norm.py",
        "        if not self.training:\n            mean, var = self.given() if stats is None else stats[:2]\n",
        "        if not self.training or stats is not None:\n            mean, var = stats[:2]\n", DERIVATIVES),
    "slope_of_the_wrong_side": Bug(
        "the slope of a fused relu is taken from the other side", "functional/_autograd.py",
        "torch.where(positive, dy, activation.param * dy)",
        "torch.where(positive, activation.param * dy, dy)", DERIVATIVES),
    "small_batch_moves": Bug(
        "a batch of one value is normalized by itself", "functional/batch_norm.py",
        "            return given.verified(operands)\n", "", RUNNING),
    "ghost_slice_of_one": Bug(
        "a ghost slice of a single sample", "functional/ghost_batch_norm.py", "num_samples // 2)", "num_samples)",
        GHOST),
    "ghost_moves_by_its_last_slice": Bug(
        "running statistics are the last slice's", "functional/ghost_batch_norm.py",
        "whole = slices.merge_along(0)", "whole = Moments(slices.count[-1], slices.mean[-1], slices.m2[-1])", GHOST),
    "renorm_after_the_move": Bug(
        "r and d use the statistics after the batch moved them", "functional/batch_renorm.py",
        "            r, d = _correction(self, moments)\n            running.move(self.running, moments)\n",
        "            running.move(self.running, moments)\n            r, d = _correction(self, moments)\n",
        RENORM),
    "renorm_with_a_gradient": Bug(
        "r is differentiated", "functional/batch_renorm.py",
        "    r = (_var(moments).detach() + eps).sqrt() / sigma",
        "    with torch.enable_grad():\n        r = (_var(moments) + eps).sqrt() / sigma\n        return r.clamp("
        "1 / torch.as_tensor(limits[0]), torch.as_tensor(limits[0])), ((mean - target.mean) / sigma).clamp("
        "-limits[1], limits[1])", RENORM),
    "renorm_clips_one_side": Bug(
        "r has no lower limit", "functional/batch_renorm.py", "r.clamp(1 / r_max, r_max)", "r.clamp(0 * r_max, r_max)",
        RENORM),
    "renorm_recomputes_its_correction": Bug(
        "under a checkpoint r and d come from the moved statistics", "functional/batch_renorm.py",
        "    if running.is_recomputation():\n        return recent.of(moments, r, d)\n", "", CHECKPOINT),
    "frozen_follows_train": Bug(
        "a frozen layer uses batch statistics in train()", "nn/frozen_batch_norm.py",
        'running, False, self.__dict__["eps"]', 'running, self.training, self.__dict__["eps"]', FROZEN),
    "sync_gradient_of_one_rank": Bug(
        "the gradient of gathered statistics stays on its rank", "functional/sync_batch_norm.py",
        "_Sum.apply(wanted, ctx.group)", "wanted", SYNC),
    "sync_native_gradient_of_one_rank": Bug(
        "the kernels' sums stay on their rank", "functional/sync_batch_norm.py",
        "_Sum.apply(torch.stack([slope * dbias, slope * rstd / (2 * count) * dweight]), self.group)",
        "torch.stack([slope * dbias, slope * rstd / (2 * count) * dweight])", SYNC),
    "deferred_moves_on_an_exception": Bug(
        "statistics held back move though the step failed", "statistics/deferred.py",
        "        if kind is not None:\n            return", "        if False:\n            return", DEFERRED),
    "deferred_last_wins": Bug(
        "of several micro-batches only the last counts", "statistics/deferred.py", "merged = merged.merge(batch)",
        "merged = batch", DEFERRED),
    "evaluation_by_the_batch": Bug(
        "evaluation uses the batch's statistics", "nn/batch_norm.py", "self.training or running is None",
        "True", RUNNING),
    "frozen_ignores_its_eps": Bug(
        "a layer normalizes by the default eps", "nn/frozen_batch_norm.py", 'running, False, self.__dict__["eps"]',
        "running, False, 1e-5", OPTIONS),
    "ghost_ignores_its_eps": Bug(
        "the slices' norm has the default eps", "functional/ghost_batch_norm.py", "norm.running, True, norm.eps",
        "norm.running, True, 1e-5", OPTIONS),
    "correction_ignores_its_eps": Bug(
        "r and d are made with the default eps", "functional/batch_renorm.py",
        "correction(moments, norm.running, norm.eps,", "correction(moments, norm.running, 1e-5,", OPTIONS),
    "sync_ignores_its_eps": Bug(
        "the norm of all ranks has the default eps", "functional/sync_batch_norm.py", "norm.running, True, norm.eps",
        "norm.running, True, 1e-5", SYNC),
    "operator_ignores_its_eps": Bug(
        "a compiled graph has the default eps", "functional/group_norm.py", "OPERATOR(self.num_groups, self.eps,",
        "OPERATOR(self.num_groups, 1e-5,", COMPILE),
    "exported_momentum": Bug(
        "an exported program moves by the default momentum", "functional/batch_norm.py",
        "factor = momentum if self.training", "factor = 0.1 if self.training", EXPORT),
    "limits_swapped": Bug(
        "r_max and d_max change places", "functional/batch_renorm.py", "Limits(r_max, d_max), None)",
        "Limits(d_max, r_max), None)", ARGUMENTS),
    "ghost_without_bias_has_one": Bug(
        "a constructor drops an argument", "nn/ghost_batch_norm.py", "dtype, bias=bias,", "dtype,", CONSTRUCTORS),
    "small_batch_of_slices": Bug(
        "the norm of slices forgets the policy for a single value", "functional/ghost_batch_norm.py",
        "norm.eps, norm.small_batch, sizes", 'norm.eps, "error", sizes', MASK),
    "instance_counts_twice": Bug(
        "a recomputation moves an instance norm's statistics", "functional/running.py",
        "    if is_recomputation():\n        return\n    update = Averages", "    update = Averages", CHECKPOINT),
    "average_without_a_counter": Bug(
        "momentum=None moves though nothing counts the batches", "nn/base.py",
        "if momentum is None and batches is None:", "if batches is None and (momentum := momentum or 0.1) < 0:",
        RUNNING),
    "tracking_switched_off_later": Bug(
        "evaluation goes by statistics that are tracked no more", "nn/instance_norm.py",
        "self.training or not self.track_running_stats or", "self.training or", INSTANCE),
    "vmapped_slices_weigh_alike": Bug(
        "a slice without countable samples weighs as much as any", "functional/running.py",
        "(mean * share).sum(0), (spread * share).sum(0)", "mean.mean(0), spread.mean(0)", EDGES),
    "example_inputs_are_the_users": Bug(
        "a model that works in place changes the example inputs", "model/dataflow.py", "leaf.detach().clone() if",
        "leaf.detach() if", IN_PLACE),
    "gap_by_batch_statistics": Bug(
        "layers are switched to their batch's statistics, so that a later norm repairs an earlier fault",
        "doctor/switch.py", "lambda: {module: under(module, *self.exact[module]) for module in exact}",
        "lambda: {x.module: sampling(x, _empty(x), []) for x in self.layers if x.module in exact}", GAP),
    "gap_after_one_pass": Bug(
        "exact statistics are those under batch statistics", "doctor/exact.py", "REFINEMENTS = 3", "REFINEMENTS = 0",
        "tests/doctor/test_switch.py"),
    "gap_without_its_noise": Bug(
        "any gap counts, also what batches differ by", "doctor/gap_report.py", "if abs(self.gap) <= self.limit:",
        "if abs(self.gap) <= 0:", GAP),
    "share_of_a_layer_alone": Bug(
        "each player is switched alone, so the shares do not add up", "doctor/shares.py",
        "before = frozenset(order[:place])", "before = frozenset()", "tests/doctor/test_shares.py"),
    "page_with_unescaped_texts": Bug(
        "a layer's name is HTML", "doctor/html.py", "return _escaped(children) if", "return children if", PAGE),
    "page_whose_data_end_their_script": Bug(
        "a layer's name closes the script element", "doctor/page.py",
        r'text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")', "text", PAGE),
    "doctor_blames_under_running_statistics": Bug(
        "a layer is judged in a network whose other layers are as they are, so that harm adds up", "doctor/blame.py",
        "m: pair for m, pair in self.exact.items() if m is not layer.module",
        "m: pair for m, pair in self.exact.items() if m is layer.module", DOCTOR),
    "doctor_counts_pixels": Bug(
        "values of one image count as independent", "doctor/watch.py", "n = int(self.means.count)\n",
        "n = int(self.moments.count)\n", DOCTOR),
    "doctor_feels_without_noise": Bug(
        "any change of the answer is an error", "doctor/blame.py", "a > max(2 * b, FELT)", "a > 0",
        "tests/doctor/test_models.py"),
    "doctor_hands_its_batches_on": Bug(
        "a model that works in place changes the batches", "doctor/answers.py", "in map(cloned, batches)", "in batches",
        "tests/doctor/test_models.py"),
    "doctor_runs_pickles": Bug(
        "a checkpoint's code is run", "_checkpoint.py", "weights_only=True)", "weights_only=False)",
        "tests/doctor/test_files.py"),
}  # fmt: skip


def plant(bug: Bug, copy: Path) -> None:
    """Copy the package and put the bug in; ValueError when its text is not there."""
    shutil.copytree(ROOT / "src" / "normkit", copy / "normkit", ignore=shutil.ignore_patterns("__pycache__"))
    native = importlib.util.find_spec("normkit._native")
    if native is not None and native.origin is not None:
        shutil.copy(native.origin, copy / "normkit")
    (copy / "sitecustomize.py").write_text(CUSTOMIZE)
    target = copy / "normkit" / bug.file
    text = target.read_text()
    if bug.old not in text:
        raise ValueError(f"{bug.file} no longer holds the text to replace: {bug.old!r}")
    target.write_text(text.replace(bug.old, bug.new, 1))


def caught(bug: Bug) -> tuple[bool, str]:
    """Whether the tests fail with the bug in, and the first test that did (or why not)."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            plant(bug, Path(folder))
        except ValueError as error:
            return False, str(error)
        arguments = [bug.tests, "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-m", "not nightly", "--tb=no"]
        command = [sys.executable, "-m", "pytest", *arguments]
        environment = {**os.environ, "PYTHONPATH": folder}
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return True, f"the tests did not end within {LIMIT} s"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if done.returncode == 1 and failed:
        return True, failed[0].split(" ", 1)[1].split(" - ")[0]
    if done.returncode == 0:
        return False, f"{bug.tests} pass"
    return done.returncode < 0, (done.stdout + done.stderr)[-300:]  # a crash is a catch, a broken run is not


def main() -> int:
    parser = argparse.ArgumentParser(description="Plant classic bugs and see whether the tests notice.")
    parser.add_argument("names", nargs="*", help="bugs to plant; all by default")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BUGS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; --list shows the names")
    if options.list:
        print("\n".join(f"{name:36}{bug.what}" for name, bug in BUGS.items()))
        return 0
    names, found, sound = options.names or list(BUGS), 0, set()
    for name in names:
        tests = BUGS[name].tests
        if tests not in sound:  # a test that fails anyway would catch everything
            broken, by = caught(replace(BUGS[name], new=BUGS[name].old))
            if broken:
                parser.error(f"{tests} fails without any bug: {by}")
            sound.add(tests)
        ok, by = caught(BUGS[name])
        found += ok
        print(f"{'caught' if ok else 'MISSED':8}{name:38}{by}", flush=True)
    print(f"{found} of {len(names)} caught")
    return 0 if found == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())
