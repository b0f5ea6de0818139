"""The faults that are planted: small changes of the syntax tree, such as ``<`` in the place of ``<=``."""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SKIPPED_NAMES = {"__all__", "example", "zero"}
"""Assignments to these are settings of the tests themselves."""
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Args:
        file: of the library, from the repository's root.
        function: the qualified name of the function or class around it; empty at the level of the module.
        before: the statement without the fault; of a compound statement its first line.
        after: the statement with it.
        line: where the statement stands.
        number: among the faults of the file.
    """

    file: str
    function: str
    before: str
    after: str
    line: int
    number: int

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What does not change when lines move."""
        return self.file, self.function, self.before, self.after

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}\n  - {self.before}\n  + {self.after}"


def mutants(file: str, source: str) -> list[Mutant]:
    r"""All faults that can be planted in a file.

    Example:
        >>> [mutant.after for mutant in mutants("file.py", "def f(x):\n    return x < 1")]
        ['return None', 'return x <= 1', 'return x >= 1', 'return x < 2', 'return x < 0']
    """
    return [
        Mutant(file, function, before, after, line, number)
        for number, (function, before, after, line, _) in enumerate(_planted(ast.parse(source)))
        if before != after
    ]


def planted(source: str, number: int) -> str:
    """The source with the fault of this number."""
    tree = ast.parse(source)
    return next(unparsed() for i, (*_, unparsed) in enumerate(_planted(tree)) if i == number)


_Planted = tuple[str, str, str, int, Callable[[], str]]


def _planted(tree: ast.Module) -> Iterator[_Planted]:
    """Each fault in turn, which is in the tree until the next is asked for."""
    for function, body, place in _statements(tree.body, ""):
        statement = body[place]
        before = _head(statement)
        if _can_go(statement):
            body[place] = ast.copy_location(ast.Pass(), statement)
            yield function, before, "pass", statement.lineno, lambda: ast.unparse(tree)
            body[place] = statement
        for _ in _changed(statement):
            yield function, before, _head(statement), statement.lineno, lambda: ast.unparse(tree)


def _statements(body: list[ast.stmt], function: str) -> Iterator[tuple[str, list[ast.stmt], int]]:
    for place, statement in enumerate(body):
        name = function
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            name = f"{function}.{statement.name}".lstrip(".")
        # A default of a function belongs to it: only who calls it can see the fault.
        yield name, body, place
        for inner in _bodies(statement):
            yield from _statements(inner, name)


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for field in ("body", "orelse", "finalbody"):
        yield getattr(statement, field, [])
    for handler in getattr(statement, "handlers", []):
        yield handler.body
    for case in getattr(statement, "cases", []):
        yield case.body


def _head(statement: ast.stmt) -> str:
    """A statement as text, without what it is made of inside."""
    short = copy.copy(statement)
    for field in ("orelse", "finalbody", "handlers", "decorator_list"):
        if hasattr(short, field):
            setattr(short, field, [])
    if isinstance(getattr(short, "body", None), list):
        short.body = [ast.Pass()]  # type: ignore[attr-defined]
        return ast.unparse(short).partition("\n")[0]
    return ast.unparse(short)


def _can_go(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Call)
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, (ast.Attribute, ast.Subscript)) for target in statement.targets)
    if isinstance(statement, ast.AnnAssign):
        return isinstance(statement.target, ast.Attribute) and statement.value is not None
    return isinstance(statement, (ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete))


def _changed(statement: ast.stmt) -> Iterator[None]:
    """Change the expressions of a statement, one at a time."""
    if isinstance(statement, ast.Raise) or _is_skipped(statement):
        return
    # What is false already, such as False itself, stays so as None.
    if isinstance(statement, ast.Return) and not isinstance(statement.value, (ast.Constant, type(None))):
        yield from _replaced(statement, "value", ast.Constant(None))
    if isinstance(statement, ast.If):
        yield from _replaced(statement, "test", ast.Constant(True), ast.Constant(False))
    for node in _expressions(statement):
        yield from _changes_of(node)


def _is_skipped(statement: ast.stmt) -> bool:
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return any(isinstance(target, ast.Name) and target.id in SKIPPED_NAMES for target in targets)
    return isinstance(statement, ast.Assert) or (isinstance(statement, ast.If) and "TYPE_CHECKING" in _head(statement))


def _expressions(node: ast.AST) -> Iterator[ast.AST]:
    """What a statement is made of, but for statements inside of it, types, decorators and the texts of messages."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, (ast.stmt, ast.excepthandler, ast.JoinedStr)):
                continue
            yield child
            yield from _expressions(child)


def _changes_of(node: ast.AST) -> Iterator[None]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                node.ops[place] = other()
                yield
            node.ops[place] = operator
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield from _replaced(node, "op", ARITHMETIC[type(node.op)]())
    elif isinstance(node, ast.BoolOp):
        yield from _replaced(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())
    elif isinstance(node, ast.IfExp):
        yield from _replaced(node, "test", ast.Constant(True), ast.Constant(False))
    elif isinstance(node, ast.comprehension):
        for place, test in enumerate(node.ifs):
            for value in (True, False):
                node.ifs[place] = ast.Constant(value)
                yield
            node.ifs[place] = test
    elif isinstance(node, ast.UnaryOp):
        yield from _unsigned(node)
    elif isinstance(node, ast.Constant):
        yield from _replaced(node, "value", *_others(node.value))


def _unsigned(node: ast.UnaryOp) -> Iterator[None]:
    """Without a ``not`` (said twice, which keeps the type) or a minus."""
    operand = node.operand
    if isinstance(node.op, ast.Not):
        yield from _replaced(node, "operand", ast.UnaryOp(ast.Not(), operand))
    elif isinstance(node.op, ast.USub) and not isinstance(operand, ast.Constant):
        yield from _replaced(node, "op", ast.UAdd())


def _others(value: object) -> tuple[object, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return (value + 1, value - 1) if value > 0 else (value + 1,)
    if isinstance(value, float):
        return (2 * value or 1.0,)
    return ()


def _replaced(node: ast.AST, field: str, *values: object) -> Iterator[None]:
    kept = getattr(node, field)
    for value in values:
        setattr(node, field, value)
        yield
    setattr(node, field, kept)
