"""What Lightning and torch repeat in each small training of the tests, done once or not at all.

Nothing of it changes what a training computes on the CPU: `test_cheap.py` compares trainings with it and without.
"""

import _signal
import contextlib
import functools
import gc
import importlib.metadata
import inspect
import os
import signal
import sys
import types
import weakref

import torch

LIGHTNING = ("lightning.pytorch", "pytorch_lightning")
REPLACED = []
"""Each object of others, the name of what was replaced there, and what it was."""


def replace(owner, name, cheaper):
    """Let the cheaper one stand in the place of the usual one."""
    REPLACED.append((owner, name, getattr(owner, name)))
    setattr(owner, name, cheaper)


def lightnings(name):
    """The module of that name in each of Lightning's two packages, where it is imported."""
    return filter(None, (sys.modules.get(f"{package}.{name}") for package in LIGHTNING))


def before_imports():
    no_garbage()
    entry_points()
    seeds()
    devices()


def after_imports():
    if not any(package in sys.modules for package in LIGHTNING):
        return  # These tests train nothing.
    guards()
    for cheaper in (metrics, profilers, hooks, records, stages, arguments, signatures, signals, tuners):
        cheaper()
    garbage()


# -- before the imports


def entry_points():
    """Read the entry points of all installed packages once, not for each Trainer: they stay the same."""
    replace(importlib.metadata, "entry_points", functools.cache(importlib.metadata.entry_points))


def seeds():
    """Forget the seeds of devices that this machine lacks: torch keeps each, with a traceback of the whole stack."""
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if hasattr(device, "manual_seed_all") and not device.is_available():
            replace(device, "manual_seed_all", _forget)


def _forget(seed):
    pass


def devices():
    """Look for the driver of a GPU once: each Trainer asks three times."""
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def no_garbage():
    """Collect no garbage during the imports, which make hardly any."""
    gc.disable()


# -- after the imports


def guards():
    """Do not measure how long the guards of a compiled graph take, for which torch flushes the caches of the CPU."""
    compiler = sys.modules.get("torch._dynamo.guards")
    if hasattr(compiler, "profile_guard_manager"):
        replace(compiler, "profile_guard_manager", lambda *_: 0.0)


def metrics():
    """Leave a logged value on the CPU where it is: to move it, Lightning also copies all that is known of it."""
    for results in lightnings("trainer.connectors.logger_connector.result"):
        replace(results._ResultMetric, "to", _unless_on_the_cpu(results._ResultMetric.to))


def _unless_on_the_cpu(move):
    @functools.wraps(move)
    def to(self, device, *args, **kwargs):
        stays = self.is_tensor and self.value.device.type == torch.device(device).type == "cpu"
        return self if stays else move(self, device, *args, **kwargs)

    return to


def profilers():
    """Enter no generator around each hook for the profiler that does nothing."""
    for module in lightnings("profilers.base"):
        replace(module.PassThroughProfiler, "profile", lambda self, action_name: contextlib.nullcontext(action_name))


def hooks():
    """Set the name of each hook past `Module.__setattr__`, which would look for parameters, and do the same."""
    slow, fast = "pl_module._current_fx_name = ", 'vars(pl_module)["_current_fx_name"] = '
    for module in lightnings("trainer.call"):
        for function in filter(inspect.isfunction, list(vars(module).values())):
            if function.__module__ == module.__name__ and slow in (source := inspect.getsource(function)):
                scope = {}
                lines = "\n" * (function.__code__.co_firstlineno - 1)
                exec(compile(lines + source.replace(slow, fast), module.__file__, "exec"), vars(module), scope)
                replace(function, "__code__", scope[function.__name__].__code__)


def records():
    """Tell no profiler of each step and batch: there is none."""
    replace(torch.autograd.profiler, "record_function", contextlib.nullcontext)


def stages():
    """Lightning asks many times a step which stage it is in: the same member is equal without a look at its name."""
    enums = sys.modules["lightning_utilities.core.enums"]
    usual = enums.StrEnum.__eq__
    replace(enums.StrEnum, "__eq__", lambda self, other: self is other or usual(self, other))


def arguments():
    """Read the signatures of hooks once, and that of the Trainer only if the environment has arguments for it."""
    for module in lightnings("utilities.signature_utils"):
        usual = module.is_param_in_hook_signature
        for user in [m for name, m in sys.modules.items() if name.startswith(LIGHTNING)]:
            if vars(user).get("is_param_in_hook_signature") is usual:
                replace(user, "is_param_in_hook_signature", _read_once(usual))
    for module in lightnings("utilities.argparse"):
        replace(module, "_parse_env_variables", _if_there_are_any(module._parse_env_variables, module.Namespace))


def _read_once(usual):
    known = weakref.WeakKeyDictionary()

    @functools.wraps(usual)
    def is_param_in_hook_signature(hook_fx, param, explicit=False, min_args=None):
        hook = getattr(hook_fx, "__wrapped__", hook_fx)
        function = getattr(hook, "__func__", hook)  # a method's signature is read with its `self`, too
        if not inspect.isfunction(function) or hasattr(function, "__wrapped__"):
            return usual(hook_fx, param, explicit, min_args)
        answers, question = known.setdefault(function, {}), (param, explicit, min_args)
        if question not in answers:
            answers[question] = usual(function, *question)
        return answers[question]

    return is_param_in_hook_signature


def signatures():
    """Read the signature of a metric's update once for each class, not for each value that is logged."""
    metric = sys.modules["torchmetrics.metric"]
    known = weakref.WeakKeyDictionary()

    def signature(update):
        function = getattr(update, "__func__", None)
        if function is None or hasattr(function, "__wrapped__"):
            return inspect.signature(update)
        if function not in known:
            known[function] = inspect.signature(update)
        return known[function]

    replace(metric, "inspect", types.SimpleNamespace(**{**vars(inspect), "signature": signature}))


def signals():
    """Make no members of an enumeration of all handlers of signals, which each training reads and puts back."""
    for module in lightnings("trainer.connectors.signal_connector"):
        plain = {name: getattr(_signal, name) for name in ("getsignal", "signal")}
        replace(module, "signal", types.SimpleNamespace(**{**vars(signal), **plain}))


def _if_there_are_any(usual, nothing):
    @functools.wraps(usual)
    def parse(cls, *template):
        begin = f"PL_{cls.__name__.upper()}_"
        asked = template or any(name.startswith(begin) for name in os.environ)
        return usual(cls, *template) if asked else nothing()

    return parse


def tuners():
    """Collect no garbage around each trial of a batch size: there is no memory of a GPU to win."""
    if not torch.cuda.is_available():
        for module in lightnings("tuner.batch_size_scaling"):
            replace(module, "garbage_collection_cuda", lambda: None)


def garbage():
    """Exempt what the imports made from the garbage collection, and look less often: a training leaves little."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
