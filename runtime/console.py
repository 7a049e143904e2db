"""Shared CLI helpers: running an app, reporting errors, parsing sizes and batch ranges."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from runtime.artefact.card import BatchRange
from runtime.errors import EsnetError, InvalidInput

EPILOG = (
    "Exit codes: 0 ok, 1 a check failed, 2 bad input, 3 not installed. --debug shows tracebacks."
)
_CHECK_PATH = "check that the path exists, is writable, and has free space"
_BAD_INPUT, _NOT_INSTALLED = 2, 3
# Library that a command imports on use -> the extra that installs it.
_EXTRAS = {
    "PIL": "export",
    "lightning": "train",
    "matplotlib": "train",
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


def new_app(help_text: str, **settings: Any) -> typer.Typer:
    """Create a Typer app that prints plain text and leaves errors to ``run_app``."""
    return typer.Typer(
        help=help_text,
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def run_app(app: Callable[[], Any]) -> NoReturn:
    """Run a Typer app and exit. Usage errors, ``EsnetError`` and ``OSError`` become a line and a hint."""
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
            raise
        message = " ".join(str(error).split())
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        hint = getattr(error, "hint", _CHECK_PATH)
        _fail(message, hint, getattr(error, "exit_code", _BAD_INPUT))
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if is_debug or library not in _EXTRAS:
            raise
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
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(exit_code)


def parse_height_width(text: str, option: str) -> tuple[int, int]:
    """Parse ``HxW``, such as ``480x640``; hints name the command's ``option``.

    Raises:
        InvalidInput: Another format.
    """
    match = re.fullmatch(r"(\d+)[xX](\d+)", text)
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
    if not all(part.isdecimal() for part in parts) or len(parts) not in (1, 3):
        raise InvalidInput(
            f"batch {text!r} is neither N nor MIN:OPT:MAX", hint="for example --batch 1:1:8"
        )
    low, opt, high = (int(part) for part in (parts * 3 if len(parts) == 1 else parts))
    if not 1 <= low <= opt <= high:
        raise InvalidInput(
            f"batch {text} is out of order: 1 <= MIN <= OPT <= MAX",
            hint="for example --batch 1:1:8",
        )
    return BatchRange(low, opt, high)


def parse_bytes(text: str) -> int:
    """Parse a size such as ``2GiB``, ``512MB`` or a plain number of bytes.

    Raises:
        InvalidInput: Another format, or zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", text.strip(), re.IGNORECASE)
    size = 0
    if match is not None:
        power = " kmgt".index(match[2].lower() or " ")
        size = int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    if size < 1:
        raise InvalidInput(
            f"size {text!r} is not a number of bytes", hint="for example --workspace 2GiB"
        )
    return size


def parse_seconds(text: str, option: str) -> float:
    """Parse a duration such as ``30s``, ``5m``, ``1.5h`` or a plain number of seconds; ``inf`` has no end.

    Raises:
        InvalidInput: Another format.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|inf)\s*([smh]?)", text.strip().lower())
    if match is None:
        raise InvalidInput(f"{text!r} is not a duration", hint=f"for example {option} 30s")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def is_terminal() -> bool:
    """Check that stderr is an interactive terminal, which can show a progress bar."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
