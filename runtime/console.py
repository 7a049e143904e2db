"""Shared CLI helpers: running an app, reporting errors, parsing sizes and batch ranges."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import math
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import typer

from runtime.artefact.card import BatchRange
from runtime.artefact.card_values import MAX_BATCH, MAX_SIDE
from runtime.artefact.untrusted import clean
from runtime.errors import EsnetError, InvalidInput

Command = TypeVar("Command", bound=Callable[..., None])

EXIT_CODES = "Exit codes: 0 ok, 1 a check failed, 2 bad input, 3 not installed."
_CHECK_PATH = "check that the path exists, is writable, and has free space"
_BAD_INPUT, _NOT_INSTALLED = 2, 3
_MAX_MESSAGE = 600
_LEAST_BYTES = 1 << 20
# Library that a command imports on use -> the extra that installs it.
_EXTRAS = {
    "PIL": "export",
    "lightning": "train",
    "matplotlib": "report",
    "onnx": "export",
    "onnxruntime": "cpu",
    "safetensors": "export",
    "torch": "export",
    "yaml": "export",
}
# Typer bundles Click in some versions and exports this class's parent in none.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]
# OpenCV and its FFmpeg read these when they load. We report unreadable files ourselves.
_QUIET_OPENCV = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}


def new_app(help_text: str, *, is_group: bool = False, **settings: Any) -> typer.Typer:
    """Create a Typer app that prints plain text and leaves errors to ``run_app``.

    Args:
        help_text: First paragraph of ``--help``.
        is_group: True for an app with several commands, which gets the common options itself, too.
        settings: Further settings of the app.
    """
    app = typer.Typer(
        help=help_text,
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )
    if is_group:
        app.callback()(_with_common_options(lambda: None))
    return app


def command(
    app: typer.Typer,
    name: str | None = None,
    *,
    examples: Sequence[str],
    groups: Mapping[str, str],
    epilog: str = EXIT_CODES,
    **settings: Any,
) -> Callable[[Command], Command]:
    """Register a function as a command of an app, with ``--version`` and ``--debug``.

    Args:
        app: The app.
        name: Name of the command; ``None`` takes that of the function.
        examples: Command lines to show in ``--help``.
        groups: Title to the parameters, separated by spaces, that ``--help`` shows under it.
        epilog: Last line of ``--help``.
        settings: Further settings of the command.
    """
    titles = {parameter: title for title, names in groups.items() for parameter in names.split()}
    lines = "\n\n".join(["Examples:", *examples, epilog])

    def register(function: Command) -> Command:
        grouped = _with_common_options(function, titles)
        app.command(name, epilog=lines, **settings)(grouped)
        return function

    return register


def _with_common_options(
    function: Callable[..., None], titles: Mapping[str, str] | None = None
) -> Callable[..., None]:
    """Add ``--version`` and ``--debug`` to the parameters of a command, and group its options by title."""

    @functools.wraps(function)
    def call(*, version: bool, debug: bool, **arguments: Any) -> None:
        for name, value in arguments.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidInput(f"--{name.replace('_', '-')} {value} is not a finite number")
        function(**arguments)

    hints = get_type_hints(function, include_extras=True)
    parameters = {
        parameter.name: parameter.replace(
            annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY
        )
        for parameter in inspect.signature(function).parameters.values()
    }
    for name, title in (titles or {}).items():
        hint: Any = parameters[name].annotation
        info = copy.copy(hint.__metadata__[0])
        info.rich_help_panel = title
        annotation = Annotated.__class_getitem__((hint.__origin__, info))  # type: ignore[attr-defined]
        parameters[name] = parameters[name].replace(annotation=annotation)
    common = inspect.signature(_common_options, eval_str=True).parameters
    signature = inspect.Signature([*parameters.values(), *common.values()])
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return call


def _print_version(is_asked: bool) -> None:
    if not is_asked:
        return
    try:
        number = metadata.version("esnet-deploy")
    except metadata.PackageNotFoundError:
        number = "not installed, run from its source folder"
    typer.echo(f"esnet-deploy {number}")
    raise typer.Exit


def _common_options(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error, too.")
    ] = False,
) -> None:
    """Options of every command; ``run_app`` handles ``--debug``."""


def run_app(app: Callable[[], Any]) -> NoReturn:
    """Run a Typer app and exit. Usage errors, ``EsnetError`` and ``OSError`` become a line and a hint.

    Ctrl-C and SIGTERM end the command by ``SystemExit`` 130 and 143, so that it removes its temporary files.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be valid text
            stream.reconfigure(errors="backslashreplace")
    with _ending_signals():
        _run_app(app)


@contextmanager
def _ending_signals() -> Iterator[None]:
    """Turn the first signal into ``SystemExit``; one that the parent process ignores stays ignored."""
    received = []

    def end(number: int, frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)  # a second one ends a command that hangs
        received.append(number)
        sys.exit(128 + number)

    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.getsignal(number) for number in numbers}
    before = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:  # also if a library made another error of it
            sys.exit(128 + received[0])


def _run_app(app: Callable[[], Any]) -> NoReturn:
    is_debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    if not is_debug:
        os.environ.update(_QUIET_OPENCV)
    exit_code: object = 0
    try:
        exit_code = app(standalone_mode=False) if isinstance(app, typer.Typer) else app()
    except _UsageError as error:
        _fail_usage(error)
    except (EsnetError, OSError) as error:
        if is_debug:
            traceback.print_exc()
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        hint = getattr(error, "hint", _CHECK_PATH)
        _fail(message, hint, getattr(error, "exit_code", _BAD_INPUT))
    except MemoryError:
        if is_debug:
            traceback.print_exc()
        _fail("out of memory", "use a smaller size, batch or image", _BAD_INPUT)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            raise
        if is_debug:
            traceback.print_exc()
        _fail(
            f"this command needs {library}, which is not installed",
            f"pip install 'esnet-deploy[{_EXTRAS[library]}]'",
            _NOT_INSTALLED,
        )
    sys.exit(exit_code if isinstance(exit_code, int) else 0)


def _fail_usage(error: Any) -> NoReturn:
    """Report a usage error of Typer; its message is empty if it has printed the help instead."""
    message = error.format_message().strip().rstrip(".").replace("Value error, ", "")
    if not message:
        sys.exit(_BAD_INPUT)
    command = error.ctx.command_path if error.ctx else os.path.basename(sys.argv[0])
    _fail(message[0].lower() + message[1:], f"{command} --help", _BAD_INPUT)


def _fail(message: str, hint: str | None, exit_code: int) -> NoReturn:
    message = clean(" ".join(message.split()))
    if len(message) > _MAX_MESSAGE:  # both ends: names come first, reasons last
        half = _MAX_MESSAGE // 2
        message = f"{message[:half]} ... {message[-half:]}"
    hint = hint and clean(hint)
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(exit_code)


def parse_height_width(text: str, option: str) -> tuple[int, int]:
    """Parse ``HxW``, such as ``480x640``; hints name the command's ``option``.

    Raises:
        InvalidInput: Another format.
    """
    match = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", text)
    if match is None:
        raise InvalidInput(
            f"size {text!r} is not HEIGHTxWIDTH", hint=f"for example {option} 512x1024"
        )
    return int(match[1]), int(match[2])


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    """Parse the ``HxW`` of a network's input; see ``parse_height_width``.

    Raises:
        InvalidInput: Another format, or not multiples of 8.
    """
    height, width = parse_height_width(text, option)
    if max(height, width) > MAX_SIDE:
        raise InvalidInput(f"size {text} is larger than {MAX_SIDE}x{MAX_SIDE}")
    if height < 8 or width < 8 or height % 8 or width % 8:
        near = f"{max(8, round(height / 8) * 8)}x{max(8, round(width / 8) * 8)}"
        raise InvalidInput(
            f"size {text} must be multiples of 8 in height and width: ESNet halves its input three times",
            hint=f"the nearest is {option} {near}",
        )
    return height, width


def parse_batch(text: str) -> BatchRange:
    """Parse ``MIN:OPT:MAX``, or one number for a fixed batch.

    Raises:
        InvalidInput: Another format, or not 1 <= MIN <= OPT <= MAX.
    """
    parts = text.split(":")
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts) or len(parts) not in (1, 3):
        raise InvalidInput(
            f"batch {text!r} is neither N nor MIN:OPT:MAX", hint="for example --batch 1:1:8"
        )
    low, opt, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    if not 1 <= low <= opt <= high <= MAX_BATCH:
        raise InvalidInput(
            f"batch {text} is out of order: 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}",
            hint="for example --batch 1:1:8",
        )
    return BatchRange(low, opt, high)


def parse_bytes(text: str) -> int:
    """Parse a size such as ``2GiB``, ``512MB`` or a plain number of bytes.

    Raises:
        InvalidInput: Another format, or less than 1 MiB, from which a unit is missing.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([kmgt]?)(i?)b?", text.strip(), re.I)
    if match is None or not float(match[1]):
        raise InvalidInput(
            f"size {text!r} is not a number of bytes", hint="for example --workspace 2GiB"
        )
    power = " kmgt".index(match[2].lower() or " ")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size < _LEAST_BYTES:
        raise InvalidInput(
            f"size {text!r} is {size} bytes", hint=f"did you mean --workspace {match[1]}GiB?"
        )
    return size


def parse_seconds(text: str, option: str) -> float:
    """Parse a duration such as ``30s``, ``5m``, ``1.5h`` or a plain number of seconds; ``inf`` has no end.

    Raises:
        InvalidInput: Another format.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?|inf)\s*([smh]?)", text.strip().lower())
    if match is None:
        raise InvalidInput(f"{text!r} is not a duration", hint=f"for example {option} 30s")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def is_terminal() -> bool:
    """Check that stderr is an interactive terminal, which can show a progress bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
