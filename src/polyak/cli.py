"""The command line. Its flags are the fields of the dataclasses; jax is imported only once there is something to run.

A mistake is one sentence on stderr and exit code 2. `POLYAK_TRACEBACK=1` or `--verbose` shows tracebacks instead.
"""

import argparse
import difflib
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from polyak import catalogue, compat, values
from polyak.errors import PolyakError, RunError, nearest
from polyak.names import ours

if TYPE_CHECKING:
    from polyak.runs.session import Run

_NEGATIVE = re.compile(r"-(\d|\.\d|inf)[\w.+-]*")
_DEVICES = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
_INTERNAL_ERROR = 70  # sysexits.h: the fault is ours
Arguments = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are PolyakErrors, and whose unknown flags are answered with the nearest one."""

    def error(self, message: str) -> NoReturn:
        raise PolyakError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`")


class Verb(NamedTuple):
    help: str
    parser: Callable[[Parser, list[str]], None]  # adds the flags; given the words, for `train` needs the algorithm
    run: Callable[[Arguments], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    0; 2: bad input; 3: an environment's fault; 4: a run's files; 70: a fault of polyak's; 130: Ctrl-C.
    """
    words = [*(sys.argv[1:] if argv is None else argv)]
    shown = "--verbose" in words or os.environ.get("POLYAK_TRACEBACK", "0") not in ("", "0")
    try:
        return _command(words)
    except SystemExit as stop:  # argparse's --help, and a run that was interrupted
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        return _failed("interrupted", 130)
    except BrokenPipeError:  # `polyak list | head`: nobody reads on, which is no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:
        if shown:
            traceback.print_exc()
        if isinstance(error, PolyakError):
            return _failed(str(error), error.exit_code)
        return _failed(f"unexpected {type(error).__name__}: {error} (--verbose shows where)", _INTERNAL_ERROR)


def _failed(sentence: str, code: int) -> int:
    from polyak.runs.sinks import escape

    print(f"polyak: {escape(sentence)}", file=sys.stderr)
    return code


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _overview()
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"polyak {version('polyak')}")
        return 0
    if words[0] not in VERBS:
        what = "flag" if words[0].startswith("-") else "verb"
        raise PolyakError(f"there is no {what} {words[0]!r}{nearest(words[0], VERBS)}; there are {', '.join(VERBS)}")
    return VERBS[words[0]].run(_arguments(words[0], words[1:]))


def _arguments(verb: str, words: list[str]) -> Arguments:
    """The arguments of a verb. Flags may be spelled with _ or -, and negative numbers may follow them."""
    options: dict[str, Any] = {"color": False} if sys.version_info >= (3, 14) else {}
    parser = Parser(prog=f"polyak {verb}", description=VERBS[verb].help, allow_abbrev=False, **options)
    parser.formatter_class = partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=_width())
    words = _spelled(words)
    VERBS[verb].parser(parser, words)
    parser.usage = f"polyak {verb} {_POSITIONAL[verb]}[FLAG ...]"
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    arguments, rest = parser.parse_known_args(words)
    if rest:
        raise PolyakError(_unexpected(verb, parser, arguments, rest))
    return arguments


def _spelled(words: list[str]) -> list[str]:
    spelled: list[str] = []
    for word in words:
        if spelled and _NEGATIVE.fullmatch(word) and spelled[-1].startswith("--") and "=" not in spelled[-1]:
            spelled[-1] += f"={word}"  # or argparse would take -1e-3 for a flag
        elif word.startswith("--"):
            flag, equals, value = word.partition("=")
            spelled.append(flag.replace("_", "-") + equals + value)
        else:
            spelled.append(word)
    return spelled


def _unexpected(verb: str, parser: Parser, arguments: Arguments, rest: list[str]) -> str:
    """The sentence for what a verb doesn't take: ours for a peer's flag, else the nearest, else "one too many"."""
    flag = next((word.partition("=")[0] for word in rest if word.startswith("-")), None)
    place = parser.prog.removeprefix("polyak ")
    if flag is None:
        return f"{place} does not take {rest[0]!r}; see `{parser.prog} --help`"
    flags = re.findall(r"(?<![\w-])--[a-z][\w-]*", parser.format_help())
    known = [name.removeprefix("--") for name in flags]
    word = flag.lstrip("-")
    if (own := ours(word.replace("-", "_"), [name.replace("-", "_") for name in known])) is not None:
        return f"{place} has no {flag}; here it is --{own.replace('_', '-')}"
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"{place} has no {flag}" + (f"; did you mean --{close[0]}?" if close else f"; see `{parser.prog} --help`")


def _width() -> int:
    return min(110, max(60, int(os.environ.get("COLUMNS", "0") or 0) or _terminal_width()))


def _terminal_width() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:
        return 100


def _overview() -> None:
    print("polyak: reinforcement learning in JAX\n\nUsage: polyak VERB ...\n")
    for name, verb in VERBS.items():
        print(f"  {name:<9}{verb.help}")
    print("\n`polyak VERB --help` gives a verb's flags, `polyak train ppo --help` an algorithm's hyper-parameters.")
    print("Start here: polyak train ppo CartPole-v1 --steps 20_000")


# ------------------------------------------------------------------------------------------------------------- flags


def _train_flags(parser: Parser, words: list[str]) -> None:
    names = catalogue.algorithms()
    parser.add_argument("algo", nargs="?", help=f"the algorithm: {', '.join(names)}")
    parser.add_argument("env", nargs="?", help="the environment: CartPole-v1, jax:CartPole-v1, ale:Pong, ...")
    _run_flags(parser)
    _environment_flags(parser)
    _output_flags(parser)
    algorithm = _algorithm_in(words)
    if algorithm is not None:
        parser.prog += f" {algorithm.name}"
        _field_flags(parser, algorithm)
    else:
        parser.epilog = f"`polyak train {next(iter(names))} --help` adds the hyper-parameters of that algorithm."


def _run_flags(parser: Parser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--steps", **_whole("--steps"), help="environment steps, summed over environments, per seed")
    run.add_argument("--seed", **_whole("--seed"), default=0, help="the first seed (0)")
    run.add_argument(
        "--seeds", type=partial(values.seeds, "--seeds"), default=1, metavar="N|A,B,..", help="how many, or which (1)"
    )
    run.add_argument("--n-envs", **_whole("--n-envs"), help="environments side by side, per seed")
    run.add_argument("--preset", default="default", metavar="NAME", help="tuned values for this environment (default)")
    run.add_argument("--no-preset", dest="preset", action="store_const", const=None, help="use none")
    run.add_argument(
        "--normalise", action=argparse.BooleanOptionalAction, help="standardise observations, scale rewards"
    )
    run.add_argument("--device", **_word("--device", *_DEVICES), help="what jax computes on (its own choice)")
    cranks = _word("--crank", "auto", "compiled", "host")
    run.add_argument("--crank", **cranks, default="auto", help="compiled: jax worlds; host: any (auto)")
    run.add_argument(
        "--seeds-mode", **_word("--seeds-mode", "vmap", "map"), default="vmap",
        help="several seeds on the compiled crank: vmap fast, map equal to one alone (vmap)",
    )  # fmt: skip
    run.add_argument(
        "--log-style", **_word("--log-style", "sb3", "cleanrl"), default="sb3",
        help="whose names metrics have in TensorBoard and progress.csv (sb3)",
    )  # fmt: skip


def _environment_flags(parser: Parser) -> None:
    env = parser.add_argument_group("environment")
    env.add_argument(
        "--deadline",
        type=partial(values.number, "--deadline"),
        metavar="SECONDS",
        help="how long one call into an environment may take; 0: for ever (60)",
    )
    env.add_argument(
        "--workers", **_whole("--workers"),
        help="processes that step the environments of a seed; 0: none (as many as pay, by the time of a step)",
    )  # fmt: skip
    _kwargs_flag(env)
    _import_flag(env)


def _kwargs_flag(env: Any) -> None:
    env.add_argument(
        "--env-kwargs", nargs="+", action="extend", type=partial(values.pair, "--env-kwargs"), default=[],
        metavar="KEY:VALUE", help="arguments of the environment",
    )  # fmt: skip


def _output_flags(parser: Parser) -> None:
    out = parser.add_argument_group("evaluation and output")
    out.add_argument("--log-freq", **_whole("--log-freq"), help="steps between rows of metrics (a hundredth)")
    out.add_argument("--eval-freq", **_whole("--eval-freq"), help="steps between evaluations; 0: only at the end")
    out.add_argument("--eval-episodes", **_whole("--eval-episodes"), help="episodes of each")
    out.add_argument("--n-eval-envs", **_whole("--n-eval-envs"), help="environments side by side in them")
    out.add_argument("--save-freq", **_whole("--save-freq"), help="steps between checkpoints (by the clock)")
    out.add_argument("--out", type=Path, metavar="DIR", help="the folder of this run")
    _folder_flag(out)
    _progress_flags(out)


def _field_flags(parser: Parser, algorithm: catalogue.Algorithm) -> None:
    """One flag per hyper-parameter; the presets' values stand unless a flag is given."""
    parser.epilog = f"{algorithm.title}\nTakes: {algorithm.takes}"
    groups: dict[str, Any] = {}
    for field in algorithm.fields:
        title = f"{algorithm.cls}, {field.group}" if field.group else algorithm.cls
        group = groups.get(title) or groups.setdefault(title, parser.add_argument_group(title))
        flag = "--" + field.name.replace("_", "-")
        text = f"{field.help} ({field.default})".replace("%", "%%")
        options: dict[str, Any] = {"dest": f"field:{field.name}", "default": argparse.SUPPRESS, "help": text}
        if field.is_bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
            continue
        value = partial(values.field_value, flag, field.annotation, init=algorithm.network_init)
        group.add_argument(flag, type=value, metavar=values.metavar(field.annotation), **options)


def _algorithm_in(words: list[str]) -> catalogue.Algorithm | None:
    """The algorithm that the words name, None where they name none; a name that isn't one is refused."""
    named = [word for word in words if catalogue.is_algorithm(word)]
    if not named:
        named = [word for word in words[:1] if word[:1].isalpha()]
    return catalogue.algorithm(named[0]) if named else None


def _run_place_flags(parser: Parser, words: list[str]) -> None:
    """How a saved run is named: its folder, or algorithm and environment."""
    parser.add_argument("run", nargs="?", help="the run's folder, or an algorithm followed by an environment")
    parser.add_argument("env", nargs="?", help="the environment, after an algorithm")
    parser.add_argument("--exp-id", **_whole("--exp-id"), default=0, help="which run of them; 0: the latest (0)")
    _folder_flag(parser)


def _policy_flags(parser: Parser, words: list[str]) -> None:
    _run_place_flags(parser, words)
    parser.add_argument("--episodes", **_whole("--episodes"), help="how many, per seed")
    parser.add_argument("--deterministic", action="store_true", default=True, help="the greedy action (default)")
    parser.add_argument("--stochastic", dest="deterministic", action="store_false", help="actions as in training")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--load-best", dest="checkpoint", action="store_const", const="best", help="the best checkpoint")
    which.add_argument(
        "--load-checkpoint", dest="checkpoint", **_whole("--load-checkpoint"), help="checkpoint ck.N, not the last one"
    )
    _import_flag(parser)


def _watch_flags(parser: Parser, words: list[str]) -> None:
    _policy_flags(parser, words)
    parser.add_argument("--seed", **_whole("--seed"), help="whose policy (the first seed's)")
    parser.add_argument(
        "--video", nargs="?", type=Path, const=Path(), metavar="FILE",
        help="record a greedy episode instead; to this file (.mp4, or .gif without an encoder), or into the run",
    )  # fmt: skip


def _resume_flags(parser: Parser, words: list[str]) -> None:
    _run_place_flags(parser, words)
    _import_flag(parser)
    _progress_flags(parser)


def _report_flags(parser: Parser, words: list[str]) -> None:
    _run_place_flags(parser, words)
    parser.add_argument("--video", type=Path, metavar="FILE", help="a recording to show")


def _compare_flags(parser: Parser, words: list[str]) -> None:
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="the folders of the runs")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (compare.html)")


def _solve_flags(parser: Parser, words: list[str]) -> None:
    from polyak.solving import METHODS

    parser.add_argument("method", nargs="?", help=", ".join(METHODS))
    parser.add_argument("env", nargs="?", help="one whose model is known: FrozenLake-v1, jax:GridWorld-v0, ...")
    parser.add_argument("--gamma", **_number("--gamma"), default=0.99, help="discount factor (0.99)")
    parser.add_argument("--tol", **_number("--tol"), help="how far from exact the values may be (1e-6)")
    parser.add_argument("--horizon", **_whole("--horizon"), help="steps that are left, for finite-horizon")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder of the solution (runs/solve/...)")
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": True}
    parser.add_argument("-P", "--progress", **switch, help="the live display")
    _folder_flag(parser)
    _kwargs_flag(parser)
    _import_flag(parser)


def _doctor_flags(parser: Parser, words: list[str]) -> None:
    parser.add_argument("--env", metavar="ID", help="check this environment")
    _kwargs_flag(parser)
    _import_flag(parser)
    parser.add_argument("--canary", **_word("--canary", "first", "short"), default="first", help="how thorough (first)")


def _list_flags(parser: Parser, words: list[str]) -> None:
    parser.add_argument("what", nargs="?", metavar="{algorithms,envs,presets,runs}", help="only these")
    _folder_flag(parser)


def _folder_flag(parser: Any) -> None:
    text = "the parent of all runs (runs)"
    parser.add_argument("-f", "--log-folder", type=Path, default=Path("runs"), metavar="DIR", help=text)


def _import_flag(parser: Any) -> None:
    text = "import this package first: it registers environments"
    parser.add_argument("--allow-import", nargs="+", action="extend", default=[], metavar="PKG", help=text)


def _progress_flags(parser: Any) -> None:
    switch = {"action": argparse.BooleanOptionalAction, "default": True}
    parser.add_argument("-tb", "--tensorboard-log", **switch, help="write event files")
    parser.add_argument("--capture-video", **switch, help="record an episode at the end")
    parser.add_argument("-P", "--progress", **switch, help="the live display")
    parser.add_argument("--quiet", action="store_true", help="print nothing but the result")


def _whole(flag: str) -> dict[str, Any]:
    return {"type": partial(values.whole, flag), "metavar": "N"}


def _number(flag: str) -> dict[str, Any]:
    return {"type": partial(values.number, flag), "metavar": "X"}


def _word(flag: str, *choices: str) -> dict[str, Any]:
    return {"type": partial(values.chosen, flag, choices=choices), "metavar": "{" + ",".join(choices) + "}"}


# ------------------------------------------------------------------------------------------------------------- verbs


def _train(arguments: Arguments) -> int:
    if arguments.algo is None or arguments.env is None:
        raise PolyakError("train needs an algorithm and an environment: polyak train ppo CartPole-v1 --steps 100_000")
    if catalogue.is_algorithm(arguments.env):
        raise PolyakError(f"the algorithm comes first: polyak train {arguments.env} {arguments.algo}")
    algorithm = catalogue.algorithm(arguments.algo)
    if arguments.device is not None:
        os.environ["JAX_PLATFORMS"] = _DEVICES[arguments.device]
    given = {key.removeprefix("field:"): value for key, value in vars(arguments).items() if key.startswith("field:")}
    deadline = {} if arguments.deadline is None else {"deadline": arguments.deadline}
    compat.settle()
    from polyak.runs import session
    from polyak.runs.config import decoded

    session.train(
        algorithm.name,
        arguments.env,
        fields={name: decoded(value, f"--{name.replace('_', '-')}") for name, value in given.items()},
        steps=arguments.steps, seed=arguments.seed, seeds=arguments.seeds, n_envs=arguments.n_envs,
        out=arguments.out, log_folder=arguments.log_folder, log_freq=arguments.log_freq,
        eval_freq=arguments.eval_freq, eval_episodes=arguments.eval_episodes, n_eval_envs=arguments.n_eval_envs,
        save_freq=arguments.save_freq, preset=arguments.preset, normalise=arguments.normalise,
        env_kwargs=dict(arguments.env_kwargs), crank=arguments.crank, seeds_mode=arguments.seeds_mode,
        log_style=arguments.log_style, workers=arguments.workers,
        command=shlex.join(["polyak", *sys.argv[1:]]), **deadline, **_session_options(arguments),
    )  # fmt: skip
    return 0


def _resume(arguments: Arguments) -> int:
    path = _place(arguments)
    finished = (path / "summary.json").exists()
    compat.settle()
    from polyak.runs import session

    run = session.resume(path, **_session_options(arguments))
    if finished:
        print(f"{path} is finished: {run.last_line()}")
    return 0


def _session_options(arguments: Arguments) -> dict[str, Any]:
    """What `train` and `resume` share."""
    return {
        "allow_import": tuple(arguments.allow_import),
        "progress": arguments.progress,
        "quiet": arguments.quiet,
        "tensorboard": arguments.tensorboard_log,
        "capture_video": arguments.capture_video,
    }


def _evaluate(arguments: Arguments) -> int:
    run = _loaded(arguments)
    found = run.evaluate(
        100 if arguments.episodes is None else arguments.episodes, deterministic=arguments.deterministic
    )
    interval = "" if found["ci_low"] is None else f" [{found['ci_low']:.2f}, {found['ci_high']:.2f}] 95 %"
    for seed, mean in zip(run.seeds, found["per_seed"], strict=True):
        print(f"seed {seed}: {mean:.2f}")
    kind = "greedy" if arguments.deterministic else "stochastic"
    print(f"IQM {found['iqm']:.2f}{interval}, {len(run.seeds)} seeds × {found['episodes']} {kind} episodes")
    return 0


def _watch(arguments: Arguments) -> int:
    if arguments.video is not None and (arguments.episodes is not None or not arguments.deterministic):
        raise PolyakError("watch --video records one greedy episode; --episodes and --stochastic are for the window")
    run = _loaded(arguments)
    if arguments.video is None:
        for ret in run.watch(
            seed=arguments.seed, episodes=arguments.episodes or 1, deterministic=arguments.deterministic
        ):
            print(f"return {ret:.2f}")
        return 0
    written = run.record(seed=arguments.seed, path=None if arguments.video == Path() else arguments.video)
    if written is None:
        raise PolyakError(f"{run.plan.source.id} does not render, so there is no video")
    print(written)
    return 0


def _loaded(arguments: Arguments) -> "Run":
    """The run that the words name, with the checkpoint that the flags choose."""
    path = _place(arguments)
    compat.settle()
    from polyak.runs import checkpoint, session

    run = session.load(path, allow_import=tuple(arguments.allow_import))
    number = checkpoint.best(path) if arguments.checkpoint == "best" else arguments.checkpoint
    if arguments.checkpoint == "best" and number is None:
        raise RunError(f"{path} has no best checkpoint yet: it was never evaluated while it trained")
    if number is not None:
        run.state(number=number)
    return run


def _report(arguments: Arguments) -> int:
    path = _place(arguments)
    from polyak import report

    print(report.write(path, arguments.video))
    return 0


def _compare(arguments: Arguments) -> int:
    from polyak import report

    print(report.compare(arguments.runs, arguments.out))
    return 0


def _solve(arguments: Arguments) -> int:
    from polyak import solving

    solving.solve(
        arguments.method, arguments.env, gamma=arguments.gamma, tol=arguments.tol, horizon=arguments.horizon,
        env_kwargs=dict(arguments.env_kwargs), allow_import=tuple(arguments.allow_import), out=arguments.out,
        log_folder=arguments.log_folder, command=shlex.join(["polyak", *sys.argv[1:]]), progress=arguments.progress,
    )  # fmt: skip
    return 0


def _verify(arguments: Arguments) -> int:
    path = _place(arguments)
    from polyak.runs.checkpoint import verify

    found = verify(path)
    for name, _, sentence in found:
        print(f"{name:<8}{sentence}")
    bad = [name for name, intact, _ in found if not intact]
    if bad:
        raise RunError(f"{path}: {len(bad)} of {len(found)} checkpoints are not intact: {', '.join(bad)}")
    if not found:
        raise RunError(f"{path} has no checkpoints")
    print("Every checkpoint is intact, which is not to say safe: hashes detect accidents, not attackers.")
    return 0


def _doctor(arguments: Arguments) -> int:
    from polyak import doctor

    if arguments.env is None:
        return doctor.installation(arguments.canary)
    return doctor.environment(arguments.env, dict(arguments.env_kwargs), tuple(arguments.allow_import))


def _list(arguments: Arguments) -> int:
    tables = {"algorithms": _list_algorithms, "envs": _list_envs, "presets": _list_presets}
    if arguments.what == "runs":
        return _list_runs(arguments)
    if arguments.what is not None:
        tables = {name: tables[name] for name in [values.chosen("list", arguments.what, (*tables, "runs"))]}
    for show in tables.values():
        show()
    if arguments.what is None and arguments.log_folder.is_dir():
        print("Runs")
        return _list_runs(arguments)
    return 0


def _list_algorithms() -> None:
    print("Algorithms")
    for name, algorithm in catalogue.algorithms().items():
        print(f"  {name:<9}{algorithm.title.removeprefix(f'{algorithm.cls}: ')}\n           takes {algorithm.takes}")


def _list_envs() -> None:
    print("Environments\n  any id that Gymnasium knows, for instance CartPole-v1 or HalfCheetah-v5")
    print("  ale:GAME       Atari from pixels, with the preprocessing of 2013, for instance ale:Pong")
    print("  envpool:ID     EnvPool's, where it is installed")
    print(f"  jax:ID         compiled: {', '.join(catalogue.worlds())}")


def _list_presets() -> None:
    from polyak.presets import PRESETS

    print("Presets")
    for (algorithm, env), named in PRESETS.items():
        for name, preset in named.items():
            print(f"  {algorithm:<5}{env:<26}{name:<10}{preset.steps:>12,} steps   {preset.source}")


def _list_runs(arguments: Arguments) -> int:
    from polyak.runs import folder
    from polyak.runs.sinks import escape

    for run in folder.runs(arguments.log_folder):
        print(("" if arguments.what else "  ") + escape(str(run)))
    return 0


def _place(arguments: Arguments) -> Path:
    """The run that the words name."""
    if arguments.run is None:
        raise PolyakError("name a run: its folder, such as runs/ppo/CartPole-v1_1, or an algorithm and an environment")
    from polyak.runs import folder

    algo = arguments.run if arguments.env is None else catalogue.algorithm(arguments.run).name
    return folder.find(algo, arguments.env, arguments.exp_id, arguments.log_folder)


VERBS: dict[str, Verb] = {
    "train": Verb("train an algorithm on an environment, with one or several seeds", _train_flags, _train),
    "eval": Verb("play episodes with a saved run, and print their returns", _policy_flags, _evaluate),
    "watch": Verb("see a saved run play, in a window or as a video", _watch_flags, _watch),
    "resume": Verb("continue a run exactly where its last checkpoint stands", _resume_flags, _resume),
    "report": Verb("write a run's report: one HTML file", _report_flags, _report),
    "compare": Verb("write the same page for several runs", _compare_flags, _compare),
    "solve": Verb("compute the exact values of a finite model, and their page", _solve_flags, _solve),
    "doctor": Verb("check the installation, or with --env an environment", _doctor_flags, _doctor),
    "verify": Verb("hash a run's checkpoints again", _run_place_flags, _verify),
    "list": Verb("algorithms, environments, presets, runs", _list_flags, _list),
}

_POSITIONAL = {
    "train": "ALGO ENV ", "solve": "METHOD ENV ", "compare": "RUN RUN ... ", "doctor": "", "list": "[WHAT] ",
    **dict.fromkeys(("eval", "watch", "resume", "report", "verify"), "RUN | ALGO ENV "),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
