"""Text, names and tables in Markdown and in LaTeX; whatever is given is shown as it is, and is never markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hpo_cluster.text import in_code, in_latex, in_markdown


class Markup(Protocol):
    """A format of documents."""

    def text(self, text: str) -> str:
        """Return plain text."""
        ...

    def name(self, name: str) -> str:
        """Return a name from a program, in type of its own."""
        ...

    def cite(self, keys: Sequence[str]) -> str:
        """Return a citation with a space before it; empty without keys."""
        ...

    def heading(self, title: str) -> list[str]:
        """Return the lines of a heading."""
        ...

    def table(self, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Return the lines of a table; the cells are marked up already."""
        ...


class Markdown:
    """Markdown, with citations as Pandoc reads them."""

    def text(self, text: str) -> str:
        """Return plain text."""
        return in_markdown(text)

    def name(self, name: str) -> str:
        """Return a name from a program, in type of its own."""
        return in_code(name)

    def cite(self, keys: Sequence[str]) -> str:
        """Return a citation with a space before it; empty without keys."""
        return f" [{'; '.join(f'@{key}' for key in keys)}]" if keys else ""

    def heading(self, title: str) -> list[str]:
        """Return the lines of a heading."""
        return [f"# {in_markdown(title)}", ""]

    def table(self, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Return the lines of a table; the cells are marked up already."""
        lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
        return [f"{caption}:", "", lines[0], "|" + " --- |" * len(head), *lines[1:], ""]


class Latex:
    """LaTeX that needs no packages, with citations for BibTeX."""

    def text(self, text: str) -> str:
        """Return plain text."""
        return in_latex(text)

    def name(self, name: str) -> str:
        """Return a name from a program, in type of its own."""
        return rf"\texttt{{{in_latex(name)}}}"

    def cite(self, keys: Sequence[str]) -> str:
        """Return a citation with a space before it; empty without keys."""
        return rf"~\cite{{{','.join(keys)}}}" if keys else ""

    def heading(self, title: str) -> list[str]:
        """Return the lines of a heading."""
        return [rf"\section{{{in_latex(title)}}}", ""]

    def table(self, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
        """Return the lines of a table; the cells are marked up already."""
        body = [rf"    {' & '.join(cells)} \\" for cells in rows]
        wide = "l" * (len(head) - 1) + r"p{0.45\linewidth}"
        return [
            r"\begin{table}[htbp]",
            r"  \centering",
            rf"  \caption{{{caption}.}}",
            rf"  \begin{{tabular}}{{{wide}}}",
            r"    \hline",
            rf"    {' & '.join(head)} \\",
            r"    \hline",
            *body,
            r"    \hline",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
