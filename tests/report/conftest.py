"""A run folder as training writes it, made up from a random generator: the fixture of the report's tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyak.statistics import interval, iqm

STEPS = 100_000
FIELDS = {
    "lr": {"schedule": "Linear", "start": 0.001, "end": 0.0, "fraction": 1.0, "steps": 100000.0},
    "gamma": 0.98,
    "batch_size": 256,
    "max_grad_norm": 0.5,
    "network": None,
    "rollout_length": 32,
    "epochs": 20,
    "gae_lambda": 0.8,
    "clip_range": 0.2,
    "normalize_advantage": True,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "target_kl": None,
}
DEFAULTS = FIELDS | {
    "lr": 0.0003,
    "gamma": 0.99,
    "batch_size": 64,
    "rollout_length": 2048,
    "epochs": 10,
    "gae_lambda": 0.95,
}
PRESETS = {
    "lr": {"schedule": "Linear", "start": 0.001, "end": 0.0, "fraction": 1.0},
    "gamma": 0.98,
    "batch_size": 256,
    "rollout_length": 32,
    "epochs": 20,
    "gae_lambda": 0.8,
    "n_envs": 8,
}


def curve(draw: np.random.Generator, steps: np.ndarray, speed: float) -> np.ndarray:
    """A return that rises from 20 to at most 500, with noise that fades."""
    centre = 500 / (1 + np.exp(-(steps / STEPS * 10 - speed)))
    return np.clip(centre + draw.normal(0, 25, len(steps)) * (1 - steps / STEPS) + 15, 9, 500)


def metrics(draw: np.random.Generator, seed: int, speed: float, rows: int) -> list[dict[str, Any]]:
    steps = np.linspace(STEPS / rows, STEPS, rows).round().astype(int)
    returns, share = curve(draw, steps, speed), steps / STEPS
    columns = {
        "rollout/ep_rew_mean": returns,
        "rollout/ep_len_mean": returns,
        "train/learning_rate": 1e-3 * (1 - share),
        "train/loss": 4 + 30 * np.exp(-share * 5) + draw.normal(0, 0.8, rows),
        "train/policy_gradient_loss": -0.01 * np.exp(-share) + draw.normal(0, 0.002, rows),
        "train/value_loss": 0.02 + 80 * np.exp(-share * 9) + np.abs(draw.normal(0, 0.05, rows)),
        "train/entropy_loss": -0.69 + 0.3 * share + draw.normal(0, 0.01, rows),
        "train/approx_kl": np.abs(0.008 + draw.normal(0, 0.004, rows)) + 1e-6,
        "train/clip_fraction": np.clip(0.12 * (1 - share) + draw.normal(0, 0.02, rows), 0, 1),
        "train/clip_range": np.full(rows, 0.2),
        "train/explained_variance": np.clip(1 - np.exp(-share * 8) + draw.normal(0, 0.03, rows), -1, 1),
        "train/n_updates": steps // 256 * 20,
    }
    return [
        {"seed": seed, "step": int(s), "time": round(0.05 * k, 3), "time/fps": 21_000.0}
        | {t: float(v[k]) for t, v in columns.items()}
        for k, s in enumerate(steps)
    ]


def folder(
    path: Path,
    *,
    seeds: int = 5,
    algorithm: str = "PPO",
    env: str = "CartPole-v1",
    speed: float = 2.5,
    rows: int = 60,
    episodes: int = 20,
    tier: int = 2,
    finished: bool = True,
    fields: dict[str, Any] | None = None,
    salt: int = 0,
) -> Path:
    """Writes a whole run folder and returns it."""
    path.mkdir(parents=True)
    draw = np.random.default_rng(salt)
    lines: list[dict[str, Any]] = []
    finals: list[float] = []
    for seed in range(seeds):
        own = speed + draw.normal(0, 0.6)
        lines += metrics(draw, seed, own, rows)
        at = np.arange(5_000, STEPS + 1, 5_000)
        results = np.clip(curve(draw, at, own - 0.4)[:, None] + draw.normal(0, 30, (len(at), episodes)), 9, 500).round()
        folder = path / f"seed_{seed}"
        folder.mkdir()
        np.savez(folder / "evaluations.npz", timesteps=at, results=results, ep_lengths=results.astype(int))
        finals.append(float(results[-1].mean()))
    (path / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda r: r["step"]))
    )
    write_config(path, algorithm, env, seeds, FIELDS | (fields or {}))
    if finished:
        write_summary(path, algorithm, env, finals, episodes, tier)
    return path


def write_config(path: Path, algorithm: str, env: str, seeds: int, fields: dict[str, Any]) -> None:
    config = {
        "polyak": "0.1.0",
        "agent": {"name": algorithm, "fields": fields, "defaults": DEFAULTS, "normalised": None},
        "env": {"id": env, "kwargs": {}, "kind": "host"},
        "run": {
            "steps": STEPS,
            "seed": 0,
            "seeds": list(range(seeds)),
            "n_envs": 8,
            "eval_freq": 5000,
            "eval_episodes": 20,
        }
        | {"save_freq": 25_000, "preset": "zoo", "crank": "host"},
        "presets": PRESETS,
        "preset_source": "a zoo",
    }
    system = {
        "python": "3.13.1",
        "jax": "0.12.0",
        "jaxlib": "0.12.0",
        "numpy": "2.4.0",
        "gymnasium": "1.4.0",
        "platform": "Linux-6.1-x86_64",
        "cpu": "AMD EPYC 7B13",
        "cores": 2,
        "device": "cpu",
        "xla_flags": "--xla_cpu_enable_fast_math=false",
        "hostname": "secret-host",
        "git": "0123456789abcdef0123456789abcdef01234567+",
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "system.json").write_text(json.dumps(system))
    (path / "command.txt").write_text(
        f"polyak train {algorithm.lower()} {env} --steps 100_000 --seeds {seeds} --out runs/ppo/CartPole-v1_1\n"
    )


def write_summary(path: Path, algorithm: str, env: str, finals: list[float], episodes: int, tier: int) -> None:
    low, high = interval(finals)
    one = len(finals) == 1
    result = {"iqm": iqm(finals), "ci_low": None if one else low, "ci_high": None if one else high}
    summary = {
        "algorithm": algorithm,
        "env": env,
        "seeds": list(range(len(finals))),
        "steps": STEPS,
        "eval": result | {"mean": float(np.mean(finals)), "per_seed": finals, "episodes": episodes},
        "time": {"fps": 21_345.6, "compile_s": 3.21, "total_s": 83.4},
        "state_hash": "b3c1" * 16,
        "exact": tier < 3,
        "tier": tier,
    }
    (path / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def run_folder():
    """The function that writes a made-up run folder."""
    return folder
