"""What is settled before jax starts: the compiler flag, jax's settings, the cache; and the canary (CT32)."""

import importlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from polyak import compat, doctor
from polyak.errors import PolyakError

FLAG = f"{compat.FUSION_FLAG}="


@pytest.mark.parametrize("version", ["0.9.1", "0.9.2", "0.10.0", "0.10.1", "0.10.2", "0.10.2.dev20260101"])
def test_affected_versions_get_the_flag(version: str) -> None:
    jaxlib = compat.numbers(version)
    assert compat.with_flag("", jaxlib) == FLAG
    assert compat.with_flag("--xla_dump_to=x", jaxlib) == f"--xla_dump_to=x {FLAG}"
    assert compat.with_flag(f"{FLAG}all", jaxlib) == f"{FLAG}all", "what the user has set stays"


@pytest.mark.parametrize("version", ["0.6.2", "0.9.0", "0.11.0", "0.12.0.1", ""])
def test_other_versions_do_not_since_xla_would_end_the_process(version: str) -> None:
    assert compat.with_flag("", compat.numbers(version)) == ""
    assert compat.with_flag("--xla_dump_to=x", compat.numbers(version)) == "--xla_dump_to=x"


def _child(code: str, **variables: str) -> str:
    cleared = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "POLYAK_"))}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**cleared, **variables}
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


SHOW = "import polyak, jax; polyak.PPO; from jax import config as c; "
SHOW += "print(c.read('jax_cpu_enable_async_dispatch'), c.jax_compilation_cache_dir)"


@pytest.mark.parametrize("first", ["", "import jax; "])
def test_jax_is_set_up_whichever_is_imported_first(first: str, tmp_path: Path) -> None:
    dispatch, _, folder = _child(first + SHOW, XDG_CACHE_HOME=str(tmp_path)).partition(" ")
    assert dispatch == "False"
    assert Path(folder).parent == tmp_path / "polyak"
    assert compat.jaxlib_version() in folder
    assert compat.cpu() in folder
    assert stat.S_IMODE(Path(folder).stat().st_mode) == 0o700


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    own = str(tmp_path / "own")
    assert _child(SHOW, JAX_COMPILATION_CACHE_DIR=own) == f"False {own}"
    assert _child(f"import jax; jax.config.update('jax_compilation_cache_dir', {own!r}); {SHOW}") == f"False {own}"


def test_strict_mode_keeps_no_compiled_programs(tmp_path: Path) -> None:
    assert _child(SHOW, POLYAK_STRICT="1", XDG_CACHE_HOME=str(tmp_path)) == "False None"
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_others_may_write_or_that_points_elsewhere_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("POLYAK_STRICT", raising=False)
    folder = compat.cache_folder()
    assert folder is not None
    folder.chmod(0o777)
    assert compat.cache_folder() is None
    folder.rmdir()
    folder.symlink_to(tmp_path)
    assert compat.cache_folder() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    assert compat.cache_folder() is None


def test_where_jax_runs_already_the_canary_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax

    jax.devices()
    monkeypatch.setattr(compat, "jaxlib_version", lambda: "0.10.2")
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(doctor, "canary", list)
    compat.prepare()
    wrong = [(doctor.Check(40000, 3, "max"), 0.9)]
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(doctor, "canary", lambda: wrong)
    with pytest.raises(PolyakError, match=r"max of 40,000 rows of width 3: 90.0% off.*before polyak was imported"):
        compat.prepare()


def test_prepare_appends_the_flag_before_jax_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "jaxlib_version", lambda: "0.10.2")
    monkeypatch.setattr(compat, "_backend_started", lambda: False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    compat.prepare()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=x {FLAG}"


# ------------------------------------------------------------------------------------------------------------ canary


def test_the_canary_has_the_programs_that_were_measured() -> None:
    first, short = list(doctor.checks("first")), list(doctor.checks("short"))
    assert (len(first), len(short)) == (20, 150)
    assert len(set(first)) == 20
    caught = {doctor.Check(n, 3, how) for n in (32769, 33000, 40000) for how in ("sum2", "max")}
    assert caught <= set(first), "the six that 0.10.2 gets wrong"


def test_the_canary_passes_here() -> None:
    assert doctor.canary() == []


def test_the_canary_can_fail() -> None:
    assert len(doctor.canary(tolerance=0.0)) > 10, "float32 differs from float64 in nearly every program"


def test_a_wrong_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    import jax.numpy as jnp

    real = jax.vmap

    def shifted(program: object) -> object:
        mapped = real(program)  # type: ignore[arg-type]
        return lambda x: mapped(x).at[-1].add(jnp.float32(1.0))

    monkeypatch.setattr(jax, "vmap", shifted)
    assert len(doctor.canary()) == 20
    with pytest.raises(PolyakError, match="computes wrong numbers on this CPU"):
        doctor.require_canary()


def test_a_pass_is_remembered_per_flags_and_a_failure_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    verdict: list[object] = []
    monkeypatch.setattr(doctor, "canary", lambda: ran.append(1) or verdict)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    verdict.append((doctor.Check(40000, 3, "max"), 0.9))
    for _ in range(2):
        with pytest.raises(PolyakError):
            doctor.ensure()
    assert len(ran) == 2
    verdict.clear()
    doctor.ensure()
    doctor.ensure()
    assert len(ran) == 3
    (found,) = tmp_path.rglob("canary-*.json")
    assert json.loads(found.read_text())["failed"] == 0
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    doctor.ensure()
    assert len(ran) == 4


@pytest.mark.full
def test_the_short_canary_passes_here() -> None:
    assert doctor.canary("short") == []


def test_the_report_names_versions_extras_and_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "canary", lambda kind: [])
    monkeypatch.setitem(doctor._EXTRAS, "envpool", ("no-such-package",))
    assert doctor.installation() == 0
    out = capsys.readouterr().out
    assert "pip install 'polyak[envpool]'" in out
    assert "20 of 20" in out
    monkeypatch.setattr(doctor, "canary", lambda kind: [(doctor.Check(40000, 3, "max"), 0.9)])
    assert doctor.installation() == 1
    assert "WRONG: max of 40,000 rows of width 3: 90.0% off" in capsys.readouterr().out


def test_the_public_surface_is_there() -> None:
    polyak = importlib.import_module("polyak")
    for name in polyak.__all__:
        assert getattr(polyak, name) is not None
    with pytest.raises(AttributeError, match="polyak has no 'TD4'"):
        _ = polyak.TD4
