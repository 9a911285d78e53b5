"""The bugs that the tests must notice: classic ones, and those that once survived. `tools.mutation` plants them."""

from __future__ import annotations

from dataclasses import dataclass

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
FOLD, FREEZE, RECALIBRATE = (f"tests/{name}.py" for name in (
    "surgery/test_fold", "surgery/test_freeze", "statistics/test_recalibrate"))  # fmt: skip
CAFFE, HAND_MADE, LOADED, ONNX = (f"tests/frameworks/test_{name}.py" for name in ("caffe", "hand_made", "load", "onnx"))
COMMANDS = "tests/commands/test_change.py"


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
        "moved = wide * (1 - factor) + new * factor",
        "moved = wide * factor + new * (1 - factor)", RUNNING),
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
        "    if weight is not None:\n        y = y * spread(weight, xhat)\n"
        "    if bias is not None:\n        y = y + spread(bias, xhat)\n",
        "    if bias is not None:\n        y = y + spread(bias, xhat)\n"
        "    if weight is not None:\n        y = y * spread(weight, xhat)\n", BATCH),
    "sums_in_the_input_dtype": Bug(
        "statistics are summed in float32", "moments.py", "wide = x.to(accumulator_dtype(x))", "wide = x", MOMENTS),
    "square_of_the_mean": Bug(
        "m2 = sum(x^2) - n*mean^2", "moments.py", "m2 = _squeeze(total_over(deviation.square(), dims), dims)",
        "m2 = (wide * wide).sum(dims) - (0 * mean if mask is not None else mean * mean * count).sum(dims)",
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
        "return x if full is None else torch.where(full, x, 0)", "return x if full is None else x * full",
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
        "        if not takes_operations(dy):\n", "        if True:\n",
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
        "    r = (_var(moments) + eps).sqrt() / sigma",
        "    with torch.enable_grad():\n        r = (moments.m2 / moments.count + eps).sqrt() / sigma\n        return "
        "r.clamp(1 / torch.as_tensor(limits[0]), torch.as_tensor(limits[0])), ((mean - target.mean) / sigma).clamp("
        "-limits[1], limits[1])", RENORM),
    "renorm_clips_one_side": Bug(
        "r has no lower limit", "functional/batch_renorm.py", "r.clamp(1 / r_max, r_max)", "r.clamp(0 * r_max, r_max)",
        RENORM),
    "renorm_recomputes_its_correction": Bug(
        "under a checkpoint r and d come from the moved statistics", "functional/batch_renorm.py",
        "    if running.is_recomputation():\n        return recent.recall(moments, r, d)\n", "", CHECKPOINT),
    "frozen_follows_train": Bug(
        "a frozen layer uses batch statistics in train()", "nn/frozen_batch_norm.py",
        'running, False, self.__dict__["eps"]', 'running, self.training, self.__dict__["eps"]', FROZEN),
    "sync_gradient_of_one_rank": Bug(
        "the gradient of gathered statistics stays on its rank", "functional/sync_batch_norm.py",
        "_Sum.apply(wanted, ctx.group)", "wanted", SYNC),
    "sync_native_gradient_of_one_rank": Bug(
        "the kernels' sums stay on their rank", "functional/sync_batch_norm.py",
        "total(torch.stack([slope * dbias, slope * rstd / (2 * count) * dweight]), self.group)",
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
        "a compiled graph has the default eps", "functional/group_norm.py", "operator(self.num_groups, self.eps,",
        "operator(self.num_groups, 1e-5,", COMPILE),
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
        "any change of the answer is an error", "doctor/blame.py", "a > max(2 * scale * b, FELT)", "a > 0",
        "tests/doctor/test_models.py"),
    "doctor_hands_its_batches_on": Bug(
        "a model that works in place changes the batches", "doctor/answers.py", "in map(cloned, batches)", "in batches",
        "tests/doctor/test_models.py"),
    "doctor_runs_pickles": Bug(
        "a checkpoint's code is run", "_checkpoint.py", "weights_only=True)", "weights_only=False)",
        "tests/doctor/test_files.py"),
    # --- surgery
    "fold_without_eps": Bug(
        "the folded scale forgets eps", "surgery/affine.py", "scale = (var + eps(norm)).rsqrt()", "scale = var.rsqrt()",
        FOLD),
    "fold_forgets_the_bias_of_the_layer": Bug(
        "a bias in front is not scaled", "surgery/affine.py", "weights.bias * affine.scale + affine.shift)",
        "weights.bias + affine.shift)", FOLD),
    "fold_repeats_the_channels": Bug(
        "a flattened map takes its channels by turns", "surgery/affine.py",
        "Affine(self.scale.repeat_interleave(times), self.shift.repeat_interleave(times))",
        "Affine(self.scale.repeat(times), self.shift.repeat(times))", FOLD),
    "fold_across_zeros": Bug(
        "a shift in front of a border of zeros is folded", "surgery/fold_plan.py",
        "at_border = border(layer) if bool(affine.shift.any()) else None", "at_border = None", FOLD),
    "fold_of_what_others_read": Bug(
        "a feature map that something else reads is folded over", "surgery/fold_flow.py",
        "            if others:\n", "            if False:\n", FOLD),
    "frozen_parameters_still_train": Bug(
        "an optimizer moves what is frozen", "surgery/thaw.py",
        "        parameter.requires_grad_(False)\n        parameter.grad = None",
        "        parameter.grad = None", FREEZE),
    "frozen_gradient_is_still_applied": Bug(
        "a pending gradient moves what is frozen", "surgery/thaw.py", "        parameter.grad = None  #",
        "        pass  #", FREEZE),
    "unfrozen_forgets_what_was_trained": Bug(
        "what did not train before trains after", "surgery/thaw.py", "parameter.requires_grad_(trained)",
        "parameter.requires_grad_(True)", FREEZE),
    "factor_of_a_sum_is_not_rounded": Bug(
        "behind an addition 1 + weight is not rounded first", "model/row_norm.py",
        "        weight = self._factor(weight, cast)\n        if self._in_kernel(weight, cast, x.dtype):",
        "        weight = self._factor(weight, BEFORE)\n        if self._in_kernel(weight, cast, x.dtype):",
        "tests/surgery/test_additions.py"),
    "groups_of_one_channel": Bug(
        "group norm with a channel a group", "surgery/build.py", "least = 8 if flat else 2", "least = 1",
        "tests/surgery/test_convert.py"),
    "converted_with_the_default_eps": Bug(
        "a converted layer has another eps", "surgery/build.py", '    options["eps"] = facts.eps\n', "",
        "tests/surgery/test_convert.py"),
    "decayed_biases": Bug(
        "biases of other layers decay", "surgery/parameter_groups.py",
        'name == "bias" or name.endswith("_bias") or ', "", "tests/surgery/test_parameter_groups.py"),
    # --- statistics
    "recalibrated_biased": Bug(
        "the exact variance is biased", "statistics/accumulator.py", "self.moments.var(correction=1)",
        "self.moments.var(correction=0)", RECALIBRATE),
    "batch_average_without_bessel": Bug(
        "the average of batch variances is biased", "statistics/accumulator.py", "(counts - 1).clamp(min=0)", "counts",
        RECALIBRATE),
    "recalibrated_from_inf": Bug(
        "a batch with Inf counts", "statistics/accumulator.py", "        counts = counts * finite\n", "",
        "tests/statistics/test_left_alone.py"),
    "merged_counters_of_the_least": Bug(
        "the merged counter is the smallest", "statistics/merge.py", ".amax(0)", ".amin(0)",
        "tests/statistics/test_merge.py"),
    "merge_by_the_plain_mean": Bug(
        "weights of federated clients are forgotten", "statistics/merge.py",
        "found = [float(weight) for weight in (weights.tolist() if isinstance(weights, Tensor) else weights)]",
        "found = [1.0 for weight in (weights.tolist() if isinstance(weights, Tensor) else weights)]",
        "tests/statistics/test_merge.py"),
    "tent_goes_up": Bug(
        "entropy is maximized", "statistics/tent.py", "return -(logits.softmax(1)", "return (logits.softmax(1)",
        "tests/statistics/test_tent.py"),
    # --- padding, domains
    "turned_samples_keep_their_places": Bug(
        "samples that flip changes leave their lengths behind", "padding/alone.py",
        "chosen(call.track, call.run(order).flatten())", "call.track", "tests/padding/test_axes.py"),
    "sorted_samples_keep_their_lengths": Bug(
        "values sorted over the samples have the lengths of before", "padding/order.py",
        "if flat or dim % len(shape) == call.track.batch:", "if flat:", "tests/padding/test_axes.py"),
    "domains_without_the_mask": Bug(
        "where a graph hides other domains' samples the caller's mask is lost", "nn/domain_call.py",
        "mask if self.mask is None else mask & _shapes.channel_mask(self.mask, self.input)", "mask",
        "tests/nn/test_domain_batch_norm.py"),
    # --- functional, masks
    "lengths_are_not_verified": Bug(
        "a length beyond the input is taken", "functional/mask.py", "(lengths < 0) | (lengths > max_length)",
        "(lengths < 0)", MASK),
    "composed_group_norm_forgets_its_eps": Bug(
        "the composed group norm has the default eps", "functional/group_norm.py",
        "composed.group_norm(operands, self.num_groups, self.activation, self.eps)",
        "composed.group_norm(operands, self.num_groups, self.activation, 1e-5)", "tests/functional/test_group_norm.py"),
    # --- other frameworks, commands
    "caffe_without_its_factor": Bug(
        "Caffe's sums are taken for statistics", "frameworks/caffe.py", "inverse = 1 / factor if factor else 0.0",
        "inverse = 1.0", CAFFE),
    "caffes_scale_of_anybody": Bug(
        "a Scale behind a ReLU is the norm's", "frameworks/caffe.py",
        "return reader if reader is not None and reader.type ==",
        "reader = next((x for x in layers if x.type == 'Scale' and norm.top[0] in x.bottom), None)\n"
        "    return reader if reader is not None and reader.type ==", CAFFE),
    "haikus_hidden_sum": Bug(
        "the sum that begins at zero is the mean", "frameworks/haiku.py", '_vector(own["average"]',
        '_vector(own["hidden"]', HAND_MADE),
    "momentum_of_the_other_side": Bug(
        "0.99 becomes PyTorch's momentum", "frameworks/written.py", "round(1 - kept, 12)", "round(kept, 12)", LOADED),
    "fixed_gamma_counts": Bug(
        "a symbol's fixed gamma scales", "frameworks/mxnet.py", '{**own, "weight": None}', "own", HAND_MADE),
    "fixed_gamma_trains": Bug(
        "a gamma that is not there learns", "frameworks/written.py", "            parameter.requires_grad_(False)",
        "            pass", LOADED),
    "batch_norm_for_its_own_class_alone": Bug(
        "what keeps statistics is refused for its class", "frameworks/written.py",
        "if theirs is None or self.norm.tracked:", "if theirs is None:", ONNX),
    "short_name_goes_first": Bug(
        "a name without what all begin with hides a whole one", "frameworks/match.py",
        "loosely = by_name | loosely", "loosely = loosely | by_name", LOADED),
    "weights_that_nearly_fit": Bug(
        "missing weights stay random", "commands/weights.py", "return missing + beyond + others",
        "return beyond + others", COMMANDS),
    "written_over_the_input": Bug(
        "a command writes over the weights that it read", "commands/output.py",
        "if source is not None and path.exists()", "if False and path.exists()", COMMANDS),
}  # fmt: skip
