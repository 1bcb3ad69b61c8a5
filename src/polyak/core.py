"""What every part speaks: the record of experience, the protocol of an agent, and what a hyper-parameter is."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Annotated, Any, ClassVar, NamedTuple, NoReturn, Protocol, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from polyak import catalogue, compat
from polyak.errors import PolyakError, nearest
from polyak.names import unknown_field
from polyak.spaces import Box, Space, describe

Rhythm = Annotated[float, "static"]
"""A number that decides how often something runs: part of the program's structure, whatever its type."""

Metrics = dict[str, Array]
"""Scalars by tag; NaN means "did not happen"."""


compat.settle()

T = TypeVar("T")


class Transition(NamedTuple):
    """One step of experience; every leaf has the same leading axes: [T, N] in a rollout, [B] in a batch."""

    obs: Any
    action: Any
    reward: Array
    next_obs: Any  # the true successor, never the observation after an auto-reset
    terminated: Array  # the world ended: the successor is worth 0
    truncated: Array  # the clock ended: the successor still has a value


class Rollout(NamedTuple):
    """A stretch of experience: T steps of N worlds, and the memory with which the first step was acted."""

    steps: Transition
    memory: Any


@dataclasses.dataclass(frozen=True)
class Spec:
    """What an agent is told of its world before it is built.

    Attributes:
        obs, action: the spaces; a bounded Box of actions is always [-1, 1] here.
        n_envs: N, worlds stepped side by side.
        steps: environment steps of the whole run (all N together); bounds the replay.
        frames: k where the observation stacks the last k frames on its last axis, else 0.
        goal_reward: (achieved, desired), one goal each ↦ reward, traceable and with a hash; None where rewards are not
            known as a function of goals.
    """

    obs: Space
    action: Space
    n_envs: int
    steps: int
    frames: int = 0
    goal_reward: Callable[[Array, Array], Array] | None = None


class Agent(Protocol):
    """Hyper-parameters and three verbs (docs/architecture.md §2). Structural: nobody inherits from it."""

    on_policy: ClassVar[bool]

    @property
    def rollout_length(self) -> int: ...
    def init(self, key: Array, spec: Spec) -> Any: ...
    def memory(self, spec: Spec) -> Any: ...
    def act(self, state: Any, obs: Any, key: Array, memory: Any, *, explore: bool) -> tuple[Any, Any]: ...
    def update(self, state: Any, rollout: Rollout, key: Array) -> tuple[Any, Metrics]: ...


_WORD = 1 << 24  # float32 holds every integer below it exactly


class Counter(NamedTuple):
    """A count in two words, high·2²⁴ + low: exact far beyond 2³², where one int32 wraps and one float32 stalls.

    A counter is equal in all seeds of a run, and `seed_axes` keeps it unbatched under vmap: so `lax.cond` on it
    stays a branch, and a ring buffer's position stays one slice.
    """

    high: Array
    low: Array

    @staticmethod
    def of(value: int) -> "Counter":
        return Counter(jnp.int32(value // _WORD), jnp.int32(value % _WORD))

    def add(self, n: int) -> "Counter":
        """The count after n more (0 ≤ n < 2³⁰)."""
        low = self.low + n
        return Counter(self.high + low // _WORD, low % _WORD)

    def at_least(self, n: int) -> Array:
        return (self.high > n // _WORD) | ((self.high == n // _WORD) & (self.low >= n % _WORD))

    def modulo(self, n: int) -> Array:
        """The count modulo n, int32, exact for n < 2²⁵ and for every power of two up to 2³⁰.

        Horner's rule takes six bits of the low word at a time, so that no product passes 2³¹.
        """
        if n >= _WORD and n & (n - 1) == 0:
            return self.high % (n // _WORD) * _WORD + self.low
        rest = self.high % n
        for shift in (18, 12, 6, 0):
            rest = (rest * 64 + (self.low >> shift) % 64) % n
        return rest

    def crossed(self, n: int, interval: int) -> Array:
        """Whether adding n passes, or reaches, a multiple of the interval."""
        return self.modulo(interval) + n >= interval

    def float(self) -> Array:
        return self.high.astype(jnp.float32) * _WORD + self.low.astype(jnp.float32)


def seed_axes(tree: Any) -> Any:
    """The vmap axes of a state over seeds: 0 for every leaf, None for counters (equal in all seeds)."""
    return jax.tree.map(lambda x: None if isinstance(x, Counter) else 0, tree, is_leaf=lambda x: isinstance(x, Counter))


def require(condition: bool, sentence: str) -> None:
    """Refuse with one sentence unless the condition holds. Traced values can't be checked, and are not asked."""
    if not condition:
        raise PolyakError(sentence)


def refuse_actions(name: str, action: Space) -> NoReturn:
    """Say that an agent can't take this space of actions, what it takes, and which agents take such a space."""
    takes = catalogue.algorithm(name).takes.partition("actions ")[2].rstrip(".")
    others = catalogue.takers(type(action).__name__, endless=isinstance(action, Box) and not action.bounded)
    who = f"{', '.join(others)} can take such a space" if others else "no agent takes such a space: flatten it"
    raise PolyakError(f"{name} can't take actions {describe(action)}: it takes {takes}; {who}")


def in_range(agent: Any, **bounds: tuple[float, float]) -> None:
    """Refuse numbers outside [low, high]: `in_range(self, gamma=(0, 1))`.

    A schedule's start and end are asked as well; traced values can't be, and pass.
    """
    for name, (low, high) in bounds.items():
        value = getattr(agent, name)
        for number in [value, *_reached(value)]:
            if isinstance(number, int | float) and not low <= number <= high:
                goes = "is" if number is value else f"is a {type(value).__name__} that reaches"
                must = f"and must lie in [{low:g}, {high:g}]"
                raise PolyakError(f"{type(agent).__name__}: {name} {goes} {number}, {must}")


def one_of(agent: Any, **choices: tuple[Any, ...]) -> None:
    """Refuse words that a field doesn't know: `one_of(self, recurrent=("gru", "lstm", None))`."""
    for name, known in choices.items():
        value = getattr(agent, name)
        words = f"{', '.join(map(repr, known[:-1]))} or {known[-1]!r}"
        near = nearest(str(value), [word for word in known if isinstance(word, str)])
        require(value in known, f"{type(agent).__name__}: {name} is {value!r}, and must be {words}{near}")


def _reached(value: Any) -> list[Any]:
    """The values that a schedule starts from and ends at; [] of anything else."""
    ends = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return [getattr(value, f.name) for f in ends if f.name in ("value", "start", "end")]


def _is_subtree(value: Any) -> bool:
    """Whether a field's value is traced: a float, an array, or a pytree that holds any."""
    return any(isinstance(leaf, float | np.ndarray | np.floating | Array) for leaf in jax.tree.leaves(value))


class _Same:
    """A value that has no hash (a user's network with arrays in it) as structure: equal to itself alone."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


def _held(value: Any) -> Any:
    """A static value as jax wants it, with a hash."""
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return value


def _coerced(cls: type, field: dataclasses.Field[Any], value: Any) -> Any:
    """A field's value as its annotation wants it: `lr=1` becomes 1.0; what is no number is refused where one is due."""
    wanted = str(field.type) if isinstance(field.type, str) else repr(field.type)
    what = f"{cls.__name__}: {field.name} is"
    value = tuple(value) if isinstance(value, list) else value
    if field.type is float or "float" in wanted:
        if isinstance(value, int) and not isinstance(value, bool) and "int" not in wanted:
            value = float(value)
        alone = not isinstance(value, bool | None | Mapping | Sequence | Set)
        schedule = " or a schedule" if "Linear" in wanted else ""
        require(alone or _admits(wanted, value), f"{what} {value!r}, and must be a number{schedule}")
    elif field.type is int or wanted == "int | None":
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        require(whole or _admits(wanted, value), f"{what} {value!r}, and must be a whole number")
    elif field.type is bool:
        require(isinstance(value, bool | np.bool_), f"{what} {value!r}, and must be True or False")
    require(not (isinstance(value, float | np.floating) and value != value), f"{what} NaN, and must be a number")
    return value


def _admits(annotation: str, value: Any) -> bool:
    """Whether an annotation names the type of a value beside its numbers: "float | str" admits "auto"."""
    return ("None" if value is None else type(value).__name__) in annotation


def _checked_init(cls: type, static: set[str]) -> None:
    """Wrap the dataclass's __init__: unknown names are refused with the nearest, values brought to their types.

    Which fields are leaves is settled here, once: a tree of the same structure may hold anything in their place.
    """
    plain: Callable[..., None] = cls.__init__
    fields = {f.name: f for f in dataclasses.fields(cls)}

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(fields, args, strict=False)) | kwargs
        for name in given:
            if name not in fields:
                raise PolyakError(unknown_field(cls.__name__, name, fields))
        require(len(args) <= len(fields), f"{cls.__name__} takes {len(fields)} fields, and {len(args)} were given")
        plain(self, **{name: _coerced(cls, fields[name], value) for name, value in given.items()})
        inside = (name for name in fields if name not in static and _is_subtree(getattr(self, name)))
        object.__setattr__(self, "_leaves", tuple(inside))

    cls.__init__ = __init__


@dataclass_transform(frozen_default=True)
def hyper(cls: type[T]) -> type[T]:
    """Make a class of hyper-parameters: a frozen dataclass that is a pytree.

    A field whose value is a float (or an array, a schedule, a network) is a leaf: traced, vmapped, swept without
    recompiling. Everything else (ints, bools, None, strings), and every field annotated `Rhythm`, is structure.
    """
    made: Any = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(made)
    # A network or a feature map is structure too: it is the plan of parameters, which live in the state.
    plans = ("network", "critic_network", "features")
    static = {f.name for f in fields if f.type is Rhythm or f.type == "Rhythm" or f.name in plans}
    _checked_init(made, static)
    names = tuple(f.name for f in fields)

    def flatten(self: Any) -> tuple[tuple[Any, ...], Any]:
        values, inside = self.__dict__, self._leaves
        outside = tuple((n, _held(values[n])) for n in names if n not in inside)
        return tuple(values[n] for n in inside), (inside, outside)

    def flatten_with_keys(self: Any) -> tuple[tuple[tuple[Any, Any], ...], Any]:
        children, aux = flatten(self)
        return tuple((jax.tree_util.GetAttrKey(n), c) for n, c in zip(aux[0], children, strict=True)), aux

    def unflatten(aux: Any, children: Any) -> Any:
        self = object.__new__(made)
        for name, value in (*zip(aux[0], children, strict=True), *aux[1]):
            object.__setattr__(self, name, value.value if isinstance(value, _Same) else value)
        object.__setattr__(self, "_leaves", aux[0])
        return self

    jax.tree_util.register_pytree_with_keys(made, flatten_with_keys, unflatten, flatten)
    return made


def leading(tree: Any, axes: int) -> tuple[int, ...]:
    """The first `axes` lengths that all leaves of a record share: (T, N) of a rollout."""
    return jax.tree.leaves(tree)[0].shape[:axes]


def flat(tree: Any, axes: int = 2) -> Any:
    """Merge the first `axes` axes of every leaf: [T, N, ...] becomes [T·N, ...]."""
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[axes:])), tree)


def where(mask: Array, new: Any, old: Any) -> Any:
    """Choose between two trees along the leading axis of a mask [N]."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b), new, old)
