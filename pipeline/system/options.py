"""What the command line is made of: the application, and the options that several commands have, declared once.

The only module that knows typer. Commands themselves stand in `cli`, and what they do alike in `commands`.
"""

import logging
import pkgutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipeline import config
from pipeline.system import commands, device
from pipeline.system.device import Precision
from pipeline.system.files import expand_home
from pipeline.system.results import Result


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in ctx.args
        try:
            with commands.failing_in_one_line(as_json):
                return super().invoke(ctx)
        except typer.TyperException as error:  # wrong usage that typer found, and tells of together with the usage
            commands.print_error(error.format_message(), as_json)
            raise


def application(description: str) -> typer.Typer:
    """A command line without commands, whose failures are one line."""
    device.share_cpus()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # pyiqa brings it; its missing CPU kernels concern nobody
    return typer.Typer(
        cls=_Commands,
        help=description,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def command_of(app: typer.Typer) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """The decorator that makes a function a command of `app`, with `--json`, that prints its result (`commands`)."""

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        description, examples = commands.help_of(function)
        add = app.command(commands.name_of(function), help=description, epilog=f"\b\n{examples}")
        add(commands.printing(function, JsonOption))
        return function

    return decorate


def option(meaning: str, *names: str, **more: Any) -> Any:
    """An option; `~` in its value is the user's home."""
    return typer.Option(*names, help=meaning, callback=expand_home, **more)


def argument(name: str, meaning: str) -> Any:
    """A positional argument; `~` in its value is the user's home."""
    return typer.Argument(metavar=name, help=meaning, callback=expand_home, show_default=False)


def _ends(names: str, meaning: str, text: Callable[[], str]) -> Any:
    """An option that prints a text instead of running the command."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(text().rstrip())
            raise typer.Exit

    return typer.Option(names, help=meaning, is_eager=True, callback=show)


def listing(settings: str) -> Any:
    """The option that lists a settings class, `module:name`, which is imported only then."""
    meaning = "Print all settings, their meanings and defaults as TOML."
    return _ends("--settings", meaning, lambda: config.listing(pkgutil.resolve_name(settings)))


CorpusOption = Annotated[str, argument("CORPUS", "Folder of photos at any depth, or: sample")]
CacheOption = Annotated[Path, argument("CACHE", "Folder of a teacher cache.")]
CachePlaceOption = Annotated[str, argument("CACHE", "Folder of a teacher cache, or a URL: s3://...")]
TeacherOption = Annotated[
    str, option("embedded[-bicubic], ldm[:ID], sd-x4[:ID], FOLDER, import:FOLDER, python:FILE:FACTORY")
]
StepsOption = Annotated[int | None, option("Network evaluations an image.  [default: the teacher's]", min=1)]
DeviceOption = Annotated[str, option("Torch device; auto takes a GPU where there is one.")]
PrecisionOption = Annotated[Precision, option("auto takes bf16 where the device computes in it natively.")]
ConfigFiles = Annotated[
    list[Path] | None, option("Settings as TOML; repeatable, the later ones win.", "--config", metavar="FILE")
]
Overrides = Annotated[list[str] | None, option("One setting; repeatable.", "--set", metavar="KEY=VALUE")]
MetricsOption = Annotated[
    str, option("psnr_y, ssim_y, dss, mdsi, haarpsi, cvvdp, ssimulacra2, pyiqa's names; by commas.")
]
VersionOption = Annotated[bool, _ends("--version", "Print the version.", lambda: f"dtkd {version('dtkd')}")]
JsonOption = Annotated[bool, option("Print one JSON object instead of text, and no progress.", "--json")]
ResumeOption = Annotated[bool, option("Go on, or delete what an earlier run left.", "--resume/--fresh")]
OverwriteOption = Annotated[bool, option("Replace what an earlier command wrote.", "--overwrite")]
