"""Wraps a method of one instance, and removes the wrapping without a trace."""

import copyreg
import operator
import types
from collections.abc import Callable
from functools import partial
from typing import Any


class Patch:
    """Replaces ``owner.name`` by a call of ``around(inner, *args, **kwargs)``; ``inner`` is the method as it was.

    Patches of one method nest, and you can remove any of them at any time. A copy or a pickle of the owner is
    unpatched, and opens without this package. ``__wrapped__`` shows Lightning the user's own signature.

    >>> class Net:
    ...     def step(self, x):
    ...         return x + 1
    >>> net = Net()
    >>> patch = Patch(net, "step", lambda inner, x: 10 * inner(x))
    >>> net.step(1)
    20
    >>> patch.remove()
    >>> net.step(1), vars(net)
    (2, {})
    """

    def __init__(
        self, owner: object, name: str, around: Callable[..., Any], *, visible: bool = False, innermost: bool = False
    ) -> None:
        """Patch at once.

        With ``visible=True`` Lightning sees ``around`` as the method, and takes it for overridden. With
        ``innermost=True`` the other patches of the method see what ``around`` returns, whenever they came.
        """
        self.visible = visible
        self.owner = owner
        self.name = name
        self.around = around
        self.own = name in vars(owner)
        """Whether the instance itself had an attribute of this name, which :meth:`remove` puts back."""
        self.inner = getattr(owner, name)
        if innermost and isinstance(self.inner, Patch):
            outer = self.inner
            while isinstance(outer.inner, Patch):
                outer = outer.inner
            self.inner, self.own = outer.inner, outer.own
            outer.inner, outer.own = self, True
        else:
            vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run ``around`` in place of the method."""
        return self.around(self.inner, *args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        inner = self.around if self.visible else self.inner
        while isinstance(inner, Patch):
            inner = inner.inner
        return inner

    def remove(self) -> None:
        """Remove the patch; does nothing the second time."""
        outer = None
        current = vars(self.owner).get(self.name)
        while isinstance(current, Patch) and current is not self:
            outer, current = current, current.inner
        if current is not self:
            return
        if outer is not None:
            outer.inner, outer.own = self.inner, self.own
        elif self.own:
            vars(self.owner)[self.name] = self.inner
        else:
            del vars(self.owner)[self.name]

    def __reduce__(self) -> tuple[Any, ...]:
        # Only functions of Python itself, so that the pickle opens where this package cannot be imported.
        innermost = self
        while isinstance(innermost.inner, Patch):
            innermost = innermost.inner
        method = innermost.inner
        if not innermost.own and isinstance(method, types.MethodType) and method.__self__ is self.owner:
            return getattr, (self.owner, self.name)
        return operator.getitem, ((method,), 0)


class ClassPatch:
    """Does for an instance whose class defines ``__call__`` what :class:`Patch` does for a method.

    Python looks up ``__call__`` on the class, so the instance gets a subclass until :meth:`remove`.

    >>> import copy
    >>> class Half:
    ...     def __call__(self, x):
    ...         return x / 2
    >>> half = Half()
    >>> patch = ClassPatch(half, lambda inner, x: 10 * inner(x))
    >>> half(4), isinstance(half, Half), type(copy.copy(half)) is Half
    (20.0, True, True)
    >>> patch.remove()
    >>> half(4), type(half) is Half
    (2.0, True)
    """

    def __init__(self, owner: Any, around: Callable[..., Any]) -> None:
        self.owner = owner
        self.around: Callable[..., Any] | None = around
        self.plain = plain = type(owner)
        """The class without this patch."""

        def call(instance: Any, *args: Any, **kwargs: Any) -> Any:
            inner = partial(plain.__call__, instance)
            return inner(*args, **kwargs) if self.around is None else self.around(inner, *args, **kwargs)

        def reduce(instance: Any, protocol: Any) -> Any:
            # A copy or a pickle is of the plain class, and opens without this package.
            reduced: Any = plain.__reduce_ex__(instance, protocol)  # type: ignore[call-arg]  # it is a method
            function, arguments, *rest = reduced
            arguments = tuple(plain if a is type(instance) else a for a in arguments)
            # Pickle refuses `__newobj__` for another class than that of the instance.
            return object.__new__ if function is copyreg.__newobj__ else function, arguments, *rest  # type: ignore[attr-defined]  # of Python

        names = {"__module__": plain.__module__, "__qualname__": plain.__qualname__, "__doc__": plain.__doc__}
        members = {"__call__": call, "__reduce_ex__": reduce, "_objective_patch": self}
        owner.__class__ = type(plain.__name__, (plain,), {**names, **members})

    def remove(self) -> None:
        """Remove the patch, below any others; does nothing the second time."""
        self.around = None
        outermost = vars(type(self.owner)).get("_objective_patch")
        while outermost is not None and outermost.around is None:
            self.owner.__class__ = outermost.plain
            outermost = vars(outermost.plain).get("_objective_patch")
