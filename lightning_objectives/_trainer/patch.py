"""Wraps a method of one instance, and removes the wrapping without a trace."""

import operator
import types
from collections.abc import Callable
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

    def __init__(self, owner: object, name: str, around: Callable[..., Any], *, visible: bool = False) -> None:
        """Patch at once. With ``visible=True`` Lightning sees ``around`` as the method, and takes it for overridden."""
        self.visible = visible
        self.owner = owner
        self.name = name
        self.around = around
        self.own = name in vars(owner)
        """Whether the instance itself had an attribute of this name, which :meth:`remove` puts back."""
        self.inner = getattr(owner, name)
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
