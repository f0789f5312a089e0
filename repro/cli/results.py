"""What the records say: aggregate, figures, report, claims, audit."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from repro.cli.options import FOLDER, TABLE, end_if_damaged, places, write
from repro.errors import UsageError

if TYPE_CHECKING:
    from repro.commands.aggregate import AnyFormat
    from repro.commands.context import Context


@click.command()
@places
@click.option("--format", "form", default="markdown", show_default=True,
              type=click.Choice(["markdown", "latex", "macros", "csv", "json", "parquet"]))  # fmt: skip
@click.option("--table", "tables", type=TABLE, multiple=True,
              help="1, 2, 3 or a name; repeatable.  [default: the paper's]")  # fmt: skip
@click.option("--extended", is_flag=True,
              help="Losses beyond the paper also where none has a record yet.")  # fmt: skip
@click.option("--study", "studies", multiple=True, metavar="NAME",
              help="`ambiguities` or a point of it: where alternatives move a cell.")  # fmt: skip
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="A file instead of stdout.")
def aggregate(
    context: "Context",
    form: "AnyFormat",
    tables: tuple[int | str, ...],
    studies: tuple[str, ...],
    extended: bool,
    output: Path | None,
) -> None:
    """Make the tables: mean ± sample std of the seeds, beside what the paper reports.

    macros: a LaTeX macro a number, for a paper that \\input's them. parquet needs --output.

    A damaged record is never averaged; the table names it and the exit code is 4.
    """
    from repro.commands.aggregate import aggregate_studies, aggregate_tables

    if form == "parquet" and output is None:
        raise UsageError("Parquet is no text to print: name a file with --output")
    if tables and studies:
        raise UsageError("--table and --study exclude one another")
    text: str | bytes
    if studies:
        text, damaged = aggregate_studies(context, studies, form)
    else:
        text, damaged = aggregate_tables(context, tables, form, extended=extended)
    if output is None:
        click.echo(text, nl=False)
    else:
        write(output, text)
        click.echo(f"wrote {output}", err=True)
    end_if_damaged(damaged)


@click.command()
@places
@click.option("--output", type=FOLDER, help="Folder.  [default: the project's figures/<preset>/]")
def figures(context: "Context", output: Path | None) -> None:
    """Draw Figures 2 and 3, the training curves and the gradient norms from the records, as PNG and PDF."""
    from repro.commands.aggregate import make_figures

    written, notices = make_figures(context, output)
    for path in written:
        click.echo(path)
    for notice in notices:
        click.echo(f"repro: {notice}", err=True)


@click.command()
@places
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path),
              help="The file.  [default: the preset's results folder, report.html]")  # fmt: skip
def report(context: "Context", output: Path | None) -> None:
    """Write one HTML file with the tables, every run behind them, the figures, cost, and what is open.

    It needs no network and nothing beside it. A damaged record is never averaged; it is named, and the exit
    code is 4.
    """
    from repro.commands.report import write_report

    path, damaged = write_report(context, output)
    click.echo(path)
    end_if_damaged(damaged)


@click.command()
@places
@click.option("--json", "as_json", is_flag=True, help="For programs: every cell and claim in full.")
def claims(context: "Context", as_json: bool) -> None:
    """Judge the paper's claims, and each of its cells, by the records there are.

    The rules are experiments/claims.toml; docs/statistics.md has the formulas.
    """
    from repro.analysis.verdict_text import claims_text, judgement_json
    from repro.commands.judge import judge

    judged = judge(context)
    write = judgement_json if as_json else claims_text
    click.echo(write(judged.claims, judged.cells, context.preset, judged.rules), nl=False)
    end_if_damaged(judged.damaged)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def audit(as_json: bool) -> None:
    """Audit the paper by its own printed numbers; needs no record."""
    from repro.analysis.verdict_text import audit_json, audit_text
    from repro.commands.context import Context
    from repro.commands.judge import audit as audit_numbers

    context = Context.open("paper")
    found = audit_numbers(context)
    click.echo(audit_json(found) if as_json else audit_text(found, context.registry), nl=False)
