"""Tables as LaTeX: booktabs and nothing else is needed of the document that includes them."""

from collections.abc import Iterable, Sequence

from repro.analysis.tables import TableCell, TableText

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "≠": r"$\neq$",
    "×": r"$\times$", "→": r"$\rightarrow$", "Δ": r"$\Delta$", "·": r"$\cdot$", "√": r"$\surd$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "τ": r"$\tau$", "…": r"\dots{}", "–": "--",
    "—": "---",
    "/": r"\slash{}",  # lets a run id break at the end of a line
}  # fmt: skip


def to_latex(tables: Sequence[TableText]) -> str:
    r"""One `table` environment per table, to be \input by a document that has \usepackage{booktabs}.

    Labels are `tab:table1`, `tab:quick-table1`, ….
    """
    return "% Needs \\usepackage{booktabs}.\n" + "\n".join(map(_table, tables))


def escape(text: str) -> str:
    """`text` as LaTeX prints it literally; a character that pdfLaTeX may lack becomes its code point."""
    return "".join(_SPECIAL.get(letter) or _plain(letter) for letter in " ".join(text.split()))


def _plain(letter: str) -> str:
    # Accented Latin letters are in every font encoding; of the others pdfLaTeX may know nothing.
    accented = "À" <= letter <= "ÿ" and letter not in "ÐÞðþ÷"
    return letter if (letter.isascii() and letter.isprintable()) or accented else f"[U+{ord(letter):04X}]"


def _table(table: TableText) -> str:
    lines = [
        r"\begin{table}[tp]",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape(table.caption)}.}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'l' * len(table.columns)}}}",
        r"\toprule",
        _line(escape(table.corner), map(escape, table.columns)),
        r"\midrule",
    ]
    for index, row in enumerate(table.rows):
        if index:
            begins = row.beyond and not table.rows[index - 1].beyond
            lines.append(r"\midrule" if begins else r"\addlinespace")
        lines.append(_line(escape(row.label), map(_measured, row.cells)))
        lines += [_line(escape(label), map(escape, texts)) for label, texts in row.lower_lines]
    lines += [r"\bottomrule", r"\end{tabular}", r"\par\medskip\begin{minipage}{\linewidth}\sloppy"]
    below = [escape(remark) for remark in table.remarks]
    below += [f"$^{{{number}}}$ {escape(text)}." for number, text in table.notes]
    below += [f"Not counted: {escape(text)}." for text in table.blanks]
    lines += [f"{text}\\par" for text in below]
    lines += [r"\end{minipage}", r"\end{table}"]
    return "\n".join(lines) + "\n"


def _line(label: str, texts: Iterable[str]) -> str:
    return " & ".join([label, *texts]) + r" \\"


def _measured(cell: TableCell) -> str:
    if not cell.value:
        return escape(f"—: {cell.count}")
    value = rf"\textbf{{{escape(cell.value)}}}" if cell.best else escape(cell.value)
    marks = f"$^{{{','.join(map(str, cell.marks))}}}$" if cell.marks else ""
    return f"{value} ({escape(cell.count)}){marks}"
