"""Values written as text: numbers, schedules, networks and environment arguments of the command line. No jax here.

Nothing is ever evaluated: numbers and names are matched, and environment arguments are Python literals.
"""

import ast
import math
import re
from typing import Any

from polyak.errors import PolyakError, nearest

_NUMBER = re.compile(r"[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][+-]?\d+)?|[+-]?inf")
# How many numbers each schedule takes: start, end, fraction of the run.
_SCHEDULES = {"constant": (1, 1), "linear": (1, 3), "exponential": (2, 3), "cosine": (1, 3)}
_SHORT = {"lin": "linear", "exp": "exponential", "cos": "cosine", "const": "constant"}
# The convolutional fronts of Mnih et al., 2015 and 2013: (filters, kernel, stride) per layer, then a dense layer.
_CNNS: dict[str, dict[str, Any]] = {
    "cnn": {"network": "CNN"},
    "cnn2013": {"network": "CNN", "filters": [[16, 8, 4], [32, 4, 2]], "dense": 256},
}
# What each kind of features is called in config.json, and the numbers that it takes.
_FEATURES: dict[str, tuple[str, tuple[str, ...]]] = {
    "onehot": ("OneHot", ()), "tiles": ("Tiles", ("tilings", "tiles")), "fourier": ("Fourier", ("order",)),
    "polynomial": ("Polynomial", ("order",)), "radial": ("Radial", ("centres", "width")),
}  # fmt: skip
SCHEDULE_HELP = "linear:START:END:FRACTION"


def number(flag: str, text: str) -> float:
    """3e-4, 1_000, .5 or inf.

    Errors:
        PolyakError: not a number, or NaN.
    """
    if not _NUMBER.fullmatch(text.strip()):
        raise PolyakError(f"{flag} is {text!r}, and must be a number")
    return float(text)


def whole(flag: str, text: str) -> int:
    """A whole number, also written 100_000 or 1e6.

    Errors:
        PolyakError: not a number, not whole, or too large for a double to hold exactly.
    """
    if re.fullmatch(r"[+-]?\d+(_\d+)*", text.strip()):
        if len(text.replace("_", "")) > 24:
            raise PolyakError(f"{flag} has {len(text)} digits, which is too large")
        return int(text)
    value = number(flag, text)
    if not math.isfinite(value) or not value.is_integer() or abs(value) > 2**53:
        raise PolyakError(f"{flag} is {text!r}, and must be a whole number")
    return int(value)


def seeds(flag: str, text: str) -> int | list[int]:
    """How many seeds, or the seeds themselves: "5", or "1,2,7"."""
    if "," not in text:
        return whole(flag, text)
    return [whole(flag, part) for part in text.split(",") if part.strip()]


def pair(flag: str, text: str) -> tuple[str, Any]:
    """An argument of an environment, `key:value`; the value is a Python literal, and what is none is text."""
    key, colon, value = text.partition(":")
    if not colon or not key.isidentifier():
        raise PolyakError(f"{flag} is {text!r}, and must be key:value, for instance gravity:9.8")
    try:
        return key, ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return key, value


def schedule(flag: str, text: str) -> dict[str, Any] | None:
    """`linear:2.5e-4:0:1.0`, `linear(2.5e-4, 0, 1.0)` or the zoo's `lin_2.5e-4`, as config.json holds it.

    Returns None where the text is no schedule at all.
    """
    match = re.fullmatch(r"([A-Za-z]+)(?:[:_]([^()]*)|\(([^()]*)\))", text.strip())
    if match is None:
        return None
    word = match[1].lower()
    kind = _SHORT.get(word, word)
    if kind not in _SCHEDULES:
        raise PolyakError(f"{flag}: there is no schedule {match[1]!r}{nearest(kind, _SCHEDULES)}")
    parts = re.split(r"[:,]", match[2] or match[3] or "")
    numbers = [number(flag, part.strip()) for part in parts if part.strip()]
    least, most = _SCHEDULES[kind]
    if not least <= len(numbers) <= most:
        wanted = f"{least} to {most} numbers (start, end, fraction)" if most > 1 else "1 number"
        raise PolyakError(f"{flag}: {kind} takes {wanted}, and {text!r} has {len(numbers)}")
    if kind == "constant":
        return {"schedule": "Constant", "value": numbers[0]}
    names = ("start", "end", "fraction")
    return {"schedule": kind.capitalize(), **dict(zip(names, numbers, strict=False))}


def network(flag: str, text: str, init: str = "") -> Any:
    """Sizes `256,256`, with an activation `256,256,relu`, with a layer norm too `256,256,relu,layernorm`, `cnn` (2015)
    or `cnn2013`, as config.json holds it.

    Args:
        init: how the dense layers are initialised where an activation is named; "" leaves the default.
    """
    word = text.strip().lower()
    if word in _CNNS:
        return _CNNS[word]
    parts = [part.strip() for part in word.split(",") if part.strip()]
    layer_norm = bool(parts) and parts[-1] == "layernorm" and bool(parts.pop())
    activation = parts.pop() if parts and parts[-1].isidentifier() else ""
    if not parts or any(part.isidentifier() for part in parts):
        known = "256,256 or 64,64,tanh or 256,256,relu,layernorm, or cnn or cnn2013"
        raise PolyakError(f"{flag} is {text!r}, and must be sizes such as {known}")
    sizes = [whole(flag, part) for part in parts]
    if layer_norm and not activation:
        raise PolyakError(f"{flag} is {text!r}: name the activation too, as in 256,256,relu,layernorm")
    if not activation:
        return tuple(sizes)
    plan = {"network": "MLP", "sizes": sizes, "activation": activation} | ({"init": init} if init else {})
    return plan | ({"layer_norm": True} if layer_norm else {})


def features(flag: str, text: str) -> dict[str, Any]:
    """`tiles:8,8`, `fourier:3`, `polynomial:2`, `radial:5,1.0` or `onehot`, as config.json holds it."""
    word, _, rest = text.strip().lower().partition(":")
    if word not in _FEATURES:
        known = ", ".join(_FEATURES)
        raise PolyakError(f"{flag}: there are no features {word!r}{nearest(word, _FEATURES)}; there are {known}")
    kind, names = _FEATURES[word]
    numbers = [part.strip() for part in re.split(r"[:,x]", rest) if part.strip()]
    if len(numbers) > len(names):
        wanted = " and ".join(names) or "no numbers"
        raise PolyakError(f"{flag}: {word} takes {wanted}, and {text!r} has {len(numbers)} numbers")
    read = {"width": number}  # all the others are counts
    given = zip(names, numbers, strict=False)
    return {"features": kind, **{name: read.get(name, whole)(flag, part) for name, part in given}}


def field_value(flag: str, annotation: str, text: str, init: str = "") -> Any:
    """A hyper-parameter's value from its text, as its annotation allows.

    Args:
        annotation: the source of the annotation, for instance "float | Schedule | None".
        init: how a network's dense layers are initialised; see `network`.

    Returns the value, with schedules and networks as config.json holds them.

    Errors:
        PolyakError: the text is none of the things that the field may be; the sentence says what it may be.
    """
    kinds = _kinds(annotation)
    if text.strip().lower() == "none" and ("None" in kinds or "Any" in kinds):
        return None
    if "Any" in kinds:
        return network(flag, text, init)
    if "Features" in kinds:
        return features(flag, text)
    if "Policy" in kinds:
        return chosen(flag, text, ("uniform",))  # a table of probabilities is for Python
    if "int" in kinds and "float" not in kinds:
        return whole(flag, text)
    if choices := _choices(annotation):
        return chosen(flag, text, (*choices, *(("none",) if "None" in kinds else ())))
    if _NUMBER.fullmatch(text.strip()):
        return number(flag, text)
    if "Schedule" in kinds and (found := schedule(flag, text)) is not None:
        return found
    if "str" in kinds:
        return text
    if "tuple" in annotation:
        return tuple(number(flag, part) for part in text.split(",") if part.strip())
    allowed = ["a number"]
    allowed += [f"a schedule such as {SCHEDULE_HELP}"] * ("Schedule" in kinds) + ["none"] * ("None" in kinds)
    raise PolyakError(f"{flag} is {text!r}, and must be {' or '.join(allowed)}")


def metavar(annotation: str) -> str:
    """What stands for the value in a usage line."""
    kinds = _kinds(annotation)
    if choices := _choices(annotation):
        return "{" + ",".join([*choices, *(["none"] if "None" in kinds else [])]) + "}"
    if "Any" in kinds:
        return "SIZES"
    if "Features" in kinds:
        return "KIND:N,.."
    if "Policy" in kinds:
        return "uniform"
    names = {"int": "N", "float": "X", "Rhythm": "X", "Schedule": "SCHEDULE", "str": "TEXT", "None": "none"}
    return "|".join(names[kind] for kind in names if kind in kinds) or "VALUE"


def chosen(flag: str, text: str, choices: tuple[str, ...]) -> str:
    """One of a few words, or the sentence that lists them."""
    if text not in choices:
        raise PolyakError(f"{flag} is {text!r}, and must be one of {', '.join(choices)}{nearest(text, choices)}")
    return text


def _kinds(annotation: str) -> set[str]:
    return {part.strip() for part in annotation.split("|")}


def _choices(annotation: str) -> tuple[str, ...]:
    """The words of `Literal['a', 'b']`."""
    match = re.search(r"Literal\[(.*?)\]", annotation)
    return tuple(re.findall(r"['\"]([^'\"]*)['\"]", match[1])) if match else ()
