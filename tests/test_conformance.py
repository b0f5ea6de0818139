"""What every method keeps, whichever it is: discovered, none is named here."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
from source import lines_of_code
from torch.optim.lr_scheduler import LRScheduler

import lightning_objectives
from lightning_objectives.discovery import ROOMS, methods
from lightning_objectives.kinds import Adapter, Merge, Method
from lightning_objectives.testing import build, laws_of
from lightning_objectives.testing.common import function_of

TESTS = Path(__file__).parent
PACKAGE = Path(lightning_objectives.__file__).parent
LIGHTNING = re.compile(r"(pytorch_)?lightning(_fabric)?(\.|$)|lightning_objectives\.(callbacks|mixins|data|cli)")
METHODS = [cls for _, cls in methods()]
FILES = sorted({sys.modules[cls.__module__] for cls in METHODS}, key=lambda module: module.__name__)
CLASSES = pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
MODULES = pytest.mark.parametrize("module", FILES, ids=lambda module: module.__name__.partition(".")[2])


def public_functions(module):
    values = vars(module).values()
    return [f for f in values if inspect.isfunction(f) and f.__module__ == module.__name__ and f.__name__[0] != "_"]


def functions_with_the_same_inputs(cls):
    """The functions in a class's file that take the same signals as its instances, and no setting that it lacks."""
    names = ("coefficients", "update", "forward", "offsets")
    if issubclass(cls, Merge):
        names = ("search" if cls.searches() else "coefficients",) if cls.linear else ("tensor",)
    if issubclass(cls, Adapter):
        names = [name for name in ("predict", "statistics") if cls.defines(name) and not cls.defines("update")]
    run = next((getattr(cls, name) for name in names if hasattr(cls, name)), None)
    asks = {*getattr(cls, "asks", ())}
    parameters = [*inspect.signature(run).parameters.values()][1:] if run else []
    signals = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] if run else None
    for function in public_functions(sys.modules[cls.__module__]):
        parameters = inspect.signature(function).parameters
        settings = {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
        own = [name for name in parameters if name not in settings]
        if own == signals and settings - asks <= inspect.signature(cls).parameters.keys():
            yield function


@pytest.mark.parametrize(
    ("cls", "law"), [(cls, law) for cls in METHODS for law in laws_of(cls)], ids=lambda v: v.__name__
)
def test_law(cls, law, record_property):
    law(build(cls))
    record_property("cell", f"methods|{cls.__name__}|laws|pass")


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_exports_what_discovery_finds(room):
    package = importlib.import_module(f"lightning_objectives.{room}")
    exported = {name: getattr(package, name) for name in getattr(package, "__all__", ())}
    classes = {name for name, value in exported.items() if isinstance(value, type) and issubclass(value, ROOMS[room])}
    assert classes == {cls.__name__ for found, cls in methods() if found == room}
    homes = (f"{package.__name__}.", "lightning_objectives._")
    strangers = [name for name, value in exported.items() if not value.__module__.startswith(homes)]
    assert not strangers, f"{package.__name__} exports what is defined elsewhere: {strangers}"


@CLASSES
def test_settings_are_keyword_only_typed_and_kept(cls):
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL or (
            parameter.kind is parameter.VAR_KEYWORD and "__init__" not in vars(cls)
        ):
            continue  # what nn.Module shows for a class without a constructor of its own
        if issubclass(cls, LRScheduler) and parameter.name in ("optimizer", "last_epoch"):
            continue  # torch's own: the optimizer comes first, and last_epoch counts
        assert parameter.kind is parameter.KEYWORD_ONLY, f"{cls.__name__}({parameter}): keyword-only, no **kwargs"
        assert parameter.annotation is not parameter.empty, f"{cls.__name__}({parameter}): give it a type"
        given = getattr(cls, "example", {}).get(parameter.name, parameter.default)
        assert getattr(build(cls), parameter.name) == given, f"{cls.__name__}({parameter}): keep it under its own name"


@CLASSES
def test_the_docstring_is_complete(cls):
    """By itself, or together with that of the function that the class names, which it must then refer to."""
    function = function_of(cls)
    text = inspect.getdoc(cls) + (inspect.getdoc(function) if function else "")
    assert ">>> " in inspect.getdoc(cls), "an example of the class that runs"
    assert not function or f":func:`{function.__name__}`" in inspect.getdoc(cls), f"refer to {function.__name__}"
    missing = [head for head in ("Example:", "Paper:", "https://", "When to use:", "Cost:") if head not in text]
    assert not missing, f"{cls.__name__} says nothing of: {missing}"
    settings = inspect.signature(cls).parameters if "__init__" in vars(cls) else ()
    undocumented = [name for name in settings if f"\n    {name}: " not in text]
    assert not undocumented, f"{cls.__name__}: Args lacks {undocumented}"


@pytest.mark.parametrize("cls", [cls for cls in METHODS if issubclass(cls, Method)], ids=lambda cls: cls.__name__)
def test_a_wait_for_the_device_is_in_the_docstring(cls):
    assert cls.waits in " ".join(inspect.getdoc(cls).split()), f"{cls.__name__}: say in the docstring that {cls.waits}"


@CLASSES
def test_a_class_names_the_function_beside_it(cls):
    """Otherwise the law that the two return the same would check nothing."""
    candidates = list(functions_with_the_same_inputs(cls)) or [None]
    names = [getattr(function, "__name__", None) for function in candidates]
    assert function_of(cls) in candidates, f"{cls.__name__}: declare `function = staticmethod(...)` of one of {names}"


@CLASSES
def test_defaults_agree_with_those_of_the_functions_beside_it(cls):
    ours = inspect.signature(cls).parameters
    for function in public_functions(sys.modules[cls.__module__]):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in ours and parameter.default is not parameter.empty:
                assert ours[name].default == parameter.default, f"{cls.__name__} and {function.__name__}: {name}"


@MODULES
def test_a_file_holds_one_method_on_a_few_screens(module):
    assert lines_of_code(Path(module.__file__)) <= 150
    assert len([cls for cls in METHODS if cls.__module__ == module.__name__]) == 1
    undocumented = [f.__name__ for f in public_functions(module) if not (f.__doc__ and ">>> " in f.__doc__)]
    assert not undocumented, f"public functions without an example: {undocumented}"


@MODULES
def test_it_has_a_test_file_of_its_own(module):
    *_, room, name = module.__name__.split(".")
    assert (TESTS / room / f"test_{name}.py").is_file()


@pytest.mark.parametrize("part", [*ROOMS, "testing", "kinds.py", "discovery.py"])
def test_it_works_without_lightning(part):
    """Neither it nor what it imports of this package: hence also none of the callbacks, mixins, data and CLI."""
    for file in [PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py"):
        if file.is_relative_to(PACKAGE / "testing" / "conformance"):
            continue  # the trainings
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            foreign = [name for name in names if LIGHTNING.match(name)]
            assert not foreign, f"{file.relative_to(PACKAGE)}:{node.lineno} imports {foreign}"


@pytest.mark.parametrize("cls", [cls for cls in METHODS if issubclass(cls, Method)], ids=lambda cls: cls.__name__)
def test_it_says_when_it_is_active(cls):
    assert isinstance(build(cls).active(step=0), bool)
