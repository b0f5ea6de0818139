"""Faults that the library once had, or nearly had, planted back by name: each must be found by a test.

A fault is the smallest edit of today's code that brings the wrong behaviour back. Most stand for a kind of situation
that users have reported of some library: a criterion with a divisor of its own, a batch of graphs, a checkpoint that a
hook rebuilds.
"""

from dataclasses import dataclass

LAWS = "tests/callbacks/test_laws_of_the_step.py"
NAMED = "tests/callbacks/test_named_criteria.py"
SAMPLES = "tests/callbacks/test_samples.py"
EVALUATION = "tests/callbacks/test_evaluation_steps.py"
PROBLEMS = "tests/callbacks/test_problems.py"
TEACHERS = "tests/callbacks/test_teacher_calls.py"
TEACHER_FILES = "tests/callbacks/test_load_network.py tests/callbacks/test_teacher_weights.py"
AVERAGES = "tests/averaging tests/callbacks/test_average_weights.py tests/callbacks/test_exchange.py"
FILES = "tests/callbacks/test_average_checkpoints.py"
EPOCHS = "tests/callbacks/test_epochs.py"
MERGES = (
    "tests/callbacks/test_merge_checkpoints.py tests/callbacks/test_merged_file.py tests/merging/test_merged_content.py"
)
STEP, WEIGHTS, SNAPSHOTS = (f"lightning_objectives/{room}" for room in ("_step", "_weights", "_snapshots"))
CALLBACKS, FILES_OF = "lightning_objectives/callbacks", "lightning_objectives/_files"


@dataclass(frozen=True)
class OldFault:
    """One fault.

    Args:
        name: what it is called.
        wrong: what goes wrong, in a sentence.
        file: where it is planted.
        now: the text of today, which occurs once in the file.
        then: the text that takes its place.
        tests: the files of tests that look for it, with spaces between them.
    """

    name: str
    wrong: str
    file: str
    now: str
    then: str
    tests: str


OLD_FAULTS = (
    OldFault(
        "a mean over weights",
        "Weights of one change a weighted mean squared error, whose divisor is the sum of its weights.",
        f"{STEP}/calls.py",
        'Criterion(F.mse_loss, "regression", weight_divides=True)',
        'Criterion(F.mse_loss, "regression")',
        LAWS,
    ),
    OldFault(
        "a named criterion of images",
        "The value of a named criterion is divided by the number of pixels once more.",
        f"{STEP}/named.py",
        "return self._value + change.sum().view_as(self._value)",
        "return (self._value + change.sum().view_as(self._value)) / max(1, self.input[0, :1].numel())",
        f"{NAMED} {LAWS}",
    ),
    OldFault(
        "a criterion that cannot be vectorized",
        "A named criterion with an `if` of its values fails with an error of torch's vmap.",
        f"{STEP}/named.py",
        r'self._obstacle = str(error).strip().partition("\n")[0]',
        "raise",
        NAMED,
    ),
    OldFault(
        "a criterion called by keyword",
        "A named criterion that is called with the target first is read the wrong way round.",
        f"{STEP}/arguments.py",
        "first = next(iter(differentiable or called or floating or tensors), None)",
        "first = next(iter(tensors), None)",
        NAMED,
    ),
    OldFault(
        "a target in a tuple",
        "A named criterion whose target is a tuple is refused.",
        f"{STEP}/arguments.py",
        "if isinstance(leaf, Tensor) and leaf.dim() > 0]\n    names",
        "if isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaves) == len(args) + len(kwargs)]\n    names",
        NAMED,
    ),
    OldFault(
        "a criterion with a call of its own",
        "A named criterion whose class overrides __call__ is not caught.",
        f"{STEP}/named.py",
        "if type(self.criterion).__call__ is not nn.Module.__call__:",
        "if False:",
        NAMED,
    ),
    OldFault(
        "a criterion that torch has",
        "Huber's loss is not caught without a name.",
        f"{STEP}/calls.py",
        '        Criterion(F.huber_loss, "regression"),\n',
        "",
        LAWS,
    ),
    OldFault(
        "a criterion that does not act by row",
        "A method that needs no losses of samples is refused under a criterion that has none.",
        f"{STEP}/named.py",
        '"""What the criterion returned to the user\'s code."""\n        return self._value',
        '"""What the criterion returned to the user\'s code."""\n        return self._split and self._value',
        f"{NAMED} {PROBLEMS}",
    ),
    OldFault(
        "classes in a regression",
        "A loss for classes replaces a regression's, and falls without end.",
        f"{STEP}/problems.py",
        "if not problems or _OF_CRITERION.isdisjoint(signals_of(method)):",
        "if True:",
        PROBLEMS,
    ),
    OldFault(
        "rows by a guess",
        "The first dimension of the losses counts the samples, whatever the batch says.",
        f"{STEP}/samples.py",
        "if shape[0] in sizes.possible and (self.is_plain or not self._rivals(shape, sizes)):",
        "if True:",
        SAMPLES,
    ),
    OldFault(
        "rows without a proof",
        "The ways of target and logits are not followed, so that nodes of graphs and tokens count as samples.",
        f"{STEP}/samples.py",
        "        for node in paths:\n            found = self._traced",
        "        for node in []:\n            found = self._traced",
        SAMPLES,
    ),
    OldFault(
        "rows of objects",
        "The tensors in a batch that is an object or a dataclass are not found.",
        f"{STEP}/batch.py",
        "if isinstance(batch, (Tensor, str, bytes, type)) or callable(batch):",
        "if True:",
        f"{SAMPLES} tests/callbacks/test_batch.py",
    ),
    OldFault(
        "losses masked afterwards",
        "Losses that the user's code drops after reduction='none' count in the weights.",
        f"{STEP}/step.py",
        "counts = factors != 0",
        "counts = torch.ones_like(factors, dtype=torch.bool)",
        f"{LAWS} {SAMPLES} tests/callbacks/test_step.py",
    ),
    OldFault(
        "mixed rows that are ignored",
        "A mixture with an ignored target is divided by whole rows, so that a mixture with itself changes the loss.",
        f"{CALLBACKS}/transform_batch.py",
        "1 - ignored, 0.0).sum()",
        "1.0, 0.0).sum()",
        f"{LAWS} tests/batches",
    ),
    OldFault(
        "mixed labels of -100",
        "A target of -100 in a mixture is an index out of range.",
        f"{CALLBACKS}/transform_batch.py",
        "target = torch.where(call.valid, target, 0)",
        "target = target + 0",
        "tests/callbacks/test_chains.py",
    ),
    OldFault(
        "inputs deep in a batch",
        "input= cannot name what lies deeper than one step.",
        f"{STEP}/batch.py",
        'for name in str(path).split("."):',
        "for name in [str(path)]:",
        "tests/callbacks/test_batch.py",
    ),
    OldFault(
        "inputs in an object",
        "input= cannot name an attribute.",
        f"{STEP}/batch.py",
        "return None if batch is None or isinstance(batch, Tensor) else getattr(batch, name, None)",
        "return None",
        "tests/callbacks/test_batch.py",
    ),
    OldFault(
        "probabilities read as logits",
        "Metrics of a binary_cross_entropy take its probabilities for logits.",
        f"{STEP}/compared.py",
        "            call.probabilities,\n",
        "            False,\n",
        EVALUATION,
    ),
    OldFault(
        "ignored classes in an evaluation",
        "What the criterion ignores counts in the metrics.",
        f"{STEP}/compared.py",
        'options.get("ignore_index", -100) if call.indexed else None,',
        "None,",
        EVALUATION,
    ),
    OldFault(
        "criteria of the batch before",
        "An evaluation step that calls its criterion once is told that it calls two.",
        f"{STEP}/evaluation.py",
        "self._calls, self._heads, self._running = [], [], True",
        "self._heads, self._running = [], True",
        EVALUATION,
    ),
    OldFault(
        "one logit for two classes",
        "A binary criterion with one column is taken for several labels, and refused.",
        f"{STEP}/calls.py",
        'return "binary" if self.input.dim() < 2 or self.input.shape[1] == 1 else "labels"',
        'return "labels"',
        f"{EVALUATION} {PROBLEMS}",
    ),
    OldFault(
        "top-1 of a regression",
        "A regression gets the metrics of classes.",
        f"{STEP}/measured.py",
        "        return regression_metrics\n",
        "        return partial(default_metrics, 2)\n",
        f"{EVALUATION} tests/callbacks/test_log_metrics.py",
    ),
    OldFault(
        "a teacher of one dimension",
        "The logits of a teacher with one output are no rows.",
        f"{STEP}/calls.py",
        "            return tensor[:, None]\n",
        "            return tensor\n",
        f"{TEACHERS} {PROBLEMS}",
    ),
    OldFault(
        "the classes of a teacher along another axis",
        "What the step does to its logits is not done to the teacher's, whose classes lie along the wrong axis then.",
        f"{CALLBACKS}/distill.py",
        "logits = followed(step, teacher)",
        "logits = None",
        f"{TEACHERS} tests/callbacks/test_distill.py",
    ),
    OldFault(
        "bytes for a teacher",
        "A normalization of bytes is computed in bytes.",
        f"{STEP}/frozen.py",
        "inputs = inputs if inputs.is_floating_point() else inputs.to(dtype)",
        "inputs = inputs.clone()",
        f"{TEACHERS} tests/callbacks/test_frozen.py",
    ),
    OldFault(
        "a teacher without its mask",
        "A teacher gets the inputs alone, without the mask with which the student is called.",
        f"{CALLBACKS}/distill.py",
        '((step.get("inputs"),), {}) if call is None else (call.args, call.kwargs)',
        '(step.get("inputs"),), {}',
        TEACHERS,
    ),
    OldFault(
        "a random teacher of a configuration",
        "A teacher that YAML builds has random weights, and teaches.",
        f"{CALLBACKS}/distill.py",
        "if isinstance(self.teacher, nn.Module) and self.teacher_weights is None and is_built_from_config(self):",
        "if False:",
        "tests/callbacks/test_teacher_weights.py tests/test_cli.py",
    ),
    OldFault(
        "a random teacher of a class",
        "A class without a file is built with random weights, and teaches.",
        f"{FILES_OF}/network.py",
        "    if contents is None:\n        raise",
        "    contents = contents or {}\n    if False:\n        raise",
        TEACHER_FILES,
    ),
    OldFault(
        "student beside teacher",
        "Of two networks of one form in a file the first is taken.",
        f"{FILES_OF}/fitting.py",
        "if len(fitting) > 1:",
        "if False:",
        TEACHER_FILES,
    ),
    OldFault(
        "compiled names in a file",
        "Weights of a compiled network do not fit.",
        f"{FILES_OF}/fitting.py",
        "plain = {plain_name(key): value for key, value in state.items()}\n    if len",
        "plain = dict(state)\n    if len",
        TEACHER_FILES,
    ),
    OldFault(
        "a state dict under another key",
        "Weights under `net` or `model_state_dict` beside an average are not found.",
        f"{FILES_OF}/fitting.py",
        "usual = {key: inner[key] for key in WEIGHT_KEYS if key in inner}",
        "usual: dict[str, Any] = {}",
        TEACHER_FILES,
    ),
    OldFault(
        "a checkpointed head",
        "A head in a checkpointed part is recomputed without its stacks.",
        f"{STEP}/capture.py",
        "if self.on_recompute is not None and (recomputes or self._repeats):",
        "if self.on_recompute is not None and self._repeats:",
        "tests/heads tests/callbacks/test_step.py tests/callbacks/test_head_signal.py",
    ),
    OldFault(
        "a buffer of infinities",
        "The average of a mask of infinities is NaN.",
        f"{WEIGHTS}/shadows.py",
        "        if tensors.buffers:\n            self._keep_finite_buffers()",
        "        if False:\n            self._keep_finite_buffers()",
        "tests/averaging",
    ),
    OldFault(
        "a wrapped optimizer",
        "A step of an optimizer that wraps another counts twice or not at all.",
        f"{WEIGHTS}/optimizer_steps.py",
        "            self._worked.remove(optimizer)\n",
        "            return\n",
        AVERAGES,
    ),
    OldFault(
        "a parameter that is replaced",
        "The average follows a tensor that the network no longer holds.",
        f"{WEIGHTS}/tracked.py",
        "return [*map(self._address, tensors.values())] != self._addresses or places != self._ids",
        "return False",
        AVERAGES,
    ),
    OldFault(
        "a buffer without values",
        "A lazy buffer ends the training with an error of torch.",
        f"{WEIGHTS}/tracked.py",
        "if b.is_floating_point() and type(b) is not UninitializedBuffer}",
        "if b.is_floating_point()}",
        AVERAGES,
    ),
    OldFault(
        "no parameter with a gradient",
        "An average of nothing ends the training with an error of torch.",
        f"{WEIGHTS}/shadows.py",
        "        if not tensors.inputs:\n",
        "        if False:\n",
        AVERAGES,
    ),
    OldFault(
        "a checkpoint that a hook rebuilds",
        "A hook that builds entries from the module's weights puts the raw ones into the file.",
        f"{WEIGHTS}/checkpoint_hooks.py",
        "if not plain or self._hooks():",
        "if not plain:",
        FILES,
    ),
    OldFault(
        "pruning beside an average",
        "The pruned weights in a file are raw, or named as before the pruning.",
        f"{WEIGHTS}/tracked.py",
        'name = earlier if name == f"{earlier}_orig" else name  #',
        "name = name + ''  #",
        f"{FILES} tests/callbacks/test_average_weights.py",
    ),
    OldFault(
        "a module pickled in a training",
        "torch.save(module) in a training writes our patches, which open only with this package.",
        "lightning_objectives/_trainer/patch.py",
        "    def __reduce__(self)",
        "    def reduced(self)",
        "tests/callbacks/test_patch.py tests/callbacks/test_step.py tests/test_strangers.py",
    ),
    OldFault(
        "the data module of a merge",
        "The merged checkpoint lacks the data module's hyperparameters.",
        f"{SNAPSHOTS}/merged.py",
        "for owner in (module, data_module):",
        "for owner in (module,):",
        MERGES,
    ),
    OldFault(
        "a buffer of NaN in a merge",
        "A buffer that is NaN ends the training without its last hooks.",
        f"{SNAPSHOTS}/window.py",
        "if not tensors[name].isfinite().all()]",
        "if False]",
        f"{MERGES} tests/callbacks/test_merge_sum.py",
    ),
    OldFault(
        "states of trainings in a merge",
        "The newest file's optimizer stays beside the merge of the weights.",
        f"{FILES_OF}/training_state.py",
        '"ema optimizer optimizers optim opt scheduler schedulers sched scaler amp criterion rng random".split()',
        '"rng random".split()',
        "tests/merging tests/safety/test_merge_files.py",
    ),
    OldFault(
        "callbacks that were copied",
        "The user's object says nothing of the copy that was trained in its place.",
        "lightning_objectives/_trainer/callback.py",
        '"first. If you have, a framework has perhaps trained a copy of the callback: ask the one in "',
        '"first: "',
        f"{AVERAGES} {MERGES} tests/callbacks/test_average_settings.py",
    ),
    OldFault(
        "edges in float64",
        "The edges of the bins fall below k / B in float64.",
        "lightning_objectives/metrics/calibration_error.py",
        "return torch.arange(1, num_bins, dtype=torch.float64) / num_bins",
        "return torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)[1:-1]",
        "tests/metrics",
    ),
    OldFault(
        "objects in a checkpoint",
        "An object in a checkpoint keeps the network's own tensors, which are raw later.",
        f"{WEIGHTS}/contents.py",
        "self.found |= local(obj).untyped_storage().data_ptr() in self._storages",
        "self.found |= False",
        FILES,
    ),
    OldFault(
        "arrays in a checkpoint",
        "A NumPy array in a checkpoint shares the network's memory.",
        f"{WEIGHTS}/contents.py",
        "self.found |= any(start <= begin < start + size for start, size in self._storages.items())",
        "self.found |= False",
        FILES,
    ),
    OldFault(
        "containers of the user's",
        "Containers that the user put into a checkpoint are changed in place.",
        f"{WEIGHTS}/contents.py",
        "result = copy.copy(value) if changed else value",
        "result = value",
        f"{FILES} lightning_objectives/_weights/contents.py",
    ),
    OldFault(
        "modules among hyperparameters",
        "A part of the network among the hyperparameters is saved raw.",
        f"{WEIGHTS}/checkpoint_hooks.py",
        "if self._entered and not self._stands and self._averages.holds(_content(checkpoint), self._name):",
        "if False:",
        FILES,
    ),
    OldFault(
        "raw weights in a merge",
        "A merged file holds the trained weights in the merge's place.",
        f"{SNAPSHOTS}/merged.py",
        "            if key is not None:\n",
        "            if False:\n",
        MERGES,
    ),
    OldFault(
        "raw weights before a merge",
        "A merged file holds the weights of the module from a copy that was made before.",
        f"{SNAPSHOTS}/merged.py",
        "for weights in (before, *raw):",
        "for weights in raw:",
        MERGES,
    ),
    OldFault(
        "raw weights beside an average, in a merge",
        "A merged file holds the raw weights that an average stands for.",
        f"{SNAPSHOTS}/merged.py",
        "for weights in (before, *raw):",
        "for weights in (before,):",
        MERGES,
    ),
    OldFault(
        "unfinished snapshots",
        "What a killed process was writing stays in the folder for ever.",
        f"{SNAPSHOTS}/window.py",
        '    _delete_unfinished(Path(state["folder"]))\n',
        "",
        f"{MERGES} tests/safety/test_writers.py tests/safety/test_resume_files.py",
    ),
    OldFault(
        "an epoch before its last batch is trained",
        "An epoch counts when its last batch is drawn, before it is trained.",
        f"{WEIGHTS}/timing.py",
        "trained = batches.is_last_batch and batches.current.processed == batches.current.ready",
        "trained = batches.is_last_batch",
        EPOCHS,
    ),
    OldFault(
        "epochs of an average in a checkpoint",
        "A resumed average has forgotten the epochs at which it began.",
        f"{WEIGHTS}/turns.py",
        'part.since = Moment(int(saved["start"]), whole.since.epochs)',
        'part.since = Moment(int(saved["start"]), 0)',
        EPOCHS,
    ),
    OldFault(
        "an epoch without a step in a merge",
        "An epoch in which no optimizer steps has a second snapshot of the same weights.",
        f"{CALLBACKS}/merge_checkpoints.py",
        "if steps in (0, *self._window.steps):",
        "if False:",
        f"{EPOCHS} {MERGES}",
    ),
    OldFault(
        "a misspelt hook",
        "A hook of a mixin with a typo in its name is never called.",
        "lightning_objectives/mixins.py",
        "        _refuse_misspelt_hooks(cls)\n",
        "",
        "tests/test_mixins.py",
    ),
)
"""All of them."""


def planted_text(fault: OldFault, source: str) -> str:
    """The source of the fault's file with the fault in it.

    Raises:
        ValueError: the text of today is not there, or not once.
    """
    count = source.count(fault.now)
    if count != 1:
        raise ValueError(
            f"{fault.name!r}: {fault.now!r} occurs {count} times in {fault.file}, but must occur once. Write the fault "
            "anew for the code of today."
        )
    return source.replace(fault.now, fault.then)
