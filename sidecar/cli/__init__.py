"""The command `lb-sidecar`: parses the words, imports only what the chosen one needs, turns its answer into an exit code.

Exit 0: fine. 1: it ran and the answer is bad, nobody answered, or a right is missing. 2: wrong use or configuration.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Collection, Sequence
from difflib import get_close_matches
from pathlib import Path

from sidecar import __version__

DESCRIPTION = "Health-check sidecar for load balancers: probes, judges, ejects and returns instances, and says why."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser, commands = _parsers()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    if not words[0].startswith("-") and words[0] not in commands:
        near = get_close_matches(words[0], commands, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"lb-sidecar: there is no command {words[0]!r}{hint} (`lb-sidecar --help` lists them)", file=sys.stderr)
        return 2
    arguments = parser.parse_args(words)
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader of our output went away (`| head`): that is no error of ours
        sys.stderr.close()
        return 0
    return code


def build_parser() -> argparse.ArgumentParser:
    """What understands the words of every command."""
    return _parsers()[0]


def _parsers() -> tuple[argparse.ArgumentParser, Collection[str]]:
    """The parser, and the names of its commands."""
    parser = argparse.ArgumentParser("lb-sidecar", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"lb-sidecar {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    _add_init(commands)
    _add_check(commands)
    _add_run(commands)
    from sidecar.cli import client

    client.add_parsers(commands)
    _add_replay(commands)
    _add_report(commands)
    _add_release(commands)
    _add_probe(commands)
    _add_plugin(commands)
    return parser, commands.choices


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str, aliases: Sequence[str] = ()
) -> argparse.ArgumentParser:
    return commands.add_parser(name, aliases=list(aliases), help=text, description=text[:1].upper() + text[1:] + ".")


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "demo", "the whole thing on this machine: instances, a real balancer, faults, the page")
    command.add_argument("--balancer", choices=("haproxy", "nginx"), default="haproxy", help="which one to start (default: haproxy)")
    command.add_argument("--instances", type=int, default=4, metavar="N", help="how many instances, 2 to 20 (default: 4)")
    command.add_argument("--script", action="store_true", help="inject one fault, show it healed, and end")
    command.add_argument("--listen", default="127.0.0.1:8642", metavar="HOST:PORT", help="where the page is served")

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli.demo import demo

        return demo(arguments)

    command.set_defaults(run=run)


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "init", "write a first configuration, in observe mode, from the balancer's own")
    source = command.add_mutually_exclusive_group(required=True)
    source.add_argument("--haproxy", type=Path, metavar="FILE", help="haproxy.cfg")
    source.add_argument("--nginx", type=Path, metavar="FILE", help="nginx.conf")
    command.add_argument("--output", type=Path, metavar="FILE", help="write there instead of standard output; never overwrites")

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli.init import run_init

        return run_init(arguments.haproxy, arguments.nginx, arguments.output)

    command.set_defaults(run=run)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "check", "all problems of a configuration at once, its rights and arithmetic", aliases=["validate"])
    _config(command)
    command.add_argument("--effective", action="store_true", help="every value and where it comes from")
    command.add_argument("--schema", action="store_true", help="the JSON Schema of the configuration")
    command.add_argument("--offline", action="store_true", help="the file alone: do not ask the balancers")
    _output(command)

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli.check import check

        return asyncio.run(check(arguments))

    command.set_defaults(run=run)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "run", "the sidecar itself, in the foreground")
    _config(command)
    command.add_argument("--observe", action="store_true", help="decide and tell, never write, whatever the configuration says")

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli.run import run as serve

        return serve(arguments.config, observe=arguments.observe)

    command.set_defaults(run=run)


def _add_replay(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "replay", "yesterday's facts under tomorrow's configuration: the difference in decisions")
    command.add_argument("journal", nargs="?", type=Path, metavar="JOURNAL", help="a state folder, or its flight recorder folder")
    _state(command)
    command.add_argument("--config", type=Path, metavar="NEW", help="decide by this configuration instead of the recorded one")
    command.add_argument("--since", metavar="TIME", help="from here on: RFC 3339, or an age as 24h")
    command.add_argument("--until", metavar="TIME", help="up to here")
    _output(command)

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli.replay import replay

        return replay(arguments)

    command.set_defaults(run=run)


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "report", "observe's verdict: what would have been done, and how often that was right")
    command.add_argument("--since", default="7d", metavar="AGE", help="how far back (default: 7d)")
    _state(command)
    _output(command)

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli.replay import report

        return report(arguments)

    command.set_defaults(run=run)


def _add_release(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    for name, aliases in (("release", ["release-all"]),):
        command = _command(commands, name, "give back what we have out; with a running sidecar, --all asks that one", aliases=aliases)
        what = command.add_mutually_exclusive_group()
        what.add_argument("--all", action="store_true", help="everything of ours, and freeze so that nothing goes out again")
        what.add_argument("--expired", action="store_true", help="only what a dead sidecar's lease no longer covers (for timers)")
        _config(command)
        _state(command)

        def run(arguments: argparse.Namespace) -> int:
            from sidecar.cli.release import release

            if not arguments.all and not arguments.expired:
                arguments.all = sys.argv[1:2] == ["release-all"]
            return asyncio.run(release(arguments.config, everything=arguments.all, expired=arguments.expired, state=arguments.state))

        command.set_defaults(run=run)


def _add_probe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "probe", "ask one URL once, as the sidecar would: http, https, tcp, tls, grpc")
    command.add_argument("url", metavar="URL", help="as http://10.0.0.5:8080/health or tcp://10.0.0.5:8080")
    command.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="patience (default: 5)")
    _output(command)

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli.probe import probe

        return asyncio.run(probe(arguments))

    command.set_defaults(run=run)


def _add_plugin(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _command(commands, "plugin", "list, start or check balancer plugins")
    verbs = command.add_subparsers(required=True, metavar="VERB")
    listing = verbs.add_parser("list", help="what is installed")
    _output(listing)
    listing.set_defaults(verb="list")
    new = verbs.add_parser("new", help="write a new plugin with its test")
    new.add_argument("name", metavar="NAME", help="as acme: a-z, 0-9 and _")
    new.add_argument("directory", nargs="?", type=Path, metavar="DIRECTORY", help="where to (default: lb-sidecar-NAME)")
    new.set_defaults(verb="new")
    check = verbs.add_parser("check", help="does it keep the contract? With --options it also looks at the balancer once")
    check.add_argument("name", metavar="NAME", help="as `plugin list` shows it, or module:Class")
    check.add_argument("--options", type=Path, metavar="FILE", help="YAML or JSON with the plugin's own keys")
    check.add_argument("--pool", action="append", default=[], metavar="POOL", help="observe this pool; may be repeated (default: all)")
    check.set_defaults(verb="check")

    def run(arguments: argparse.Namespace) -> int:
        from sidecar.cli import plugin

        match arguments.verb:
            case "list":
                return plugin.list_plugins(print, as_json=arguments.output == "json")
            case "new":
                return plugin.new(arguments.name, arguments.directory, print)
            case _:
                return plugin.check(arguments.name, arguments.options, print, pools=arguments.pool)

    command.set_defaults(run=run)


def _config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "config", nargs="?", type=Path, metavar="CONFIG", help="default: $LB_SIDECAR_CONFIG, /etc/lb-sidecar/lb-sidecar.yaml"
    )


def _state(command: argparse.ArgumentParser) -> None:
    command.add_argument("--state", type=Path, metavar="DIR", help="the state folder (default: as the daemon finds it)")


def _output(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", choices=("table", "json"), default="table", help="for people or for machines")
    command.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
