"""`polyak doctor`: is this installation sound, and is this environment fit to learn from? With the compiler's canary.

jax 0.9.1 to 0.10.2 compute wrong numbers on CPU for small products under jit, silently (`polyak.compat`). The canary
compares compiled results with float64 NumPy at the shapes where that was seen.
"""

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from polyak import compat
from polyak.errors import PolyakError

TOLERANCE = 1e-4  # of the largest value; float32 leaves 1e-6 where the compiler is right, and 4e-3 to 1 where not
_CORE = ("jax", "jaxlib", "numpy", "optax", "gymnasium", "safetensors", "rich", "tensorboardX", "matplotlib")
_EXTRAS = {
    "mujoco": ("mujoco",), "atari": ("ale-py",), "box2d": ("box2d",), "envpool": ("envpool",),
    "video": ("imageio", "imageio-ffmpeg"),
}  # fmt: skip


class Check(NamedTuple):
    """One program of the canary: `reduction` over products of n rows with a square matrix of width d."""

    n: int
    d: int
    reduction: str  # "sum2": sum((W r)²), "max": max(W r), "batched": max(x Wᵀ) without vmap

    def __str__(self) -> str:
        return f"{self.reduction} of {self.n:,} rows of width {self.d}"


def checks(kind: str) -> Iterator[Check]:
    """The programs of the canary "first" (20, about a second) or "short" (150, about seven)."""
    if kind == "first":
        sizes, widths, reductions = (32769, 33000, 40000), (2, 3, 4), ("sum2", "max")
        yield from (Check(16385, 3, "max"), Check(65537, 3, "max"))
    else:
        sizes = (16385, 20000, 32769, 33000, 40000, 50000, 60000, 65537, 100_000, 131_073)
        widths, reductions = (2, 3, 4, 5, 6), ("sum2", "max", "batched")
    yield from (Check(n, d, reduction) for n in sizes for d in widths for reduction in reductions)


def canary(kind: str = "first", tolerance: float = TOLERANCE) -> list[tuple[Check, float]]:
    """The checks that fail, with their errors relative to the largest value; [] where the compiler is right."""
    found = ((check, _error(check)) for check in checks(kind))
    return [(check, error) for check, error in found if not error <= tolerance]


def _error(check: Check) -> float:
    """The largest difference between the compiled program and float64 NumPy, over the largest value."""
    import jax
    import jax.numpy as jnp

    draw = np.random.default_rng(check.d)
    W = draw.standard_normal((check.d, check.d)).astype(np.float32)  # closed over, as a policy's weights may be
    x = draw.standard_normal((check.n, check.d)).astype(np.float32)

    def reduced(r: Any) -> Any:
        y = jnp.asarray(W) @ r
        return jnp.sum(y**2) if check.reduction == "sum2" else jnp.max(y)

    def batched(x: Any) -> Any:
        return jnp.max(x @ jnp.asarray(W).T, axis=1)

    program = batched if check.reduction == "batched" else jax.vmap(reduced)
    with jax.default_device(jax.devices("cpu")[0]):
        computed = np.asarray(jax.jit(program)(x), np.float64)
    y = x.astype(np.float64) @ W.T.astype(np.float64)
    right = (y**2).sum(1) if check.reduction == "sum2" else y.max(1)
    return float(np.abs(computed - right).max() / np.abs(right).max())


def require_canary(context: str = "") -> None:
    """Refuses to compute on a compiler that gets the canary wrong.

    Errors:
        PolyakError: it does; with the version, the worst error, and what to do.
    """
    failed = canary()
    if failed:
        worst, error = max(failed, key=lambda pair: pair[1])
        because = f"; {context}" if context else ""
        raise PolyakError(
            f"jaxlib {metadata.version('jaxlib')} computes wrong numbers on this CPU ({worst}: {error:.1%} off)"
            f"{because}; import polyak before jax is used, or install another jax"
        )


def ensure() -> None:
    """The canary at the first use of this jaxlib, on this CPU, with these flags; a pass is remembered on disk.

    Errors:
        PolyakError: the compiler is wrong (nothing is remembered).
    """
    import jax

    if jax.default_backend() != "cpu":
        return
    folder = compat.cache_folder()
    flags = blake2b(os.environ.get("XLA_FLAGS", "").encode(), digest_size=8).hexdigest()
    passed = None if folder is None else folder / f"canary-{flags}.json"
    if passed is not None and passed.exists():
        return
    require_canary()
    if passed is not None:
        passed.write_text(json.dumps({"canary": "first", "failed": 0}) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ report


def installation(kind: str = "first") -> int:
    """Prints versions, extras with their install commands, devices and the canary's verdict.

    Returns the exit code: 0, or 1 where the compiler computes wrong numbers.
    """
    import jax

    print(f"polyak {metadata.version('polyak')}, Python {platform.python_version()}, {platform.platform()}")
    print(f"cores    {os.cpu_count()}, NPROC={os.environ.get('NPROC', 'not set')}")
    print(f"devices  {', '.join(f'{d.platform}:{d.id} {d.device_kind}' for d in jax.devices())}")
    print(f"flags    XLA_FLAGS={os.environ.get('XLA_FLAGS', 'not set')}")
    print(f"cache    {compat.cache_folder() or 'off'}")
    print("packages " + ", ".join(f"{name} {_version(name)}" for name in _CORE))
    for extra, names in _EXTRAS.items():
        versions = [(name, _version(name)) for name in names]
        missing = any(version == "missing" for _, version in versions)
        have = ", ".join(f"{name} {version}" for name, version in versions)
        print(f"extra    {extra:<8} " + (f"missing: pip install 'polyak[{extra}]'" if missing else have))
    failed = canary(kind)
    for check, error in failed:
        print(f"canary   WRONG: {check}: {error:.1%} off")
    count = sum(1 for _ in checks(kind))
    print(f"canary   {count - len(failed)} of {count} compiled programs agree with NumPy to {TOLERANCE:g}")
    return 1 if failed else 0


def environment(env: str, kwargs: Mapping[str, Any], allow_import: Sequence[str]) -> int:
    """Prints what `polyak.check_env` finds, and returns the exit code: 0, or 3 where the environment is unfit."""
    from polyak.envs.check import check_env

    found = check_env(env, env_kwargs=kwargs, allow_import=allow_import)
    print(found)
    return 0 if found.ok else 3


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
