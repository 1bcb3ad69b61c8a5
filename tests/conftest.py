"""What all tests share: strict jax, shapes that are executed, and a process that polyak has prepared.

Importing polyak first sets the compiler flag and the compilation cache (in the user's cache folder, keyed by jaxlib and
CPU), before any test module imports jax.
"""

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import pytest
from jaxtyping import install_import_hook

SHAPED = ["polyak.returns", "polyak.dists", "polyak.replay", "polyak.nets"]
install_import_hook(SHAPED, "beartype.beartype")

import polyak  # noqa: E402, I001  the hook must stand first
import jax  # noqa: E402

polyak.compat.settle()
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def checked_keys(request: pytest.FixtureRequest) -> Iterator[None]:
    """Using a random key twice is an error.

    Worlds are compared by giving them the same key on purpose, so the tests of tests/envs go without, and so does a
    test that is marked `reuses_keys`.
    """
    free = "envs" in request.path.parts or request.node.get_closest_marker("reuses_keys") is not None
    with jax.debug_key_reuse(not free):
        yield


@pytest.fixture(autouse=True)
def room_for_programs() -> Iterator[None]:
    """Forget what was compiled before there is too much of it.

    XLA maps several pieces of memory for every program, and Linux allows a process 65,530 of them: beyond, it ends with
    a segmentation fault. A worker that has met every agent's every knob is beyond.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
