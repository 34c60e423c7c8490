"""The `parallax` command. Parses, then loads only what the chosen command needs: `--help` imports no Textual."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, get_args

from node.errors import ParallaxError, UsageError, exit_code, sentence

if TYPE_CHECKING:
    from node.home import Home  # its libraries wait until main() is there to answer ctrl-c

Problem = Callable[[], str | None]
"""The last words of a node that we started, once it has ended."""

INTERRUPTED = 130

EPILOG = """\
exit codes: 0 done; 1 failed; 2 a wrong option, setting or token, or the model does not fit; 3 a node already runs
here; 4 no node runs here; 5 model files; 6 engine; 7 swarm; 8 the request was refused or lost a node; 129 the terminal
was closed; 130 ctrl-c; 143 SIGTERM; a node that a signal asks to leave ends with 0

folders: PARALLAX_HOME moves keys, settings and sockets; PARALLAX_MODELS moves the weights alone
"""


class _Paragraphs(argparse.HelpFormatter):
    """Keeps the paragraphs of a text apart, and wraps each to the terminal's width."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(paragraph, width, indent) for paragraph in text.split("\n\n"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; so do we
        return 0
    except (ParallaxError, OSError, MemoryError) as error:
        print(f"parallax: {sentence(error)}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    if list(arguments[:1]) == ["node"]:
        from node.early_end import end_quietly_on_signals

        end_quietly_on_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # names, answers and paths may hold what this console cannot show; that is no reason to lose the rest
        sys.stdout.reconfigure(errors="replace")
    options = build_parser().parse_args(arguments)
    return int(options.run(options))


def build_parser() -> argparse.ArgumentParser:
    """Every command and option."""
    from node.command_line import add_node_options
    from node.wire.plans import Objective

    parser = argparse.ArgumentParser(
        prog="parallax",
        description="Pools your machines into one large language model. Without a command: the terminal app.",
        epilog=EPILOG,
        formatter_class=_Paragraphs,
        allow_abbrev=False,
    )
    parser.set_defaults(run=_app_or_question, parser=parser)
    parser.add_argument("--version", action="version", version=f"parallax {_version()}")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="answer TEXT on stdout and leave; stdin is appended")
    parser.add_argument("--max-tokens", type=_positive, metavar="N", help="with -p: at most N tokens")
    parser.add_argument(
        "--temperature", type=_temperature, metavar="T", help="with -p: above 0 varies the answer (default: 0)"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="with -p: the same seed gives the same answer")
    parser.add_argument("--json", action="store_true", help="with -p: answer, usage and latency as JSON")
    parser.add_argument("--model", help="for a node that this command starts: name, GGUF file, folder or hub id")
    parser.add_argument(
        "--dtype", choices=("auto", "fp32", "bf16", "fp16"), help="for a node that this command starts (default: auto)"
    )
    parser.add_argument(
        "--quantize",
        choices=("auto", "none", "int8", "int4"),
        help="what becomes of weights on a node that this command starts (default: auto)",
    )
    parser.add_argument(
        "--local-nodes", type=_positive, metavar="N", help="split the model over N node processes on this machine"
    )
    parser.add_argument("--theme", metavar="NAME", help="of the terminal app")
    parser.add_argument("--slow-link", action="store_true", help="paint less: for a slow ssh connection")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    node = _command(commands, "node", "run a headless member of a swarm", _run_node)
    add_node_options(node)
    invite = _command(commands, "invite", "print a token that lets another machine join", _run_invite)
    invite.add_argument("--data-dir", metavar="DIR", help="of the node to ask (also: PARALLAX_HOME)")
    status = _command(commands, "status", "show nodes, layers and health", _run_status)
    status.add_argument("--json", action="store_true", help="for programs")
    status.add_argument("--once", action="store_true", help="print once, even on a terminal")
    status.add_argument("--data-dir", metavar="DIR", help="of the node to ask (also: PARALLAX_HOME)")
    plan = _command(
        commands,
        "plan",
        "show who would hold which layers and how fast that would be; steer the running swarm",
        _run_plan,
    )
    where = plan.add_mutually_exclusive_group()
    where.add_argument("pool", nargs="?", metavar="POOL.toml", help="the machines: [[node]] and [[link]] tables")
    where.add_argument("--live", action="store_true", help="the machines of the running swarm (the default)")
    plan.add_argument(
        "--model",
        help="a known model such as glm-4.6, or a folder with config.json; default: the running swarm's. Without a "
        "pool and a swarm: the machines that it would take",
    )
    objectives = ("auto", *get_args(Objective))
    plan.add_argument("--objective", choices=objectives, help="default: the swarm's own; with POOL.toml: balanced")
    plan.add_argument(
        "--pin", action="append", default=[], metavar="NAME=A-B", help="NAME shall hold exactly layers A to B"
    )
    plan.add_argument(
        "--cap", action="append", default=[], metavar="NAME=SIZE", help="NAME shall use at most SIZE, such as 6g"
    )
    plan.add_argument(
        "--drain",
        action="append",
        default=[],
        metavar="NAME",
        help="NAME shall give its layers to others, then rest",
    )
    plan.add_argument(
        "--exclude", action="append", default=[], metavar="NAME", help="NAME shall serve nothing from now on"
    )
    plan.add_argument(
        "--reset", action="append", default=[], metavar="NAME", help="take back all that is set for NAME by hand"
    )
    plan.add_argument("--apply", action="store_true", help="change the running swarm; without it nothing is changed")
    plan.add_argument("--json", action="store_true", help="for programs")
    plan.add_argument("--data-dir", metavar="DIR", help="of the node to ask (also: PARALLAX_HOME)")
    engine = _command(commands, "engine", "add what runs models in an environment of its own", _run_engine)
    engine.add_argument("--data-dir", metavar="DIR", help="of the node that shall use it (also: PARALLAX_HOME)")
    engine_actions = engine.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    text = "make its environment: its size is told first, and it can be interrupted and gone on with"
    engine_add = engine_actions.add_parser("add", help=text, description=text, allow_abbrev=False)
    engine_add.add_argument("engine", metavar="NAME", help="sglang: for NVIDIA's chips, under Linux")
    models = _command(commands, "models", "list, fetch, import or remove models", _run_models)
    models.add_argument("--json", action="store_true", help="for programs")
    actions = models.add_subparsers(title="actions", metavar="ACTION", dest="action")
    for action, argument, text in (
        ("list", None, "models on this machine (the default action)"),
        ("pull", "MODEL", "fetch a model: a hub id, or the default one where none is named"),
        ("import", "FILE", "take in a GGUF file or a Hugging Face folder"),
        ("rm", "MODEL", "remove a model's files"),
    ):
        action_parser = actions.add_parser(action, help=text, description=text, allow_abbrev=False)
        action_parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="for programs")
        if argument:
            action_parser.add_argument("argument", metavar=argument, nargs="?" if action == "pull" else None)
        if action == "rm":
            action_parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    text: str,
    run: object,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _version() -> str:
    from node import __version__

    return __version__


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 2.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 2")
    return value


def _run_node(options: argparse.Namespace) -> int:
    from node.command_line import run

    return run(options)


def _run_invite(options: argparse.Namespace) -> int:
    from parallax_tui.headless.node_connection import read_invitation

    print(read_invitation(_home(options.data_dir)))
    # not on stdout, where programs read the token alone
    print(
        "on the other machine: parallax node --join -   then paste that line; it is the swarm's secret", file=sys.stderr
    )
    return 0


def _run_status(options: argparse.Namespace) -> int:
    from parallax_tui.headless.node_connection import read_state
    from parallax_tui.headless.status_report import as_json, as_text
    from parallax_tui.headless.terminal import can_repaint

    home = _home(options.data_dir)
    if options.json or options.once or not can_repaint(sys.stdout):
        state = read_state(home)
        print(as_json(state) if options.json else as_text(state))
        return 0
    from parallax_tui.headless.status_watch import watch

    watch(lambda: as_text(read_state(home)), sys.stdout)
    return 0


def _run_plan(options: argparse.Namespace) -> int:
    from parallax_tui.headless.plan_changes import read_changes
    from parallax_tui.headless.plan_report import PlanQuestion, answer, failure_as_json

    changes = read_changes(options.pin, options.cap, options.drain, options.exclude, options.reset)
    question = PlanQuestion(
        options.pool, options.live, options.model, options.objective, changes, apply=options.apply, as_json=options.json
    )
    try:
        print(answer(question, _home(options.data_dir)))
    except ParallaxError as error:
        if options.json:  # a program reads stdout, people stderr
            print(failure_as_json(error))
        raise
    return 0


def _run_engine(options: argparse.Namespace) -> int:
    from node.environments import add

    add(_home(options.data_dir).data, options.engine, print)
    return 0


def _run_models(options: argparse.Namespace) -> int:
    from node.models.command import run

    argument = getattr(options, "argument", None)
    asks = not getattr(options, "yes", False) and sys.stdin is not None and sys.stdin.isatty()
    return run(options.action or "list", argument, _home().models, as_json=options.json, asks=asks)


def _home(data_dir: str | None = None) -> Home:
    from node.home import Home

    return Home.from_environment(data_dir)


def _app_or_question(options: argparse.Namespace) -> int:
    if options.prompt is None:
        for name in ("max_tokens", "temperature", "seed"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} goes with -p")
        if options.json:
            raise UsageError("--json goes with -p")
        return _run_app(options)
    return _run_question(options)


def _run_question(options: argparse.Namespace) -> int:
    from parallax_tui.headless.one_question import Question, ask
    from parallax_tui.headless.orderly_end import ending_in_order
    from parallax_tui.headless.piped import readable, with_stdin

    prompt = with_stdin(readable(options.prompt))
    temperature = options.temperature or 0.0  # a command gives the same answer each time, unless asked not to
    question = Question(prompt, options.max_tokens, temperature, options.seed, options.json)
    with ending_in_order(), _serving(options, ["--api", "off"]) as (home, problem):
        ask(home, question, problem, sys.stdout)
    return 0


def _run_app(options: argparse.Namespace) -> int:
    if options.slow_link:
        # Textual reads these when it is imported: fewer paints and colours, no animation.
        os.environ |= {"TEXTUAL_FPS": "4", "TEXTUAL_COLOR_SYSTEM": "standard", "TEXTUAL_ANIMATIONS": "none"}
    if options.theme is not None:
        _check_theme(options.theme)  # before a node is started for nothing
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("the terminal app needs a terminal; `parallax -p TEXT` answers without one")
    if os.environ.get("TERM") == "dumb":
        raise UsageError("TERM is dumb: the app cannot place text there; `parallax -p TEXT` answers without that")
    from parallax_tui.headless.orderly_end import ending_in_order

    with ending_in_order() as ending, _serving(options, [], wait=False) as (home, problem):
        from parallax_tui.app import ParallaxApp
        from parallax_tui.app_log import log_to

        log_to(home.data)
        app = ParallaxApp(home, child_problem=problem, theme=options.theme, slow_link=options.slow_link)
        ending.act = app.end
        app.run()
        return ending.code or app.return_code or 0


def _check_theme(name: str) -> None:
    from parallax_tui.theming import themes_of

    themes = themes_of(_home())
    if name not in themes.by_name:
        problems = "".join(f"; {problem}" for problem in themes.problems)
        raise UsageError(f"--theme {name!r} is not there; there are {', '.join(sorted(themes.by_name))}{problems}")


@contextmanager
def _serving(options: argparse.Namespace, extra: list[str], *, wait: bool = True) -> Iterator[tuple[Home, Problem]]:
    """A home whose node runs: the one that runs already, or one of ours for as long as the block lasts."""
    from parallax_tui.headless.child_nodes import child_node, local_nodes
    from parallax_tui.headless.node_connection import answers

    home = _home()
    node_options = _node_options(options)
    if options.local_nodes is not None:
        with local_nodes(options.local_nodes, home.models, node_options) as local:
            yield local.home, local.problem
    elif answers(home):
        if node_options:
            raise UsageError(f"a node already runs here; {node_options[0]} is for a node that this command starts")
        yield home, lambda: None
    else:
        with child_node(home, [*node_options, *extra]) as child:
            if wait:
                child.wait_until_it_answers()
            yield home, child.problem


def _node_options(options: argparse.Namespace) -> list[str]:
    given: list[str] = []
    if options.model:
        given += ["--model", options.model]
    if options.dtype:
        given += ["--dtype", options.dtype]
    if options.quantize:
        given += ["--quantize", options.quantize]
    return given


if __name__ == "__main__":
    sys.exit(main())
