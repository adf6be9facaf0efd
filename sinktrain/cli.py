"""The front door: one subcommand a verb. Heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import sinktrain
from sinktrain.base.errors import UserError
from sinktrain.base.secrets import option_secrets, redact

VERBS = {
    "prepare": ("sinktrain.data.prepare", "turn text into tokens"),
    "plan": ("sinktrain.planning.plan", "say whether a run fits, and its speed and cost, before a cluster is booked"),
    "fit": ("sinktrain.training.fit", "train a model with a sink token in front of every sample"),
    "evaluate": ("sinktrain.evaluation.evaluate", "stream a text through a model under a grid of caches"),
    "stream-eval": ("sinktrain.evaluation.recall.streameval", "ask for lines of a stream of lines: StreamEval"),
    "stream-questions": ("sinktrain.evaluation.recall.answering", "answer a file of questions in one long stream"),
    "recall": ("sinktrain.evaluation.recall.curve", "what is remembered of a fact, by distance and cache"),
    "verify": ("sinktrain.evaluation.verify", "say whether one sink is enough: exit 0 proven, 1 not, 2 not judged"),
    "diagnose": ("sinktrain.evaluation.diagnose", "measure where attention goes: Sink_k, maps, massive activations"),
    "export": ("sinktrain.export.export", "write a checkpoint as a plain Hugging Face model"),
    "check-export": ("sinktrain.export.check", "load an export elsewhere and compare it with its checkpoint"),
    "push": ("sinktrain.export.push", "put an export into a repository of the hub, after it passed its checks"),
    "gguf": ("sinktrain.export.gguf", "write an export as a file for llama.cpp"),
    "report": ("sinktrain.reporting.report", "make the page of a run"),
    "generate": ("sinktrain.generation.generate", "go on with a prompt, endlessly, in a memory that does not grow"),
    "chat": ("sinktrain.generation.chat", "talk with a model over one cache that is never reset"),
    "bench stream": ("sinktrain.benchmarks.stream", "time a streamed token against what people do without streaming"),
}
"""Each verb: the module with a function of its name (`bench_stream`, `check_export`), and what it does."""

USER_MISTAKE = 2


def usage() -> str:
    """What `sinktrain --help` prints."""
    lines = [f"  {verb:<18}{help_text}" for verb, (_, help_text) in VERBS.items()]
    return "\n".join(
        [
            "usage: sinktrain VERB [options] [--debug]",
            "",
            (sinktrain.__doc__ or "").strip().splitlines()[0],
            "",
            "verbs, in the order of their use:",
            *lines,
            "",
            "Every option can also stand in a YAML file (--config FILE); --print_config prints them all.",
            "`sinktrain VERB --help` explains the options of a verb. --debug shows the traceback of an error.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb and returns its exit status: 0, or 2 with one sentence on stderr for a mistake in the input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        sys.excepthook = _tell_of_a_bug
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(f"sinktrain {sinktrain.__version__}")
        return 0
    words = 2 if " ".join(arguments[:2]) in VERBS else 1
    verb = " ".join(arguments[:words])
    try:
        return _run(verb, arguments[words:])
    except Exception as error:
        if not _is_mistake(error):
            raise
        if debug:
            print(redact(traceback.format_exc(), also=option_secrets(arguments)), end="", file=sys.stderr)
        print(f"sinktrain {verb}: {redact(_sentence(error), also=option_secrets(arguments))}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print(f"sinktrain {verb}: interrupted", file=sys.stderr)
        return 130


def _tell_of_a_bug(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    """The traceback as Python prints it, without secrets: libraries put whole addresses into their errors."""
    text = "".join(traceback.format_exception(kind, error, trace))
    print(redact(text, also=option_secrets(sys.argv[1:])), end="", file=sys.stderr)


def _run(verb: str, arguments: list[str]) -> int:
    if verb not in VERBS:
        raise UserError(f"{verb!r} is not a verb; use one of {', '.join(VERBS)}.")
    from sinktrain.base.allocator import keep_memory

    keep_memory()
    function = getattr(importlib.import_module(VERBS[verb][0]), re.sub("[ -]", "_", verb))
    if verb == "fit":  # LightningCLI, jsonargparse too, builds its own parser
        function(arguments)
        return 0
    options = _parse(verb, function, arguments)
    signal.signal(signal.SIGTERM, _stop)
    result = function(**options)
    return result if isinstance(result, int) else 0


def _stop(number: int, frame: Any) -> None:
    """Ends a verb on SIGTERM as an exception does, so that what it has half written is removed."""
    sys.exit(128 + number)


def _parse(verb: str, function: Any, arguments: list[str]) -> dict[str, Any]:
    """The keyword arguments of a verb's function, from its signature and docstring."""
    from jsonargparse import ArgumentParser

    summary = (function.__doc__ or "").split("Args:")[0].strip()
    parser = ArgumentParser(prog=f"sinktrain {verb}", description=summary, exit_on_error=False)
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    parser.add_function_arguments(function, as_positional=False)
    parsed = parser.instantiate(parser.parse_args(_named(function, arguments)))
    return {name: value for name, value in vars(parsed).items() if name != "config"}


def _named(function: Any, arguments: list[str]) -> list[str]:
    """Arguments with the names of options: `export FROM TO` is `export --checkpoint FROM --out TO`, by their order.

    What a verb cannot do without may be given so; a verb whose first parameter is a list of paths takes all of them
    (`report RUN RUN`). In names `-` is `_`, and so much of a name is enough as no other begins with. Several words
    behind an option are its value: a list where it takes one; none behind a switch are `true`.
    """
    parameters = list(inspect.signature(function).parameters.values())
    required = [each.name for each in parameters if each.default is each.empty and each.annotation in ("Path", "str")]
    front = next((n for n, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    given = arguments[:front]
    if given and parameters and parameters[0].annotation.startswith("list[Path]"):
        given = [f"--{parameters[0].name}", json.dumps(given)]
        return [*given, *_named(function, arguments[front:])]
    if len(given) > len(required):
        raise UserError(f"{given[len(required)]!r} is no option; options begin with --.")
    annotations = {each.name: str(each.annotation) for each in parameters}
    options = [part for words in _by_option(arguments[front:]) for part in _option(words, annotations)]
    return [*(part for name, value in zip(required, given, strict=False) for part in (f"--{name}", value)), *options]


def _by_option(arguments: list[str]) -> Iterator[list[str]]:
    """Each option with the words behind it."""
    words: list[str] = []
    for argument in arguments:
        if argument.startswith("--") and words:
            yield words
            words = []
        words.append(argument)
    yield from [words] if words else []


def _option(words: list[str], annotations: dict[str, str]) -> list[str]:
    name, equals, value = words[0].partition("=")
    name = name[2:].replace("-", "_") if name.startswith("--") else name
    alike = [each for each in annotations if each.startswith(name)]
    if name not in annotations and len(alike) == 1 and len(name) > 1:
        name = alike[0]
    option = f"--{name}{equals}{value}" if words[0].startswith("--") else words[0]
    if len(words) == 1 and not equals and annotations.get(name) == "bool":
        return [option, "true"]
    if equals or len(words) < 3 or name not in annotations:
        return [option, *words[1:]]
    return [option, json.dumps(words[1:]) if "list" in annotations[name] else " ".join(words[1:])]


def _is_mistake(error: Exception) -> bool:
    """Whether the user can mend it: ours, the parser's, or Lightning's own check of its options."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"UserError", "ArgumentError", "MisconfigurationException"})


def _sentence(error: Exception) -> str:
    """One line, without the parser's advice."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
