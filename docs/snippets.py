"""Code that uses a method, made from its kind: as a callback, a mixin, plain PyTorch, YAML. A test runs all of it."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from docs.cards import Card
from lightning_objectives import callbacks, mixins
from lightning_objectives.kinds import (
    Adapter,
    BatchTransform,
    Combination,
    Distillation,
    Fitted,
    GradientTransform,
    Head,
    Loss,
    Merge,
    Perturbation,
    Regularizer,
    Rule,
    SetPredictor,
    Surgery,
    Survey,
    Weighting,
)
from lightning_objectives.signals import SIGNALS

LAYERS = {"hidden": ("layers", "backbone.layer4"), "teacher_hidden": ("teacher_layers", "layer4")}
"""For signals of hidden layers: the setting that names the layers, and the layer in the snippets."""
MERGE = {"last": 4, "every_n_epochs": 1}
WIDTH = 72


def tabs(card: Card) -> dict[str, tuple[str, str]]:
    """The snippets of a method: by the name of the tab, the language and the code."""
    found = {
        "Callback": ("python", callback(card)),
        "Mixin": ("python", mixin(card)),
        "Plain PyTorch": ("python", plain(card)),
        "YAML": ("yaml", in_yaml(card)),
        "Command line": ("bash", command(card)),
    }
    return {name: (language, code) for name, (language, code) in found.items() if code}


def built(card: Card) -> str:
    """The call that builds the method, with the settings that it cannot do without."""
    settings = ", ".join(f"{key}={value!r}" for key, value in getattr(card.cls, "example", {}).items())
    return f"lo.{card.name}({settings})"


def placed(card: Card) -> str:
    """The call that builds its callback."""
    return f"lo.{card.callback}({', '.join([built(card), *(f'{k}={v}' for k, v in options(card).items())])})"


def options(card: Card) -> dict[str, str]:
    """What the callback must be told for this method."""
    given = {}
    if issubclass(card.cls, Distillation):
        given["teacher"] = "teacher"
    if issubclass(card.cls, Adapter) and "reference_logits" in card.cls.predicts_from():
        given["reference"] = "teacher"
    asked = signals(card)
    if card.room == "metrics" and "teacher_features" in asked:
        given["teacher"] = "teacher"
    given |= {LAYERS[name][0]: f'"{LAYERS[name][1]}"' for name in LAYERS if name in asked}
    if issubclass(card.cls, Surgery) and not card.cls.changes:
        # What a method changes may be the end of a branch alone, as the last BatchNorm of a residual block.
        given["layers"] = '"backbone.layer*.*.bn2"' if card.cls.defines("call") else '"backbone.layer*"'
    if hasattr(card.cls, "draw_layer"):
        given["layers"] = '"backbone.layer1"'
    if issubclass(card.cls, Combination):
        given["criteria"] = "True"
    if issubclass(card.cls, Merge):
        given |= {key: str(value) for key, value in MERGE.items()}
    return given


def signals(card: Card) -> tuple[str, ...]:
    """The signals that the method asks for."""
    if card.room == "metrics":
        parameters = list(inspect.signature(card.cls.update).parameters)[1:]
        return tuple("logits" if name == "preds" else name for name in parameters)
    if not hasattr(card.cls, "forward"):
        return ()
    forward = card.cls.forward
    names = [*inspect.signature(forward).parameters][1:]
    return tuple(name for name in names if name in SIGNALS)


def beside(card: Card) -> list[str]:
    """The callbacks that must stand beside it."""
    return ["lo.Refer()"] if any(SIGNALS[n].source == "reference" for n in signals(card) if n in SIGNALS) else []


def callback(card: Card) -> str:
    """The method in a Trainer, with the module as it is."""
    if not card.callback:
        return ""
    asked = signals(card)
    lines = ["import lightning as L"]
    if {"index", "memory"} & {*asked}:
        lines += ["from torch.utils.data import DataLoader"]
    lines += ["", "import lightning_objectives as lo", ""]
    lines += _hints(card)
    name = {Fitted: "calibrate", Survey: "survey"}
    variable = next((word for kind, word in name.items() if issubclass(card.cls, kind)), "")
    if variable:
        lines += [f"{variable} = {placed(card)}"]
    placement = ", ".join([variable or placed(card), *beside(card)])
    if issubclass(card.cls, Adapter):
        return "\n".join([*lines, f"trainer = L.Trainer(callbacks=[{placement}])", "trainer.test(model, test_loader)"])
    line = f"trainer = L.Trainer(max_epochs=10, callbacks=[{placement}])"
    if len(line) > WIDTH:
        each = [f"        {call}," for call in [variable or placed(card), *beside(card)]]
        line = "\n".join(["trainer = L.Trainer(", "    max_epochs=10,", "    callbacks=[", *each, "    ],", ")"])
    lines += [line]
    loaders = "train_loader, [val_loader, other_loader]" if "loader" in asked else "train_loader, val_loader"
    lines += [f"trainer.fit(model, {loaders})"]
    if variable == "calibrate":
        what = "sets of classes, (N, C) bool" if issubclass(card.cls, SetPredictor) else "calibrated probabilities"
        lines += ["", "# Fitted at the end of each validation:", f"calibrate.calibrator(logits)  # {what}"]
    if variable == "survey":
        lines += ["survey.result  # a dict of tensors"]
    return "\n".join(lines)


def _hints(card: Card) -> list[str]:
    """What the data or the module must bring."""
    asked, lines = signals(card), []
    if {"index", "memory"} & {*asked}:
        lines += ["train_loader = DataLoader(lo.data.with_index(train_set), batch_size=32, shuffle=True)"]
    if "group" in asked:
        lines += ['# `model` defines objective_group(batch), or each batch is a dict with the key "group".']
    if {"teacher", "reference"} & options(card).keys():
        lines += ["# `teacher` is a trained module of the same classes, or the name of a timm model."]
    if issubclass(card.cls, Combination):
        lines += ["# The training_step of `model` adds the losses of two tasks."]
    if "loader" in asked:
        lines += ["# `other_loader` gives samples of another distribution."]
    return lines


def mixin(card: Card) -> str:
    """The method, brought by a module that you can edit."""
    if not card.callback:
        return ""
    if name := own_mixins().get(card.cls):
        mixin_class, hook = name
        lines = [f"class Net(lo.{mixin_class}, YourModule):", f"    def {hook}(self):", f"        return {built(card)}"]
        if issubclass(card.cls, Distillation):
            lines += ["", "    def configure_teacher(self):", "        return teacher"]
    else:
        placement = ", ".join([placed(card), *beside(card)])
        lines = ["class Net(lo.ObjectivesMixin, YourModule):", "    def configure_objectives(self):"]
        lines += [f"        return [{placement}]"]
        hints = [f"    {line}" for line in _hints(card) if line.startswith("# `model` defines")]
        lines[1:1] = [line.replace("`model`", "YourModule") for line in hints]
    return "\n".join(["import lightning_objectives as lo", "", "", *lines])


@cache
def own_mixins() -> dict[type[Any], tuple[str, str]]:
    """The mixins of single methods: by method, the name of the mixin and of the hook that returns the method."""
    found = {}
    for name in mixins.__all__:
        mixin_class = getattr(mixins, name)
        for hook, function in vars(mixin_class).items():
            if hook.startswith("configure_") and hook != "configure_objectives":
                returned = inspect.signature(function).return_annotation
                if inspect.isclass(returned):
                    method = function(None)
                    if hasattr(method, "settings"):
                        found[type(method)] = (name, hook)
    return found


def plain(card: Card) -> str:
    """The method in a loop of your own."""
    for kind, write in PLAIN.items():
        if issubclass(card.cls, kind):
            return "\n".join(write(card))
    return "\n".join({"metrics": _metric, "schedules": _schedule}.get(card.room, lambda card: [])(card))


def _imports(*more: str) -> list[str]:
    return [*more, "", "import lightning_objectives as lo", ""] if more else ["import lightning_objectives as lo", ""]


def _method(card: Card) -> list[str]:
    """The lines that build the method and say what the names after them are."""
    lines = [f"method = {built(card)}"]
    if hasattr(card.cls, "build"):
        sizes = {
            "features": "features.shape[1]",
            "classes": "logits.shape[1]",
            "hidden": "[layer.shape[1] for layer in hidden]",
            "teacher_features": "teacher_features.shape[1]",
            "teacher_hidden": "[layer.shape[1] for layer in teacher_hidden]",
        }
        asked = list(inspect.signature(card.cls.build).parameters)[1:]
        lines += ["# The parts that it builds have parameters: give them to the optimizer too."]
        lines += ["method.build(", *(f"    {name}={sizes[name]}," for name in asked), ")"]
    if "memory" in signals(card):
        lines += ["memory = lo.SampleMemory(method, samples=len(train_set), classes=logits.shape[1])"]
    shapes = [f"{name} {SIGNALS[name].shape}" for name in signals(card) if name in SIGNALS and SIGNALS[name].shape]
    return [*lines, *([f"# {', '.join(shapes)}"] if shapes else [])]


def _call(card: Card, **other: str) -> str:
    words = {
        "memory": "memory.of(index)",
        "memory_bank": "memory.bank",
        "generator": "torch.Generator().manual_seed(0)",
        **other,
    }
    return f"method({', '.join(words.get(name, name) for name in signals(card))})"


def _learn(card: Card) -> list[str]:
    if "memory" not in signals(card):
        return []
    names = [n for n in inspect.signature(card.cls.learn).parameters if n not in ("self", "memory")]
    return [f"memory.learn(index, {', '.join(f'{name}={name}' for name in names)})"]


def _torch(card: Card) -> tuple[str, ...]:
    return ("import torch",) if "generator" in signals(card) else ()


def _loss(card: Card) -> list[str]:
    lines = [*_imports(*_torch(card)), *_method(card), f"loss = {_call(card)}.mean()", "loss.backward()"]
    return lines + _learn(card)


def _weighting(card: Card) -> list[str]:
    lines = [*_imports(*_torch(card)), *_method(card), f"weights = {_call(card, losses='losses.detach()')}"]
    return [*lines, "(losses * weights).mean().backward()", *_learn(card)]


def _term(card: Card) -> list[str]:
    lines = _imports(*_torch(card), "import torch.nn.functional as F")
    lines += [*_method(card), f"term = {_call(card)}.mean()"]
    factor = getattr(card.cls, "default_strength", 1.0)
    return [*lines, f"(F.cross_entropy(logits, target) + {factor:g} * term).backward()", *_learn(card)]


def _head(card: Card) -> list[str]:
    lines = [*_imports(*_torch(card), "import torch.nn.functional as F"), *_method(card)]
    lines += [f"stacks = {_call(card)}  # (M, N, C)"]
    return [*lines, "loss = sum(F.cross_entropy(logits, target) for logits in stacks) / len(stacks)", "loss.backward()"]


def _batch(card: Card) -> list[str]:
    lines = [*_imports("import torch", "import torch.nn.functional as F"), *_method(card)]
    lines += [f"mixed, index, weight = {_call(card, inputs='inputs.clone()')}", "logits = network(mixed)"]
    return [
        *lines,
        "losses = sum(",
        '    weight[:, k] * F.cross_entropy(logits, target[index[:, k]], reduction="none")',
        "    for k in range(index.shape[1])",
        ")",
        "losses.mean().backward()",
    ]


def _combination(card: Card) -> list[str]:
    lines = [*_imports("import torch"), f"method = {built(card)}", "# terms: (K,), the losses of the tasks"]
    words = {"gradients": "gradients", "terms": "terms.detach()"}
    if "gradients" in signals(card):
        lines += [
            "parameters = list(network.parameters())",
            "rows = [torch.autograd.grad(term, parameters, retain_graph=True) for term in terms]",
            "gradients = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])",
        ]
    lines += [f"weights = {_call(card, **words)}"]
    penalty = "" if card.cls.penalty is Combination.penalty else " + (method.penalty() or 0)"
    if penalty:
        lines += ["# The method has parameters: give them to the optimizer too."]
    return [*lines, f"((weights * terms).sum(){penalty}).backward()"]


def _perturbation(card: Card) -> list[str]:
    lines = [*_imports("import torch.nn.functional as F"), f"method = {built(card)}"]
    closure = "lambda: F.cross_entropy(network(inputs), target)"
    return [*lines, f"loss = lo.perturbed_backward(method, network, {closure})", "optimizer.step()"]


def _gradients(card: Card) -> list[str]:
    return [
        *_imports(),
        f"method = {built(card)}",
        "params = list(network.parameters())",
        "state = method.init(params)",
        "",
        "loss.backward()",
        "for param, gradient in zip(params, method.update([p.grad for p in params], params, state)):",
        "    param.grad = gradient",
        "optimizer.step()",
    ]


def _average(card: Card) -> list[str]:
    return [
        *_imports(),
        f"average = lo.Average(network, {built(card)}, optimizer)",
        "",
        "optimizer.step()",
        "average.update()  # after each step",
        "",
        "with average.applied():",
        "    network(inputs)  # with the averaged weights",
    ]


def _merge(card: Card) -> list[str]:
    asks = {"base": '"base.ckpt"', "importance": '["a.importance.safetensors", "b.importance.safetensors"]'}
    asks |= {"evaluate": "score", "gradient": "gradient"}
    given = "".join(f", {name}={asks[name]}" for name in card.cls.asks)
    lines = _imports()
    if "evaluate" in card.cls.asks:
        lines += ["# score(state_dict) -> float, greater is better, such as the validation accuracy"]
    if "gradient" in card.cls.asks:
        lines += ["# gradient(state_dict) -> dict of the gradient of a loss, by the names of the parameters"]
    return [*lines, f'lo.merge_checkpoints(["a.ckpt", "b.ckpt"], {built(card)}, "merged.ckpt"{given})']


def _fitted(card: Card) -> list[str]:
    result = "sets" if issubclass(card.cls, SetPredictor) else "probabilities"
    return [
        *_imports(),
        f"method = {built(card)}",
        "method.fit(val_logits, val_target)  # (N, C), (N,) int; not the samples that the network was trained on",
        f"{result} = method(logits)  # (N, C)",
    ]


def _survey(card: Card) -> list[str]:
    return [*_imports(), f"result = lo.survey_data({built(card)}, network, train_loader)  # a dict of tensors"]


def _metric(card: Card) -> list[str]:
    lines = [*_imports(), f"metric = {built(card)}"]
    shapes = [f"{n} {SIGNALS[n].shape}" for n in signals(card) if n in SIGNALS and SIGNALS[n].shape]
    if "loader" in signals(card):
        shapes += ["loader (N,) int, 0 for usual samples and 1 for others"]
    lines += [f"metric.update({', '.join(signals(card))})  # {', '.join(shapes)}", "metric.compute()"]
    return lines


def _schedule(card: Card) -> list[str]:
    call = built(card).replace("(", "(optimizer, ", 1).replace(", )", ")")
    return [*_imports(), f"schedule = {call}", "", "optimizer.step()", "schedule.step()  # after each step"]


PLAIN: dict[type[Any], Callable[[Card], list[str]]] = {
    Loss: _loss,
    Weighting: _weighting,
    Distillation: _term,
    Regularizer: _term,
    Head: _head,
    BatchTransform: _batch,
    Combination: _combination,
    Perturbation: _perturbation,
    GradientTransform: _gradients,
    Rule: _average,
    Merge: _merge,
    Fitted: _fitted,
    Survey: _survey,
}
"""How each kind is used without a Trainer. Surgeries and adapters are not: their callbacks do the work."""


def in_yaml(card: Card) -> str:
    """The method in a file for the command line."""
    settings = [f"{key}: {_value(value)}" for key, value in getattr(card.cls, "example", {}).items()]
    method = [f"class_path: {card.cls.__module__.rpartition('.')[0]}.{card.name}"]
    method += ["init_args:", *(f"  {line}" for line in settings)] if settings else []
    if card.room == "schedules":
        optimizer = ["optimizer:", "  class_path: torch.optim.SGD", "  init_args: {lr: 0.1}"]
        return "\n".join([*optimizer, "lr_scheduler:", *(f"  {line}" for line in method)])
    if not card.callback:
        return ""
    first = next(iter(inspect.signature(getattr(callbacks, card.callback)).parameters))
    lines = ["trainer:", "  callbacks:", f"    - class_path: lightning_objectives.callbacks.{card.callback}"]
    lines += ["      init_args:", f"        {first}:", *(f"          {line}" for line in method)]
    given = {k: v.lower() if v in ("True", "False") else v for k, v in options(card).items()}
    for name in {"teacher", "reference"} & given.keys():
        given |= {name: "my_project.Teacher", f"{name}_weights": "teacher.ckpt"}
    lines += [f"        {key}: {value}" for key, value in given.items()]
    return "\n".join([*lines, *(f"    - class_path: {_path(call)}" for call in beside(card))])


def _path(call: str) -> str:
    return call.replace("lo.", "lightning_objectives.callbacks.").replace("()", "")


def _value(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_value, value))}]"
    return {"True": "true", "False": "false", "None": "null"}.get(str(value), str(value))


def command(card: Card) -> str:
    """The merge of files on the command line."""
    if not issubclass(card.cls, Merge):
        return ""
    asks = {
        "base": "--base base.ckpt",
        "importance": "--importance a.importance.safetensors --importance b.importance.safetensors",
        "evaluate": "--evaluate my_project.score",
        "gradient": "--gradient my_project.gradient",
    }
    example = [f"--{k.replace('_', '-')} {_value(v)}" for k, v in getattr(card.cls, "example", {}).items()]
    words = [f"--method {card.name}", *example, *(asks[name] for name in card.cls.asks), "-o merged.ckpt"]
    return f"lightning-objectives merge a.ckpt b.ckpt {' '.join(words)}"
