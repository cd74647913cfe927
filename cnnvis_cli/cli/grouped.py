"""Help that groups a command's options by what they are about."""

from __future__ import annotations

import click

GROUPS_OF_OPTIONS = {
    "Input": (
        *("model", "weights", "ema", "trust_code", "dataset", "config", "figure__classes"),
        *("topk__class_level", "topk__max_unreadable", "activations__frames"),
        *("activations__every", "score__encoder", "score__encoder_weights"),
        "score__encoder_layer",
    ),
    "What": (),
    "Output": ("run", "as_json", "gallery__title", "activations__size", "filters__save_clipped"),
    "Compute": (
        *("device", "workers", "batch_size", "seed", "shard", "scheduler", "trust_network", "yes"),
        *("topk__decode", "topk__precision", "optimize__precision"),
        *("seconds", "rounds", "frames"),
    ),
    "Logging": ("quiet", "verbose", "log"),
}
"""The parameters of each group, in the order of help; "What" has all others."""
ENDING = ("save", "tone", "scale")  # how parameters about the output are called in any section


def group_of(name: str) -> tuple[str, int]:
    """Return the group of a parameter, and its place there."""
    for title, names in GROUPS_OF_OPTIONS.items():
        if name in names:
            return title, names.index(name)
    section, _, key = name.rpartition("__")
    about_output = section == "figure" or (key in ENDING and section != "search")
    return "Output" if about_output else "What", -1


class Grouped(click.Command):
    """A command whose help lists its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        shown: dict[str, list[tuple[int, tuple[str, str]]]] = {t: [] for t in GROUPS_OF_OPTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                is_help = "--help" in parameter.opts
                title, place = ("Logging", 9) if is_help else group_of(parameter.name or "")
                shown[title].append((place, record))
        for title, records in shown.items():
            if records:
                records.sort(key=lambda each: each[0])  # stable: others stay as declared
                with formatter.section(title):
                    formatter.write_dl([record for _, record in records])
